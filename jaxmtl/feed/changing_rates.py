"""Sampling rates that know more than the sizes: the step, the tasks' categories, and how their losses went.

Each is a frozen object with `weights(facts)`; a task's share is its weight over the sum. A task without examples always
weighs 0. Rates that depend on the sizes only are functions in `jaxmtl.tasks.rates`.
Letters: N tasks, P periods.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from jaxmtl.tasks import rates
from jaxmtl.types import InputError

SizeRates = Callable[[np.ndarray], ArrayLike]
"""A function from the sizes int64 [N] to weights [N], see `jaxmtl.tasks.rates`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateFacts:
    """What rates may depend on.

    Attributes:
      sizes: int64 [N], examples per task.
      categories: N names.
      step: how many steps were drawn before this one.
      losses: float64 [P, N], mean loss per target token in nats of each task over each period that is over, the last
        one last; NaN for a task that was not seen.
    """

    sizes: np.ndarray
    categories: Sequence[str]
    step: int
    losses: np.ndarray


class ChangingRates(Protocol):
    """Rates that are asked again at every step."""

    @property
    def loss_period(self) -> int | None:
        """Returns the steps that losses are averaged over; None if losses do not matter."""
        ...

    @property
    def steady_steps(self) -> int | None:
        """Returns the steps over which shares hardly change, which may be drawn at once and shuffled.

        None where they never change: then they are computed once, unless losses matter.
        """
        ...

    def weights(self, facts: RateFacts) -> np.ndarray:
        """Returns weights float64 [N], not normalised."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseAnnealing:
    """Heats the proportional weights: size ** (1 / temperature), the temperature going from 1 to its last value.

    Attributes:
      last_temperature: temperature at the end; 1 stays proportional, large ones end uniform.
      num_steps: steps from the first to the last temperature; it stays there. A step is a draw of the batch size's
        rows, so where the layout chooses other numbers of rows, updates come somewhat sooner or later.
      clock: maps the step's share of `num_steps`, 0 ... 1, to the temperature's share of its way.

    Source: methods 2.6 (reverse annealing).
    """

    last_temperature: float
    num_steps: int
    clock: Callable[[float], float] = float
    loss_period = None

    @property
    def steady_steps(self) -> int:
        """Returns a fiftieth of the way."""
        return max(1, self.num_steps // 50)

    def __post_init__(self) -> None:
        """Refuses temperatures below 1 and numbers of steps below 1.

        Raises:
          InputError: with the value seen.
        """
        if not self.last_temperature >= 1 or self.num_steps < 1:
            raise InputError(
                f"reverse annealing to temperature {self.last_temperature} in {self.num_steps} steps; expected at "
                "least 1 of each"
            )

    def temperature(self, step: int) -> float:
        """Returns the temperature of a step."""
        return 1.0 + (self.last_temperature - 1.0) * self.clock(min(step / self.num_steps, 1.0))

    def weights(self, facts: RateFacts) -> np.ndarray:
        """Returns weights float64 [N]."""
        return rates.temperature(facts.sizes, self.temperature(facts.step))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicWeightAverage:
    """Weighs tasks by how little their loss fell: exp(ratio of the last two periods' losses / temperature).

    A task that was not seen in both of them has ratio 1, as all have before two periods are over.

    Attributes:
      loss_period: steps of a period.
      temperature: large ones level the weights.
      base: weights that are multiplied by these.

    Source: Liu et al. 2019, equation 7; methods 2.6 (DWA).
    """

    loss_period: int
    temperature: float = 1.0
    base: SizeRates = rates.uniform

    def __post_init__(self) -> None:
        """Refuses a period below 1 step and a temperature that is not above 0.

        Raises:
          InputError: with the value seen.
        """
        if self.loss_period < 1 or not self.temperature > 0:
            raise InputError(
                f"dynamic weight average over periods of {self.loss_period} steps at temperature {self.temperature}; "
                "expected at least 1 step and a temperature above 0"
            )

    @property
    def steady_steps(self) -> int:
        """Returns a tenth of a period: what is drawn at once keeps its shares when one more period is over."""
        return max(1, self.loss_period // 10)

    def weights(self, facts: RateFacts) -> np.ndarray:
        """Returns weights float64 [N]."""
        ratios = np.ones(len(facts.sizes))
        if len(facts.losses) >= 2:
            before, last = facts.losses[-2:]
            known = np.isfinite(before) & np.isfinite(last) & (before > 0)
            ratios[known] = last[known] / before[known]
        scaled = ratios / self.temperature
        return np.asarray(self.base(facts.sizes), np.float64) * np.exp(scaled - scaled.max())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerCategory:
    """Shares draws between categories first, then between the tasks of each.

    Attributes:
      between: weights of categories, from their numbers of examples.
      within: weights of the tasks of one category, from theirs.
    """

    between: SizeRates = rates.uniform
    within: SizeRates = rates.proportional
    loss_period = None
    steady_steps = None

    def weights(self, facts: RateFacts) -> np.ndarray:
        """Returns weights float64 [N]."""
        names, category_of = np.unique(np.asarray(facts.categories), return_inverse=True)
        sizes = np.bincount(category_of, facts.sizes, len(names)).astype(np.int64)
        shares = np.asarray(self.between(sizes), np.float64)
        weights = np.zeros(len(facts.sizes))
        for category, share in enumerate(shares):
            members = category_of == category
            inside = np.asarray(self.within(facts.sizes[members]), np.float64)
            if inside.any():
                weights[members] = share * inside / inside.sum()
        return weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionRates:
    """Rates by a function of one's own.

    Attributes:
      function: maps `RateFacts` to weights [N].
      loss_period: steps that `RateFacts.losses` are averaged over; None leaves them empty.
      steady_steps: steps over which its shares hardly change; they are drawn at once and shuffled. None where they
        never change.
    """

    function: Callable[[RateFacts], ArrayLike]
    loss_period: int | None = None
    steady_steps: int | None = 16

    def weights(self, facts: RateFacts) -> np.ndarray:
        """Returns weights float64 [N]."""
        return np.asarray(self.function(facts), np.float64)
