"""The low-rank update of a linear layer, read from the collection "lora": one for all rows, or each row its own.

Letters in shapes: A adapters, B rows, L length, R rank.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

COLLECTION = "lora"
"""Name of the variable collection that linear layers read."""


SAVED_NAME = "low_rank_dropout"
"""What rematerialisation calls the values that were kept: drawing them again costs more than a byte each."""


class LowRank(NamedTuple):
    """What a linear layer adds to its product; the scale is part of `b`.

    Attributes:
      a: [in, R], or [A, in, R]: row n of B uses adapter n // (B / A).
      b: [R, out], or [A, R, out].
      keys: uint32 [A, 2], one random key for each adapter's rows; None drops nothing.
      drop_rate: float32 scalar, share of inputs dropped before `a`.
    """

    a: jax.Array
    b: jax.Array
    keys: jax.Array | None = None
    drop_rate: jax.Array | None = None


def update_of(layer: nn.Module) -> LowRank | None:
    """Reads what the collection "lora" holds for a layer.

    Args:
      layer: the linear layer.

    Returns:
      The update; None if there is none.
    """
    if not layer.has_variable(COLLECTION, "a"):
        return None
    return LowRank(**{name: layer.get_variable(COLLECTION, name) for name in LowRank._fields})


def low_rank_update(x: jax.Array, update: LowRank) -> jax.Array:
    """Computes what an adapter adds to a linear layer.

    Args:
      x: [B, L, in]; [..., in] where one adapter serves all rows.
      update: the adapters.

    Returns:
      [B, L, out] in x's dtype.

    Source: LoRA (Hu et al. 2022); methods 6.4.
    """
    return _multiplied(narrowed(x, update), update.b.astype(x.dtype))


def narrowed(x: jax.Array, update: LowRank) -> jax.Array:
    """Computes the first half of `low_rank_update`: drops, and projects to the rank.

    Args:
      x: [B, L, in]; [..., in] where one adapter serves all rows.
      update: the adapters.

    Returns:
      [B, L, R] in x's dtype.
    """
    if update.keys is not None and update.drop_rate is not None:
        rows = x.reshape(update.keys.shape[0], -1, x.shape[-1])
        x = _dropped(rows, update.keys, 1.0 - update.drop_rate).reshape(x.shape)
    return _multiplied(x, update.a.astype(x.dtype))


def _multiplied(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies [..., in] by a factor [in, out], or rows [A·n, L, in] by those of their adapters [A, in, out]."""
    if factor.ndim == 2:
        return jnp.dot(x, factor)
    rows = x.reshape(factor.shape[0], -1, x.shape[-1])
    return jnp.einsum("nli,nio->nlo", rows, factor).reshape(*x.shape[:-1], factor.shape[-1])


def _dropped(rows: jax.Array, keys: jax.Array, keep_rate: jax.Array) -> jax.Array:
    """Drops single values of [A, L, in]; what a position loses depends on its row's key and its place alone."""
    bits = jax.vmap(_bits, in_axes=(0, None))(keys, rows.shape[1:])
    kept = checkpoint_name((bits >> 8) < (keep_rate * 2.0**24).astype(jnp.uint32), SAVED_NAME)
    return jnp.where(kept, rows / keep_rate.astype(rows.dtype), 0)


def _bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws uint32 bits from key words [2]: enough for dropout, at a tenth of what JAX's own generator costs a CPU.

    Source: the finaliser of MurmurHash3 (Appleby), applied to place and first word, and again with the second word.
    """
    place = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    return _mixed(_mixed(place * jnp.uint32(0x9E3779B9) + key[0]) ^ key[1])


def _mixed(bits: jax.Array) -> jax.Array:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
