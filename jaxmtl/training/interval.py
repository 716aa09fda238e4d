"""Adds up what steps tell between two lines of the log, so that the log's numbers cover every step."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmtl.training.step import StepMetrics
from jaxmtl.types import InputError


class IntervalSums:
    """Sums over the steps since the last log line; saved with checkpoints so that a resumed run logs the same."""

    def __init__(self, task_names: Sequence[str], stream_names: Sequence[str] = ()) -> None:
        """Starts at zero.

        Args:
          task_names: N names.
          stream_names: name of the stream that each task comes from, N names; none if there is one stream only.
        """
        self._task_names, self._stream_names = tuple(task_names), np.array(stream_names, dtype=str)
        self._clear()

    def add(self, metrics: StepMetrics) -> None:
        """Adds one step's metrics, already on the host."""
        sums = metrics.sums
        self._totals += [1.0, sums.objective, sums.loss, sums.tokens, metrics.grad_norm]
        self._tasks += np.stack([sums.task_loss, sums.task_tokens])
        for name, term in sums.task_terms.items():
            self._terms[name] = self._terms.get(name, np.zeros_like(self._tasks)) + np.stack(term)
        self._last = {
            "train/learning_rate": float(metrics.learning_rate),
            "train/param_norm": float(metrics.param_norm),
        }

    def take(self) -> dict[str, float]:
        """Returns the means since the last call and starts again.

        Returns:
          `train/objective` and `train/loss` in nats per target token, `train/tokens`, `train/grad_norm` (mean over
          steps), last `train/learning_rate` and `train/param_norm`, `train/task_loss/NAME` for tasks seen, and with
          several streams `train/STREAM/loss` and `train/STREAM/tokens` for streams seen. Of objectives with several
          terms `train/term/TERM` and `train/task_term/TERM/NAME`, per target token that the term applies to.
        """
        steps, objective, loss, tokens, grad_norm = (float(total) for total in self._totals)
        tokens_or_one = max(tokens, 1.0)
        values = {
            "train/loss": loss / tokens_or_one,
            "train/objective": objective / tokens_or_one,
            "train/tokens": tokens,
            "train/grad_norm": grad_norm / max(steps, 1.0),
            **self._last,
        }
        values |= {
            f"train/task_loss/{name}": value for name, value in task_means(self._tasks, self._task_names).items()
        }
        values |= self._by_stream() | self._by_term()
        self._clear()
        return values

    def _by_stream(self) -> dict[str, float]:
        values = {}
        for name in np.unique(self._stream_names).tolist():
            loss, tokens = self._tasks[:, self._stream_names == name].sum(axis=1).tolist()
            if tokens:
                values |= {f"train/{name}/loss": loss / tokens, f"train/{name}/tokens": tokens}
        return values

    def _by_term(self) -> dict[str, float]:
        values = {}
        for term, sums in self._terms.items():
            total, weight = sums.sum(axis=1).tolist()
            values |= {f"train/term/{term}": total / weight} if weight else {}
            means = task_means(sums, self._task_names)
            values |= {f"train/task_term/{term}/{name}": value for name, value in means.items()}
        return values

    def state(self) -> dict[str, Any]:
        """Returns the sums, JSON-able and exact."""
        return {"totals": self._totals.tolist(), "tasks": self._tasks.tolist(), "last": self._last} | (
            {"terms": {name: sums.tolist() for name, sums in self._terms.items()}} if self._terms else {}
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to what `state` returned; raises InputError if that was for another number of tasks."""
        found = len(state["tasks"][0])
        if found != len(self._task_names):
            raise InputError(
                f"the checkpoint counts {found} tasks, this run {len(self._task_names)}; train on the same tasks or use"
                " another run folder"
            )
        self._totals = np.array(state["totals"], np.float64)
        self._tasks = np.array(state["tasks"], np.float64)
        self._last = dict(state["last"])
        self._terms = {name: np.array(sums, np.float64) for name, sums in state.get("terms", {}).items()}

    def _clear(self) -> None:
        self._totals = np.zeros(5)
        self._tasks = np.zeros((2, len(self._task_names)))
        self._terms: dict[str, np.ndarray] = {}
        self._last: dict[str, float] = {}


def task_means(tasks: np.ndarray, task_names: Sequence[str]) -> dict[str, float]:
    """Divides loss sums by token sums, for tasks that have tokens.

    Args:
      tasks: float64 [2, N], loss in nats and number of target tokens.
      task_names: N names.

    Returns:
      Nats per target token by task name.
    """
    return {name: float(loss / tokens) for name, loss, tokens in zip(task_names, *tasks, strict=True) if tokens}
