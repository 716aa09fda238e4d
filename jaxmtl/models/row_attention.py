"""Attention one batch row at a time, with a gradient written by hand: scores never leave a CPU's cache.

The forward pass keeps, besides its result, two numbers per query: the softmax's largest score and its denominator. The
backward pass recomputes the weights from them, so that no [B, H, T, S] array is ever written to memory.
Letters in shapes: B batch, T query length, S key length, H heads, K head width. Arrays here have heads before length.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxmtl.models.masks import HIDDEN, Mask, mask_to_bias, visible

SAVED_NAME = "attention"
"""What rematerialisation calls the result of attention and the numbers per query that its gradient needs."""


@jax.custom_vjp
def attend_by_rows(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: Mask | None,
    keep: jax.Array | None,
) -> jax.Array:
    """Attends row by row; there is a gradient for the first four arguments, none for the masks.

    Args:
      query: [B, H, T, K].
      key: [B, H, S, K].
      value: [B, H, S, K].
      bias: float32 [H or 1, T, S], added to the scores of every row, or None.
      mask: which keys each query may see, or None.
      keep: float [B, H, S], multiplied into the weights, or None.

    Returns:
      [B, H, T, K] in the query's dtype, 0 for queries that see no key; softmax is taken in float32.

    Source: Dao et al. 2022, algorithms 1 and 4, with a whole row as the block.
    """
    return _forward(query, key, value, bias, mask, keep)[0]


def _forward(query: Any, key: Any, value: Any, bias: Any, mask: Any, keep: Any) -> tuple[jax.Array, tuple]:
    def one_row(row: tuple) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        query, key, kept, mask = row
        scores = _scores(query, key, bias, mask)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        # Dividing by infinity, here and in the backward pass, gives weight 0 to all keys of a query that sees none.
        total = jnp.where(top > HIDDEN / 2, total, jnp.inf)
        mixed = jnp.einsum("hts,hsk->htk", weights.astype(kept.dtype), kept)
        return (mixed / total).astype(query.dtype), (top, total)

    rows = jax.lax.map(one_row, (query, key, _kept(value, keep), mask))
    mixed, softmax = checkpoint_name(rows, SAVED_NAME)
    return mixed, (query, key, value, bias, mask, keep, mixed, softmax)


def _backward(saved: tuple, cotangent: jax.Array) -> tuple:
    query, key, value, bias, mask, keep, mixed, softmax = saved

    def one_row(bias_grad: jax.Array | None, row: tuple) -> tuple[jax.Array | None, tuple]:
        query, turned_query, key, kept, mask, (top, total), shared, grad, turned_grad = row
        weights = jnp.exp(_scores(query, key, bias, mask) - top) / total
        kept_grad = jnp.matmul(turned_grad, weights.astype(grad.dtype))
        weights_grad = jnp.einsum("htk,hsk->hts", grad, kept, preferred_element_type=jnp.float32)
        scores_grad = weights * (weights_grad - shared)
        low = scores_grad.astype(query.dtype)
        grads = (jnp.einsum("hts,hsk->htk", low, key), jnp.matmul(turned_query, low), kept_grad)
        return (None if bias_grad is None else bias_grad + _over_heads(scores_grad, bias_grad.shape[0])), grads

    # The softmax's own gradient: what all weights of a query share drops out.
    shared = jnp.sum(cotangent.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)
    # What can be is computed before the loop: fused into a row's products it slows them down. Gradients of keys and
    # values are computed on their side, [H, K, S], so that only narrow factors are turned, never weights.
    narrow = (query, _turned(query), key, _kept(value, keep), mask)
    start = None if bias is None else jnp.zeros_like(bias)
    rows = (*narrow, softmax, shared, cotangent, _turned(cotangent))
    bias_grad, (query_grad, key_grad, kept_grad) = jax.lax.scan(one_row, start, rows)
    return query_grad, _turned(key_grad), _kept(_turned(kept_grad), keep), bias_grad, None, None


attend_by_rows.defvjp(_forward, _backward)


def _scores(query: jax.Array, key: jax.Array, bias: jax.Array | None, mask: Mask | None) -> jax.Array:
    """Scores one row: [H, T, K] and [H, S, K] to float32 [H, T, S]."""
    scores = jnp.einsum("htk,hsk->hts", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    return scores if mask is None else scores + mask_to_bias(visible(mask))


def _kept(value: jax.Array, keep: jax.Array | None) -> jax.Array:
    """Multiplies [..., S, K] by a dropout mask over keys [..., S]: the same as multiplying the weights by it."""
    return value if keep is None else value * keep[..., None].astype(value.dtype)


def _turned(x: jax.Array) -> jax.Array:
    """Swaps the last two axes."""
    return jnp.swapaxes(x, -1, -2)


def _over_heads(scores_grad: jax.Array, num_heads: int) -> jax.Array:
    """Sums [H, T, S] to [1, T, S] for a bias that all heads share."""
    return scores_grad if scores_grad.shape[0] == num_heads else jnp.sum(scores_grad, axis=0, keepdims=True)
