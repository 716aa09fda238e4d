"""Decoding over a key-value cache, in one jitted loop that ends when every row has ended."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnames=("module", "max_tokens", "num_tokens"))
def greedy(
    module: nn.Module,
    params: Any,
    inputs: jax.Array,
    input_mask: jax.Array,
    *,
    max_tokens: int,
    num_tokens: int | None = None,
) -> jax.Array:
    """Takes the likeliest token at every position.

    Args:
      module: a model with `first_tokens`, `encode`, `start_cache` and `decode_step`.
      params: its parameters.
      inputs: int32 [B, S].
      input_mask: bool [B, S], True on real tokens; a row without any ends at once.
      max_tokens: most tokens generated per row, T.
      num_tokens: number of real tokens; the padding rows of the vocabulary behind them are never taken.

    Returns:
      int32 [B, T]: the generated tokens up to and including the end token, then padding.
    """
    config = module.config
    call = lambda method, *args: module.apply({"params": params}, *args, method=method)
    cache = call("start_cache", call("encode", inputs, input_mask), max_tokens)
    batch = inputs.shape[0]

    def unfinished(state: tuple) -> jax.Array:
        position, _, ended, _, _ = state
        return (position < max_tokens) & ~ended.all()

    def step(state: tuple) -> tuple:
        position, last, ended, generated, cache = state
        logits, cache = call("decode_step", last, position, cache, input_mask)
        token = jnp.where(ended, config.pad_id, logits[:, :num_tokens].argmax(-1).astype(jnp.int32))
        generated = jax.lax.dynamic_update_slice(generated, token[:, None], (0, position))
        return position + 1, token, ended | (token == config.eos_id), generated, cache

    empty = jnp.full((batch, max_tokens), config.pad_id, jnp.int32)
    state = (jnp.zeros((), jnp.int32), call("first_tokens", inputs, input_mask), ~input_mask.any(axis=1), empty, cache)
    return jax.lax.while_loop(unfinished, step, state)[3]
