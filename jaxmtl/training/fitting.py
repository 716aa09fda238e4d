"""Fits any number of adapters, whole models or heads, as many at a time as memory holds.

Letters in shapes: N fits trained together.
"""

import dataclasses
import functools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmtl.adapters import rows
from jaxmtl.adapters.lora import LoRA
from jaxmtl.models.lengths import check_room
from jaxmtl.models.single_layers import taken_apart
from jaxmtl.models.stack import unrolled_on_cpus
from jaxmtl.partitioning import replicated
from jaxmtl.training.best_epochs import BestEpochs, HeldLoss
from jaxmtl.training.fit_rows import Fit, Row, RowBatches, held_rows, row_batches, rows_of_step
from jaxmtl.training.fits import AdamW, FitProgram, FitState, Optimizer
from jaxmtl.training.tuning import LowRankTuning, Tuning
from jaxmtl.types import InputError, Progress

CELLS_ON_CPU, CELLS = 2048, 16384
"""Padded tokens that are computed at once: few where what a layer keeps should stay in a CPU's cache."""
STATE_SHARE = 0.25
"""Share of a device's memory that adapters in training, their gradients and their optimizer may take."""
ADAMW = AdamW()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and in which portions each fit is trained.

    Attributes:
      epochs: passes over a fit's examples.
      batch_size: examples of a step; the last step of an epoch takes what is left.
      tokens: most cells, padding included, that a device computes at once; no result depends on it. What suits the
        device if None.
      num_shapes: most shapes that batches are padded to, each of which is compiled once.
      steps: updates of each fit, however many examples it has, instead of passes; None to count passes.
      most_fits: most fits trained together; as many as memory holds if None.
      patience: epochs in a row without a lower held-out loss after which a fit stops; None never stops. Fits that hold
        examples out keep their best epoch either way, others their last.
    """

    epochs: int = 5
    batch_size: int = 32
    tokens: int | None = None
    num_shapes: int = 6
    most_fits: int | None = None
    steps: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "tokens", "num_shapes", "steps", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected 1 or more")
        if self.epochs < 0 or (self.most_fits is not None and self.most_fits < 1):
            raise InputError(f"epochs is {self.epochs} and most_fits {self.most_fits}; expected 0, and 1, or more")

    def steps_of(self, fit: Fit) -> list[list[int]]:
        """Lists the examples of every step of a fit, see `Fit.steps`; none without examples.

        Args:
          fit: the fit.
        """
        if self.steps is None or not fit.inputs:
            return fit.steps(self.epochs, self.batch_size)
        per_epoch = -(-len(fit.inputs) // self.batch_size)
        return fit.steps(-(-self.steps // per_epoch), self.batch_size)[: self.steps]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What became of a fit.

    Attributes:
      learnt: what the fit has become, an `Adapter`, the parameters of a whole model or those of a head: after its best
        epoch on held-out examples, or after the last step where there are none.
      losses: float32 [steps], mean negative log-likelihood of each step's target tokens before its update, in nats.
      held_losses: float32 [epochs], that of the held-out target tokens after each epoch; none without such examples.
      best_epoch: that epoch, from 1; None without held-out examples.
    """

    learnt: Any
    losses: np.ndarray
    held_losses: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    best_epoch: int | None = None


class DivergedError(InputError):
    """Losses or results of some fits are not finite; told when all others are done.

    Attributes:
      found: what the others have become, by their places, if `fit_all` was asked; `fit_each` has given them before.
    """

    found: Mapping[int, Fitted] = {}


