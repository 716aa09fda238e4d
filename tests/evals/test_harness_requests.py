"""Contexts, continuations and options of lm-evaluation-harness, without the harness."""

import dataclasses
import types

import numpy as np
import pytest

from jaxmtl.evals import scoring
from jaxmtl.evals.harness_requests import Coder, Ending, context_limit, ending_of, is_decoder_only
from jaxmtl.evals.lm_eval import Requests
from jaxmtl.models.shifting import shift_right
from jaxmtl.types import InputError, UnknownNameError

ask = lambda *args: types.SimpleNamespace(args=args)


@pytest.fixture(scope="module")
def letters(decoder_only):
    return Coder(tokenizer=decoder_only.tokenizer, one_text=True, max_length=6, count_end=False)


@pytest.fixture(scope="module")
def words(tokenizer):
    return Coder(tokenizer=tokenizer, one_text=False, max_length=1000, count_end=False)


def test_spaces_that_end_a_context_belong_to_the_continuation(letters):
    assert letters.pair("ab", " c") == ([1, 2], [27, 3], False) == letters.pair("ab ", "c")
    assert letters.pair("", "ab") == ([0], [1, 2], False)  # after the end of the text before


def test_an_encoder_reads_special_tokens_and_a_continuation_has_none(words, tokenizer):
    source, target, _ = words.pair("is water wet? ", "yes")
    assert source == tokenizer.encode("is water wet?") and source[-1] == tokenizer.eos_token_id
    assert target == tokenizer.encode(" yes", add_special_tokens=False)
    counted = dataclasses.replace(words, count_end=True)
    assert counted.pair("is water wet? ", "yes")[1] == [*target, tokenizer.eos_token_id]
    assert counted.pair("is it", "")[1] == [tokenizer.eos_token_id]
    with pytest.raises(InputError, match="continuation '' of context ...'is it' has no token"):
        words.pair("is it", "")


def test_what_is_too_long_loses_the_beginning_of_its_context(letters, words, tokenizer):
    # The model reads 6 tokens; of "defgh" all but the last.
    assert letters.pair("abc", "defgh") == ([2, 3], [4, 5, 6, 7, 8], True)
    assert letters.context("abcdefgh", 3) == ([6, 7, 8], True)
    text = "the cat sat on the mat"
    whole = tokenizer.encode(text)
    assert dataclasses.replace(words, max_length=4).context(text) == (whole[-4:], True)
    assert words.context(text) == (whole, False)


def test_a_frame_in_front_of_a_cut_context_stays():
    framed = types.SimpleNamespace(
        encode=lambda text, add_special_tokens=True: (
            [7, *map(int, text), 2] if add_special_tokens else [*map(int, text)]
        ),
        eos_token_id=2,
    )
    coder = Coder(tokenizer=framed, one_text=False, max_length=4, count_end=False)  # type: ignore[arg-type]  (a stand-in)
    assert coder.context("34565") == ([7, 6, 5, 2], True)


def test_windows_predict_each_token_once_with_all_the_context_that_fits(letters):
    for text in ("abcdefghijklmn", "abcdef", "a", ""):
        ids = letters.tokenizer.encode(text)
        windows = list(letters.windows(text))
        assert [token for _, predicted in windows for token in predicted] == ids
        rows = [0, *ids]
        for read, predicted in windows:
            assert read and len(read) + len(predicted) - 1 <= 6
        for read, predicted in windows[1:]:
            assert len(read) + len(predicted) - 1 == 6
        joined = [read + predicted for read, predicted in windows]
        assert all("".join(map(chr, one)) in "".join(map(chr, rows)) for one in joined)


def test_greedy_options_are_read_and_others_refused():
    assert ending_of({"until": "\n", "do_sample": False, "temperature": 1.0}, 9) == Ending(max_tokens=9, stops=("\n",))
    assert ending_of({"until": ["b", ""], "max_new_tokens": 3, "num_beams": 1}, 9) == Ending(max_tokens=3, stops=("b",))
    for options, message in (
        ({"do_sample": True}, "expected greedy decoding"),
        ({"temperature": 0.7}, "expected greedy decoding"),
        ({"num_beams": 4}, "num_beams is 4; expected 1"),
        ({"max_gen_toks": 0}, "0 tokens at most"),
        ({"until": [3]}, "expected a text or a list"),
    ):
        with pytest.raises(InputError, match=message):
            ending_of(options, 9)
    with pytest.raises(UnknownNameError, match="closest: max_gen_toks"):
        ending_of({"max_gen_tok": 3}, 9)


