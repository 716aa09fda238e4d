"""Attention over whole sequences, computed in the way that suits the backend; all ways give the same numbers.

A way is a function of `query [B,T,H,K]`, `key` and `value [B,S,H,K]`, `bias` float32 [H or 1,T,S] (shared by the
batch), `mask` (a `Mask`: padding, and the segments of packed rows) and `keep` float [B,H,S] (a dropout mask over keys,
already scaled); the last three may be None. A query that sees no key gets 0, and no gradient goes through it. Scores
are not divided by the root of the head width: families that want this scale the query.
Letters: B batch, T query length, S key length, H heads, K head width.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxmtl.models.masks import Mask, mask_to_bias, visible
from jaxmtl.models.row_attention import SAVED_NAME, attend_by_rows

Attention = Callable[..., jax.Array]

CACHED_SCORES = 2_000_000
"""Attention scores that are computed at a time on a CPU: 8 MB in float32, about what its last cache level holds."""


SHORT_CACHE = 64
"""Positions of a cache below which it is not worth the while to read only a part of it."""


KEY_PARTS, VALUE_PARTS = 4, 8
"""Parts in which a CPU sums over the width of keys and over values: as many sums as keep its cores busy."""


def share_keys(query: jax.Array, mask: Mask | None, num_inputs: int) -> tuple[jax.Array, Mask | None]:
    """Folds the rows of one input into the length of its queries, so that they share keys that are held once.

    Args:
      query: [B·R, T, H, K]; row b·R + r belongs to input b.
      mask: keys [B, S]; queries, if any, [B·R, T].
      num_inputs: B, rows of the keys.

    Returns:
      The query as [B, R·T, H, K], and the mask that fits it.
    """
    folded = query.reshape(num_inputs, -1, *query.shape[2:])
    if mask is not None and mask.queries is not None:
        mask = Mask(keys=mask.keys, queries=mask.queries.reshape(num_inputs, -1))
    return folded, mask


def kept_keys(module: nn.Module, rate: float, batch: int, length: int) -> jax.Array | None:
    """Draws dropout of attention weights, shared by all queries of a row.

    Args:
      module: the attention; has `config`, and draws from its "dropout" keys.
      rate: share of keys dropped.
      batch: B.
      length: S.

    Returns:
      float32 [B, H, S], 0 or the inverse of what is kept; None if nothing is dropped.
    """
    if not rate:
        return None
    keep_rate, shape = 1.0 - rate, (batch, module.config.num_heads, length)
    return jax.random.bernoulli(module.make_rng("dropout"), keep_rate, shape) / keep_rate


def einsum_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: Mask | None = None,
    keep: jax.Array | None = None,
) -> jax.Array:
    """Attends with two einsums over the whole batch, which GPU and TPU compilers fuse well.

    Args:
      query: [B, T, H, K].
      key: [B, S, H, K].
      value: [B, S, H, K].
      bias: float32 [H or 1, T, S], added to the scores.
      mask: which keys each query may see.
      keep: float [B, H, S], multiplied into the weights.

    Returns:
      [B, T, H, K] in the query's dtype; softmax is taken in float32.
    """
    scores = jnp.einsum("bthk,bshk->bhts", query, key, preferred_element_type=jnp.float32)
    weights = weights_of(scores, bias, mask).astype(query.dtype)
    if keep is not None:
        weights = weights * keep[:, :, None, :].astype(query.dtype)
    mixed = jnp.einsum("bhts,bshk->bthk", weights, value)
    return checkpoint_name(seeing(mixed, mask), SAVED_NAME)


def attend_to_kept(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None, mask: Mask | None = None
) -> jax.Array:
    """Attends to keys and values in the order in which `decoding_cache` keeps them.

    Args:
      query: [B, T, H, K].
      key: [B, H, K, S].
      value: [B, H, S, K].
      bias: float32 [H or 1, T, S], added to the scores.
      mask: which keys each query may see.

    Returns:
      [B, T, H, K] in the query's dtype; softmax is taken in float32.
    """
    if query.shape[1] > 1:
        scores = _products(query, key)
    else:
        scores = jax.lax.platform_dependent(query, key, cpu=_sums_of_products, default=_products)
    weights = weights_of(scores, bias, mask).astype(query.dtype)
    return seeing(mix_kept(weights, value), mask)


def attend_to_written(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, position: jax.Array
) -> jax.Array:
    """Attends to a cache whose later positions are not written yet; a CPU reads only quarters that are begun.

    Args:
      query: [B, 1, H, K].
      key: [B, H, K, S].
      value: [B, H, S, K].
      bias: float32 [H or 1, 1, S], added to the scores; hides what is behind `position`.
      position: int32 scalar, the last one that is written.

    Returns:
      [B, 1, H, K] in the query's dtype; softmax is taken in float32.
    """
    ways = dict(cpu=_attend_to_begun, default=_attend_to_all)
    return jax.lax.platform_dependent(query, key, value, bias, position, **ways)


def _attend_to_all(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, position: jax.Array
) -> jax.Array:
    return attend_to_kept(query, key, value, bias)


def _attend_to_begun(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, position: jax.Array
) -> jax.Array:
    length = key.shape[-1]
    if length < SHORT_CACHE:
        return attend_to_kept(query, key, value, bias)

    def to_first(count: int) -> Attention:
        return lambda query, key, value, bias: attend_to_kept(
            query, key[..., :count], value[..., :count, :], bias[..., :count]
        )

    quarter = -(-length // 4)
    counts = [quarter, 2 * quarter, 3 * quarter, length]
    return jax.lax.switch(position // quarter, [*map(to_first, counts)], query, key, value, bias)


def _products(query: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the scores float32 [B, H, T, S] of queries [B, T, H, K] and keys [B, H, K, S]."""
    return jnp.einsum("bthk,bhks->bhts", query, key, preferred_element_type=jnp.float32)


