"""What an evaluation leaves behind besides predictions: scores.json and records."""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from jaxmtl.evals import files
from jaxmtl.tasks import metrics as text_metrics
from jaxmtl.types import Record, Scores

NLL = "nll"
DECIMALS = 4
"""Published scores are rounded to this many decimals."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """What records say about where their values come from.

    Attributes:
      study: study the run belongs to, or "".
      run: name of the run; the run folder's name if "".
      seed: the run's seed.
      step: optimiser step of the weights.
      config_hash: hash of the operative config.
      git_hash: commit of the code.
    """

    study: str = ""
    run: str = ""
    seed: int = 0
    step: int = 0
    config_hash: str = ""
    git_hash: str = ""

    def of_folder(self, run_dir: str | os.PathLike) -> "Labels":
        """Names a run that has no name after its folder.

        Args:
          run_dir: the run folder.

        Returns:
          The labels with a name.
        """
        return dataclasses.replace(self, run=self.run or pathlib.Path(run_dir).resolve().name)


def write(run_dir: pathlib.Path, scores: Mapping[str, Scores], settings: Mapping[str, Any], labels: Labels) -> None:
    """Writes scores.json and appends the records, on the first host.

    Args:
      run_dir: the run folder.
      scores: task name to scores, at least one.
      settings: what was evaluated and how.
      labels: where the values come from.

    Raises:
      InputError: if a file cannot be written.
    """
    if jax.process_index() == 0:
        files.write_whole(run_dir / files.SCORES, scores_json(scores, settings, labels))
        files.append_records(run_dir / files.RECORDS, records(scores, settings, labels))


def scores_json(scores: Mapping[str, Scores], settings: Mapping[str, Any], labels: Labels) -> str:
    """Writes down all means, rounded as published tables are.

    Args:
      scores: task name to scores, at least one.
      settings: what was evaluated and how.
      labels: where the values come from.

    Returns:
      One JSON object: labels and settings, "overall" (mean over all examples), "categories" (each with the score
      of its headline metric) and "tasks".
    """
    content = {
        **dataclasses.asdict(labels),
        **settings,
        "overall": _entry(text_metrics.overall(scores.values())),
        "categories": {key: _category(item) for key, item in text_metrics.per_category(scores.values()).items()},
        "tasks": {name: _entry(item) for name, item in scores.items()},
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def records(scores: Mapping[str, Scores], settings: Mapping[str, Any], labels: Labels) -> list[Record]:
    """Makes one record for each task and metric.

    Args:
      scores: task name to scores.
      settings: what was evaluated and how; "split" and "weights_hash" are used, "weights_hashes" by task where tasks
        have adapters of their own, and where texts were generated "decoding" and "max_tokens".
      labels: where the values come from.

    Returns:
      The records, all with the present time.
    """
    where = dict(dataclasses.asdict(labels), time=time.time())
    where["split"], hashes = settings["split"], settings.get("weights_hashes", {})
    if "decoding" in settings:
        where["decoding"] = f"{settings['decoding']} max_tokens={settings['max_tokens']}"
    made = []
    for item in scores.values():
        what = dict(task=item.task, category=item.category, headline=item.headline, n=item.n)
        what["weights_hash"] = hashes.get(item.task, settings["weights_hash"])
        made += [Record(metric=metric, value=value, **what, **where) for metric, value in item.metrics.items()]
    return made


def headline(item: Scores) -> str:
    """Chooses the metric to show where there is room for one.

    Args:
      item: scores of a task, a category or all.

    Returns:
      The metric that stands for them; NLL where texts were not scored with it.
    """
    return item.headline if item.headline in item.metrics else NLL


def _entry(item: Scores) -> dict[str, Any]:
    rounded = {name: round(value, DECIMALS) for name, value in item.metrics.items()}
    return {"category": item.category, "n": item.n, "headline": headline(item), **rounded}


def _category(item: Scores) -> dict[str, Any]:
    return {**_entry(item), "score": round(item.metrics[headline(item)], DECIMALS)}
