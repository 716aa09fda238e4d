"""Beam search against its definition in plain Python, over a table of scores."""

import functools

import numpy as np
import pytest
from toy_decoder import MAX_TOKENS, V, ask, log_softmax, make_table, spell

from jaxmtl.models.beam_search import BeamSearch
from jaxmtl.models.decoding import Generation, generate

TABLE = make_table(0)
END = 1


def score(text, total, penalty):
    return total / len(text) ** penalty


def reference(logits, beams, penalty, stopping):
    """One input's best text: keeps lists, no arrays; logits [numbers, V]."""
    running, ended = [((), 0.0)], []
    for length in range(1, MAX_TOKENS + 1):
        grown = [
            ((*text, token), total + value)
            for text, total in running
            for token, value in enumerate(log_softmax(logits[spell(text)]))
        ]
        grown.sort(key=lambda one: -one[1])
        is_over = lambda text: text[-1] == END or len(text) == MAX_TOKENS  # noqa: B023 (called in this turn)
        ended += [one for one in grown[:beams] if is_over(one[0])]
        ended = sorted(ended, key=lambda one: -score(*one, penalty))[:beams]
        running = [one for one in grown[: 2 * beams] if not is_over(one[0])][:beams]
        if not running or (stopping is True and len(ended) == beams):
            break
        if len(ended) == beams:
            most = MAX_TOKENS if stopping == "never" and penalty > 0 else length
            if running[0][1] / most**penalty <= score(*ended[-1], penalty):
                break
    return list(ended[0][0])


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_texts_are_those_of_the_definition(length_penalty, early_stopping):
    method = BeamSearch(num_beams=3, length_penalty=length_penalty, early_stopping=early_stopping)
    how = Generation(max_tokens=MAX_TOKENS, method=method)
    for seed in range(8):
        table = make_table(seed)
        expected = [reference(logits, 3, length_penalty, early_stopping) for logits in table]
        assert ask(generate, table, how=how) == expected


def test_enough_beams_find_the_likeliest_of_all_texts():
    @functools.cache
    def best(row, text):
        if text and (text[-1] == END or len(text) == MAX_TOKENS):
            return 0.0, text
        values = log_softmax(TABLE[row, spell(text)])
        options = [(values[token] + best(row, (*text, token))[0], best(row, (*text, token))[1]) for token in range(V)]
        return max(options)

    beams = V ** (MAX_TOKENS - 1)
    method = BeamSearch(num_beams=beams, length_penalty=0.0, early_stopping="never")
    texts = ask(generate, TABLE, how=Generation(max_tokens=MAX_TOKENS, method=method))
    assert texts == [list(best(row, ())[1]) for row in range(len(TABLE))]


def test_an_input_gets_the_same_text_alone_and_among_others():
    how = Generation(max_tokens=MAX_TOKENS, method=BeamSearch(num_beams=2, early_stopping=True))
    table = make_table(5, num_inputs=7)
    alone = [ask(generate, table[row : row + 1], how=how)[0] for row in range(7)]
    assert ask(generate, table, how=how) == alone
    assert len({len(text) for text in alone}) > 1


def test_padding_rows_of_the_vocabulary_are_never_taken_but_normalise():
    table = TABLE.copy()
    table[..., 5] = 9.0  # by far the likeliest
    how = Generation(max_tokens=MAX_TOKENS, method=BeamSearch(num_beams=2))
    texts = ask(generate, table, how=how, num_tokens=5)
    assert all(token < 5 for text in texts for token in text)
    np.testing.assert_array_less(0, [len(text) for text in texts])
