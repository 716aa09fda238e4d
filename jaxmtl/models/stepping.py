"""A model that has read its inputs and scores the next token of each row: what every way of decoding is made of.

Letters in shapes: B inputs, R rows per input, S source length, P prompt length, T most generated tokens, V real tokens.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.models.logit_rules import NOTHING, Rule, Written, apply_rules


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be continued, and within which bounds.

    Attributes:
      module: a model of any family.
      variables: its parameters, and adapters if there are any.
      inputs: int32 [B, S].
      input_mask: bool [B, S], True on real tokens.
      max_tokens: T.
      num_tokens: number of real tokens; rows of the vocabulary behind them are never taken. None if all are real.
      rules: change the scores of the next token, in this order.
      memory: what the model keeps of the inputs.
    """

    module: nn.Module
    variables: Any
    inputs: jax.Array
    input_mask: jax.Array
    max_tokens: int
    num_tokens: int | None
    rules: tuple[Rule, ...]
    memory: Any

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method of the module with its variables."""
        return self.module.apply(self.variables, *args, method=method)

    def is_empty(self) -> jax.Array:
        """Returns bool [B], True on inputs without any token."""
        return ~self.input_mask.any(axis=1)

    def start(self, rows_per_input: int = 1) -> tuple[jax.Array, Any]:
        """Prepares the first step.

        Args:
          rows_per_input: R.

        Returns:
          int32 [B·R], what precedes the first generated token; and the cache.
        """
        first = jnp.repeat(self.call("first_tokens", self.inputs, self.input_mask), rows_per_input)
        return first, self.call("start_cache", self.memory, self.max_tokens, rows_per_input)

    def empty_pages(self, rows_per_input: int = 1) -> jax.Array:
        """Returns int32 [B·R, P + T] as `Written.tokens` is before the first token."""
        prompt = jnp.zeros((self.inputs.shape[0], 0), jnp.int32)
        if any(rule.reads_tokens for rule in self.rules):
            tokens, real = self.call("prompt_tokens", self.inputs, self.input_mask)
            # Padding may stand on either side; rules look for what was written last at the prompt's end.
            order = jnp.argsort(real, axis=1, stable=True)
            prompt = jnp.take_along_axis(jnp.where(real, tokens, NOTHING), order, axis=1)
        pages = jnp.pad(prompt, ((0, 0), (0, self.max_tokens)), constant_values=NOTHING)
        return jnp.repeat(pages, rows_per_input, axis=0)

    def logits(self, last: jax.Array, position: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """Scores all rows of the vocabulary, those that are padding included.

        Args:
          last: int32 [B·R], the token before.
          position: int32 scalar, number of generated tokens.
          cache: of `start` or of the step before.

        Returns:
          float32 [B·R, rows], and the cache for the next step.
        """
        return self.call("decode_step", last, position, cache, self.input_mask)

    def ruled(self, scores: jax.Array, pages: jax.Array, position: jax.Array) -> jax.Array:
        """Leaves the real tokens and applies the rules.

        Args:
          scores: float32 [B·R, rows].
          pages: int32 [B·R, P + T], what is written.
          position: int32 scalar, number of generated tokens.

        Returns:
          float32 [B·R, V].
        """
        prompt_length, eos_id = pages.shape[1] - self.max_tokens, self.config.eos_id
        written = Written(tokens=pages, position=position, prompt_length=prompt_length, eos_id=eos_id)
        return apply_rules(self.rules, scores[:, : self.num_tokens], written)

    def texts(self, pages: jax.Array) -> jax.Array:
        """Returns the generated tokens int32 [..., T] of pages [..., P + T], padding where nothing is written."""
        tokens = pages[..., pages.shape[-1] - self.max_tokens :]
        return jnp.where(tokens == NOTHING, self.config.pad_id, tokens)

    @property
    def config(self) -> Any:
        """The model's config."""
        module: Any = self.module
        return module.config
