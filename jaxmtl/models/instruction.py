"""What an encoded instruction does inside an encoder-decoder: fused into the encoder's states, kept in the memory.

Both are read from collections: "fusion" by every encoder layer, "instruction" by every cross-attention. A model that is
applied without them is the plain model.
Letters in shapes: U instructions, I instruction length, B rows, S source length, D embed, H heads, K head width.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.models.attention import Attention
from jaxmtl.models.masks import Mask

FUSION, MEMORY = "fusion", "instruction"
"""Names of the variable collections."""


def with_fusion(
    module: nn.Module, attention: Attention, x: jax.Array, drop: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Lets the states of an encoder layer look at their row's instruction, if the layer has fusion.

    Args:
      module: the encoder layer; its collection holds `query` [D, H·K] and `out` [H·K, D]; `key` and `value`
        [U, I, H, K] and `mask` bool [U, I] of all instructions; `index` int32 [B], the instruction of each row; and
        either `pre_scale` [D] (what looks is normalised) or `post_scale` [D] (the sum is normalised).
      attention: how attention is computed.
      x: [B, S, D], the states behind self-attention.
      drop: dropout of what is added.

    Returns:
      [B, S, D]; `x` itself if the layer has no fusion.

    Source: TAGI, Eq. 1; methods 1.1 and 1.12.
    """
    if not module.has_variable(FUSION, "key"):
        return x
    leaf = lambda name: module.get_variable(FUSION, name)
    index = leaf("index")
    of_rows = lambda name: jnp.take(leaf(name), index, axis=0)
    key, value, mask = (of_rows(name) for name in ("key", "value", "mask"))
    reader = _normalised(x, leaf("pre_scale")) if module.has_variable(FUSION, "pre_scale") else x
    query = jnp.dot(reader, leaf("query").astype(x.dtype)).reshape(*x.shape[:-1], *key.shape[2:])
    mixed = attention(query, key.astype(x.dtype), value.astype(x.dtype), None, Mask(keys=mask), None)
    x = x + drop(jnp.dot(mixed.reshape(*x.shape[:-1], -1), leaf("out").astype(x.dtype)))
    return _normalised(x, leaf("post_scale")) if module.has_variable(FUSION, "post_scale") else x


def with_memory(module: nn.Module, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Puts what a cross-attention sees of each row's instruction, if there is any, before what it sees of the input.

    The instruction's keys and values do not depend on the row: they are projected once, by whoever made the collection.

    Args:
      module: the cross-attention; its collection holds `key` and `value` [U, I, H, K] and `index` int32 [B].
      key: [B, S, H, K].
      value: [B, S, H, K].

    Returns:
      Both, with I + S instead of S; as they were without instructions.

    Source: TAGI; HINT's fusion in the decoder, methods 1.3.
    """
    if not module.has_variable(MEMORY, "key"):
        return key, value
    index = module.get_variable(MEMORY, "index")
    of_rows = lambda name: jnp.take(module.get_variable(MEMORY, name), index, axis=0).astype(key.dtype)
    return jnp.concatenate([of_rows("key"), key], axis=1), jnp.concatenate([of_rows("value"), value], axis=1)


def memory_mask_of(module: nn.Module, input_mask: jax.Array | None, length: int) -> jax.Array | None:
    """Returns the mask of what `with_memory` returns.

    Args:
      module: the model; its collection holds `mask` bool [U, I] and `index` int32 [B].
      input_mask: bool [B, S], True on states of the input to see; None sees all.
      length: S.

    Returns:
      bool [B, I + S]; `input_mask` itself without instructions.
    """
    if not module.has_variable(MEMORY, "mask"):
        return input_mask
    seen = jnp.take(module.get_variable(MEMORY, "mask"), module.get_variable(MEMORY, "index"), axis=0)
    own = jnp.ones((seen.shape[0], length), bool) if input_mask is None else input_mask
    return jnp.concatenate([seen, own], axis=1)


def instruction_length(module: nn.Module) -> int:
    """Returns I, positions of the memory that are a module's instructions; 0 without instructions."""
    return module.get_variable(MEMORY, "mask").shape[1] if module.has_variable(MEMORY, "mask") else 0


def _normalised(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Divides by the root mean square over the last axis, in float32."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + 1e-6) * scale).astype(x.dtype)
