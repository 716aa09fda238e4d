"""Batches of inputs of like lengths, and what a model that has read them knows.

Letters in shapes: B inputs, S source length.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import flax.struct
import jax
import numpy as np

from jaxmtl.evals import requests
from jaxmtl.evals.request_adapters import Requested, batch_variables
from jaxmtl.evals.requests import Ids, OnBatch
from jaxmtl.models.memory import read_memory
from jaxmtl.models.stack import unrolled_on_cpus
from jaxmtl.weights import Pretrained

Result = TypeVar("Result")


@flax.struct.dataclass
class Read:
    """Inputs that a model has read.

    Attributes:
      memory: what the model keeps of them.
      first_tokens: int32 [B], what precedes the first target of each.
      mask: bool [B, S], True on real tokens.
    """

    memory: Any
    first_tokens: jax.Array
    mask: jax.Array


Reader = Callable[[nn.Module, Any, jax.Array, jax.Array], Read]
"""Reads inputs as `encode` does."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputBatch:
    """Some inputs on the devices, and the model that is to read them.

    Attributes:
      rows: int64 [n], which inputs they are.
      num_rows: B, at least n; the rows behind them repeat the first.
      module: the model, unrolled where that makes it faster.
      variables: its parameters and what adapts it to the rows.
      inputs: int32 [B, S].
      mask: bool [B, S], True on real tokens.
    """

    rows: np.ndarray
    num_rows: int
    module: nn.Module
    variables: dict[str, Any]
    inputs: jax.Array
    mask: jax.Array

    def read(self, reader: Reader | None = None) -> Read:
        """Reads the inputs.

        Args:
          reader: how; `encode` if None.

        Returns:
          What targets are scored with and texts are generated from.
        """
        return (reader or encode)(self.module, self.variables, self.inputs, self.mask)


@functools.partial(jax.jit, static_argnums=0)
def encode(module: nn.Module, variables: Any, inputs: jax.Array, mask: jax.Array) -> Read:
    """Reads inputs once, for all that is asked of them.

    Args:
      module: the model.
      variables: its parameters, "params", and the adapters that the rows use, "lora", if there are any.
      inputs: int32 [B, S].
      mask: bool [B, S], True on real tokens.

    Returns:
      What targets are scored with and texts are generated from.
    """
    first: Any = module.apply(variables, inputs, mask, method="first_tokens")
    return Read(memory=read_memory(module, variables, inputs, mask), first_tokens=first, mask=mask)


def in_batches(
    answer: Callable[[InputBatch], Sequence[Result]],
    pretrained: Pretrained,
    inputs: Sequence[Ids],
    plan: Iterable[np.ndarray],
    *,
    adapters: Requested | None,
    batch_size: int,
    on_batch: OnBatch | None,
) -> list[Result]:
    """Answers inputs batch by batch and puts the answers back in the order of the inputs.

    Args:
      answer: gives one result for each of the n inputs of a batch.
      pretrained: the model.
      inputs: [N] rows of token ids, each with at least one.
      plan: which inputs each batch holds, see `requests.plan`; each input is in one.
      adapters: of the inputs; None for none.
      batch_size: most inputs of a batch.
      on_batch: told after each batch how many inputs it answered.

    Returns:
      [N] results.
    """
    results: dict[int, Result] = {}
    mesh, pad_id = requests.mesh_of(pretrained.params), pretrained.config.pad_id
    module = unrolled_on_cpus(pretrained.module)
    with requests.on_mesh(mesh):
        for rows in plan:
            num_rows, taken = requests.padded_rows(len(rows), batch_size, mesh), [inputs[row] for row in rows]
            padded = requests.pad(taken, num_rows, pad_id)
            placed = (requests.place(array, mesh) for array in (padded, requests.mask_of(taken, padded.shape)))
            arrays = dict(zip(("inputs", "mask"), placed, strict=True))
            variables = batch_variables(pretrained, adapters, rows, num_rows)
            batch = InputBatch(rows=rows, num_rows=num_rows, module=module, variables=variables, **arrays)
            results.update(zip(rows.tolist(), answer(batch), strict=True))
            if on_batch is not None:
                on_batch(len(rows))
    return [results[row] for row in range(len(inputs))]