def test_texts_end_at_the_first_stop():
    assert Ending(max_tokens=1, stops=("xy", "c")).cut("abxyc") == "ab"
    assert Ending(max_tokens=1, stops=("c",)).cut("ab") == "ab"


def test_room_is_the_models(pretrained, decoder_only):
    assert is_decoder_only(decoder_only.config) and not is_decoder_only(pretrained.config)
    assert context_limit(decoder_only.config, None) == 32 and context_limit(pretrained.config, None) == 1024
    assert context_limit(pretrained.config, 5000) == 5000
    for asked in (33, 1):
        with pytest.raises(InputError, match="expected at least 2 and at most 32"):
            context_limit(decoder_only.config, asked)


def logits_of(pretrained, source, target):
    """Scores a continuation alone, in one whole pass; float64."""
    variables = {"params": pretrained.params}
    if is_decoder_only(pretrained.config):
        tokens = np.array([[*source, *target]], np.int32)
        whole = pretrained.module.apply(variables, tokens, input_mask=np.ones(tokens.shape, bool))
        return np.asarray(whole[0, len(source) - 1 : -1], np.float64)
    inputs, targets = np.array([source], np.int32), np.array([target], np.int32)
    start = np.array([pretrained.config.pad_id], np.int32)
    whole = pretrained.module.apply(variables, inputs, shift_right(targets, start))
    return np.asarray(whole[0], np.float64)


@pytest.mark.parametrize("model", ["decoder_only", pytest.param("pretrained", marks=pytest.mark.long)])
def test_likelihoods_are_those_of_each_request_alone(model, request):
    pretrained = request.getfixturevalue(model)
    answers = Requests(pretrained)
    source = answers.coder.context("the cat")[0]
    first = logits_of(pretrained, source, [1])[0, : pretrained.tokenizer.vocab_size]
    likeliest = pretrained.tokenizer.decode([int(np.argmax(first))])
    pairs = [("the cat", " sat"), ("", "yes"), ("the cat", likeliest)]
    found = answers.loglikelihood([ask(*pair) for pair in pairs], disable_tqdm=True)
    for pair, (value, is_greedy) in zip(pairs, found, strict=True):
        source, target, _ = answers.coder.pair(*pair)
        logits = logits_of(pretrained, source, target)
        picked = logits[range(len(target)), target] - np.log(np.exp(logits).sum(-1))
        assert value == pytest.approx(picked.sum(), abs=1e-4)  # float32 sums in another order
        real = logits[:, : pretrained.tokenizer.vocab_size]
        assert is_greedy == (real.argmax(-1) == target).all()
    # A piece of a word, written alone, gets a mark of a word's beginning before it in SentencePiece.
    assert [is_greedy for _, is_greedy in found] == [False, False, model == "decoder_only"]


def test_requests_of_all_tasks_go_together_and_a_context_is_read_once(decoder_only, monkeypatch):
    calls = []

    def losses(pretrained, inputs, choices, **options):
        calls.append((list(inputs), choices))
        return [[np.full((len(ids), 2), ids[0]) for ids in row] for row in choices]

    monkeypatch.setattr(scoring, "choice_losses", losses)
    pairs = [("ab", "c"), ("d", "e"), ("ab", "f"), ("ab ", "c"), ("d", "eg")]
    found = Requests(decoder_only).loglikelihood([ask(*pair) for pair in pairs], disable_tqdm=True)
    ((inputs, choices),) = calls
    assert inputs == [(1, 2), (4,)] and choices == [[[3], [6], [27, 3]], [[5], [5, 7]]]
    assert [value for value, _ in found] == [-3, -5, -6, -54, -10]  # each behind its own request


def test_what_a_model_cannot_do_is_refused(pretrained, decoder_only):
    with pytest.raises(InputError, match="needs a decoder-only model; a T5Config model"):
        Requests(pretrained).loglikelihood_rolling([ask("a text")])
    with pytest.raises(InputError, match="256 tokens are to be generated, but the model reads 32"):
        Requests(decoder_only).generate_until([ask("a", {})], disable_tqdm=True)
    with pytest.raises(InputError, match="batch_size is 'auto'"):
        Requests(pretrained, batch_size="auto")
    with pytest.raises(InputError, match="has no tokenizer"):
        Requests(dataclasses.replace(pretrained, tokenizer=None))
