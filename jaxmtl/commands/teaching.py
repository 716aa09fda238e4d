"""What gin files choose of what a hypernetwork learns from: who predicts, and whose updates it is compared with."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.types import InputError

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxmtl.adapters.lora import Adapter
    from jaxmtl.commands.adapter_folders import AdapterFolders
    from jaxmtl.feed.store import TokenStore
    from jaxmtl.training.hyper_objective import InstructedLoss
    from jaxmtl.training.teachers import Reads, TaskAdapters, Teacher
    from jaxmtl.weights import Pretrained


def taught_loss(
    *,
    store: "TokenStore",
    names: Sequence[str],
    split: str = "train",
    teachers: str | os.PathLike | None = None,
    path: str,
    group: Callable[..., str],
    make_teacher: "Callable[[TaskAdapters | None], Teacher | None]",
    teacher_weight: float = 5.0,
    update_weight: float = 1000.0,
    distance: str = "factors",
    **options: Any,
) -> "InstructedLoss":
    """Puts together what a hypernetwork is finetuned on; a term of weight 0 is left out and costs nothing.

    Args:
      store: the tokenised examples.
      names: tasks in the order of task ids.
      split: split that is trained on.
      teachers: folder with a PEFT folder for each group of tasks; None for no L_ins.
      path: the model that the teachers adapt.
      group: which teacher a task has: `fit_adapters.category` or `fit_adapters.task`.
      make_teacher: makes what predicts, for L_kl, of the teachers' adapters, if there are any; what it makes None of
        has no L_kl.
      teacher_weight: λ1.
      update_weight: λ2.
      distance: of updates, a key of `distill.DISTANCES`, or "scored": z-scored by the spread of the teachers.
      **options: further fields of `InstructedLoss`.

    Returns:
      The objective.

    Raises:
      InputError: if no task has a teacher.
    """
    from jaxmtl.adapters.distill import scored_distance
    from jaxmtl.commands.fit_adapters import folder_of
    from jaxmtl.training.hyper_objective import InstructedLoss
    from jaxmtl.training.teachers import task_adapters

    if not (teacher_weight or update_weight):
        return InstructedLoss(**options)
    groups = [folder_of(group(name, store.entry(name, split).category)) for name in names]
    adapters = None if teachers is None else _adapters(teachers, path, groups)
    found = None if adapters is None else task_adapters(adapters, groups)
    own: Any = distance
    if distance == "scored":
        own = "factors" if adapters is None else scored_distance([*adapters.values()])
    return InstructedLoss(
        teacher=make_teacher(found) if teacher_weight else None,
        teacher_weight=teacher_weight,
        updates=found if update_weight else None,
        update_weight=update_weight,
        distance=own,
        **options,
    )


def _adapters(teachers: str | os.PathLike, path: str, groups: Sequence[str]) -> "dict[str, Adapter]":
    """Reads the adapters of those groups that have one."""
    from jaxmtl.commands.adapter_folders import AdapterFolders
    from jaxmtl.weights import load_pretrained

    folders = AdapterFolders(teachers, load_pretrained(path))
    return {one: folders[one] for one in _covered(teachers, folders, groups)}


def _covered(teachers: str | os.PathLike, folders: "AdapterFolders", groups: Sequence[str]) -> list[str]:
    """Returns the groups whose teacher is whole, and names the others in the log."""
    from jaxmtl.commands.fit_adapters import finished

    whole, asked = finished(teachers), sorted(set(groups))
    there = [one for one in asked if one in folders and (whole is None or one in whole)]
    if alone := [one for one in asked if one not in there]:
        _log.warning("%s: %d of %d groups have no teacher: %s", teachers, len(alone), len(asked), ", ".join(alone))
    return there


def another_model(
    *, path: str | None, store: "TokenStore", dtype: str = "float32", mesh: "Mesh | None" = None
) -> "Pretrained":
    """Loads a model that is to teach.

    Args:
      path: what `load_pretrained` takes.
      store: the tokenised examples.
      dtype: dtype of its weights and activations.
      mesh: devices that share its parameters; all of them along `data` if None.

    Returns:
      The model.

    Raises:
      InputError: if there is no path, or the store means something else to the model.
    """
    from jaxmtl.partitioning import make_mesh
    from jaxmtl.weights import check_reads, load_pretrained

    if path is None:
        raise InputError("TEACHER is another model, but TEACHER_PRETRAINED is None; give its folder or hub id")
    pretrained = load_pretrained(path, dtype=dtype, mesh=mesh or make_mesh())
    check_reads(pretrained.config, pretrained.tokenizer, store)
    return pretrained


def model_teacher(adapters: "TaskAdapters | None", *, model: "Pretrained", reads: "Reads") -> "Teacher":
    """Makes another model the teacher of all tasks, such as Tk-Instruct.

    Args:
      adapters: not used; L_ins compares with them all the same.
      model: the model.
      reads: `teachers.instruction_and_input`, or `teachers.input_alone`.

    Returns:
      The teacher.
    """
    from jaxmtl.training.teachers import ModelTeacher

    return ModelTeacher(module=model.module, params=model.params, reads=reads)


def fused_teacher(adapters: "TaskAdapters | None", *, model: "Pretrained") -> "Teacher":
    """Makes a model that reads demonstrations the teacher of all tasks, such as a run of runs/fid.gin.

    Args:
      adapters: not used; L_ins compares with them all the same.
      model: the model.

    Returns:
      The teacher; it needs batches of `supports.support_stream`.
    """
    from jaxmtl.training.teachers import FusedTeacher

    return FusedTeacher(module=model.module, params=model.params)


def adapted_teacher(adapters: "TaskAdapters | None", *, reads: "Reads") -> "Teacher | None":
    """Makes the model itself with each task's own adapter the teacher.

    Args:
      adapters: of the tasks.
      reads: as in `model_teacher`.

    Returns:
      The teacher; None without adapters.
    """
    from jaxmtl.training.teachers import AdaptedTeacher

    return None if adapters is None else AdaptedTeacher(adapters=adapters, reads=reads)
