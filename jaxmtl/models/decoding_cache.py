"""The keys and values of what a decoder has written, kept for all its layers in one pair of arrays."""

import jax

KeysAndValues = tuple[jax.Array, jax.Array]


def write_position(
    cache: KeysAndValues, new: KeysAndValues, layer: jax.Array, position: jax.Array
) -> tuple[KeysAndValues, KeysAndValues]:
    """Puts one position of one layer into the cache.

    Args:
      cache: keys and values [layers, rows, T, H, K].
      new: keys and values [rows, 1, H, K] of the position.
      layer: int32 scalar, the layer's index.
      position: int32 scalar, counted from 0.

    Returns:
      The cache, and that layer's keys and values [rows, T, H, K].
    """
    write = lambda old, one: jax.lax.dynamic_update_slice(old, one[None], (layer, 0, position, 0, 0))
    cache = jax.tree.map(write, cache, new)
    return cache, jax.tree.map(lambda kept: jax.lax.dynamic_index_in_dim(kept, layer, keepdims=False), cache)
