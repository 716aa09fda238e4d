"""Reads what a run folder holds: records, curves, predictions, parts. Says what to run where something is missing."""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmtl.evals import files
from jaxmtl.evals.task_adapters import ADAPTED
from jaxmtl.training.draws import DRAWS_FILE
from jaxmtl.types import InputError, Record, Scores

METRICS = "metrics.jsonl"
PARTS = ("step-*", "*-shots_*", "step-*/*-shots_*")
"""Folders in a run folder that hold parts of it: a step of a trajectory, a setting of few-shot runs, or both. Where a
setting fits a model to each task, its folder has one for each of them."""
NUM_SAMPLES = 2
"""Predictions of each task that are kept to be shown."""

Curve = tuple[list[int], list[float]]
"""Steps, ascending, and the values at them."""
Draws = tuple[float, float]
"""Rows that were drawn of a task in training, and how many of them its share asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """The scores of one state of one model: what tables and figures put side by side.

    Attributes:
      label: how it is called in tables; unique in its run.
      run: name of the run.
      step: optimiser step.
      weights_hash: hash of the weights; "+" behind it where tasks have adapters of their own.
      scores: task name to scores.
      examples: task name to metric name to the values of all examples, in the unit of the scores; empty for states
        whose predictions were replaced by later ones.
    """

    label: str
    run: str
    step: int
    weights_hash: str
    scores: Mapping[str, Scores]
    examples: Mapping[str, Mapping[str, Sequence[float]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """All that a report says about one run.

    A run may have parts: folders below its own, one for each scored checkpoint of a trajectory or for each setting of
    few-shot runs.

    Attributes:
      folder: the run folder.
      name: what its records call the run; the folder's name without records.
      columns: one for each evaluated step (and weights, if several have the same step), ascending; empty if the run
        was not evaluated.
      shown: the columns that are put side by side: the first and the last, but all where they are settings.
      curves: name in `metrics.jsonl` to its values; empty if the run was not trained in this folder.
      settings: content of scores.json, about the latest evaluation; empty if there was none.
      records: all records, in the order they were written.
      samples: task name to some of its prediction rows.
      draws: task name to its draws in training; empty if the run was not trained in this folder.
    """

    folder: pathlib.Path
    name: str
    columns: Sequence[Column]
    shown: Sequence[Column]
    curves: Mapping[str, Curve]
    settings: Mapping[str, Any]
    records: Sequence[Record]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    draws: Mapping[str, Draws]


def read_run(run_dir: str | os.PathLike) -> RunData:
    """Reads a run folder.

    Args:
      run_dir: a folder that `training.loop.train` or `evals.runner.evaluate` wrote to.

    Returns:
      Its content.

    Raises:
      InputError: if there is no folder, nothing was scored or logged in it, or a line cannot be read.
    """
    folder = pathlib.Path(run_dir)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a run folder")
    curves, draws = read_curves(folder), read_draws(folder)
    own = _evaluated(folder) if (folder / files.RECORDS).is_file() else None
    parts = {name: _part(folder / name) for name in _part_names(folder)}
    scored = [*parts.values(), *([own] if own else [])]
    if not scored:
        return _only_trained(folder, curves, draws)
    _check_one_split(folder, scored)
    columns, are_settings = _all_columns(folder, own, parts)
    last = scored[-1]
    return RunData(
        folder=folder,
        name=own.columns[-1].run if own else folder.resolve().name,
        columns=columns,
        shown=columns if are_settings else [columns[0], columns[-1]][: len(columns)],
        curves=curves,
        settings=last.settings,
        records=[record for one in scored for record in one.records],
        samples=last.samples,
        draws=draws,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Evaluated:
    """What evaluations have left in one folder; fields as in `RunData`."""

    columns: Sequence[Column]
    settings: Mapping[str, Any]
    records: Sequence[Record]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]


def _evaluated(folder: pathlib.Path) -> _Evaluated:
    records = files.read_records(folder / files.RECORDS)
    if not records:
        raise InputError(f"{folder / files.RECORDS}: holds no record; run `jaxmtl evaluate` on this folder again")
    settings = _settings(folder)
    examples, samples = _predictions(folder, settings)
    columns = _columns(records, settings, examples)
    return _Evaluated(columns=columns, settings=settings, records=records, samples=samples)


def _part(folder: pathlib.Path) -> _Evaluated:
    """Reads a part; models of single tasks become one column."""
    if (folder / files.RECORDS).is_file():
        return _evaluated(folder)
    models = [_evaluated(path.parent) for path in sorted(folder.glob(f"*/{files.RECORDS}"))]
    latest = [model.columns[-1] for model in models]
    together = dataclasses.replace(
        latest[-1],
        weights_hash=files.key_of({name: column.weights_hash for column in latest for name in column.scores}) + ADAPTED,
        scores={name: scores for column in latest for name, scores in column.scores.items()},
        examples={name: values for column in latest for name, values in column.examples.items()},
    )
    tasks = {name: entry for model in models for name, entry in model.settings["tasks"].items()}
    return _Evaluated(
        columns=[together],
        settings={**models[-1].settings, "tasks": tasks},
        records=[record for model in models for record in model.records],
        samples={name: rows for model in models for name, rows in model.samples.items()},
    )


def _part_names(folder: pathlib.Path) -> list[str]:
    """Returns the paths of parts, those with smaller numbers in them first."""
    found = {path.parent for place in PARTS for path in folder.glob(f"{place}/{files.RECORDS}")}
    found |= {path.parents[1] for place in PARTS[1:] for path in folder.glob(f"{place}/*/{files.RECORDS}")}
    numbers = lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    return sorted((path.relative_to(folder).as_posix() for path in found), key=numbers)


def _all_columns(
    folder: pathlib.Path, own: _Evaluated | None, parts: Mapping[str, _Evaluated]
) -> tuple[list[Column], bool]:
    """Returns the columns of a folder and its parts, and whether they are settings rather than steps of a training."""
    columns = list(own.columns) if own else []
    known = {(column.step, column.weights_hash) for column in columns}
    latest = {name: part.columns[-1] for name, part in parts.items()}
    are_settings = any(name != f"step-{column.step}" for name, column in latest.items())
    run = columns[-1].run if columns else folder.resolve().name
    for name, column in latest.items():
        label = name.replace("/", ", ") if are_settings else f"step {column.step}"
        if are_settings or (column.step, column.weights_hash) not in known:
            columns.append(dataclasses.replace(column, label=label, run=run))
    return (columns if are_settings else sorted(columns, key=lambda column: column.step)), are_settings


def _check_one_split(folder: pathlib.Path, scored: Sequence[_Evaluated]) -> None:
    splits = sorted({str(one.settings.get("split", "")) for one in scored})
    if len(splits) > 1:
        raise InputError(
            f"{folder}: holds scores of splits {' and '.join(map(repr, splits))}; report on the folders of one split"
        )


def read_curves(run_dir: str | os.PathLike) -> dict[str, Curve]:
    """Reads the values logged during training.

    Args:
      run_dir: a run folder.

    Returns:
      Name ("train/loss") to its curve, values that were not finite left out; empty without `metrics.jsonl`.

    Raises:
      InputError: if a line is no JSON object with a step; names it.
    """
    path = pathlib.Path(run_dir) / METRICS
    if not path.is_file():
        return {}
    points: dict[str, dict[int, float]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):  # behind the last line break is what a running run is writing
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}, line {number}: expected a JSON object with a step, found {line[:60]!r}; delete this line"
            ) from error
        for name, value in values.items():
            if isinstance(value, int | float):
                points.setdefault(name, {})[step] = float(value)
    return {name: (sorted(curve), [curve[step] for step in sorted(curve)]) for name, curve in points.items()}


def read_draws(run_dir: str | os.PathLike) -> dict[str, Draws]:
    """Reads what was drawn of each task in training.

    Args:
      run_dir: a run folder.

    Returns:
      Task name to its draws; empty without `draws.json`.

    Raises:
      InputError: if the file is not what training writes.
    """
    path = pathlib.Path(run_dir) / DRAWS_FILE
    if not path.is_file():
        return {}
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
        return {name: (float(row["drawn"]), float(row["asked"])) for name, row in tasks.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it, training writes it anew") from error


def _only_trained(folder: pathlib.Path, curves: Mapping[str, Curve], draws: Mapping[str, Draws]) -> RunData:
    if not curves:
        raise InputError(
            f"{folder}: holds neither {files.RECORDS} nor {METRICS}, so nothing was scored or logged here; run "
            "`jaxmtl train` or `jaxmtl evaluate` into it first"
        )
    nothing: Any = dict(columns=(), shown=(), settings={}, records=(), samples={})
    return RunData(folder=folder, name=folder.resolve().name, curves=curves, draws=draws, **nothing)


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / files.SCORES
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run `jaxmtl evaluate` on this folder again") from error
    if not isinstance(value, dict) or not isinstance(value.get("tasks"), dict):
        raise InputError(f"{path}: expected a JSON object with tasks; run `jaxmtl evaluate` on this folder again")
    return value


def _predictions(folder: pathlib.Path, settings: Mapping[str, Any]) -> tuple[dict, dict]:
    """Reads values of all examples, and some whole rows, of the tasks that scores.json speaks of."""
    examples, samples = {}, {}
    for task, entry in settings["tasks"].items():
        path = files.prediction_file(folder, task)
        if not path.is_file():
            raise InputError(f"{path}: missing, though {files.SCORES} names the task; run `jaxmtl evaluate` again")
        rows = files.read_rows(path)
        names = [name for name in entry if name not in ("category", "n", "headline")]
        factor = {name: 1.0 if name == "nll" else 100.0 for name in names}
        try:
            examples[task] = {name: [factor[name] * row[name] for row in rows] for name in names}
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: a row lacks a score ({error}); delete the file and evaluate again") from error
        samples[task] = rows[:NUM_SAMPLES]
    return examples, samples


def _columns(records: Sequence[Record], settings: Mapping[str, Any], examples: Mapping[str, Any]) -> list[Column]:
    """Groups records by the weights that they are about, in the order of their steps.

    Tasks that have adapters of their own stand in one column of the model that they adapt.
    """
    own = settings.get("weights_hashes", {})
    latest = (settings.get("step"), settings.get("weights_hash", "") + (ADAPTED if own else ""))
    states: dict[tuple[int, str], list[Record]] = {}
    for record in records:
        weights, is_adapted, _ = record.weights_hash.partition(ADAPTED)
        state = (record.step, weights + is_adapted)
        if state != latest or own.get(record.task, record.weights_hash) == record.weights_hash:
            states.setdefault(state, []).append(record)
    steps = [step for step, _ in states]
    return [
        Column(
            label=f"step {step}"
            if steps.count(step) == 1
            else f"step {step}, weights {weights[:8]}{ADAPTED * weights.endswith(ADAPTED)}",
            run=about[0].run,
            step=step,
            weights_hash=weights,
            scores=_scores_by_task(about, settings.get("config_hash", "")),
            examples=examples if (step, weights) == latest else {},
        )
        for (step, weights), about in sorted(states.items(), key=lambda state: state[0][0])
    ]


def _scores_by_task(records: Sequence[Record], config_hash: str) -> dict[str, Scores]:
    """Takes each task's scores from one evaluation: that of scores.json, since no record repeats it, or the last."""
    tasks: dict[str, dict[str, dict[str, Record]]] = {}
    for record in records:
        tasks.setdefault(record.task, {}).setdefault(record.config_hash, {})[record.metric] = record
    return {task: _scores(configs.get(config_hash) or [*configs.values()][-1]) for task, configs in tasks.items()}


def _scores(values: Mapping[str, Record]) -> Scores:
    some = next(iter(values.values()))
    metrics = {name: record.value for name, record in values.items()}
    return Scores(task=some.task, category=some.category, n=some.n, metrics=metrics, headline=some.headline)
