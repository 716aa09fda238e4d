"""Mixtures of registered tasks whose shares are a function of the tasks' sizes."""

from collections.abc import Callable, Sequence

import numpy as np
import seqio
from numpy.typing import ArrayLike

from jaxmtl.data.seqio_tasks import source_of
from jaxmtl.tasks import rates
from jaxmtl.types import InputError

Rate = Callable[[np.ndarray], ArrayLike]
"""Sizes -> weights, element by element, such as the functions of `jaxmtl.tasks.rates`."""


def register(name: str, tasks: Sequence[str], rate: Rate = rates.proportional, *, split: str = "train") -> str:
    """Registers a flat mixture; SeqIO takes rate functions for tasks only, not for mixtures inside mixtures.

    Args:
      name: name of the mixture.
      tasks: names that `seqio_tasks.register` returned.
      rate: weighs the tasks by their number of examples; a task's share is its weight over the sum.
      split: the split whose sizes count; a task without it, such as a held-out one, is never drawn.

    Returns:
      The name.

    Raises:
      UnknownNameError: if a task is not registered.
      InputError: if there is no task, one comes twice, all weigh 0, or the name is registered already with anything
        else.
    """
    if len(set(tasks)) != len(tasks) or not tasks:
        raise InputError(f"seqio mixture {name}: {len(tasks)} tasks, {len(set(tasks))} of them different")
    sources = {task: source_of(task) for task in tasks}

    def weigh(task: seqio.Task) -> float:
        has_split = split in sources[task.name].task.splits
        size = task.num_input_examples(split) if has_split else 0
        return float(np.asarray(rate(np.array([size])))[0])

    if name in seqio.MixtureRegistry.names():
        _check_same(name, tasks, weigh)
        return name
    if not any(weigh(seqio.TaskRegistry.get(task)) for task in tasks):
        raise InputError(f"seqio mixture {name}: all tasks weigh 0 by their split {split!r}; one must be drawn")
    seqio.MixtureRegistry.add(name, [(task, weigh) for task in tasks])
    return name


def shares(name: str) -> dict[str, float]:
    """Returns the part of the draws that each task of a mixture gets.

    Args:
      name: name of a registered mixture.

    Returns:
      Task name to its share; they add up to 1.
    """
    mixture = seqio.MixtureRegistry.get(name)
    return {task: mixture.get_rate(seqio.TaskRegistry.get(task)) / mixture.total_rate for task in task_names(name)}


def task_names(name: str) -> list[str]:
    """Lists the seqio tasks of a registered mixture.

    Args:
      name: name of a mixture, or of a single task.

    Returns:
      The tasks' names in the mixture's own order (SeqIO itself sorts them); the name itself if it is no mixture.
    """
    if name in seqio.MixtureRegistry.names():
        return list(seqio.MixtureRegistry.get(name).rate_per_task_name)
    return [name]


def _check_same(name: str, tasks: Sequence[str], weigh: Callable[[seqio.Task], float]) -> None:
    there = seqio.MixtureRegistry.get(name)
    found = {task: there.get_rate(seqio.TaskRegistry.get(task)) for task in task_names(name)}
    if found != {task: weigh(seqio.TaskRegistry.get(task)) for task in tasks}:
        raise InputError(f"seqio mixture {name} is registered already with other tasks or rates; choose another name")
