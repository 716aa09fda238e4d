"""Keys and values that a decoder keeps between steps, in the order of axes in which a step reads them.

A step multiplies by all of them, and on a CPU would first copy what lies in another order: that takes most of its time.
Letters in shapes: L layers, N rows, S length, H heads, K head width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

KeysAndValues = tuple[jax.Array, jax.Array]

ROWS_AXIS = -4
"""Axis N of keys and values that are kept, those of one layer and those of a stack."""


def kept(projected: KeysAndValues) -> KeysAndValues:
    """Turns keys and values to how they are kept.

    Args:
      projected: keys and values [..., S, H, K].

    Returns:
      Keys [..., H, K, S] and values [..., H, S, K].
    """
    key, value = projected
    return jnp.moveaxis(key, -3, -1), jnp.swapaxes(value, -3, -2)


def opened(found: KeysAndValues) -> KeysAndValues:
    """Turns keys and values that were kept back to [..., S, H, K]."""
    key, value = found
    return jnp.moveaxis(key, -1, -3), jnp.swapaxes(value, -3, -2)


def empty(
    num_layers: int, num_rows: int, length: int, num_heads: int, head_dim: int, dtype: jnp.dtype
) -> KeysAndValues:
    """Makes room for what will be decoded.

    Args:
      num_layers: L.
      num_rows: N.
      length: S, most positions.
      num_heads: H.
      head_dim: K.
      dtype: of keys and values.

    Returns:
      Zeros: keys [L, N, H, K, S] and values [L, N, H, S, K].
    """
    rows = (num_layers, num_rows, num_heads)
    return jnp.zeros((*rows, head_dim, length), dtype), jnp.zeros((*rows, length, head_dim), dtype)


def capacity(cache: Sequence[KeysAndValues]) -> int:
    """Returns S, for how many positions a cache has room, or what it holds; it is in pieces of the stack's layers."""
    return cache[0][0].shape[-1]


def write_position(cache: KeysAndValues, new: KeysAndValues, position: jax.Array) -> KeysAndValues:
    """Puts one position into the cache of one layer.

    Args:
      cache: keys [N, H, K, S] and values [N, H, S, K].
      new: keys and values [N, 1, H, K] of the position.
      position: int32 scalar, counted from 0.

    Returns:
      The cache.
    """
    key, value = kept(new)
    update = jax.lax.dynamic_update_slice
    return update(cache[0], key, (0, 0, 0, position)), update(cache[1], value, (0, 0, position, 0))
