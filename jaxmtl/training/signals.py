"""Hears SIGTERM, which schedulers send before they take a machine away."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Notes SIGTERM while it is entered, and puts the previous handler back afterwards."""

    def __init__(self) -> None:
        self._heard = False
        self._previous: Any = None
        # Signals reach the main thread only, and with many hosts JAX itself listens to agree on a common step.
        self._listens = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "StopSignal":
        if self._listens:
            self._previous = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._previous)

    def wants_stop(self, step: int) -> bool:
        """Returns whether to stop after this step; all hosts get the same answer at the same step.

        Args:
          step: the step just done; with many hosts, ask at every step.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._heard

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = True
