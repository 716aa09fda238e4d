"""Divergences and distances: zero only where nothing differs, the same however an update is factored."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.adapters.distill import (
    divergence,
    factor_distance,
    scored_distance,
    standardised,
    standardised_divergence,
    update_distance,
)
from jaxmtl.adapters.lora import Adapter
from jaxmtl.types import InputError

LOGITS = hnp.arrays(np.float32, (2, 3, 5), elements=st.floats(-60, 60, width=32))
kl = jax.jit(divergence, static_argnums=2)
distance = jax.jit(update_distance)


@hypothesis.given(LOGITS, LOGITS, st.sampled_from([1.0, 3.0]))
def test_a_divergence_is_that_of_the_definition_and_never_below_zero(teacher, student, temperature):
    found = np.asarray(kl(teacher, student, temperature))
    soften = lambda x: np.asarray(x, np.float64) / temperature
    log = lambda x: x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
    of_teacher, of_student = log(soften(teacher)), log(soften(student))
    expected = temperature**2 * (np.exp(of_teacher) * (of_teacher - of_student)).sum(-1)
    # Logits of 60 have an error of 4e-6, which the sum of five terms and τ² multiply.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-4)
    assert np.all(found >= 0)


@hypothesis.given(LOGITS, st.floats(-5, 5, width=32))
def test_a_divergence_is_zero_if_and_only_if_the_distributions_are_equal(logits, shift):
    assert not np.any(kl(logits, logits, 2.0))
    # Shifted by a constant it is the same distribution, but for rounding, which counts squared.
    assert np.all(np.asarray(kl(logits, logits + shift, 2.0)) < 1e-9)
    moved = logits.copy()
    moved[..., 0] = logits[..., 1:].max(-1) + np.where(logits[..., 0] > logits[..., 1:].max(-1), -0.5, 0.5)
    top_differs = np.abs(moved[..., 0] - logits[..., 0]) > 0.4
    assert np.all(np.asarray(kl(logits, moved, 2.0))[top_differs] > 1e-4)


def test_a_divergence_cuts_the_larger_vocabulary_and_has_the_gradient_of_its_softmax():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 1, 4, 6)).astype(np.float32) * 3
    wide = np.concatenate([teacher, np.full((1, 4, 2), 50.0, np.float32)], axis=-1)
    np.testing.assert_array_equal(kl(wide, student, 3.0), kl(teacher, student, 3.0))
    np.testing.assert_array_equal(kl(student, wide, 3.0), kl(student, teacher, 3.0))
    found = jax.jit(jax.grad(lambda x: divergence(teacher, x, 3.0).sum()))(student)
    softmax = lambda x: np.exp(x / 3) / np.exp(x / 3).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, 3.0 * (softmax(student) - softmax(teacher)), atol=1e-5)


def test_standardised_rows_have_mean_zero_and_spread_one():
    rows = np.asarray(standardised(np.random.default_rng(0).normal(5, 9, (2, 3, 50)).astype(np.float32)))
    np.testing.assert_allclose(rows.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(rows.std(-1, ddof=1), 1, atol=1e-5)


def test_standardised_logits_diverge_as_their_order_and_spread_do():
    rng = np.random.default_rng(1)
    teacher, student = rng.normal(size=(2, 1, 4, 6)).astype(np.float32)
    rows = [(x - x.mean(-1, keepdims=True)) / x.std(-1, ddof=1, keepdims=True) for x in (teacher, student)]
    found = standardised_divergence(np.concatenate([teacher, teacher[..., :1]], axis=-1), student, 3.0)
    np.testing.assert_allclose(found, divergence(*rows, 3.0), rtol=1e-4)
    np.testing.assert_allclose(standardised_divergence(5 * teacher + 2, teacher, 3.0), 0, atol=1e-6)


def updates(seed, rank, layers=2, rows=3):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=(layers, rows, *shape)).astype(np.float32)
    names = {"query": (5, 7), "value": (6, 4)}
    return {name: {"a": draw(i, rank), "b": draw(rank, o)} for name, (i, o) in names.items()}


def products(tree):
    return {name: np.asarray(one["a"], np.float64) @ one["b"] for name, one in tree.items()}


@hypothesis.given(st.integers(0, 2**20))
def test_the_distance_of_updates_is_that_of_the_products_however_they_are_factored(seed):
    left, right = updates(seed, 2), updates(seed + 1, 3)
    of = {name: ((products(left)[name] - products(right)[name]) ** 2).mean((-2, -1)).mean(0) for name in left}
    expected = (of["query"] + of["value"]) / 2
    np.testing.assert_allclose(distance(left, right), expected, rtol=1e-4)
    turn = np.random.default_rng(seed + 2).normal(size=(2, 2)) + 3 * np.eye(2)
    refactored = {
        name: {"a": (one["a"] @ turn).astype(np.float32), "b": (np.linalg.inv(turn) @ one["b"]).astype(np.float32)}
        for name, one in left.items()
    }
    # Rounding of the inverse: its condition number here is below 20.
    np.testing.assert_allclose(distance(refactored, right), expected, rtol=2e-3)
    assert np.all(np.asarray(distance(refactored, left)) < 1e-4)


def test_factors_are_compared_with_their_own_kind_only():
    left, right = updates(0, 3), updates(1, 3)
    means = [((left[name][part] - right[name][part]) ** 2).mean((-2, -1)).mean(0) for name in left for part in "ab"]
    found = factor_distance(left, right)
    np.testing.assert_allclose(found, sum(means) / 2, rtol=1e-5)  # two updates, both factors of each
    with pytest.raises(InputError, match="factors of one rank"):
        factor_distance(left, updates(1, 2))
    with pytest.raises(InputError, match="do not change the same layers .value."):
        update_distance(left, {"query": right["query"]})


def test_a_scored_distance_measures_in_spreads_of_the_teachers():
    trees = [jax.tree.map(lambda leaf: leaf[:, 0], updates(seed, 3)) for seed in range(4)]
    measure = scored_distance([Adapter(tree=tree, rank=3, alpha=3.0) for tree in trees])
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    left, right = updates(8, 3), updates(9, 3)
    terms = [
        (np.abs(left[name][part] - right[name][part]) / stacked[name][part].std(0)[:, None]).mean((-2, -1)).mean(0)
        for name in left
        for part in "ab"
    ]
    np.testing.assert_allclose(measure(left, right), sum(terms) / 2, rtol=1e-4)
    with pytest.raises(InputError, match="expected at least 2"):
        scored_distance([Adapter(tree=trees[0], rank=3, alpha=3.0)])


def test_layers_that_are_not_stacked_have_a_distance_too():
    one = jax.tree.map(lambda leaf: leaf[0], updates(0, 2))
    other = jax.tree.map(lambda leaf: leaf[0], updates(1, 2))
    found = update_distance(one, other)
    stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (one, other))
    np.testing.assert_allclose(found, update_distance(*stacked), rtol=1e-5)
    assert found.shape == (3,)
