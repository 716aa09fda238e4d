"""Who a hypernetwork learns from: the model itself with a task's own adapter, or another model, both told in words.

Letters in shapes: B rows, U instructions, I instruction length, S source length, T target length, V vocab, N tasks, M
adapters.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.adapters import rows
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.lora import Adapter
from jaxmtl.models.shifting import shift_right
from jaxmtl.types import InputError


class Taught(NamedTuple):
    """What a teacher says of a batch.

    Attributes:
      logits: float32 [B, T, V].
      covered: bool [B], True on rows that it has something to say about.
    """

    logits: jax.Array
    covered: jax.Array


class Teacher(Protocol):
    """Predicts the targets of a batch: (model with a hypernetwork, its variables, batch) to what it says."""

    def __call__(self, module: HyperModel, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> Taught:
        """Returns what the teacher predicts; no gradient flows into it."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TaskAdapters:
    """One adapter for each task that has one; tasks of a category may share theirs.

    Attributes:
      tree: leaves [M, L, in, R] and so on, the scale part of `b`.
      of_task: int32 [N], the adapter of each task; -1 for none.
    """

    tree: Any
    of_task: np.ndarray

    def of_rows(self, task_ids: jax.Array) -> tuple[Any, jax.Array]:
        """Gives each row its task's adapter.

        Args:
          task_ids: int32 [B].

        Returns:
          The collection that a model reads, and bool [B], True on rows whose task has an adapter; others have any.
        """
        index = jnp.take(jnp.asarray(self.of_task), task_ids)
        return rows.collection(rows.take(self.tree, jnp.maximum(index, 0))), index >= 0


def task_adapters(adapters: Mapping[str, Adapter], group_of_task: Sequence[str]) -> TaskAdapters:
    """Stacks the adapters of groups of tasks.

    Args:
      adapters: by group, of one rank and for the same layers; at least one.
      group_of_task: [N], the group of each task, such as its category; groups without an adapter are not covered.

    Returns:
      The adapters by task.

    Raises:
      InputError: if no task is covered, or adapters differ in shape.
    """
    names = sorted(set(group_of_task) & set(adapters))
    if not names:
        raise InputError(f"none of {len(set(group_of_task))} groups of tasks has a teacher among {len(adapters)}")
    trees = [adapters[name].collection() for name in names]
    shapes = [jax.tree.map(jnp.shape, tree) for tree in trees]
    for name, shape in zip(names, shapes, strict=True):
        if shape != shapes[0]:
            raise InputError(f"teachers {names[0]!r} and {name!r} differ in rank or in the layers that they change")
    of_task = np.array([names.index(group) if group in names else -1 for group in group_of_task], np.int32)
    return TaskAdapters(tree=rows.stack(trees), of_task=of_task)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AdaptedTeacher:
    """The base model, which stays as it is, with each task's adapter; it reads instruction and input as one text.

    Attributes:
      adapters: of the tasks.

    Source: TAGI, Eq. 5; methods 1.1.
    """

    adapters: TaskAdapters

    def __call__(self, module: HyperModel, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> Taught:
        """Returns what the base model predicts with the adapters of the rows' tasks; refuses a base that is trained."""
        if module.hyper.base != "nothing":
            raise InputError(
                f"the teacher is the model itself with each task's adapter, but {module.hyper.base} of it are trained "
                "(TRAINED), so that the teacher would move as well; train 'nothing' of it, or let another model teach "
                "(TEACHER=@hypernet.model_teacher)"
            )
        adapters, covered = self.adapters.of_rows(batch["task_ids"])
        params = jax.lax.stop_gradient(variables["params"]["base"])
        return Taught(_predicted(module.base, rows.variables(params, adapters), batch, module.config), covered)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModelTeacher:
    """Another model, such as Tk-Instruct, that reads instruction and input as one text; it covers all tasks.

    Attributes:
      module: the model.
      params: its parameters.

    Source: methods 1.1.
    """

    module: nn.Module
    params: Any

    def __call__(self, module: HyperModel, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> Taught:
        """Returns what the other model predicts."""
        logits = _predicted(self.module, {"params": self.params}, batch, module.config)
        return Taught(logits, jnp.ones(logits.shape[:1], bool))


def _predicted(model: Any, variables: Mapping[str, Any], batch: Mapping[str, jax.Array], config: Any) -> jax.Array:
    """Returns the logits of the targets behind `teacher_inputs`, or behind instruction and input put together."""
    inputs = batch.get("teacher_inputs")
    if inputs is None:
        index = batch.get("instruction_index")
        own = batch["instructions"] if index is None else jnp.take(batch["instructions"], index, axis=0)
        inputs = joined(own, batch["inputs"], pad_id=config.pad_id, eos_id=config.eos_id)
    first = model.apply(variables, inputs, method="first_tokens")
    logits = model.apply(variables, inputs, shift_right(batch["targets"], first))
    return jax.lax.stop_gradient(logits)


def joined(instructions: jax.Array, inputs: jax.Array, *, pad_id: int, eos_id: int) -> jax.Array:
    """Puts instruction and input together as one text, without padding or an end token between them.

    Args:
      instructions: int32 [B, I].
      inputs: int32 [B, S].
      pad_id: token id of padding.
      eos_id: token id that ends a text; taken from the instruction's end.

    Returns:
      int32 [B, I + S], padded at the end.
    """
    both = jnp.concatenate([jnp.where(instructions == eos_id, pad_id, instructions), inputs], axis=1)
    order = jnp.argsort(both == pad_id, axis=1, stable=True)
    return jnp.take_along_axis(both, order, axis=1)
