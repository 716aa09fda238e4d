"""Rules on scores, each against its sentence in plain Python."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmtl.models.logit_rules import (
    NOTHING,
    ForcedToken,
    MinTokens,
    NoRepeatNgram,
    RepetitionPenalty,
    Written,
    apply_rules,
)

V, P, T, END = 5, 3, 7, 1


def written(rows, prompts=None):
    """Pages of rows that have all got as far; prompts are right-aligned in P columns."""
    prompts = prompts or [[]] * len(rows)
    pages = np.full((len(rows), P + T), NOTHING, np.int32)
    for page, prompt, row in zip(pages, prompts, rows, strict=True):
        page[P - len(prompt) : P] = prompt
        page[P : P + len(row)] = row
    return Written(tokens=jnp.asarray(pages), position=jnp.int32(len(rows[0])), prompt_length=P, eos_id=END)


def scores_of(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, V)).astype(np.float32)


def forbidden(scores):
    return [sorted(np.flatnonzero(np.isneginf(row)).tolist()) for row in np.asarray(scores)]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 4))
def test_no_ngram_is_completed_that_is_there_already(data, size):
    tokens = st.integers(0, V - 1)
    prompt = data.draw(st.lists(tokens, max_size=P))
    row = data.draw(st.lists(tokens, max_size=T))
    scores = scores_of(1)
    result = NoRepeatNgram(size)(jnp.asarray(scores), written([row], [prompt]))
    text = [*prompt, *row]
    there = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
    expected = [t for t in range(V) if tuple([*text, t][len(text) + 1 - size :]) in there and len(text) >= size - 1]
    assert forbidden(result) == [expected]
    kept = [token for token in range(V) if token not in expected]
    np.testing.assert_array_equal(np.asarray(result)[0, kept], scores[0, kept])


def test_tokens_of_prompt_and_text_are_penalised_once_by_their_sign():
    scores = np.array([[2.0, -2.0, 4.0, -4.0, 1.0]], np.float32)
    result = RepetitionPenalty(2.0)(jnp.asarray(scores), written([[0, 3, 0]], [[1]]))
    np.testing.assert_array_equal(result, [[1.0, -4.0, 4.0, -8.0, 1.0]])


@pytest.mark.parametrize("length, ends", [(0, False), (2, False), (3, True)])
def test_no_text_ends_before_its_least_number_of_tokens(length, ends):
    result = MinTokens(3)(jnp.asarray(scores_of(2)), written([[2] * length] * 2))
    assert forbidden(result) == ([[], []] if ends else [[END], [END]])


def test_a_forced_token_is_free_at_its_position_and_nothing_happens_elsewhere():
    rule, scores = ForcedToken(3, 2), jnp.asarray(scores_of(1))
    forced = rule(scores, written([[4, 4]]))
    assert forbidden(forced) == [[0, 1, 2, 4]] and forced[0, 3] == 0
    np.testing.assert_array_equal(rule(scores, written([[4, 4, 4]])), scores)


def test_rules_apply_in_their_order():
    scores = jnp.ones((1, V))
    both = (ForcedToken(3, 0), MinTokens(2))
    assert apply_rules(both, scores, written([[]]))[0, 3] == 0
    assert forbidden(apply_rules((ForcedToken(END, 0), MinTokens(2)), scores, written([[]]))) == [list(range(V))]
