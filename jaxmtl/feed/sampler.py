"""Which examples step t sees: draws of (task, example) ids that depend on the seed and the step only.

Every host computes the same global draw. Examples of a task come in a fresh seeded permutation each epoch, without
replacement; no permutation is stored, so memory and time do not depend on how many examples a task has.
"""

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike

from jaxmtl.feed.changing_rates import ChangingRates, RateFacts
from jaxmtl.feed.permutation import permute, random_bits, random_units, stream_key
from jaxmtl.types import InputError

Rates = ArrayLike | Callable[[np.ndarray], ArrayLike] | ChangingRates
"""Weights [N], not normalised, or a function from the sizes int64 [N] to them (see `jaxmtl.tasks.rates`), or rates that
change from step to step (see `jaxmtl.feed.changing_rates`)."""


class Draw(NamedTuple):
    """The rows of one or more steps.

    Attributes:
      task_ids: int32 [M], index into the sampler's sizes.
      example_ids: int64 [M], index into the task's examples.
    """

    task_ids: np.ndarray
    example_ids: np.ndarray


class AnySampler(Protocol):
    """What a stream needs of a sampler."""

    batch_size: int

    @property
    def loss_period(self) -> int | None:
        """Returns the batches that losses are averaged over before they are given to `draw`; None if it needs none."""
        ...

    @property
    def steady_steps(self) -> int | None:
        """Returns the steps that may be drawn at once since shares hardly change over them; None for any number."""
        ...

    def draw(self, steps: int = 1, losses: np.ndarray | None = None) -> Draw:
        """Draws the rows of the next steps.

        Args:
          steps: how many steps at once.
          losses: float64 [P, N], what rates may know of the tasks' losses.

        Returns:
          The draw, M = steps * batch_size rows in order.
        """
        ...

    def shares_at(self, step: int, losses: np.ndarray | None = None) -> np.ndarray:
        """Returns float64 [N], the part of a step's draws that each task gets; they add up to 1.

        Args:
          step: how many steps were drawn before it.
          losses: as for `draw`.
        """
        ...

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns float64 [N] each: rows drawn so far per task, and how many its share asked for."""
        ...

    def state(self) -> dict[str, Any]:
        """Returns where the sampler stands."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to where a state was taken.

        Args:
          state: what `state` returned, in this or another process.

        Raises:
          InputError: if the state belongs to another sampler or is damaged.
        """
        ...


class Sampler:
    """Draws a task by its rate, then that task's next example.

    Args:
      sizes: int [N], examples per task.
      rates: weights per task, a function of the sizes, or rates that change; a task's share is its weight over the sum.
      batch_size: rows per step, over all hosts.
      seed: data seed.
      categories: the tasks' categories, for rates that look at them.

    Raises:
      InputError: if sizes, rates or batch size make no sense; names the first task that is wrong.
    """

    def __init__(
        self, sizes: ArrayLike, rates: Rates, batch_size: int, seed: int, categories: Sequence[str] = ()
    ) -> None:
        self.sizes = _checked_sizes(sizes)
        self.batch_size = _checked_batch_size(batch_size)
        self.seed = seed
        self._rates, self._categories = rates, categories
        self._task_key = stream_key(seed, "task")
        self._example_keys = random_bits(stream_key(seed, "example"), np.arange(len(self.sizes)))
        self._cursors = np.zeros(len(self.sizes), np.int64)
        self._expected = np.zeros(len(self.sizes))
        self._step = 0
        self.shares = self.shares_at(0, None)

    @property
    def _moves(self) -> bool:
        """Tells whether shares are computed anew for each step."""
        return self.loss_period is not None or self.steady_steps is not None

    @property
    def loss_period(self) -> int | None:
        """Returns the batches that losses are averaged over; None if the rates do not look at losses."""
        return cast(ChangingRates, self._rates).loss_period if _changes(self._rates) else None

    @property
    def steady_steps(self) -> int | None:
        """Returns the steps over which shares hardly change; None if they never do."""
        return cast(ChangingRates, self._rates).steady_steps if _changes(self._rates) else None

    def draw(self, steps: int = 1, losses: np.ndarray | None = None) -> Draw:
        """Draws the rows of the next steps.

        Args:
          steps: how many steps at once; without losses the rows are the same as in as many single draws.
          losses: float64 [P, N], what rates may know of the tasks' losses, see `RateFacts`.

        Returns:
          The draw, M = steps * batch_size rows in order.
        """
        places = self._step * self.batch_size + np.arange(steps * self.batch_size)
        units = random_units(self._task_key, places).reshape(steps, self.batch_size)
        tasks = self._tasks(units, losses)
        cursors = self._cursors[tasks] + _earlier_equals(tasks)
        np.add.at(self._cursors, tasks, 1)
        self._step += steps
        sizes = self.sizes[tasks]
        epochs, positions = np.divmod(cursors, sizes)
        return Draw(tasks.astype(np.int32), permute(positions, sizes, random_bits(self._example_keys[tasks], epochs)))

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns float64 [N] each: rows drawn so far per task, and how many its share asked for."""
        static = self.shares * self._step * self.batch_size
        return self._cursors.astype(np.float64), self._expected.copy() if self._moves else static

    def _tasks(self, units: np.ndarray, losses: np.ndarray | None) -> np.ndarray:
        """Turns fractions [steps, batch_size] into task ids [steps * batch_size] by each step's shares."""
        if not self._moves:
            return _places(units.ravel(), self.shares)
        tasks = np.empty(units.shape, np.int64)
        for number, row in enumerate(units):
            self.shares = self.shares_at(self._step + number, losses)
            self._expected += self.shares * self.batch_size
            tasks[number] = _places(row, self.shares)
        return tasks.ravel()

    def shares_at(self, step: int, losses: np.ndarray | None = None) -> np.ndarray:
        """Returns float64 [N], the part of a step's draws that each task gets; they add up to 1.

        Args:
          step: how many steps were drawn before it; those that are drawn next are not changed by asking.
          losses: as for `draw`.

        Raises:
          InputError: if the rates give weights that make no sense.
        """
        if not _changes(self._rates):
            rates = self._rates(self.sizes.copy()) if callable(self._rates) else self._rates
            return _shares(self.sizes, cast(ArrayLike, rates))
        known = np.empty((0, len(self.sizes))) if losses is None else losses
        facts = RateFacts(sizes=self.sizes.copy(), categories=self._categories, step=step, losses=known)
        return _shares(self.sizes, cast(ChangingRates, self._rates).weights(facts))

    def state(self) -> dict[str, Any]:
        """Returns where the sampler stands: JSON values, for 1,600 tasks 6 kB, with rates that change 17 kB."""
        numbers = {"cursors": _packed(self._cursors, "<i8"), "expected": _packed(self._expected, "<f8")}
        return {**_identity(self, "rates"), "step": self._step, **numbers}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to where a state was taken; the rates may be others than then.

        Args:
          state: what `state` returned, in this or another process.

        Raises:
          InputError: if the state belongs to other sizes, another seed or batch size, or is damaged.
        """
        step = _checked_step(state, _identity(self, "rates"))
        cursors, expected = _unpacked(state, "cursors", "<i8"), _unpacked(state, "expected", "<f8")
        if cursors.shape != self._cursors.shape or cursors.min() < 0 or cursors.sum() != step * self.batch_size:
            raise InputError(f"sampler state is damaged: its cursors do not add up to step {step}")
        if expected.shape != self._expected.shape:
            raise InputError(f"sampler state is damaged: it expects draws of {expected.size} tasks")
        self._cursors, self._expected, self._step = cursors, expected, step


class PooledSampler:
    """Draws all examples of all tasks in one permutation per epoch: the empirical distribution exactly.

    Args:
      sizes: int [N], examples per task.
      batch_size: rows per step, over all hosts.
      seed: data seed.
      categories: not used.

    Raises:
      InputError: if sizes or batch size make no sense.
    """

    loss_period = None
    steady_steps = None

    def __init__(self, sizes: ArrayLike, batch_size: int, seed: int, categories: Sequence[str] = ()) -> None:
        self.sizes = _checked_sizes(sizes)
        self.batch_size = _checked_batch_size(batch_size)
        self.seed = seed
        self._ends = np.cumsum(self.sizes)
        if self._ends[-1] == 0:
            raise InputError("none of the tasks has an example; nothing can be drawn")
        self.shares = self.sizes / self._ends[-1]
        self._key = stream_key(seed, "pooled")
        self._drawn = np.zeros(len(self.sizes))
        self._step = 0

    def draw(self, steps: int = 1, losses: np.ndarray | None = None) -> Draw:
        """Draws the rows of the next steps.

        Args:
          steps: how many steps at once; the rows are the same as in as many single draws.
          losses: not used.

        Returns:
          The draw, M = steps * batch_size rows in order.
        """
        places = self._step * self.batch_size + np.arange(steps * self.batch_size)
        self._step += steps
        epochs, positions = np.divmod(places, self._ends[-1])
        rows = permute(positions, np.broadcast_to(self._ends[-1], positions.shape), random_bits(self._key, epochs))
        tasks = np.searchsorted(self._ends, rows, side="right")
        np.add.at(self._drawn, tasks, 1)
        return Draw(tasks.astype(np.int32), rows - (self._ends - self.sizes)[tasks])

    def shares_at(self, step: int, losses: np.ndarray | None = None) -> np.ndarray:
        """Returns float64 [N], the part of a step's draws that each task gets: the same at all steps.

        Args:
          step: not used.
          losses: not used.
        """
        return self.shares

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns float64 [N] each: rows drawn so far per task, and how many its share asked for."""
        return self._drawn.copy(), self.shares * self._step * self.batch_size

    def state(self) -> dict[str, Any]:
        """Returns where the sampler stands: a small dictionary of JSON values."""
        return {**_identity(self, "pooled"), "step": self._step, "drawn": _packed(self._drawn, "<f8")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to where a state was taken.

        Args:
          state: what `state` returned, in this or another process.

        Raises:
          InputError: if the state belongs to other sizes, another seed or batch size, or is damaged.
        """
        step, drawn = _checked_step(state, _identity(self, "pooled")), _unpacked(state, "drawn", "<f8")
        if drawn.shape != self._drawn.shape or drawn.sum() != step * self.batch_size:
            raise InputError(f"sampler state is damaged: its draws do not add up to step {step}")
        self._drawn, self._step = drawn, step


def _changes(rates: Rates) -> bool:
    return hasattr(rates, "weights") and hasattr(rates, "loss_period")


def _places(units: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Looks up which task's part of [0, 1) each fraction [M] falls into; int64 [M]."""
    cumulative = np.cumsum(shares)
    found = np.searchsorted(cumulative, units * cumulative[-1], side="right")
    return np.minimum(found, np.flatnonzero(shares)[-1])


def _packed(numbers: np.ndarray, dtype: str) -> str:
    # The lowest level: a stream takes a state for every window, and the highest takes ten times as long.
    return base64.b64encode(zlib.compress(numbers.astype(dtype).tobytes(), 1)).decode()


def _unpacked(state: Mapping[str, Any], name: str, dtype: str) -> np.ndarray:
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(state[name], validate=True)), dtype).copy()
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise InputError(f"sampler state is damaged: its {name} cannot be read ({error})") from error


