"""Cross-attention of few queries, which look at the memory itself instead of at keys and values made of it.

A score `q · (m W)` is `(q W^T) · m`, and a mixture of values is the mixture of what they are made of, times their
kernel. So the kernels can be absorbed by the queries and by what was mixed. Where an input has fewer queries than a
head is wide, as when answer choices are scored, that takes a fraction of the arithmetic of projecting every position.
Letters in shapes: B inputs, Q queries of an input, S source length, P keys that are known without the memory (of a
prefix, of an instruction), D embed, H heads, K head width, R rank.

Source: DeepSeek-V2 (2024), section 2.1.2, absorbs projections of latent states in this way; here those of a memory.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxmtl.models.attention import seeing, weights_of
from jaxmtl.models.instruction import with_memory
from jaxmtl.models.layers import Dense
from jaxmtl.models.low_rank import LowRank, narrowed, update_of
from jaxmtl.models.masks import Mask
from jaxmtl.models.prefix import with_prefix
from jaxmtl.models.row_attention import SAVED_NAME

LEAST_GAIN = 2
"""How many times less arithmetic it must be: its products are small ones, of which a device does fewer in a second."""


Keep = Callable[[int, int], jax.Array | None]
"""Draws the dropout mask float [B, H, length] of B inputs and so many keys; None where nothing is dropped."""


def absorbs(module: nn.Module, num_queries: int, memory: jax.Array) -> bool:
    """Tells whether a cross-attention should look at the memory itself.

    Args:
      module: the attention; has `config`, and `key` and `value`, the layers that project the memory.
      num_queries: Q.
      memory: [B, S, D].

    Returns:
      True if that is much less arithmetic, and the kernels are there.
    """
    has_kernels = all(layer.has_variable("params", "kernel") for layer in (module.key, module.value))
    if module.is_initializing() or not has_kernels:
        return False
    (length, width), head_width = memory.shape[1:], module.config.head_dim
    absorbed = num_queries * width * (head_width + length)
    projected = length * head_width * (width + num_queries)
    return LEAST_GAIN * absorbed <= projected


def attend_to_memory(
    module: nn.Module, query: jax.Array, memory: jax.Array, mask: Mask | None, keep: Keep
) -> jax.Array:
    """Attends to a memory, and to what a prefix or an instruction puts before it, without projecting the memory.

    The model's own choice of attention, `config.attention`, is for keys and values and plays no part here.

    Args:
      module: the attention; has `key` and `value`, the layers [D, H·K] that would project the memory. Its collections
        of a prefix, of an instruction and of those layers' low-rank updates count if they are there.
      query: [B, Q, H, K].
      memory: [B, S, D].
      mask: what to see of the instruction, if there is one, and of the memory.
      keep: which keys are kept, all that are looked at counted.

    Returns:
      [B, Q, H, K], what attending to keys and values gives, up to rounding.

    Raises:
      InputError: if a prefix stands before packed rows.
    """
    none = jnp.zeros((memory.shape[0], 0, *query.shape[2:]), query.dtype)
    key, value, _, mask = with_prefix(module, *with_memory(module, none, none), None, mask)
    scores = jnp.concatenate([_known_scores(query, key), _scores(module.key, query, memory)], axis=-1)
    weights = weights_of(scores, None, mask).astype(query.dtype)
    kept = keep(weights.shape[0], weights.shape[-1])
    if kept is not None:
        weights = weights * kept[:, :, None, :].astype(query.dtype)
    known, own = jnp.split(weights, [key.shape[1]], axis=-1)
    mixed = jnp.einsum("bhqp,bphk->bqhk", known, value) + _mixed(module.value, own, memory, query.shape[-1])
    return checkpoint_name(seeing(mixed, mask), SAVED_NAME)


def _known_scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Returns float32 [B, H, Q, P] of keys [B, P, H, K]."""
    return jnp.einsum("bqhk,bphk->bhqp", query, key, preferred_element_type=jnp.float32)


def _scores(layer: Dense, query: jax.Array, memory: jax.Array) -> jax.Array:
    """Returns float32 [B, H, Q, S], what queries [B, Q, H, K] and the keys that `layer` makes of the memory give."""
    batch, num_queries, num_heads, head_width = query.shape
    wide = jnp.einsum("bqhk,dhk->bhqd", query, _kernel(layer, query.dtype, head_width))
    # Heads come before queries: on a mesh whole heads stay on their devices.
    wide, states = wide.reshape(batch, num_heads * num_queries, -1), memory.astype(query.dtype)
    scores = jnp.einsum("bnd,bsd->bns", wide, states, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, num_heads, num_queries, -1)
    update = update_of(layer)
    if update is not None:
        narrow, b = narrowed(states, update), _widening(update, query.dtype, batch, head_width)
        of_rank = jnp.einsum("bqhk,brhk->bhqr", query, b)
        scores = scores + jnp.einsum("bhqr,bsr->bhqs", of_rank, narrow, preferred_element_type=jnp.float32)
    if layer.bias_init is not None:
        bias = _bias(layer, query.dtype, head_width)
        scores = scores + jnp.einsum("bqhk,hk->bhq", query, bias, preferred_element_type=jnp.float32)[..., None]
    return scores


def _mixed(layer: Dense, weights: jax.Array, memory: jax.Array, head_width: int) -> jax.Array:
    """Returns [B, Q, H, K], the values that `layer` makes of the memory, mixed by weights [B, H, Q, S]."""
    batch, num_heads, num_queries, length = weights.shape
    flat, states = weights.reshape(batch, num_heads * num_queries, length), memory.astype(weights.dtype)
    wide = jnp.einsum("bns,bsd->bnd", flat, states).reshape(batch, num_heads, num_queries, -1)
    mixed = jnp.einsum("bhqd,dhk->bqhk", wide, _kernel(layer, weights.dtype, head_width))
    update = update_of(layer)
    if update is not None:
        narrow, b = narrowed(states, update), _widening(update, weights.dtype, batch, head_width)
        mixed = mixed + jnp.einsum("bhqr,brhk->bqhk", jnp.einsum("bhqs,bsr->bhqr", weights, narrow), b)
    if layer.bias_init is not None:
        mixed = mixed + jnp.swapaxes(weights.sum(axis=-1), 1, 2)[..., None] * _bias(layer, weights.dtype, head_width)
    return mixed


def _kernel(layer: Dense, dtype: jnp.dtype, head_width: int) -> jax.Array:
    """Returns [D, H, K]."""
    kernel = nn.unbox(layer.get_variable("params", "kernel")).astype(dtype)
    return kernel.reshape(kernel.shape[0], -1, head_width)


def _bias(layer: Dense, dtype: jnp.dtype, head_width: int) -> jax.Array:
    """Returns [H, K]."""
    return nn.unbox(layer.get_variable("params", "bias")).astype(dtype).reshape(-1, head_width)


def _widening(update: LowRank, dtype: jnp.dtype, batch: int, head_width: int) -> jax.Array:
    """Returns [B, R, H, K], the second half of the update of each row."""
    b = update.b.astype(dtype)
    b = b.reshape(-1, *b.shape[-2:-1], b.shape[-1] // head_width, head_width)
    return jnp.repeat(b, batch // b.shape[0], axis=0)
