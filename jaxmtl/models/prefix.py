"""Learned keys and values before those of an attention's memory, read from the collection "prefix".

Letters in shapes: A prefixes, B rows, P prefix length, T query length, S key length, H heads, K head width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.models.decoding_cache import kept, opened
from jaxmtl.models.masks import Mask
from jaxmtl.types import InputError

COLLECTION = "prefix"
"""Name of the variable collection that attention layers read."""

Attended = tuple[jax.Array, jax.Array, jax.Array | None, Mask | None]


def with_prefix(
    module: nn.Module, key: jax.Array, value: jax.Array, bias: jax.Array | None, mask: Mask | None
) -> Attended:
    """Puts a layer's prefix, if it has one, before the keys and values that queries look at.

    Every query sees the whole prefix, and no position bias is added to it.

    Args:
      module: the attention layer; its collection holds `key` and `value`, [A, P, H·K] each: row n of B uses prefix
        n // (B / A); without the axis A all rows use the same.
      key: [B, S, H, K].
      value: [B, S, H, K].
      bias: float32 [H or 1, T, S].
      mask: which keys each query may see.

    Returns:
      The four, with P + S instead of S; as they were if the layer has no prefix.

    Raises:
      InputError: if rows are packed.

    Source: methods 1.3.
    """
    if not module.has_variable(COLLECTION, "key"):
        return key, value, bias, mask
    if mask is not None and mask.queries is not None:
        raise InputError("packed rows cannot have prefixes, which belong to rows; do not pack these batches")
    of_rows = lambda name, like: _of_rows(module.get_variable(COLLECTION, name), like)
    own_key, own_value = of_rows("key", key), of_rows("value", value)
    length = own_key.shape[1]
    if bias is not None:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (length, 0)))
    if mask is not None:
        mask = Mask(keys=jnp.pad(mask.keys, ((0, 0), (length, 0)), constant_values=1))
    return jnp.concatenate([own_key, key], 1), jnp.concatenate([own_value, value], 1), bias, mask


def with_kept_prefix(
    module: nn.Module, key: jax.Array, value: jax.Array, bias: jax.Array | None, mask: Mask | None
) -> Attended:
    """Does what `with_prefix` does for keys [B, H, K, S] and values [B, H, S, K], as `decoding_cache` keeps them."""
    if not module.has_variable(COLLECTION, "key"):
        return key, value, bias, mask
    key, value, bias, mask = with_prefix(module, *opened((key, value)), bias, mask)
    return *kept((key, value)), bias, mask


def _of_rows(prefix: jax.Array, like: jax.Array) -> jax.Array:
    """Returns [B, P, H, K] of [A, P, H·K] or [P, H·K]."""
    prefix = prefix.reshape(-1, prefix.shape[-2], *like.shape[2:]).astype(like.dtype)
    return jnp.repeat(prefix, like.shape[0] // prefix.shape[0], axis=0)