def fit_all(
    module: nn.Module,
    params: Any,
    fits: Sequence[Fit],
    lora: LoRA,
    schedule: Schedule,
    *,
    optimizer: Optimizer = ADAMW,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> list[Fitted]:
    """Trains an adapter for each fit; the model's own parameters stay as they are.

    Args:
      module: the model.
      params: its parameters; on a mesh every device gets all of them.
      fits: any number of training sets; names need not differ, but the same name and seed give the same start.
      lora: what the adapters are made of.
      schedule: how long and in which portions.
      optimizer: turns gradients into updates.
      mesh: devices that share the fits; the default device if None.
      progress: told after each step (fits' steps done, in all, what is done).

    Returns:
      One for each fit, in their order.

    Raises:
      DivergedError: if losses or adapters of some fits are not finite; carries those of the others.
      InputError: if the model has no room for a row, or the mesh splits the model itself.
      UnknownNameError: if a target matches no layer.
    """
    options: dict[str, Any] = dict(optimizer=optimizer, mesh=mesh, progress=progress)
    found: dict[int, Fitted] = {}
    try:
        found.update(fit_each(module, params, fits, LowRankTuning(lora), schedule, **options))
    except DivergedError as error:
        error.found = found
        raise
    return [found[index] for index in range(len(fits))]


def fit_each(
    module: nn.Module,
    params: Any,
    fits: Sequence[Fit],
    tuning: Tuning,
    schedule: Schedule,
    *,
    optimizer: Optimizer = ADAMW,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Fitted]]:
    """Trains fits of any kind and gives each as soon as it is done, so that whole models need not be kept together.

    Args:
      module: the model.
      params: its parameters, which stay as they are.
      fits: as in `fit_all`.
      tuning: what a fit trains.
      schedule: as in `fit_all`.
      optimizer: as in `fit_all`.
      mesh: as in `fit_all`; only adapters can share devices.
      progress: as in `fit_all`.

    Yields:
      The place of a fit and what became of it, the fits with the most examples first.

    Raises:
      DivergedError: at the end, if losses or results of some fits are not finite (names them).
      InputError: as `fit_all`, or if fits that are no adapters are to share a mesh.
    """
    program = FitProgram(unrolled_on_cpus(module), tuning, optimizer, mesh=_checked(mesh, tuning))
    for fit in fits:
        inputs, targets = ([pair[side] for pair in fit.lengths] for side in (0, 1))
        check_room(program.config, inputs, targets, fit.name)
    devices = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    order = range(len(fits))
    if tuning.most_fits != len(fits):  # heads are in the order of their tasks
        order = sorted(order, key=lambda index: -len(fits[index].inputs))  # of like size together
    count = _Counter(sum(len(schedule.steps_of(fit)) for fit in fits), progress)
    chunks = list(_chunks(order, _most_fits(program, schedule, fits) * devices))
    groups = [_Group([fits[index] for index in chunk], schedule, devices) for chunk in chunks]
    batches = _batches(program, groups, schedule)
    params = taken_apart(program.module, params if mesh is None else jax.device_put(params, replicated(mesh)))
    for chunk, group in zip(chunks, groups, strict=True):
        found = _train(program, params, group, batches, count)
        yield from ((chunk[slot], one) for slot, one in enumerate(found) if one is not None)
    _tell_of_diverged(groups, len(fits))


