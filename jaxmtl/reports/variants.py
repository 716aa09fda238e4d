"""What the templates of each data set come to, as a table: means and medians over templates, and over seeds."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.evals import variants
from jaxmtl.reports.sources import Column
from jaxmtl.types import Scores

if TYPE_CHECKING:
    import pandas as pd

RULES = {"accuracy": "sum", "accuracy_mean": "per token"}
"""Metric to how the table calls the rule by which choices were ranked."""


def variant_table(columns: Sequence[Column]) -> "pd.DataFrame":
    """Lists the data sets of every state whose tasks were ranked.

    Args:
      columns: states of models, of one run or of several.

    Returns:
      A row for each state and data set, then one for each average over data sets: "setting" (the state's label), "data
      set", "variants" (how many), and for each rule "RULE: mean" and "RULE: median". States that differ only in their
      seed are followed by one in which all their tasks are variants. Empty where nothing was ranked.
    """
    import pandas as pd

    rows = []
    for label, scores in _with_seeds_together(columns).items():
        ranked = {name: one for name, one in scores.items() if RULES.keys() <= one.metrics.keys()}
        rows += [{"setting": label, **row} for row in _rows(ranked)] if ranked else []
    return pd.DataFrame(rows)


def _rows(scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    data_sets: dict[str, dict[str, Any]] = {}
    for metric, rule in RULES.items():
        for row in variants.rows(scores, metric):
            entry = data_sets.setdefault(row["data set"], {"data set": row["data set"], "variants": row["variants"]})
            entry |= {f"{rule}: {what}": row[what] for what in ("mean", "median")}
    found = {rule: variants.averages(scores, metric) for metric, rule in RULES.items()}
    means = []
    for name in next(iter(found.values())):
        row: dict[str, Any] = {"data set": name, "variants": len(scores)}
        for rule, values in found.items():
            is_median = name == variants.MEDIAN_OF_MEDIANS
            row |= {f"{rule}: mean": math.nan if is_median else values[name]}
            row |= {f"{rule}: median": values[name] if is_median else math.nan}
        means.append(row)
    return [*data_sets.values(), *(means if len(data_sets) > 1 else ())]


def _with_seeds_together(columns: Sequence[Column]) -> dict[str, dict[str, Scores]]:
    """Returns label to scores by variant, with the seeds of a setting also as one."""
    groups: dict[str, list[Column]] = {}
    for column in columns:
        groups.setdefault(re.sub(r"seed-\d+", "all seeds", column.label), []).append(column)
    found: dict[str, dict[str, Scores]] = {}
    for label, members in groups.items():
        found |= {column.label: dict(column.scores) for column in members}
        if len(members) > 1:
            found[label] = {f"{one.label} {task}": score for one in members for task, score in one.scores.items()}
    return found
