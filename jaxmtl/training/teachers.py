"""Who a hypernetwork learns from: the model itself with a task's own adapter, or another model.

Letters in shapes: B rows, U instructions, I instruction length, S source length, T target length, V vocab, N tasks, M
adapters.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.adapters import rows
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.lora import Adapter
from jaxmtl.models.lengths import room
from jaxmtl.models.shifting import shift_right
from jaxmtl.training.fid_objective import fused_logits
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TaskAdapters:
    """One adapter for each task that has one; tasks of a category may share theirs.

    Attributes:
      tree: leaves [M, L, in, R] and so on, the scale part of `b`; of numpy until a step puts them on devices.
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
    # Stacked in the memory of this process: a step puts them on its devices, where there is one copy then.
    trees = [jax.tree.map(np.asarray, adapters[name].collection()) for name in names]
    shapes = [jax.tree.map(jnp.shape, tree) for tree in trees]
    for name, shape in zip(names, shapes, strict=True):
        if shape != shapes[0]:
            raise InputError(f"teachers {names[0]!r} and {name!r} differ in rank or in the layers that they change")
    of_task = np.array([names.index(group) if group in names else -1 for group in group_of_task], np.int32)
    return TaskAdapters(tree=jax.tree.map(lambda *leaves: np.stack(leaves), *trees), of_task=of_task)


Reads = Callable[[Mapping[str, jax.Array], Any], jax.Array]
"""Chooses what a teacher reads: (batch, model's config) to int32 [B, S'], padded at the end."""


def input_alone(batch: Mapping[str, jax.Array], config: Any) -> jax.Array:
    """Lets a teacher read what the model reads: for inputs that hold the instruction already, such as P3's.

    Args:
      batch: a batch.
      config: not used.

    Returns:
      int32 [B, S].
    """
    return batch["inputs"]


