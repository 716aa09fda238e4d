"""Decoding one text per input token by token: the likeliest token, or one drawn at random.

Letters in shapes: B inputs, V vocab, T most generated tokens.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmtl.models.stepping import Request

Choose = Callable[[jax.Array, jax.Array], jax.Array]
"""Maps scores float32 [B, V] and a position to tokens int32 [B]."""

BLOCK = 512
"""Most tokens of a block of the vocabulary in which the likeliest token is looked for."""


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Takes the likeliest token at every position, the first one among equals."""

    def __call__(self, request: Request, streams: jax.Array) -> jax.Array:
        """Decodes.

        Args:
          request: what to continue.
          streams: uint32 [B]; not used.

        Returns:
          int32 [B, T], up to and including the end token, then padding.
        """
        return write_tokens(request, lambda scores, position: likeliest(scores))


def likeliest(scores: jax.Array) -> jax.Array:
    """Finds the first of the largest scores; one pass for value and place together would be slow on CPUs.

    Args:
      scores: float32 [B, V].

    Returns:
      int32 [B]; any place where scores are not numbers.
    """
    return jax.lax.platform_dependent(scores, cpu=_likeliest_of_blocks, default=_first_largest)


def _likeliest_of_blocks(scores: jax.Array) -> jax.Array:
    """Finds the block first, then the place in it: all scores are read once, in the order in which they are made."""
    rows, vocab = scores.shape
    size = max(size for size in range(1, BLOCK + 1) if vocab % size == 0)
    blocks = scores.T.reshape(vocab // size, size, rows)
    block = _first_largest(blocks.max(axis=1).T)
    inside = jnp.take_along_axis(blocks, block[None, None], axis=0)[0]
    return block * size + _first_largest(inside.T)


def _first_largest(scores: jax.Array) -> jax.Array:
    places = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    is_largest = scores == scores.max(axis=-1, keepdims=True)
    return jnp.where(is_largest, places, places[-1]).min(axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Draws tokens with their probability, after temperature, top-k and top-p in this order.

    Attributes:
      seed: of all draws.
      temperature: scores are divided by it.
      top_k: number of likeliest tokens that are left, with all that are as likely as the last; 0 leaves all.
      top_p: the likeliest tokens are left that together reach this probability; 1 leaves all.

    Source: Fan et al. 2018 §5.4 (top-k), Holtzman et al. 2020 §3.1 (top-p); order and bounds as in `transformers`.
    """

    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __call__(self, request: Request, streams: jax.Array) -> jax.Array:
        """Decodes.

        Args:
          request: what to continue.
          streams: uint32 [B], number of each row's own stream of random numbers: what is drawn depends on nothing else.

        Returns:
          int32 [B, T], up to and including the end token, then padding.
        """
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.seed), streams)

        def draw(scores: jax.Array, position: jax.Array) -> jax.Array:
            one_row = lambda key, row: jax.random.categorical(jax.random.fold_in(key, position), row)
            return jax.vmap(one_row)(keys, self.limited(scores)).astype(jnp.int32)

        return write_tokens(request, draw)

    def limited(self, scores: jax.Array) -> jax.Array:
        """Divides by the temperature and forbids all but the likeliest tokens.

        Args:
          scores: float32 [B, V].

        Returns:
          float32 [B, V], -inf on what is never drawn.
        """
        scores = scores / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            least = jax.lax.top_k(scores, self.top_k)[0][..., -1:]
            scores = jnp.where(scores < least, -jnp.inf, scores)
        if self.top_p < 1:
            ascending = jnp.sort(scores, axis=-1)
            dropped = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - self.top_p
            dropped = dropped.at[..., -1].set(False)
            least = jnp.min(jnp.where(dropped, jnp.inf, ascending), axis=-1, keepdims=True)
            scores = jnp.where(scores < least, -jnp.inf, scores)
        return scores


def write_tokens(request: Request, choose: Choose) -> jax.Array:
    """Writes one token after the other, until every row has ended.

    Args:
      request: what to continue; a row without any input token ends at once.
      choose: chooses the tokens.

    Returns:
      int32 [B, T], up to and including the end token, then padding.
    """
    config = request.config
    first, cache = request.start()
    pages = request.empty_pages()
    prompt_length = pages.shape[1] - request.max_tokens

    def unfinished(state: tuple) -> jax.Array:
        position, _, ended, _, _ = state
        return (position < request.max_tokens) & ~ended.all()

    def step(state: tuple) -> tuple:
        position, last, ended, pages, cache = state
        logits, cache = request.logits(last, position, cache)
        token = choose(request.ruled(logits, pages, position), position)
        token = jnp.where(ended, config.pad_id, token)
        pages = jax.lax.dynamic_update_slice(pages, token[:, None], (0, prompt_length + position))
        return position + 1, token, ended | (token == config.eos_id), pages, cache

    state = (jnp.zeros((), jnp.int32), first, request.is_empty(), pages, cache)
    return request.texts(jax.lax.while_loop(unfinished, step, state)[3])
