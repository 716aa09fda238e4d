"""Scores as tables: per task, per category, overall; states of models side by side; as Markdown and CSV."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.evals.summary import headline
from jaxmtl.files import write_whole
from jaxmtl.reports.sources import Column, RunData
from jaxmtl.reports.variants import variant_table
from jaxmtl.tasks import metrics as text_metrics
from jaxmtl.types import InputError, Scores

if TYPE_CHECKING:
    import pandas as pd

NAMES = {"rouge_l": "ROUGE-L", "exact_match": "exact match", "nll": "NLL", "accuracy_mean": "accuracy, mean per token"}
"""Metrics as people write them."""
UNITS = {"rouge_l": "%", "exact_match": "%", "nll": "nats per token", "accuracy": "%", "accuracy_mean": "%"}


def compared(runs: Sequence[RunData]) -> list[Column]:
    """Chooses what stands side by side: of each run its first and its last evaluated step, or all its settings.

    Args:
      runs: at least one.

    Returns:
      The columns, labelled by step, and by run too if there are several; step 0 is "before training" if the run has
      losses of its own training. Runs of the same name are told apart by their folders.

    Raises:
      InputError: if a run was not evaluated, was given twice, or was evaluated on another split than the first.
    """
    columns = []
    for name, run in zip(_names(runs), runs, strict=True):
        _check_comparable(run, runs[0])
        for chosen in run.shown:
            label = "before training" if chosen.label == "step 0" and run.curves else chosen.label
            label = f"{name}, {label}" if len(runs) > 1 else label
            columns.append(dataclasses.replace(chosen, label=label, run=name))
    return columns


def task_table(columns: Sequence[Column]) -> "pd.DataFrame":
    """Lists tasks.

    Args:
      columns: what to compare.

    Returns:
      A row for each task, sorted by category and name: task, category, n, metric (the headline), and for each metric
      and column "METRIC (LABEL)".
    """
    import pandas as pd

    rows = []
    for task, scores in _all_tasks(columns).items():
        row: dict[str, Any] = dict(task=task, category=scores.category, n=scores.n, metric=headline(scores))
        for metric in _metrics(columns):
            for column in columns:
                found = column.scores.get(task)
                row[f"{metric} ({column.label})"] = math.nan if found is None else found.metrics.get(metric, math.nan)
        rows.append(row)
    return pd.DataFrame(sorted(rows, key=lambda row: (row["category"], row["task"])))


def category_table(columns: Sequence[Column]) -> "pd.DataFrame":
    """Lists categories by their headline metric, means over examples.

    Args:
      columns: what to compare.

    Returns:
      A row for each category and a last one for all ("all", by ROUGE-L unless all tasks agree on another metric):
      category, tasks, n, metric, and for each column "LABEL", "LABEL low", "LABEL high" (95% bootstrap interval over
      examples; empty without predictions).
    """
    import pandas as pd

    groups: dict[str, list[Scores]] = {}
    for scores in _all_tasks(columns).values():
        groups.setdefault(text_metrics.category_key(scores.category), []).append(scores)
    rows = [_category_row(groups[key][0].category, groups[key], columns) for key in sorted(groups)]
    rows.append(_category_row("all", [scores for group in groups.values() for scores in group], columns))
    return pd.DataFrame(rows)


def overall_table(runs: Sequence[RunData]) -> "pd.DataFrame":
    """Lists every evaluated step of every run, means over all examples.

    Args:
      runs: the runs.

    Returns:
      A row for each evaluated state: run, setting (if a run has some), step, weights (their hash), tasks, n, and each
      metric.
    """
    import pandas as pd

    rows = []
    has_settings = any(not column.label.startswith("step ") for run in runs for column in run.columns)
    for name, run in zip(_names(runs), runs, strict=True):
        for column in run.columns:
            total = text_metrics.overall(column.scores.values())
            setting = {"setting": column.label} if has_settings else {}
            what = dict(run=name, **setting, step=column.step, weights=column.weights_hash, tasks=len(column.scores))
            rows.append(dict(what, n=total.n, **total.metrics))
    return pd.DataFrame(rows)


def draws_table(run: RunData) -> "pd.DataFrame":
    """Lists what was drawn of each task in training, beside what its share asked for.

    Args:
      run: the run.

    Returns:
      A row for each task, in the order of task ids: task, drawn, asked (both in rows), ratio (drawn over asked, empty
      where nothing was asked for).
    """
    import pandas as pd

    rows = [
        dict(task=task, drawn=int(drawn), asked=asked, ratio=drawn / asked if asked else math.nan)
        for task, (drawn, asked) in run.draws.items()
    ]
    return pd.DataFrame(rows, columns=["task", "drawn", "asked", "ratio"])


def to_markdown(table: "pd.DataFrame") -> str:
    """Writes a table as Markdown: numbers to the right with two decimals, empty cells empty.

    Args:
      table: any table.

    Returns:
      The text, one line for each row, ending in a line break.
    """
    import pandas as pd

    numeric = [pd.api.types.is_numeric_dtype(table[name]) for name in table.columns]
    lines = [[_cell(name) for name in table.columns], ["---:" if number else "---" for number in numeric]]
    lines += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def write_tables(runs: Sequence[RunData], folder: str | os.PathLike) -> list[pathlib.Path]:
    """Writes tasks, categories and overall, each as .csv (all digits) and .md.

    Args:
      runs: the runs to compare.
      folder: where to write.

    Returns:
      The files.

    Raises:
      InputError: if a file cannot be written.
    """
    columns = compared(runs)
    tables = dict(overall=overall_table(runs), categories=category_table(columns), tasks=task_table(columns))
    variants = variant_table(columns)
    tables |= {} if variants.empty else {"templates": variants}
    return [path for name, table in tables.items() for path in write_table(table, folder, name)]


def write_table(table: "pd.DataFrame", folder: str | os.PathLike, name: str) -> list[pathlib.Path]:
    """Writes one table as .csv (all digits) and .md.

    Args:
      table: any table.
      folder: where to write.
      name: name of the files.

    Returns:
      The files.

    Raises:
      InputError: if a file cannot be written.
    """
    texts = {".csv": table.to_csv(index=False), ".md": to_markdown(table)}
    for suffix, text in texts.items():
        write_whole(pathlib.Path(folder) / f"{name}{suffix}", text)
    return [pathlib.Path(folder) / f"{name}{suffix}" for suffix in texts]


def _names(runs: Sequence[RunData]) -> list[str]:
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"a run is to be compared with itself ({', '.join(names)}); give each run folder once")
    return names


def _check_comparable(run: RunData, first: RunData) -> None:
    if not run.columns:
        raise InputError(
            f"{run.folder}: was not evaluated, so it cannot be compared; run `jaxmtl evaluate` on it first"
        )
    splits = [one.settings.get("split", "") for one in (first, run)]
    if splits[0] != splits[1]:
        raise InputError(
            f"{first.folder} holds scores of split {splits[0]!r}, {run.folder} of split {splits[1]!r}; compare runs "
            "that were evaluated on the same split"
        )


def _all_tasks(columns: Sequence[Column]) -> dict[str, Scores]:
    """Returns all tasks of all columns, each with scores of the last column that has it."""
    return {task: scores for column in columns for task, scores in column.scores.items()}


def _metrics(columns: Sequence[Column]) -> list[str]:
    names = [name for scores in _all_tasks(columns).values() for name in scores.metrics]
    return list(dict.fromkeys(names))


def _category_row(category: str, members: Sequence[Scores], columns: Sequence[Column]) -> dict:
    total = text_metrics.overall(members, category=category)
    tasks, metric = [scores.task for scores in members], headline(total)
    row: dict[str, Any] = dict(category=category, tasks=len(tasks), n=total.n, metric=metric)
    for column in columns:
        found = [column.scores[task] for task in tasks if task in column.scores]
        row[column.label] = text_metrics.overall(found).metrics.get(metric, math.nan) if found else math.nan
        values = [value for task in tasks for value in column.examples.get(task, {}).get(metric, ())]
        interval = text_metrics.bootstrap_interval(values) if values else (math.nan, math.nan)
        row[f"{column.label} low"], row[f"{column.label} high"] = interval
    return row


def _cell(value: object) -> str:
    import pandas as pd

    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.2f}"
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