def instruction_and_input(batch: Mapping[str, jax.Array], config: Any, *, max_tokens: int = 1024) -> jax.Array:
    """Lets a teacher read instruction and input as one text, or `teacher_inputs` where a batch has them.

    Args:
      batch: a batch; where `instructions` are numbers of tasks, `instruction_texts` are read.
      config: the model's config.
      max_tokens: longer texts are cut, as those are that adapters are fitted on; so are those that are too long for the
        model.

    Returns:
      int32 [B, at most I + S].

    Source: TAGI, Eq. 5; methods 1.1.
    """
    if "teacher_inputs" in batch:
        return batch["teacher_inputs"]
    texts, index = batch.get("instruction_texts", batch["instructions"]), batch.get("instruction_index")
    own = texts if index is None else jnp.take(texts, index, axis=0)
    limits = room(config)
    together = None if limits.together is None else limits.together - batch["targets"].shape[1]
    most = min(limit for limit in (max_tokens, limits.inputs, together) if limit is not None)
    start = getattr(config, "bos_id", None)
    return joined(own, batch["inputs"], pad_id=config.pad_id, eos_id=config.eos_id, start_id=start, most=most)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AdaptedTeacher:
    """The base model, which stays as it is, with each task's adapter.

    Attributes:
      adapters: of the tasks.
      reads: chooses what it reads.

    Source: TAGI, Eq. 5; methods 1.1.
    """

    adapters: TaskAdapters
    reads: Reads = instruction_and_input

    def __call__(self, module: HyperModel, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> Taught:
        """Returns what the base model predicts with the adapters of the rows' tasks; refuses a base that is trained."""
        if module.hyper.base != "nothing":
            raise InputError(
                f"the teacher is the model itself with each task's adapter, but {module.hyper.base} of it are trained "
                "(TRAINED), so that the teacher would move as well; train 'nothing' of it, or let another model teach "
                "(TEACHER=@teaching.model_teacher)"
            )
        adapters, covered = self.adapters.of_rows(batch["task_ids"])
        params = jax.lax.stop_gradient(variables["params"]["base"])
        inputs = self.reads(batch, module.config)
        return Taught(_predicted(module.base, rows.variables(params, adapters), inputs, batch["targets"]), covered)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModelTeacher:
    """Another model, such as Tk-Instruct; it covers all tasks.

    Attributes:
      module: the model.
      params: its parameters.
      reads: chooses what it reads.

    Source: methods 1.1.
    """

    module: nn.Module
    params: Any
    reads: Reads = instruction_and_input

    def __call__(self, module: HyperModel, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> Taught:
        """Returns what the other model predicts."""
        config: Any = cast(Any, self.module).config
        logits = _predicted(self.module, {"params": self.params}, self.reads(batch, config), batch["targets"])
        return Taught(logits, jnp.ones(logits.shape[:1], bool))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FusedTeacher:
    """A model that was meta-trained to read demonstrations (FiD-ICL); it covers all tasks.

    It sees the supports of a batch, which is of one task, and `teacher_inputs`, or `inputs` where there are none.

    Attributes:
      module: an encoder-decoder.
      params: its parameters.

    Source: TAGI's teacher for P3; methods 1.1 and 3.6.
    """

    module: nn.Module
    params: Any

    def __call__(self, module: HyperModel, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> Taught:
        """Returns what the other model predicts."""
        read = {**batch, "inputs": batch.get("teacher_inputs", batch["inputs"])}
        logits = jax.lax.stop_gradient(fused_logits(self.module, {"params": self.params}, read))
        return Taught(logits, jnp.ones(logits.shape[:1], bool))


def _predicted(model: Any, variables: Mapping[str, Any], inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the logits of the targets behind what a teacher reads."""
    first = model.apply(variables, inputs, method="first_tokens")
    return jax.lax.stop_gradient(model.apply(variables, inputs, shift_right(targets, first)))


def joined(
    instructions: jax.Array,
    inputs: jax.Array,
    *,
    pad_id: int,
    eos_id: int,
    start_id: int | None = None,
    most: int | None = None,
) -> jax.Array:
    """Puts instruction and input together as one text, without padding or special tokens between them.

    If both are too long, the instruction loses its last tokens; only what is too long alone loses some of the input.

    Args:
      instructions: int32 [B, I].
      inputs: int32 [B, S].
      pad_id: token id of padding.
      eos_id: token id that ends a text (of OPT also begins it); taken from the instruction's end.
      start_id: token id that begins a text, if the vocabulary has another; where both texts begin with such a token,
        it is taken from the input.
      most: tokens that there may be; an input that is cut still ends with the token that ended it. None cuts nothing.

    Returns:
      int32 [B, I + S], or [B, most] if that is less, padded at the end.
    """
    place = jnp.arange(instructions.shape[1])
    is_end = (instructions == eos_id) & (place == _last(instructions, pad_id))
    own = jnp.where(is_end, pad_id, instructions)
    begins = (inputs[:, 0] == own[:, 0]) & ((inputs[:, 0] == eos_id) | (inputs[:, 0] == start_id))
    is_start = begins[:, None] & (jnp.arange(inputs.shape[1]) == 0)
    second = jnp.where(is_start, pad_id, inputs)
    if most is not None:
        left = most - (second != pad_id).sum(axis=1, keepdims=True)
        own = jnp.where(place < left, own, pad_id)
    both = jnp.concatenate([own, second], axis=1)
    text = jnp.take_along_axis(both, jnp.argsort(both == pad_id, axis=1, stable=True), axis=1)
    if most is None or text.shape[1] <= most:
        return text
    end = jnp.take_along_axis(text, _last(text, pad_id), axis=1)[:, 0]
    is_cut = text[:, most] != pad_id
    return text[:, :most].at[:, -1].set(jnp.where(is_cut & (end == eos_id), eos_id, text[:, most - 1]))


def _last(ids: jax.Array, pad_id: int) -> jax.Array:
    """Returns the place of the last token of each row that is not padding, int32 [B, 1]."""
    return jnp.maximum((ids != pad_id).sum(axis=1, keepdims=True) - 1, 0)
