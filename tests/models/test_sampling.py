"""Drawn tokens: their distribution, and what they depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_decoder import MAX_TOKENS, ToyDecoder, V, ask, log_softmax, make_table, spell

from jaxmtl.models.decoding import Generation, generate
from jaxmtl.models.sampling import BLOCK, Greedy, Sampling, likeliest

TABLE = make_table(1, num_inputs=4)
PROBABILITIES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def kept(**options):
    """Indices that may be drawn and their probabilities, of rows in two orders."""
    orders = np.array([[0, 1, 2, 3, 4], [4, 2, 0, 1, 3]])
    scores = jnp.log(jnp.asarray(PROBABILITIES[orders]))
    result = jax.nn.softmax(Sampling(**options).limited(scores))
    assert np.allclose(result[0, orders[1]], result[1])
    return np.asarray(result[0])


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(), PROBABILITIES),
        (dict(top_k=2), [4 / 7, 3 / 7, 0, 0, 0]),
        (dict(top_k=9), PROBABILITIES),
        (dict(top_p=0.75), [8 / 17, 6 / 17, 3 / 17, 0, 0]),  # the third is needed to reach 0.75
        (dict(top_p=0.1), [1, 0, 0, 0, 0]),
        (dict(temperature=0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        (dict(top_k=3, top_p=0.8), [4 / 7, 3 / 7, 0, 0, 0]),  # top-k first: 0.7 of 0.85 is more than 0.8
    ],
    ids=str,
)
def test_what_is_left_is_renormalised(options, expected):
    np.testing.assert_allclose(kept(**options), expected, rtol=1e-5)


def test_all_tokens_as_likely_as_the_last_are_left():
    scores = jnp.array([[1.0, 3.0, 1.0, 0.0]])
    assert np.isneginf(Sampling(top_k=2).limited(scores)).tolist() == [[False, False, False, True]]


def test_texts_have_the_probabilities_that_the_table_gives():
    draws, how = 4000, Generation(max_tokens=2, method=Sampling(seed=3))
    inputs = jnp.zeros((draws, 1), jnp.int32)
    seen, streams = jnp.ones((draws, 1), bool), jnp.arange(draws, dtype=jnp.uint32)
    tokens = np.asarray(
        generate(ToyDecoder(), {"params": {"table": jnp.asarray(TABLE)}}, inputs, seen, streams, how=how)
    )
    first = np.exp(log_softmax(TABLE[0, 0]))
    for token in range(V):
        if token == 1:
            assert (tokens[tokens[:, 0] == 1, 1] == 0).all()
            continue
        second = np.exp(log_softmax(TABLE[0, spell([token])])) * first[token] * draws
        counts = np.bincount(tokens[tokens[:, 0] == token, 1], minlength=V)
        # The 99.99th percentile of chi-square with 6 degrees of freedom is 27.9.
        assert ((counts - second) ** 2 / second).sum() < 27.9


def test_a_text_depends_on_its_stream_and_the_seed_and_not_on_its_place():
    how = Generation(max_tokens=MAX_TOKENS, method=Sampling(seed=1))
    table = np.repeat(TABLE[:1], 6, axis=0)
    together = ask(generate, table, how=how)
    assert len({tuple(text) for text in together}) > 2
    call = lambda rows, how: np.asarray(
        generate(
            ToyDecoder(),
            {"params": {"table": jnp.asarray(TABLE)}},
            jnp.zeros((len(rows), 1), jnp.int32),
            jnp.ones((len(rows), 1), bool),
            jnp.asarray(rows, jnp.uint32),
            how=how,
        )
    )
    six = call(range(6), how)
    np.testing.assert_array_equal(call([5, 2], how), six[[5, 2]])
    other = dataclasses.replace(how, method=Sampling(seed=2))
    assert (call(range(6), other) != six).any()


def test_almost_no_temperature_is_greedy():
    cold = Generation(max_tokens=MAX_TOKENS, method=Sampling(temperature=1e-4))
    plain = Generation(max_tokens=MAX_TOKENS, method=Greedy())
    assert ask(generate, TABLE, how=cold) == ask(generate, TABLE, how=plain)


def test_the_first_of_the_largest_scores_is_taken():
    scores = jnp.array([[1.0, 3.0, 3.0], [-jnp.inf, -jnp.inf, -5.0], [2.0, -1.0, 2.0], [jnp.nan, 1.0, 0.0]])
    # Scores that are no numbers have no largest; the token has to exist all the same.
    assert likeliest(scores).tolist() == [1, 2, 0, 2]


@pytest.mark.parametrize("vocab", [BLOCK, 4 * BLOCK, 3 * 347, 1031])
def test_the_first_of_the_largest_scores_is_taken_from_any_number_of_blocks(vocab):
    """Vocabularies of one block, of several, and of a prime number of tokens; half of the scores are drawn to tie."""
    scores = np.random.default_rng(vocab).normal(size=(6, vocab)).astype(np.float32)
    scores[3:] = np.round(scores[3:])
    assert likeliest(jnp.asarray(scores)).tolist() == scores.argmax(axis=1).tolist()
