import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmtl.models import attention
from jaxmtl.models.attention import (
    SHORT_CACHE,
    attend_to_kept,
    attend_to_written,
    cached_attention,
    einsum_attention,
)
from jaxmtl.models.masks import HIDDEN, Mask

B, T, S, H, K = 2, 6, 8, 3, 4
WAYS = {"rows": cached_attention, "einsum": einsum_attention}


@pytest.fixture(autouse=True)
def always_by_rows(monkeypatch):
    monkeypatch.setattr(attention, "CACHED_SCORES", 0)


def random_arrays(seed, dtype=np.float32, bias_heads=H):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(dtype)
    arrays = [normal(B, T, H, K), normal(B, S, H, K), normal(B, S, H, K), normal(bias_heads, T, S).astype(np.float32)]
    return arrays, (rng.random((B, H, S)) < 0.7) / np.float32(0.7), normal(B, T, H, K)


def value_and_grads(way, arrays, mask, keep, weight):
    def objective(arrays):
        mixed = way(*arrays, mask, keep)
        return (mixed.astype(jnp.float32) * weight).sum(), mixed

    grads, mixed = jax.grad(objective, has_aux=True)(arrays)
    return mixed, grads


jitted = {name: jax.jit(functools.partial(value_and_grads, way)) for name, way in WAYS.items()}


def by_hand(arrays, seen, keep, weight):
    """The formulas in float64: `seen` bool [B, T, S]; a query that sees nothing weighs nothing."""
    query, key, value, bias = (np.asarray(array, np.float64) for array in arrays)
    scores = np.einsum("bthk,bshk->bhts", query, key) + bias
    exponentials = np.exp(scores) * seen[:, None]
    weights = exponentials / np.maximum(exponentials.sum(-1, keepdims=True), 1e-300)
    dropped = weights * keep[:, :, None]
    weights_grad = np.einsum("bthk,bshk->bhts", weight, value) * keep[:, :, None]
    scores_grad = weights * (weights_grad - (weights * weights_grad).sum(-1, keepdims=True))
    grads = [
        np.einsum("bhts,bshk->bthk", scores_grad, key),
        np.einsum("bhts,bthk->bshk", scores_grad, query),
        np.einsum("bhts,bthk->bshk", dropped, weight),
        scores_grad.sum(0),
    ]
    return np.einsum("bhts,bshk->bthk", dropped, value), grads


def ids(lengths, width):
    row = np.repeat(np.arange(1, len(lengths) + 1), lengths)[:width]
    return np.pad(row, (0, width - len(row))).astype(np.int32)


# Pairs of (query length, key length) per segment; either may be empty, and what does not fit the row is cut off.
rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=4)


@settings(max_examples=40)
@given(first=rows, second=rows, seed=st.integers(0, 10**6))
@pytest.mark.parametrize("way", WAYS)
def test_a_query_attends_to_the_keys_of_its_segment(way, first, second, seed):
    queries = np.stack([ids([pair[0] for pair in row], T) for row in (first, second)])
    keys = np.stack([ids([pair[1] for pair in row], S) for row in (first, second)])
    arrays, keep, weight = random_arrays(seed)
    seen = np.zeros((B, T, S), bool)
    for b, t, s in np.ndindex(seen.shape):
        seen[b, t, s] = queries[b, t] == keys[b, s] > 0
    ours = jitted[way](arrays, Mask(keys=keys, queries=queries), keep, weight)
    # Float32 against float64 on values up to 30.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), ours, by_hand(arrays, seen, keep, weight))


