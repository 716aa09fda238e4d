"""Which evaluation was the best, and whether training may stop."""

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping

from jaxmtl.types import InputError, unknown_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Follows one metric of the evaluations.

    Attributes:
      metric: its name, such as "validation/loss".
      patience: evaluations in a row without a new best after which training stops; None never stops.
      better: whether a first value is better than a second; `operator.lt` for losses, `operator.gt` for scores.
    """

    metric: str = "validation/loss"
    patience: int | None = None
    better: Callable[[float, float], bool] = operator.lt

    def __post_init__(self) -> None:
        """Refuses a patience below 1."""
        if self.patience is not None and self.patience < 1:
            raise InputError(f"early stopping: patience is {self.patience}; expected at least 1, or none")

    @property
    def evaluation(self) -> str:
        """Returns the name of the evaluation that gives the metric."""
        return self.metric.split("/")[0]


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation so far.

    Attributes:
      step: its step, or None before the first one that gave a finite value.
      value: its value.
      num_worse: evaluations since then.
    """

    step: int | None = None
    value: float | None = None
    num_worse: int = 0


def judge(rule: EarlyStopping | None, best: Best, step: int, metrics: Mapping[str, float]) -> Best:
    """Compares an evaluation with the best so far.

    Args:
      rule: which metric counts and how; None follows nothing.
      best: the best so far.
      step: step of the evaluation.
      metrics: all values measured at this step, by name.

    Returns:
      The new best, which is finite; unchanged at a step without the rule's evaluation.

    Raises:
      UnknownNameError: if the evaluation ran and does not give the metric.
    """
    if rule is None or not any(name.startswith(rule.evaluation + "/") for name in metrics):
        return best
    if rule.metric not in metrics:
        raise unknown_name("metric for early stopping", rule.metric, metrics)
    value = float(metrics[rule.metric])
    # NaN is neither better nor worse than anything: as the best it would stay so for ever.
    if math.isfinite(value) and (best.value is None or rule.better(value, best.value)):
        return Best(step, value, 0)
    return dataclasses.replace(best, num_worse=best.num_worse + 1)


def is_over(rule: EarlyStopping | None, best: Best) -> bool:
    """Returns whether the patience is used up."""
    return rule is not None and rule.patience is not None and best.num_worse >= rule.patience
