"""Fits any number of adapters, as many at a time as memory holds.

Letters in shapes: N fits trained together.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmtl.adapters import rows
from jaxmtl.adapters.lora import Adapter, LoRA
from jaxmtl.models import flops
from jaxmtl.models.lengths import check_room
from jaxmtl.models.stack import unrolled_on_cpus
from jaxmtl.partitioning import replicated
from jaxmtl.training.fit_rows import Fit, RowBatches, row_batches, rows_of_step
from jaxmtl.training.fits import AdamW, FitProgram, FitState
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
    """

    epochs: int = 5
    batch_size: int = 32
    tokens: int | None = None
    num_shapes: int = 6
    most_fits: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "tokens", "num_shapes", "steps"):
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
      adapter: the adapter behind the last step.
      losses: float32 [steps], mean negative log-likelihood of each step's target tokens before its update, in nats.
    """

    adapter: Adapter
    losses: np.ndarray


def fit_all(
    module: nn.Module,
    params: Any,
    fits: Sequence[Fit],
    lora: LoRA,
    schedule: Schedule,
    *,
    optimizer: AdamW = ADAMW,
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
      InputError: if the model has no room for a row, a fit's loss or adapter is not finite (names the fit), or the mesh
        splits the model itself.
      UnknownNameError: if a target matches no layer.
    """
    options: dict[str, Any] = dict(optimizer=optimizer, mesh=mesh, progress=progress)
    found = {id(fit): fitted for fit, fitted in fit_groups(module, params, fits, lora, schedule, **options)}
    return [found[id(fit)] for fit in fits]


def fit_groups(
    module: nn.Module,
    params: Any,
    fits: Sequence[Fit],
    lora: LoRA,
    schedule: Schedule,
    *,
    optimizer: AdamW = ADAMW,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Fit, Fitted]]:
    """Trains as `fit_all`, and gives each fit as soon as those that are trained together with it have ended.

    Args:
      module: as in `fit_all`, and so are the others and the errors.
      params: its parameters.
      fits: training sets, each another object.
      lora: what the adapters are made of.
      schedule: how long and in which portions.
      optimizer: turns gradients into updates.
      mesh: devices that share the fits.
      progress: told after each step.

    Yields:
      Each fit with what became of it, the largest first.
    """
    program = FitProgram(unrolled_on_cpus(module), lora, optimizer, mesh=_checked(mesh))
    for fit in fits:
        check_room(program.config, map(len, fit.inputs), map(len, fit.targets), fit.name)
    devices = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    order = sorted(range(len(fits)), key=lambda index: -len(fits[index].inputs))  # of like size together
    count = _Counter(sum(len(schedule.steps_of(fit)) for fit in fits), progress)
    chunks = list(_chunks(order, _most_fits(program, schedule) * devices))
    groups = [_Group([fits[index] for index in chunk], schedule, devices) for chunk in chunks]
    batches = _batches(program.config, groups, schedule)
    params = params if mesh is None else jax.device_put(params, replicated(mesh))
    for chunk, group in zip(chunks, groups, strict=True):
        fitted = _train(program, params, group, batches, count)
        yield from ((fits[index], one) for index, one in zip(chunk, fitted, strict=True))


class _Group:
    """Fits that are trained together, as many on each device; copies of the first without examples fill up."""

    def __init__(self, fits: Sequence[Fit], schedule: Schedule, devices: int) -> None:
        empty = dataclasses.replace(fits[0], inputs=(), targets=())
        self.count = len(fits)
        self.fits = [*fits, *[empty] * (-len(fits) % devices)]
        self.steps = [schedule.steps_of(fit) for fit in self.fits]
        self.devices, self.schedule = devices, schedule

    @property
    def num_steps(self) -> int:
        return max(map(len, self.steps))

    def rows(self, step: int) -> list[list]:
        """Returns each device's rows of a step."""
        size = len(self.fits) // self.devices
        parts = (slice(start, start + size) for start in range(0, len(self.fits), size))
        return [rows_of_step(self.fits[part], self.steps[part], step) for part in parts]

    def active(self, step: int) -> np.ndarray:
        """Returns bool [N], which fits have this step."""
        return np.array([step < len(own) for own in self.steps])

    def most_rows(self) -> int:
        """Returns the most rows that any step gives a device."""
        return max((len(share) for step in range(self.num_steps) for share in self.rows(step)), default=0)