def _sums_of_products(query: jax.Array, key: jax.Array) -> jax.Array:
    """Does the same for one query; a CPU streams keys so, where it would call for a small product for each head."""
    batch, heads, width, length = key.shape
    parts = (batch, heads, math.gcd(width, KEY_PARTS), -1)
    one = query[:, 0].astype(jnp.float32).reshape(*parts, 1)
    return _sum_in_parts(one * key.astype(jnp.float32).reshape(*parts, length))[:, :, None]


def _sum_in_parts(terms: jax.Array) -> jax.Array:
    """Sums [B, H, P, N, M] to [B, H, M] over N, then over P: a CPU makes few sums on one core only."""
    # Without the barrier the compiler makes one sum of both.
    return jax.lax.optimization_barrier(terms.sum(axis=3)).sum(axis=2)


def mix_kept(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Mixes values in the order in which `decoding_cache` keeps them.

    Multiplied in this order of axes, and turned only then, few queries take a CPU a tenth of an einsum's time.

    Args:
      weights: [B, H, T, S].
      value: [B, H, S, K].

    Returns:
      [B, T, H, K].
    """
    if weights.shape[2] > 1:
        return _mixed(weights, value)
    return jax.lax.platform_dependent(weights, value, cpu=_mixed_as_sums, default=_mixed)


def _mixed(weights: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.swapaxes(jnp.matmul(weights, value), 1, 2)


def _mixed_as_sums(weights: jax.Array, value: jax.Array) -> jax.Array:
    batch, heads, length, width = value.shape
    parts = (batch, heads, math.gcd(length, VALUE_PARTS), -1)
    one = weights[:, :, 0].astype(jnp.float32).reshape(*parts, 1)
    mixed = _sum_in_parts(one * value.astype(jnp.float32).reshape(*parts, width))
    return mixed[:, None].astype(value.dtype)


def weights_of(scores: jax.Array, bias: jax.Array | None, mask: Mask | None) -> jax.Array:
    """Turns scores into weights.

    Args:
      scores: float32 [B, H, T, S].
      bias: float32 [H or 1, T, S], added to the scores.
      mask: which keys each query may see.

    Returns:
      float32 [B, H, T, S], that add up to 1 for each query.
    """
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores + mask_to_bias(visible(mask))[:, None]
    return jax.nn.softmax(scores, axis=-1)


def seeing(mixed: jax.Array, mask: Mask | None) -> jax.Array:
    """Puts 0 where a query sees no key.

    Args:
      mixed: [B, T, H, K].
      mask: which keys each query may see.

    Returns:
      [B, T, H, K].
    """
    return mixed if mask is None else jnp.where(visible(mask).any(-1)[..., None, None], mixed, 0)


def cached_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: Mask | None = None,
    keep: jax.Array | None = None,
) -> jax.Array:
    """Attends row by row where the scores of the whole batch do not fit a CPU's cache.

    Args and Returns: as `einsum_attention`.
    """
    batch, queries, heads, _ = query.shape
    if batch * heads * queries * key.shape[1] <= CACHED_SCORES:
        return einsum_attention(query, key, value, bias, mask, keep)
    turned = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(attend_by_rows(*turned, bias, mask, keep), 1, 2)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: Mask | None = None,
    keep: jax.Array | None = None,
) -> jax.Array:
    """Attends in the way that is fastest on the platform the program is compiled for.

    Args and Returns: as `einsum_attention`.
    """
    ways = dict(cpu=cached_attention, default=einsum_attention)
    return jax.lax.platform_dependent(query, key, value, bias, mask, keep, **ways)
