"""Decoding over a key-value cache, in one jitted loop that ends when every row has ended."""

import dataclasses
import functools
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.models.logit_rules import Rule
from jaxmtl.models.memory import read_memory
from jaxmtl.models.sampling import Greedy
from jaxmtl.models.stepping import Request
from jaxmtl.models.turned import with_turned_kernels

HEAD = "lm_head/"
"""Where the output layer lies that scores tokens, in models whose embedding does not."""


class Method(Protocol):
    """A way of decoding: (what to continue, a random stream for each row) to tokens int32 [B, T]."""

    def __call__(self, request: Request, streams: jax.Array) -> jax.Array:
        """Returns the generated tokens."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """All that decides what is generated, besides the model and its inputs.

    Attributes:
      max_tokens: most tokens generated per row, T; the end token is one of them.
      method: `Greedy`, `Sampling` or `BeamSearch`.
      rules: change the scores of the next token, in this order.
    """

    max_tokens: int
    method: Method = Greedy()
    rules: tuple[Rule, ...] = ()


@functools.partial(jax.jit, static_argnames=("module", "how", "num_tokens"))
def generate(
    module: nn.Module,
    variables: Any,
    inputs: jax.Array,
    input_mask: jax.Array,
    streams: jax.Array,
    *,
    how: Generation,
    num_tokens: int | None = None,
    memory: Any = None,
) -> jax.Array:
    """Continues every input.

    Args:
      module: a model with `first_tokens`, `encode`, `start_cache`, `decode_step` and, for rules that read tokens,
        `prompt_tokens`.
      variables: its parameters, "params", and the adapters that its rows use, "lora", if there are any.
      inputs: int32 [B, S].
      input_mask: bool [B, S], True on real tokens; a row without any ends at once.
      streams: uint32 [B], number of each row's own stream of random numbers.
      how: bounds, method and rules.
      num_tokens: number of real tokens; the padding rows of the vocabulary behind them are never taken.
      memory: what `encode` gave of the inputs, where they were read before; None reads them.

    Returns:
      int32 [B, T]: the generated tokens up to and including the end token, then padding.
    """
    request = Request(
        module=module,
        variables=with_turned_kernels(variables, below=HEAD),
        inputs=inputs,
        input_mask=input_mask,
        max_tokens=how.max_tokens,
        num_tokens=num_tokens,
        rules=how.rules,
        memory=read_memory(module, variables, inputs, input_mask) if memory is None else memory,
    )
    return how.method(request, streams)


def greedy(
    module: nn.Module,
    variables: Any,
    inputs: jax.Array,
    input_mask: jax.Array,
    *,
    max_tokens: int,
    num_tokens: int | None = None,
) -> jax.Array:
    """Takes the likeliest token at every position; arguments and result as in `generate`."""
    streams = jnp.zeros(inputs.shape[:1], jnp.uint32)
    how = Generation(max_tokens=max_tokens)
    return generate(module, variables, inputs, input_mask, streams, how=how, num_tokens=num_tokens)