class _Group:
    """Fits that are trained together, as many on each device; copies of the first without examples fill up."""

    def __init__(self, fits: Sequence[Fit], schedule: Schedule, devices: int) -> None:
        empty = dataclasses.replace(fits[0], inputs=(), targets=(), held_inputs=(), held_targets=())
        self.count = len(fits)
        self.fits = [*fits, *[empty] * (-len(fits) % devices)]
        self.steps = [schedule.steps_of(fit) for fit in self.fits]
        self.devices, self.schedule = devices, schedule
        self.diverged: dict[int, int] = {}  # places to the step, from 1, whose loss was not finite

    @property
    def num_steps(self) -> int:
        return max(map(len, self.steps))

    def rows(self, step: int) -> list[list[Row]]:
        """Returns each device's rows of a step."""
        return [rows_of_step(self.fits[part], self.steps[part], step) for part in self._parts()]

    def held_rows(self, slots: Collection[int]) -> list[list[Row]]:
        """Returns each device's rows that the fits in some places hold out."""
        own = lambda part: [slot - part.start for slot in slots if part.start <= slot < part.stop]
        return [held_rows(self.fits[part], own(part)) for part in self._parts()]

    def _parts(self) -> list[slice]:
        size = len(self.fits) // self.devices
        return [slice(start, start + size) for start in range(0, len(self.fits), size)]

    def ending_epoch(self, step: int) -> list[int]:
        """Returns the places of the fits with held-out examples whose epoch ends with a step."""
        length = lambda fit: -(-len(fit.inputs) // self.schedule.batch_size)
        is_end = lambda slot, fit: fit.held_inputs and step < len(self.steps[slot]) and not (step + 1) % length(fit)
        return [slot for slot, fit in enumerate(self.fits) if is_end(slot, fit)]

    def stop(self, slots: Collection[int], step: int) -> int:
        """Ends fits behind a step: their rows leave the batches. Returns the number of steps that are saved."""
        saved = sum(max(0, len(self.steps[slot]) - step - 1) for slot in slots)
        for slot in slots:
            self.steps[slot] = self.steps[slot][: step + 1]
        return saved

    def active(self, step: int) -> np.ndarray:
        """Returns bool [N], which fits have this step."""
        return np.array([step < len(own) for own in self.steps])

    def most_rows(self) -> int:
        """Returns the most rows that any step, or all that is held out, gives a device."""
        learnt = (len(share) for step in range(self.num_steps) for share in self.rows(step))
        return max(*map(len, self.held_rows(range(len(self.fits)))), *learnt, 0)


def _batches(program: FitProgram, groups: Sequence[_Group], schedule: Schedule) -> RowBatches | None:
    """Chooses shapes for all steps of all groups, so that each is compiled once; None if there is no row."""
    most_rows = max((group.most_rows() for group in groups), default=0)
    if not most_rows:
        return None
    lengths = np.array([pair for group in groups for fit in group.fits for pair in fit.lengths])
    tokens = schedule.tokens or (CELLS_ON_CPU if jax.default_backend() == "cpu" else CELLS)
    sizes = dict(tokens=tokens, num_shapes=schedule.num_shapes, most_rows=most_rows)
    cost = functools.partial(program.tuning.cost, program.config)
    return row_batches(lengths, **sizes, cost=cost, pad_id=program.config.pad_id)


def _train(
    program: FitProgram, params: Any, group: _Group, batches: RowBatches | None, count: "_Counter"
) -> list[Fitted | None]:
    """Trains the fits of a group to their ends; None stands for those that diverge."""
    state, losses = program.start(params, group.fits), []
    if batches is None:
        return _results(program, state.tree, group, losses)
    best = BestEpochs(program, len(group.fits), group.schedule.patience, _held_loss(program, params, group, batches))
    rates = jnp.array([fit.learning_rate for fit in group.fits], jnp.float32)
    step = 0
    while step < group.num_steps:
        sums = program.zeros(state)
        for batch in batches.cut(group.rows(step)):
            sums = program.add(params, state, sums, step, batch)
        losses.append(sums.loss)
        state = program.update(state, sums, rates, group.active(step))
        done = group.active(step).sum()
        if ended := group.ending_epoch(step):
            count.drop(group.stop(best.after_epoch(state, ended), step))
        count.add(done)
        # The loss of the step before: waiting for this one would leave the device without work.
        count.drop(group.stop(_diverging(group, losses, step - 1), step))
        step += 1
    _diverging(group, losses, step - 1)
    return _results(program, best.chosen(state), group, losses, best)


def _held_loss(program: FitProgram, params: Any, group: _Group, batches: RowBatches) -> HeldLoss:
    """Returns what measures the examples that fits hold out."""

    def measure(state: FitState, slots: list[int]) -> np.ndarray:
        losses = program.zeros(state).loss
        for batch in batches.cut(group.held_rows(slots)):
            losses = program.score(params, state, losses, batch)
        return np.asarray(losses)

    return measure


def _results(
    program: FitProgram, tree: Any, group: _Group, losses: Sequence[jax.Array], best: BestEpochs | None = None
) -> list[Fitted | None]:
    """Takes the trees of a group, leaves [N, ...], apart."""
    table = np.array(jax.device_get(losses)).reshape(len(losses), len(group.fits))
    tree = jax.device_get(tree)
    finite = np.all([np.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(tree)], axis=0)
    found: list[Fitted | None] = []
    for slot, own in enumerate(rows.unstack(tree, group.count)):
        if not finite[slot]:
            group.diverged.setdefault(slot, len(group.steps[slot]))
        held: dict[str, Any] = {}
        if best is not None:
            held = dict(held_losses=np.array(best.losses[slot], np.float32), best_epoch=best.found[slot].step)
        one = Fitted(program.tuning.result(own), table[: len(group.steps[slot]), slot], **held)
        found.append(None if slot in group.diverged else one)
    return found


def _diverging(group: _Group, losses: Sequence[jax.Array], step: int) -> list[int]:
    """Notes the fits whose loss of a step, from 0, is the first that is not finite; returns their places."""
    bad = np.flatnonzero(~np.isfinite(np.asarray(losses[step]))) if step >= 0 else []
    new = [int(slot) for slot in bad if slot not in group.diverged]
    group.diverged.update(dict.fromkeys(new, step + 1))
    return new


def _tell_of_diverged(groups: Sequence[_Group], count: int) -> None:
    named = [f"{group.fits[slot].name} (step {step})" for group in groups for slot, step in group.diverged.items()]
    if named:
        shown = ", ".join(named[:5]) + ", ..." * (len(named) > 5)
        raise DivergedError(
            f"the loss of {len(named)} of {count} fits is not finite: {shown}; the others are done. Lower the learning "
            "rate, or leave these tasks out"
        )


def _checked(mesh: Mesh | None, tuning: Tuning) -> Mesh | None:
    if mesh is not None and tuning.most_fits is not None:
        raise InputError("a mesh of devices is for fitting adapters; whole models and heads are fitted on one device")
    if mesh is not None and mesh.shape["tensor"] > 1:
        raise InputError(
            f"the mesh has tensor={mesh.shape['tensor']}; fits share devices along data and fsdp alone: use tensor=1"
        )
    return mesh


def fit_bytes(program: FitProgram) -> int:
    """Counts the bytes of a fit in training: what it trains, the optimizer's state and the gradients.

    Args:
      program: what is fitted.
    """
    state = program.shapes(1)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.tree, state.moments, state.tree)))


def _most_fits(program: FitProgram, schedule: Schedule, fits: Sequence[Fit]) -> int:
    """Counts the fits that a device has room for, their best states included where these are kept."""
    most = program.tuning.most_fits or schedule.most_fits
    if most is not None:
        return most
    is_kept = any(fit.held_inputs for fit in fits)
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.shapes(1).tree)) if is_kept else 0
    return max(1, int(STATE_SHARE * _device_memory() / (fit_bytes(program) + kept)))


def _device_memory() -> int:
    """Returns the bytes of the default device, or of the machine where devices do not tell."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", 0) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _chunks(order: Sequence[int], most: int) -> Iterator[list[int]]:
    """Cuts the fits into as few groups of like size as memory allows: each size is compiled once."""
    if not order:
        return
    number = -(-len(order) // most)
    size = -(-len(order) // number)
    for start in range(0, len(order), size):
        yield list(order[start : start + size])


class _Counter:
    """Counts the steps of all fits and passes the sum on."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def add(self, steps: int) -> None:
        self.done += int(steps)
        if self.progress is not None:
            self.progress(self.done, self.total, "fitting")

    def drop(self, steps: int) -> None:
        """Takes steps that fits do without from the sum."""
        self.total -= steps
