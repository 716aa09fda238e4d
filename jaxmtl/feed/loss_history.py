"""Per-task losses of the periods of a run: written by the training loop, read by rates that follow losses.

Batches are drawn before earlier ones are trained on. So that a draw does not depend on how far ahead that happens to
be, it sees the losses of all batches up to `DELAY` before it, no more and no less.
"""

import base64
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmtl.types import InputError

DELAY = 8
"""Batches between a draw and the last loss it sees: more than are read ahead, so that nobody waits."""


class StoppedError(Exception):
    """A wait for losses ended because no more will come."""


class LossHistory:
    """Sums of losses by period; safe to write and read from two threads.

    Args:
      num_tasks: N.
      period: batches of a period.
    """

    def __init__(self, num_tasks: int, period: int) -> None:
        self._num_tasks, self._period = num_tasks, period
        self._sums: dict[int, np.ndarray] = {}  # period to float64 [2, N]: loss, tokens
        self._observed = 0
        self._closed = False
        self._changed = threading.Condition()

    def observe(self, task_loss: np.ndarray, task_tokens: np.ndarray) -> None:
        """Adds one batch, in the order in which they are trained on.

        Args:
          task_loss: [N], summed loss of each task in nats.
          task_tokens: [N], its target tokens.
        """
        with self._changed:
            number = self._observed // self._period
            sums = self._sums.setdefault(number, np.zeros((2, self._num_tasks)))
            sums += np.stack([task_loss, task_tokens]).astype(np.float64)
            self._observed += 1
            # What was drawn ahead is drawn again after a restart, so only what was trained on makes periods old.
            oldest = max(self._observed - DELAY, 0) // self._period - 2
            for old in [number for number in self._sums if number < oldest]:
                del self._sums[old]
            self._changed.notify_all()

    def before(self, batch: int) -> np.ndarray:
        """Waits for the losses that a draw may see, and returns them.

        Args:
          batch: number of the first batch that is drawn.

        Returns:
          float64 [P, N], P at most 2: mean losses of the last periods that ended `DELAY` before it; NaN for tasks
          that were not seen.

        Raises:
          InputError: if the losses are gone, since later batches were trained on long ago.
          StoppedError: if `close` is called meanwhile.
        """
        visible = max(batch - DELAY, 0)
        last = visible // self._period
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._observed >= last * self._period)
            if self._observed < last * self._period:
                raise StoppedError
            numbers = range(max(last - 2, 0), last)
            if not all(number in self._sums for number in numbers):
                raise InputError(
                    f"batch {batch} cannot be drawn after {self._observed} were trained on: the losses and the place "
                    "in the stream that were stored do not belong together"
                )
            known = [self._sums[number] for number in numbers]
        with np.errstate(invalid="ignore"):
            means = [loss / np.where(tokens > 0, tokens, np.nan) for loss, tokens in known]
        return np.array(means).reshape(len(means), self._num_tasks)

    def close(self) -> None:
        """Ends all waits: no more losses will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def state(self) -> dict[str, Any]:
        """Returns the sums, JSON-able and exact."""
        with self._changed:
            sums = {str(number): packed(array) for number, array in self._sums.items()}
            return {"observed": self._observed, "period": self._period, "sums": sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to where a state was taken.

        Args:
          state: what `state` returned.

        Raises:
          InputError: if it is of other tasks or another period.
        """
        if not {"period", "observed", "sums"} <= state.keys():
            raise InputError(
                "the checkpoint holds no losses, but this run's rates follow losses; resume with its rates"
            )
        try:
            sums = {int(number): unpacked(text, self._num_tasks) for number, text in state["sums"].items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"the losses of the checkpoint are damaged or of other tasks ({error})") from error
        if state["period"] != self._period or any(len(array) != 2 for array in sums.values()):
            raise InputError(
                f"the losses of the checkpoint are by periods of {state['period']} batches, this run has "
                f"{self._period} and {self._num_tasks} tasks; resume with the same rates and tasks"
            )
        with self._changed:
            self._observed, self._sums, self._closed = state["observed"], sums, False


def packed(array: np.ndarray) -> str:
    """Writes float64 [P, N] as text, exactly."""
    return base64.b64encode(array.astype("<f8").tobytes()).decode()


def unpacked(text: str, num_tasks: int) -> np.ndarray:
    """Reads what `packed` wrote.

    Args:
      text: the text.
      num_tasks: N.

    Returns:
      float64 [P, N].

    Raises:
      TypeError: if it is no text.
      ValueError: if it is no array of N columns.
    """
    return np.frombuffer(base64.b64decode(text), "<f8").astype(np.float64).reshape(-1, num_tasks)
