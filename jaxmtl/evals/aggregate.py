"""From the scores of a task's variants (templates, instructions, seeds) to the averages that papers report."""

import statistics
from collections.abc import Iterable, Mapping

from jaxmtl.types import InputError

VariantScores = Mapping[str, Mapping[str, float]]
"""Task name to the score of each of its variants, by the variant's name."""

ANLI = ("anli_r1", "anli_r2", "anli_r3")
_OTHERS = ("hellaswag", "cb", "copa", "rte", "wic", "wsc", "winogrande")
HYPERT5 = (*ANLI, *_OTHERS)
"""The tasks behind the average of HyperT5; the three rounds of ANLI are one entry of eight. Source: methods 3.5."""
MTEST11 = (*HYPERT5, "storycloze")
"""The tasks behind MTest11, each an entry of its own. Source: methods 3.2 and 3.4."""


def task_means(scores: VariantScores) -> dict[str, float]:
    """Averages each task over its variants.

    Args:
      scores: at least one variant of each task.

    Returns:
      Task name to the unweighted mean over its variants.

    Raises:
      InputError: if a task has no variant.

    Source: the tables of FiD-ICL and TAGI; methods 3.4.
    """
    return {task: statistics.fmean(values) for task, values in _values(scores).items()}


def task_medians(scores: VariantScores) -> dict[str, float]:
    """Takes each task's median over its variants.

    Args:
      scores: at least one variant of each task.

    Returns:
      Task name to the median; of an even number of variants the mean of the two in the middle.

    Raises:
      InputError: if a task has no variant.

    Source: T0 (Sanh et al. 2022) shows medians over templates; methods 3.4.
    """
    return {task: statistics.median(values) for task, values in _values(scores).items()}


def mean_over_tasks(values: Mapping[str, float], tasks: Iterable[str] | None = None) -> float:
    """Averages tasks, each weighing the same: MTest11 where `values` are task means and `tasks` are `MTEST11`.

    Args:
      values: task name to its value.
      tasks: the tasks to average; all if None.

    Returns:
      The mean.

    Raises:
      InputError: if a task has no value, or there is no task.

    Source: methods 3.4.
    """
    return statistics.fmean(_chosen(values, values if tasks is None else tasks))


def hypert5_average(values: Mapping[str, float]) -> float:
    """Averages the eight entries of HyperT5: the mean of ANLI's three rounds, and seven tasks.

    Args:
      values: value of each task of `HYPERT5`; others are left out.

    Returns:
      The mean over the entries.

    Raises:
      InputError: if a task has no value.

    Source: methods 3.5.
    """
    return statistics.fmean([statistics.fmean(_chosen(values, ANLI)), *_chosen(values, _OTHERS)])


def median_of_medians(scores: VariantScores) -> float:
    """Takes the median over tasks of each task's median over its variants.

    Args:
      scores: at least one variant of at least one task.

    Returns:
      The median.

    Raises:
      InputError: if a task has no variant, or there is no task.

    Source: the "median average" of TAGI; methods 3.4.
    """
    medians = task_medians(scores)
    return statistics.median(_chosen(medians, medians))


def _values(scores: VariantScores) -> dict[str, list[float]]:
    for task, variants in scores.items():
        if not variants:
            raise InputError(f"task {task}: no variant was scored; expected at least one")
    return {task: list(variants.values()) for task, variants in scores.items()}


def _chosen(values: Mapping[str, float], tasks: Iterable[str]) -> list[float]:
    names = list(tasks)
    missing = [name for name in names if name not in values]
    if missing:
        raise InputError(f"no score of task {missing[0]} to average; found {', '.join(sorted(values)) or 'none'}")
    if not names:
        raise InputError("no task to average; expected at least one")
    return [values[name] for name in names]
