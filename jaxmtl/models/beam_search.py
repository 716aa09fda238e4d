"""Beam search with the length penalty and the stopping rules of Hugging Face's `transformers`.

In each step every input's R open beams give 2R candidates, so that R stay open even where R of them end. What ends
among the best R is kept, at most R texts for each input, by its score: log-probability over length^penalty.
Letters in shapes: B inputs, R beams, V real tokens, L page length (prompt and generated tokens).
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxmtl.models.decoding_cache import ROWS_AXIS
from jaxmtl.models.stepping import Request

NEVER = "never"
WORST = -1e9
"""Score of what is not there; added to what must not be taken. Finite, so that sums are; as in `transformers`."""


@flax.struct.dataclass
class _Beams:
    """The state of the search.

    Attributes:
      position: int32 scalar, number of generated tokens.
      scores: float32 [B, R], log-probabilities of the open beams, best first.
      pages: int32 [B, R, L], what they hold.
      cache: the model's cache of the open beams.
      ended_scores: float32 [B, R], scores of the ended texts, best first.
      ended_pages: int32 [B, R, L].
      has_ended: bool [B, R], True where there is an ended text.
      can_improve: bool [B], False once no open beam of the input can come among its ended texts.
    """

    position: jax.Array
    scores: jax.Array
    pages: jax.Array
    cache: Any
    ended_scores: jax.Array
    ended_pages: jax.Array
    has_ended: jax.Array
    can_improve: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Looks for the likeliest text with several open beginnings.

    Attributes:
      num_beams: R.
      length_penalty: exponent on the length that a text's log-probability is divided by; above 0 favours long texts.
      early_stopping: when the search for an input ends: True, once R texts have ended; False, once the best open beam
        is worse than all of them at its present length; "never", at the length that suits it best.

    Source: Wu et al. 2016 §7; the stopping rules are those of `transformers`.
    """

    num_beams: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __call__(self, request: Request, streams: jax.Array) -> jax.Array:
        """Decodes.

        Args:
          request: what to continue.
          streams: uint32 [B]; not used.

        Returns:
          int32 [B, T], the best text of each input up to and including the end token, then padding.
        """
        first, cache = request.start(self.num_beams)

        def unfinished(state: tuple[jax.Array, _Beams]) -> jax.Array:
            beams = state[1]
            return (beams.position < request.max_tokens) & self._is_open(beams).any()

        def step(state: tuple[jax.Array, _Beams]) -> tuple[jax.Array, _Beams]:
            return self._step(request, *state)

        _, beams = jax.lax.while_loop(unfinished, step, (first, self._start(request, cache)))
        return request.texts(beams.ended_pages[:, 0])

    def _start(self, request: Request, cache: Any) -> _Beams:
        num_inputs, num_beams = request.inputs.shape[0], self.num_beams
        pages = request.empty_pages(num_beams).reshape(num_inputs, num_beams, -1)
        worst = jnp.full((num_inputs, num_beams), WORST, jnp.float32)
        return _Beams(
            position=jnp.zeros((), jnp.int32),
            scores=worst.at[:, 0].set(0.0),  # all beams are alike: only one may give candidates
            pages=pages,
            cache=cache,
            ended_scores=worst,
            ended_pages=pages,
            has_ended=jnp.zeros(worst.shape, bool),
            can_improve=~request.is_empty(),
        )

    def _is_open(self, beams: _Beams) -> jax.Array:
        """Returns bool [B], True where the search goes on."""
        if self.early_stopping is True:
            return beams.can_improve & ~beams.has_ended.all(axis=1)
        return beams.can_improve

    def _step(self, request: Request, last: jax.Array, beams: _Beams) -> tuple[jax.Array, _Beams]:
        """Writes one token to every open beam."""
        logits, cache = request.logits(last, beams.position, beams.cache)
        scores, parents, tokens = self._candidates(request, logits, beams)
        prompt_length = beams.pages.shape[-1] - request.max_tokens
        pages = jnp.take_along_axis(beams.pages, parents[..., None], axis=1)
        pages = jax.lax.dynamic_update_slice(pages, tokens[..., None], (0, 0, prompt_length + beams.position))
        ends = (tokens == request.config.eos_id) | (beams.position + 1 == request.max_tokens)

        beams = self._keep_ended(beams, scores, pages, ends)
        open_scores, chosen = jax.lax.top_k(scores + ends * WORST, self.num_beams)
        of_chosen = lambda values: jnp.take_along_axis(values, chosen, axis=1)
        beams = dataclasses.replace(
            beams,
            position=beams.position + 1,
            scores=open_scores,
            pages=jnp.take_along_axis(pages, chosen[..., None], axis=1),
            cache=_reordered(cache, of_chosen(parents)),
        )
        beams = dataclasses.replace(beams, can_improve=beams.can_improve & self._may_improve(beams, request.max_tokens))
        return of_chosen(tokens).reshape(-1), beams

    def _candidates(self, request: Request, logits: jax.Array, beams: _Beams) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the 2R best continuations of each input: score, beam and token, each [B, 2R]."""
        num_inputs, num_beams = beams.scores.shape
        pages = beams.pages.reshape(num_inputs * num_beams, -1)
        added = request.ruled(jax.nn.log_softmax(logits), pages, beams.position)
        totals = (added.reshape(num_inputs, num_beams, -1) + beams.scores[..., None]).reshape(num_inputs, -1)
        scores, indices = jax.lax.top_k(totals, 2 * num_beams)
        return scores, indices // added.shape[-1], indices % added.shape[-1]

    def _keep_ended(self, beams: _Beams, scores: jax.Array, pages: jax.Array, ends: jax.Array) -> _Beams:
        """Puts candidates that ended among the ended texts; only the best R candidates count."""
        ends = ends & (jnp.arange(ends.shape[1]) < self.num_beams)
        scores = scores / (beams.position + 1).astype(jnp.float32) ** self.length_penalty
        scores = scores + (~self._is_open(beams))[:, None] * WORST + ~ends * WORST
        merged = jnp.concatenate([beams.ended_scores, scores], axis=1)
        ended_scores, kept = jax.lax.top_k(merged, self.num_beams)
        both = jnp.concatenate([beams.ended_pages, pages], axis=1)
        flags = jnp.concatenate([beams.has_ended, ends], axis=1)
        return dataclasses.replace(
            beams,
            ended_scores=ended_scores,
            ended_pages=jnp.take_along_axis(both, kept[..., None], axis=1),
            has_ended=jnp.take_along_axis(flags, kept, axis=1),
        )

    def _may_improve(self, beams: _Beams, max_tokens: int) -> jax.Array:
        """Returns bool [B], True where the best open beam may still beat the worst ended text."""
        length = beams.position.astype(jnp.float32)
        if self.early_stopping == NEVER and self.length_penalty > 0:
            length = jnp.float32(max_tokens)
        best_open = beams.scores[:, :1] / length**self.length_penalty
        worst_ended = jnp.where(beams.has_ended, beams.ended_scores.min(axis=1, keepdims=True), WORST)
        return (best_open > worst_ended).any(axis=1)


def _reordered(cache: Any, parents: jax.Array) -> Any:
    """Gives every beam the cache of the beam that it continues; the memory belongs to the input and stays."""
    num_inputs, num_beams = parents.shape
    rows = (jnp.arange(num_inputs)[:, None] * num_beams + parents).reshape(-1)
    of_rows = lambda leaf: jnp.take(leaf, rows, axis=ROWS_AXIS)
    return {**cache, "self": jax.tree.map(of_rows, cache["self"])}
