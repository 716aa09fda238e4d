"""Attention of generated or scored tokens to what a prompt left behind and to themselves, under one softmax.

Letters in shapes: B prompts, R rows per prompt (choices or beams), T query length, S prompt length, U own length,
H heads, K head width. Rows of one prompt are adjacent.
"""

import jax
import jax.numpy as jnp

from jaxmtl.models.attention import mix_kept
from jaxmtl.models.decoding_cache import KeysAndValues
from jaxmtl.models.masks import mask_to_bias


def attend_to_prompt(
    query: jax.Array, prompt: KeysAndValues, own: KeysAndValues, prompt_seen: jax.Array, own_bias: jax.Array
) -> jax.Array:
    """Attends to keys that all rows of a prompt share, and to keys of each row; the shared ones are never repeated.

    Args:
      query: [B·R, T, H, K], scaled.
      prompt: keys [B, H, K, S] and values [B, H, S, K], as `decoding_cache` keeps them.
      own: keys [B·R, H, K, U] and values [B·R, H, U, K].
      prompt_seen: bool [B, S], True on keys of the prompt to see.
      own_bias: float32 [T, U], hides keys of a row from its queries; each query sees at least one.

    Returns:
      [B·R, T, H, K] in the query's dtype; softmax is taken in float32.
    """
    key, value = prompt
    batch, rows, length = key.shape[0], query.shape[0] // key.shape[0], query.shape[1]
    # [B·R, H, T, ...] of rows to [B, H, R·T, ...] of prompts, where rows of a prompt are as further queries.
    split = lambda x: x.reshape(batch, rows, *x.shape[1:])
    joined = lambda x: jnp.moveaxis(split(x), 1, 2).reshape(batch, x.shape[1], rows * length, -1)
    folded = query.reshape(batch, rows * length, *query.shape[2:])
    scores = jnp.einsum("bthk,bhks->bhts", folded, key, preferred_element_type=jnp.float32)
    scores = scores + mask_to_bias(prompt_seen)[:, None, None]
    own_scores = joined(jnp.einsum("nthk,nhku->nhtu", query, own[0], preferred_element_type=jnp.float32) + own_bias)
    # One softmax over both parts; they are never put into one array.
    top = jnp.maximum(scores.max(-1, keepdims=True), own_scores.max(-1, keepdims=True))
    weights, own_weights = jnp.exp(scores - top), jnp.exp(own_scores - top)
    total = weights.sum(-1, keepdims=True) + own_weights.sum(-1, keepdims=True)
    weights, own_weights = (weights / total).astype(query.dtype), (own_weights / total).astype(query.dtype)
    of_rows = own_weights.reshape(batch, -1, rows, length, own[0].shape[-1])
    of_rows = jnp.moveaxis(of_rows, 2, 1).reshape(batch * rows, -1, length, own[0].shape[-1])
    return mix_kept(weights, value).reshape(query.shape) + mix_kept(of_rows, own[1])