def _earlier_equals(values: np.ndarray) -> np.ndarray:
    """Counts for each element how many equal ones come before it."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    lengths = np.diff(np.r_[starts, len(values)])
    counts = np.empty(len(values), np.int64)
    counts[order] = np.arange(len(values)) - np.repeat(starts, lengths)
    return counts


def _checked_sizes(sizes: ArrayLike) -> np.ndarray:
    array = np.asarray(sizes)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"task sizes have shape {array.shape} and type {array.dtype}; expected a list of whole numbers"
        )
    if array.min() < 0:
        raise InputError(f"task {int(array.argmin())} has size {array.min()}; expected 0 or more")
    return array.astype(np.int64)


def _checked_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise InputError(f"batch size is {batch_size}; expected 1 or more")
    return batch_size


def _shares(sizes: np.ndarray, rates: ArrayLike) -> np.ndarray:
    weights = _numbers(rates)
    if weights.shape != sizes.shape:
        raise InputError(f"rates have shape {weights.shape}; expected one for each of the {len(sizes)} tasks")
    wrong = np.flatnonzero(~np.isfinite(weights) | (weights < 0) | ((weights > 0) & (sizes == 0)))
    if wrong.size:
        first = int(wrong[0])
        raise InputError(
            f"rate of task {first} is {weights[first]} with {sizes[first]} examples; expected a finite number, "
            "0 or more, and 0 for a task without examples"
        )
    if not weights.any():
        raise InputError("all rates are 0; at least one task must have a rate above 0")
    return weights / weights.max() / (weights / weights.max()).sum()  # the sum of huge weights could overflow


def _numbers(rates: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(rates, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"rates are {rates!r:.80}; expected numbers or a function such as @rates.uniform") from error


def _identity(sampler: Sampler | PooledSampler, mode: str) -> dict[str, Any]:
    sizes = hashlib.sha256(sampler.sizes.astype("<i8").tobytes()).hexdigest()[:16]
    return {"mode": mode, "seed": sampler.seed, "batch_size": sampler.batch_size, "sizes": sizes}


def _checked_step(state: Mapping[str, Any], identity: Mapping[str, Any]) -> int:
    for name, value in identity.items():
        if state.get(name) != value:
            raise InputError(
                f"sampler state was taken with {name} {state.get(name)!r}, but this run has {value!r}; "
                "resume with the same tasks, seed and batch size"
            )
    step = state.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise InputError(f"sampler state is damaged: its step is {step!r}")
    return step
