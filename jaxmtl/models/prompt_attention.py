"""Attention of generated or scored tokens to what a prompt left behind and to themselves, under one softmax.

Letters in shapes: B prompts, R rows per prompt (choices or beams), T query length, S prompt length, U own length,
H heads, K head width. Rows of one prompt are adjacent.
"""

import jax
import jax.numpy as jnp

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
    grouped = lambda x: x.reshape(key.shape[0], -1, *x.shape[1:])
    query_, own_key, own_value = grouped(query), grouped(own[0]), grouped(own[1])
    scores = jnp.einsum("brthk,bhks->brhts", query_, key, preferred_element_type=jnp.float32)
    scores = scores + mask_to_bias(prompt_seen)[:, None, None, None]
    own_scores = jnp.einsum("brthk,brhku->brhtu", query_, own_key, preferred_element_type=jnp.float32) + own_bias
    weights = jax.nn.softmax(jnp.concatenate([scores, own_scores], axis=-1), axis=-1).astype(query.dtype)
    of_prompt, of_own = jnp.split(weights, [key.shape[-1]], axis=-1)
    mixed = jnp.einsum("brhts,bhsk->brthk", of_prompt, value) + jnp.einsum("brhtu,brhuk->brthk", of_own, own_value)
    return mixed.reshape(query.shape)
