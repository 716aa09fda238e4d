"""Looks at every step's numbers one step late: adds them up for the log, stops at the first that is not finite."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from jaxmtl.training.interval import IntervalSums
from jaxmtl.training.step import LossSums, StepMetrics
from jaxmtl.types import InputError


class NonFiniteError(InputError):
    """A loss or a gradient is not finite; training cannot go on."""


class Watch:
    """Holds the numbers of the step in flight.

    Fetching a step's numbers waits for the step. Doing it when the next step is already under way keeps the devices
    busy; doing it before anything is logged, evaluated or saved (`settle`) keeps broken numbers out of all of these.
    """

    def __init__(
        self,
        sums: IntervalSums,
        task_names: Sequence[str],
        last_checkpoint: Callable[[], str],
        observe: Callable[[LossSums], None] = lambda sums: None,
    ) -> None:
        """Starts with nothing in flight.

        Args:
          sums: what finite steps are added to.
          task_names: N names by task id.
          last_checkpoint: says where the last checkpoint is, for the error.
          observe: hears of the sums of every finite step, in order.
        """
        self._sums, self._task_names, self._last_checkpoint = sums, tuple(task_names), last_checkpoint
        self._observe = observe
        self._in_flight: tuple[int, np.ndarray, StepMetrics] | None = None

    def push(self, step: int, task_ids: np.ndarray, metrics: StepMetrics) -> None:
        """Takes a step's numbers that are not computed yet, and settles the step before.

        Args:
          step: number of the step, from 1.
          task_ids: int32 [m], the tasks in its batch.
          metrics: on the devices.

        Raises:
          NonFiniteError: if the step before was not finite.
        """
        self.settle()
        self._in_flight = (step, task_ids, metrics)

    def settle(self) -> None:
        """Fetches, checks and adds the numbers in flight; raises NonFiniteError if they are not finite."""
        if self._in_flight is None:
            return
        step, task_ids, metrics = self._in_flight
        self._in_flight = None
        metrics = jax.device_get(metrics)
        if not metrics.finite:
            raise self._error(step, task_ids, metrics)
        self._sums.add(metrics)
        self._observe(metrics.sums)

    def _error(self, step: int, task_ids: np.ndarray, metrics: StepMetrics) -> NonFiniteError:
        names = ", ".join(self._task_names[index] for index in task_ids)
        return NonFiniteError(
            f"step {step}: loss {metrics.sums.objective}, gradient norm {metrics.grad_norm}; tasks in the batch:"
            f" {names}; last checkpoint: {self._last_checkpoint()}; look at these tasks' examples, lower the learning"
            " rate or clip gradients, then start again"
        )


class Speed:
    """Measures steps and tokens per second and the share of time spent waiting for input, compiling left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began, self._left_out = clock(), 0.0
        self._steps = self._tokens = 0
        self._waited = self._compiled = 0.0

    def add(self, num_tokens: int) -> None:
        """Counts a step and its tokens (input and target, without padding)."""
        self._steps += 1
        self._tokens += num_tokens

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent inside."""
        began = self._clock()
        yield
        self._left_out += self._clock() - began

    def take(self, waited: float, compiled: float) -> dict[str, float]:
        """Returns the rates since the last call and starts again.

        Args:
          waited: seconds waited for input since the run began.
          compiled: seconds spent compiling since the run began.

        Returns:
          `speed/steps_per_second`, `speed/tokens_per_second` and `speed/input_wait` (share of the time).
        """
        seconds = self._clock() - self._began - self._left_out - (compiled - self._compiled)
        seconds = max(seconds, 1e-9)
        rates = {
            "speed/steps_per_second": self._steps / seconds,
            "speed/tokens_per_second": self._tokens / seconds,
            "speed/input_wait": min((waited - self._waited) / seconds, 1.0),
        }
        self._waited, self._compiled = waited, compiled
        self._began, self._left_out, self._steps, self._tokens = self._clock(), 0.0, 0, 0
        return rates
