"""Mixtures of registered tasks whose shares are a function of the tasks' sizes and categories."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqio
from numpy.typing import ArrayLike

from jaxmtl.data.seqio_tasks import SpecSource, source_of
from jaxmtl.feed.changing_rates import PerCategory, RateFacts
from jaxmtl.tasks import rates
from jaxmtl.types import InputError

Rate = Callable[[np.ndarray], ArrayLike] | PerCategory
"""A function from the sizes int64 [N] to weights [N], such as those of `jaxmtl.tasks.rates`, or shares by category."""


def register(
    name: str,
    tasks: Sequence[str],
    rate: Rate = rates.proportional,
    *,
    split: str = "train",
    limit: int | None = None,
) -> str:
    """Registers a flat mixture; SeqIO takes rate functions for tasks only, not for mixtures inside mixtures.

    Args:
      name: name of the mixture.
      tasks: N names that `seqio_tasks.register` returned.
      rate: weighs the tasks; a task's share is its weight over the sum, the same as `feed.sampler.Sampler` gives.
      split: the split whose sizes count; a task without it, such as a held-out one, is never drawn.
      limit: larger tasks count as if they had this many examples; None for no limit. SeqIO still reads all of them.

    Returns:
      The name.

    Raises:
      UnknownNameError: if a task is not registered.
      InputError: if there is no task, one comes twice, all weigh 0, the limit is below 1, the rate changes from step
        to step, or the name is registered already with anything else.
    """
    if len(set(tasks)) != len(tasks) or not tasks:
        raise InputError(f"seqio mixture {name}: {len(tasks)} tasks, {len(set(tasks))} of them different")
    if limit is not None and limit < 1:
        raise InputError(f"seqio mixture {name}: the limit of examples of a task is {limit}; expected 1 or more")
    found = _weights(name, [source_of(task) for task in tasks], rate, split, limit)
    weights = dict(zip(tasks, found.tolist(), strict=True))
    if name in seqio.MixtureRegistry.names():
        _check_same(name, weights)
        return name
    if not found.any():
        raise InputError(
            f"seqio mixture {name}: all tasks weigh 0 by their split {split!r} (RATE_SPLIT); one must be drawn"
        )
    weigh = lambda task: weights[task.name]
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


def _weights(name: str, sources: Sequence[SpecSource], rate: Rate, split: str, limit: int | None) -> np.ndarray:
    """Weighs all tasks at once, since a share by category depends on the other tasks; float64 [N]."""
    counts = [source.num_input_examples(split) if split in source.task.splits else 0 for source in sources]
    sizes = np.array(counts, np.int64) if limit is None else np.minimum(np.array(counts, np.int64), limit)
    if isinstance(rate, PerCategory):
        categories = [source.task.category for source in sources]
        facts = RateFacts(sizes=sizes, categories=categories, step=0, losses=np.empty((0, len(sizes))))
        return rate.weights(facts)
    if not callable(rate):
        raise InputError(f"seqio mixture {name}: its rates are {rate!r:.80}; SeqIO takes rates that never change only")
    return np.broadcast_to(np.asarray(rate(sizes), np.float64), sizes.shape)


def _check_same(name: str, weights: Mapping[str, float]) -> None:
    there = seqio.MixtureRegistry.get(name)
    if {task: there.get_rate(seqio.TaskRegistry.get(task)) for task in task_names(name)} != weights:
        raise InputError(f"seqio mixture {name} is registered already with other tasks or rates; choose another name")
