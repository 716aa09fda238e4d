"""A short hash of a model's weights, so that a score says which weights it belongs to."""

import functools
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_SEEDS = (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)


def weights_hash(params: Any, dtype: str | None = None) -> str:
    """Hashes a parameter tree: paths, shapes, dtypes and every bit of every value.

    Sums of mixed words modulo 2^32 are computed where the arrays are, so that large models need not be copied and the
    hash does not depend on how they are spread over devices or hosts. It guards against mix-ups, not against forgery.

    Args:
      params: any tree of arrays.
      dtype: hashes them as they are in this dtype; None as they are.

    Returns:
      16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    sums = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{name} {leaf.shape} {dtype or leaf.dtype}\n".encode())
        sums.append(_sums(jnp.asarray(leaf), dtype))
    for row in jax.device_get(sums):
        digest.update(np.ascontiguousarray(row, "<u4").tobytes())
    return digest.hexdigest()[:16]


@functools.partial(jax.jit, static_argnums=1)
def _sums(leaf: jax.Array, dtype: str | None) -> jax.Array:
    """Returns uint32 [4]: for each seed the sum of all words, each mixed with its position."""
    leaf = leaf if dtype is None else leaf.astype(dtype)
    words = jax.lax.bitcast_convert_type(leaf, _WORDS[leaf.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        stride = math.prod(leaf.shape[axis + 1 :]) % 2**32
        position += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride)
    mixed = [_mix(words ^ _mix(position + jnp.uint32(seed))) for seed in _SEEDS]
    total = functools.partial(jnp.sum, dtype=jnp.uint32)
    return jnp.stack([total(values) for values in mixed])


def _mix(x: jax.Array) -> jax.Array:
    """Spreads every bit over the word: the finalizer of MurmurHash3 (Appleby, public domain)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
