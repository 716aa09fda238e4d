"""The low-rank update of a linear layer, read from the collection "lora": one for all rows, or each row its own.

Letters in shapes: A adapters, B rows, L length, R rank.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

COLLECTION = "lora"
"""Name of the variable collection that linear layers read."""


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


def low_rank_update(x: jax.Array, update: LowRank) -> jax.Array:
    """Computes what an adapter adds to a linear layer.

    Args:
      x: [B, L, in]; [..., in] where one adapter serves all rows.
      update: the adapters.

    Returns:
      [B, L, out] in x's dtype.

    Source: LoRA (Hu et al. 2022); methods 6.4.
    """
    a, b = update.a.astype(x.dtype), update.b.astype(x.dtype)
    if a.ndim == 2:
        return jnp.dot(jnp.dot(x, a), b)
    rows = x.reshape(a.shape[0], -1, x.shape[-1])
    if update.keys is not None and update.drop_rate is not None:
        rows = _dropped(rows, update.keys, 1.0 - update.drop_rate)
    narrow = jnp.einsum("nli,nir->nlr", rows, a)
    return jnp.einsum("nlr,nro->nlo", narrow, b).reshape(*x.shape[:-1], b.shape[-1])


def _dropped(rows: jax.Array, keys: jax.Array, keep_rate: jax.Array) -> jax.Array:
    """Drops single values of [A, L, in]; what a position loses depends on its row's key and its place alone."""
    draw = lambda key: jax.random.bernoulli(jax.random.wrap_key_data(key), keep_rate, rows.shape[1:])
    return jnp.where(jax.vmap(draw)(keys), rows / keep_rate.astype(rows.dtype), 0)
