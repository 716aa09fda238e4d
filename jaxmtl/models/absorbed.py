"""Cross-attention of few queries, which look at the memory itself instead of at keys and values made of it.

A score `q · (m W)` is `(q W^T) · m`, and a mixture of values is the mixture of what they are made of, times their
kernel. So the kernels can be absorbed by the queries and by what was mixed. Where an input has fewer queries than a
head is wide, as when answer choices are scored, that takes a fraction of the arithmetic of projecting every position.
Letters in shapes: B inputs, Q queries of an input, S source length, D embed, H heads, K head width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.models.attention import Attention
from jaxmtl.models.instruction import MEMORY
from jaxmtl.models.layers import Dense
from jaxmtl.models.low_rank import COLLECTION as LORA
from jaxmtl.models.masks import Mask, visible
from jaxmtl.models.prefix import COLLECTION as PREFIX

LEAST_GAIN = 2
"""How many times less arithmetic it must be: its products are small ones, of which a device does fewer in a second."""


def absorbs(module: nn.Module, num_queries: int, memory: jax.Array, mask: Mask | None) -> bool:
    """Tells whether a cross-attention should look at the memory itself.

    Args:
      module: the attention; has `config`, and `key` and `value`, the layers that project the memory.
      num_queries: Q.
      memory: [B, S, D].
      mask: which of the memory each query may see.

    Returns:
      True if that is much less arithmetic and there is nothing but the memory to look at: no learned prefix, no
      instruction, no update of the kernels, no segments.
    """
    if module.is_initializing() or (mask is not None and mask.queries is not None):
        return False
    if module.has_variable(PREFIX, "key") or module.has_variable(MEMORY, "key"):
        return False
    if any(layer.has_variable(LORA, "a") for layer in (module.key, module.value)):
        return False
    (length, width), head_width = memory.shape[1:], module.config.head_dim
    absorbed = num_queries * width * (head_width + length)
    projected = length * head_width * (width + num_queries)
    return LEAST_GAIN * absorbed <= projected


def attend_to_memory(
    attention: Attention, query: jax.Array, memory: jax.Array, key: Dense, value: Dense, mask: Mask | None
) -> jax.Array:
    """Attends to keys and values of a memory without making them.

    Args:
      attention: how attention is computed.
      query: [B, Q, H, K].
      memory: [B, S, D].
      key: the layer [D, H·K] that would make keys; its bias adds the same to every score of a query, so it counts not.
      value: the layer [D, H·K] that would make values.
      mask: which of the memory to see.

    Returns:
      [B, Q, H, K], what `attention` gives of the keys and values, up to rounding.
    """
    batch, num_queries, num_heads, head_width = query.shape
    of_heads = lambda layer: _kernel(layer).astype(query.dtype).reshape(-1, num_heads, head_width)
    # Heads come before queries: on a mesh whole heads stay on their devices.
    wide = jnp.einsum("bqhk,dhk->bhqd", query, of_heads(key)).reshape(batch, num_heads * num_queries, 1, -1)
    states = memory.astype(query.dtype)[:, :, None]
    mixed = attention(wide, states, states, None, mask, None).reshape(batch, num_heads, num_queries, -1)
    result = jnp.einsum("bhqd,dhk->bqhk", mixed, of_heads(value))
    if value.bias_init is None:
        return result
    result = result + value.get_variable("params", "bias").astype(query.dtype).reshape(num_heads, head_width)
    return result if mask is None else jnp.where(visible(mask).any(-1)[..., None, None], result, 0)


def _kernel(layer: Dense) -> jax.Array:
    return nn.unbox(layer.get_variable("params", "kernel"))