@pytest.mark.parametrize("way", WAYS)
def test_a_query_that_sees_no_key_gives_zero_and_passes_no_gradient(way):
    arrays, keep, weight = random_arrays(0)
    keys, queries = np.ones((B, S), np.int32), np.ones((B, T), np.int32)
    queries[0, 2:] = 0
    queries[0, 5] = 7
    keys[1] = 0
    mixed, (query_grad, key_grad, value_grad, _) = jitted[way](arrays, Mask(keys=keys, queries=queries), keep, weight)
    assert not np.any(mixed[0, 2:]) and not np.any(query_grad[0, 2:]) and np.all(np.any(mixed[0, :2], axis=(1, 2)))
    assert not any(np.any(array[1]) for array in (mixed, query_grad, key_grad, value_grad))
    only_hidden = np.where(np.isin(queries, (0, 7)) | (np.arange(B) == 1)[:, None], 1.0, 0.0)[..., None, None]
    _, grads = jitted[way](arrays, Mask(keys=keys, queries=queries), keep, weight * only_hidden.astype(np.float32))
    assert not any(np.any(grad) for grad in grads)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("given", ["bias mask keep", "bias segments keep", "bias", "shared bias", "mask", "keep", ""])
def test_both_ways_give_the_same(given, dtype):
    arrays, keep, weight = random_arrays(1, dtype, bias_heads=1 if "shared" in given else H)
    masks = {"mask": Mask(keys=np.arange(S) < np.array([[5], [0]]))}
    masks["segments"] = Mask(keys=np.stack([ids([3, 2], S)] * B), queries=np.stack([ids([1, 4], T)] * B))
    mask = next((mask for name, mask in masks.items() if name in given), None)
    arrays[3] = arrays[3] if "bias" in given else None
    keep = keep if "keep" in given else None
    results = [value_and_grads(way, arrays, mask, keep, weight) for way in WAYS.values()]
    # Both sum the same few products in another order: some units of the last place, 2^-24 or 2^-9 of values up to 30.
    tolerance = 2e-5 if dtype == jnp.float32 else 0.15
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), *results)


def shapes_in(program):
    """All shapes of intermediate results, those inside loops and functions included."""
    inner = [value for equation in program.eqns for value in jax.tree.leaves(list(equation.params.values()))]
    programs = [getattr(value, "jaxpr", value) for value in inner]
    own = {variable.aval.shape for equation in program.eqns for variable in equation.outvars}
    return own.union(*(shapes_in(program) for program in programs if hasattr(program, "eqns")))


def shapes(way, mask):
    arrays, keep, weight = random_arrays(0)
    return shapes_in(jax.make_jaxpr(functools.partial(value_and_grads, WAYS[way]))(arrays, mask, keep, weight).jaxpr)


def test_nothing_of_the_size_of_all_scores_is_made_row_by_row():
    packed = shapes("rows", Mask(keys=np.ones((B, S), np.int32), queries=np.ones((B, T), np.int32)))
    assert {(H, T, S), (T, S)} <= packed and not {(B, H, T, S), (B, T, S)} & packed


@pytest.mark.parametrize("way", WAYS)
def test_plain_rows_make_no_mask_by_query(way):
    assert not {(B, T, S), (B, 1, T, S), (T, S)} & shapes(way, Mask(keys=np.ones((B, S), bool)))


@pytest.mark.parametrize("length", [SHORT_CACHE - 1, SHORT_CACHE, SHORT_CACHE + 5])
def test_a_cache_is_read_as_far_as_it_is_written(length):
    """Behind the quarter that is being written lie numbers that would spoil the result if they were read."""
    draw = lambda *shape: np.random.default_rng(length).normal(size=shape).astype(np.float32)
    query, key, value, bias = draw(B, 1, H, K), draw(B, H, K, length), draw(B, H, length, K), draw(H, 1, length)
    quarter = -(-length // 4) if length >= SHORT_CACHE else length
    for position in (0, quarter - 1, min(quarter, length - 1), length - 1):
        hidden = np.where(np.arange(length) <= position, bias, HIDDEN)
        expected = attend_to_kept(query, key, value, hidden)
        end = min((position // quarter + 1) * quarter, length)
        spoilt = [key.copy(), value.copy()]
        spoilt[0][..., end:], spoilt[1][..., end:, :] = np.nan, np.nan
        found = jax.jit(attend_to_written)(query, *spoilt, hidden, jnp.int32(position))
        # Sums of float32 in another order.
        np.testing.assert_allclose(found, expected, atol=1e-5)
