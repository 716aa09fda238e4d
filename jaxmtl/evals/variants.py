"""What the variants of a data set (its templates) come to: tasks of one category are the variants of one data set."""

from collections.abc import Mapping
from typing import Any

from jaxmtl.evals import aggregate
from jaxmtl.types import Scores

DECIMALS = 4
MEDIAN_OF_MEDIANS = "median of medians"
AVERAGES = {
    "mean over data sets": lambda scores: aggregate.mean_over_tasks(aggregate.task_means(scores)),
    MEDIAN_OF_MEDIANS: aggregate.median_of_medians,
    "HyperT5": lambda scores: aggregate.hypert5_average(aggregate.task_means(scores)),
    "MTest11": lambda scores: aggregate.mean_over_tasks(aggregate.task_means(scores), aggregate.MTEST11),
}
"""Name of an average to its function of a data set's scores by variant. Source: methods 3.4 and 3.5."""
_NEEDS = {"HyperT5": aggregate.HYPERT5, "MTest11": aggregate.MTEST11}


def by_variant(scores: Mapping[str, Scores], metric: str) -> dict[str, dict[str, float]]:
    """Groups tasks by category.

    Args:
      scores: name to a task's scores; each name is a variant, also where several are about one task (seeds).
      metric: name of the metric to take.

    Returns:
      Category to name to value, categories sorted.
    """
    groups: dict[str, dict[str, float]] = {}
    for name, one in scores.items():
        groups.setdefault(one.category, {})[name] = one.metrics[metric]
    return dict(sorted(groups.items()))


def rows(scores: Mapping[str, Scores], metric: str) -> list[dict[str, Any]]:
    """Describes each data set by the spread of its variants.

    Args:
      scores: name to a task's scores, at least one.
      metric: name of the metric to take.

    Returns:
      One row for each category: "data set", "variants" (how many), "mean", "median", "lowest", "highest".
    """
    groups = by_variant(scores, metric)
    means, medians = aggregate.task_means(groups), aggregate.task_medians(groups)
    return [
        {
            "data set": name,
            "variants": len(values),
            "mean": means[name],
            "median": medians[name],
            "lowest": min(values.values()),
            "highest": max(values.values()),
        }
        for name, values in groups.items()
    ]


def averages(scores: Mapping[str, Scores], metric: str) -> dict[str, float]:
    """Averages data sets the ways that papers do.

    Args:
      scores: name to a task's scores, at least one.
      metric: name of the metric to take.

    Returns:
      Name of an average to its value; those of papers only where all of their data sets are there.
    """
    groups = by_variant(scores, metric)
    return {name: of(groups) for name, of in AVERAGES.items() if set(_NEEDS.get(name, ())) <= groups.keys()}


def summary_of(scores: Mapping[str, Scores], metric: str) -> dict[str, Any]:
    """Writes down what variants come to, as JSON values.

    Args:
      scores: name to a task's scores, at least one.
      metric: name of the metric to take.

    Returns:
      "data_sets" (name to number of variants, mean, median, lowest, highest) and "averages".
    """
    rounded = lambda value: round(value, DECIMALS) if isinstance(value, float) else value
    described = {
        row.pop("data set"): {key: rounded(value) for key, value in row.items()} for row in rows(scores, metric)
    }
    return {"data_sets": described, "averages": {k: rounded(v) for k, v in averages(scores, metric).items()}}
