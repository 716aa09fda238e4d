"""Rules that change the scores of the next token: penalties on repetition, least lengths, forced tokens.

A rule maps scores to scores and is a value: frozen, compared by its numbers. A token that a rule forbids scores -inf.
The semantics are those of the logits processors of Hugging Face's `transformers`, which papers of the field report.
Letters in shapes: N rows, V vocab, P tokens before the first generated one, T most generated tokens.
"""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar, Protocol

import flax.struct
import jax
import jax.numpy as jnp

NOTHING = -1
"""Stands where a row has no token: in front of a short prompt, and where nothing is written yet."""


@flax.struct.dataclass
class Written:
    """What rows hold when their next token is scored.

    Attributes:
      tokens: int32 [N, P + T]: the prompt, right-aligned, and the generated tokens; `NOTHING` elsewhere. P is 0 if no
        rule reads tokens.
      position: int32 scalar, number of generated tokens.
      prompt_length: P.
      eos_id: token id that ends a text.
    """

    tokens: jax.Array
    position: jax.Array
    prompt_length: int = flax.struct.field(pytree_node=False)
    eos_id: int = flax.struct.field(pytree_node=False)


class Rule(Protocol):
    """Changes scores: (float32 [N, V], what is written) to float32 [N, V].

    Attributes:
      reads_tokens: whether it looks at `Written.tokens`.
    """

    reads_tokens: ClassVar[bool]

    def __call__(self, scores: jax.Array, written: Written) -> jax.Array:
        """Returns the changed scores."""
        ...


@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
    """Makes every token of the prompt and of the text so far less likely.

    Attributes:
      penalty: scores above 0 are divided by it, others multiplied.

    Source: Keskar et al. 2019 §4.1, with the sign rule of `transformers`.
    """

    penalty: float
    reads_tokens: ClassVar[bool] = True

    def __call__(self, scores: jax.Array, written: Written) -> jax.Array:
        """Returns the changed scores."""
        penalised = jnp.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return jnp.where(_marked(written.tokens, scores), penalised, scores)


@dataclasses.dataclass(frozen=True)
class NoRepeatNgram:
    """Forbids the token that would complete an n-gram that the row, prompt included, already holds.

    Attributes:
      size: n, in tokens.

    Source: Paulus et al. 2017 §2.5.
    """

    size: int
    reads_tokens: ClassVar[bool] = True

    def __call__(self, scores: jax.Array, written: Written) -> jax.Array:
        """Returns the changed scores."""
        tokens, before = written.tokens, self.size - 1
        if tokens.shape[1] < self.size:
            return scores
        length = written.prompt_length + written.position
        num_windows = tokens.shape[1] - before
        completes = jnp.broadcast_to(length >= before, (tokens.shape[0], num_windows))
        for offset in range(before):
            last = jax.lax.dynamic_index_in_dim(tokens, length - before + offset, axis=1)
            same = tokens[:, offset : offset + num_windows] == last
            completes = completes & same & (last != NOTHING)
        return jnp.where(_marked(jnp.where(completes, tokens[:, before:], NOTHING), scores), -jnp.inf, scores)


@dataclasses.dataclass(frozen=True)
class MinTokens:
    """Forbids the end token until so many tokens are generated.

    Attributes:
      count: least number of generated tokens in front of the end token.
    """

    count: int
    reads_tokens: ClassVar[bool] = False

    def __call__(self, scores: jax.Array, written: Written) -> jax.Array:
        """Returns the changed scores."""
        is_end = jnp.arange(scores.shape[1]) == written.eos_id
        return jnp.where(is_end & (written.position < self.count), -jnp.inf, scores)


@dataclasses.dataclass(frozen=True)
class ForcedToken:
    """Takes one token at one position whatever the model says, at no cost.

    Attributes:
      token: its id.
      position: where, counted from 0 over generated tokens.
    """

    token: int
    position: int
    reads_tokens: ClassVar[bool] = False

    def __call__(self, scores: jax.Array, written: Written) -> jax.Array:
        """Returns the changed scores."""
        forced = jnp.where(jnp.arange(scores.shape[1]) == self.token, 0.0, -jnp.inf)
        return jnp.where(written.position == self.position, forced, scores)


def apply_rules(rules: Iterable[Rule], scores: jax.Array, written: Written) -> jax.Array:
    """Applies rules one after the other.

    Args:
      rules: in the order in which they apply.
      scores: float32 [N, V].
      written: what the rows hold.

    Returns:
      float32 [N, V].
    """
    for rule in rules:
        scores = rule(scores, written)
    return scores


def _marked(tokens: jax.Array, scores: jax.Array) -> jax.Array:
    """Returns bool [N, V], True on the ids among int32 [N, L]; `NOTHING` marks none."""
    marks = jnp.zeros((scores.shape[0], scores.shape[1] + 1), bool)
    ids = jnp.where(tokens == NOTHING, scores.shape[1], tokens)
    return marks.at[jnp.arange(scores.shape[0])[:, None], ids].set(True, mode="drop")[:, :-1]