def _batches(config: Any, groups: Sequence[_Group], schedule: Schedule) -> RowBatches | None:
    """Chooses shapes for all steps of all groups, so that each is compiled once; None if there is no row."""
    pairs = [pair for group in groups for fit in group.fits for pair in zip(fit.inputs, fit.targets, strict=True)]
    most_rows = max((group.most_rows() for group in groups), default=0)
    if not most_rows:
        return None
    lengths = np.array([(len(source), len(target)) for source, target in pairs])
    tokens = schedule.tokens or (CELLS_ON_CPU if jax.default_backend() == "cpu" else CELLS)
    sizes = dict(tokens=tokens, num_shapes=schedule.num_shapes, most_rows=most_rows)
    return row_batches(lengths, **sizes, cost=functools.partial(flops.forward, config), pad_id=config.pad_id)


def _train(
    program: FitProgram, params: Any, group: _Group, batches: RowBatches | None, count: "_Counter"
) -> list[Fitted]:
    """Trains the fits of a group to their ends."""
    state, losses = program.start(group.fits), []
    if batches is None:
        return _results(program, state, group, losses)
    rates = jnp.array([fit.learning_rate for fit in group.fits], jnp.float32)
    for step in range(group.num_steps):
        sums = program.zeros(state)
        for batch in batches.cut(group.rows(step)):
            sums = program.add(params, state, sums, step, batch)
        losses.append(sums.loss)
        state = program.update(state, sums, rates, group.active(step))
        count.add(group.active(step).sum())
        _check_finite(group, losses, step)
    return _results(program, state, group, losses)


def _results(program: FitProgram, state: FitState, group: _Group, losses: Sequence[jax.Array]) -> list[Fitted]:
    table = np.array(jax.device_get(losses)).reshape(len(losses), len(group.fits))
    lora = program.lora
    tree = jax.device_get(state.tree)
    finite = [np.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(tree)]
    _refuse(group, ~np.all(finite, axis=0), "the adapter is not finite after the last step")
    trees = rows.unstack(tree, group.count)
    made = lambda tree: Adapter(tree=tree, rank=lora.rank, alpha=lora.alpha, scaling=lora.scaling)
    return [Fitted(made(tree), table[: len(group.steps[n]), n]) for n, tree in enumerate(trees)]


def _check_finite(group: _Group, losses: Sequence[jax.Array], step: int) -> None:
    """Looks at the loss of the step before: waiting for this one would leave the device without work."""
    is_last = step + 1 == group.num_steps
    for number in range(max(0, step - 1), step + 1 if is_last else step):
        bad = ~np.isfinite(np.asarray(losses[number]))
        _refuse(group, bad, f"the loss is not finite at step {number + 1}")


def _refuse(group: _Group, bad: np.ndarray, what: str) -> None:
    """Names the fits that are bad, bool [N], if there are any."""
    if bad.any():
        names = ", ".join(sorted({group.fits[slot].name for slot in np.flatnonzero(bad)})[:5])
        raise InputError(f"{what} in {bad.sum()} of {group.count} fits: {names}; lower their learning rate")


def _checked(mesh: Mesh | None) -> Mesh | None:
    if mesh is not None and mesh.shape["tensor"] > 1:
        raise InputError(
            f"the mesh has tensor={mesh.shape['tensor']}; fits share devices along data and fsdp alone: use tensor=1"
        )
    return mesh


def fit_bytes(program: FitProgram) -> int:
    """Counts the bytes of a fit in training: its adapter, the optimizer's state and the gradients.

    Args:
      program: what is fitted.
    """
    state = program.shapes(1)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.tree, state.moments, state.tree)))


def _most_fits(program: FitProgram, schedule: Schedule) -> int:
    """Counts the fits that a device has room for."""
    if schedule.most_fits is not None:
        return schedule.most_fits
    return max(1, int(STATE_SHARE * _device_memory() / fit_bytes(program)))


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
