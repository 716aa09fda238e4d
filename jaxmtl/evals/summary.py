"""What an evaluation leaves behind besides predictions: scores.json and records."""

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

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


def scores_json(scores: Mapping[str, Scores], settings: Mapping[str, Any], labels: Labels) -> str:
    """Writes down all means, rounded as published tables are.

    Args:
      scores: task name to scores, at least one.
      settings: what was evaluated and how.
      labels: where the values come from.

    Returns:
      One JSON object: labels and settings, "overall" (mean over all examples), "categories" (each with its headline
      metric) and "tasks".
    """
    content = {
        **dataclasses.asdict(labels),
        **settings,
        "overall": _entry(text_metrics.overall(scores.values())),
        "categories": {key: _category(item) for key, item in text_metrics.per_category(scores.values()).items()},
        "tasks": {name: _entry(item) for name, item in scores.items()},
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def records(scores: Mapping[str, Scores], labels: Labels, weights_hash: str) -> list[Record]:
    """Makes one record for each task and metric.

    Args:
      scores: task name to scores.
      labels: where the values come from.
      weights_hash: hash of the weights that were scored.

    Returns:
      The records, all with the present time.
    """
    where = dict(dataclasses.asdict(labels), weights_hash=weights_hash, time=time.time())
    return [
        Record(task=item.task, category=item.category, metric=metric, value=value, n=item.n, **where)
        for item in scores.values()
        for metric, value in item.metrics.items()
    ]


def _entry(item: Scores) -> dict[str, Any]:
    rounded = {name: round(value, DECIMALS) for name, value in item.metrics.items()}
    return {"category": item.category, "n": item.n, **rounded}


def _category(item: Scores) -> dict[str, Any]:
    headline = text_metrics.headline_metric(item.category)
    headline = headline if headline in item.metrics else NLL
    return {**_entry(item), "headline": headline, "score": round(item.metrics[headline], DECIMALS)}
