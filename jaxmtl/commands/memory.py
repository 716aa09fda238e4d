"""What `jaxmtl info --memory` prints: bytes that a training takes on each device, and the largest batch that fits."""

import contextlib
import dataclasses
import functools
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxmtl.types import InputError, UsageError

if TYPE_CHECKING:
    import flax.linen as nn
    from jax.sharding import Mesh

    from jaxmtl.feed.interleave import InterleavedStream
    from jaxmtl.feed.store import TokenStore
    from jaxmtl.feed.stream import Stream
    from jaxmtl.training.memory import StateMemory, StepMemory
    from jaxmtl.training.objectives import Objective
    from jaxmtl.training.optim import Optimizer
    from jaxmtl.training.planning import BatchShape
    from jaxmtl.training.schedules import Schedule
    from jaxmtl.training.state import Plan

STORE = "store"
UNITS = {"": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked beyond the bytes of the state.

    Attributes:
      lengths: input and target tokens of a row to compile a step for, `STORE` for those of the training's token store;
        None compiles nothing.
      limit: bytes that a device has, to find the largest batch; None does not look for it.
    """

    lengths: tuple[int, int] | str | None = None
    limit: float | None = None


def requested(lengths: str | None, fit: str | None) -> Request:
    """Reads the flags.

    Args:
      lengths: "S,T" or "store".
      fit: bytes with or without unit, such as "16GB".

    Returns:
      The request.

    Raises:
      InputError: if one of them is not of that form.
    """
    if fit is not None and lengths is None:
        raise UsageError(f"--fit {fit}: needs the lengths of rows: --lengths=512,128, or --lengths=store")
    return Request(lengths=None if lengths is None else _lengths(lengths), limit=None if fit is None else _bytes(fit))


def report(
    *,
    module: "nn.Module",
    optimizer: "Optimizer",
    learning_rate: "Schedule",
    objective: "Objective",
    num_microbatches: int,
    batch_size: int,
    make_stream: "Callable[..., Stream | InterleavedStream]",
    open_store: "Callable[[], TokenStore]",
    mesh: "Mesh | None" = None,
    request: Request = Request(),
) -> list[str]:
    """Says what a training takes on each device; nothing is allocated, no weights are read.

    Args:
      module: the model.
      optimizer: as in `loop.Run`.
      learning_rate: as in `loop.Run`.
      objective: as in `loop.Run`.
      num_microbatches: as in `loop.Run`.
      batch_size: rows of a batch, where lengths are given by hand.
      make_stream: what training makes its batches with, where lengths are those of the store.
      open_store: opens the training's token store.
      mesh: the devices; all of them along `data` if None.
      request: what is asked.

    Returns:
      Lines to print.

    Raises:
      InputError: if model, mesh, batch and request do not fit together.
    """
    from jaxmtl.partitioning import make_mesh
    from jaxmtl.training.memory import state_memory
    from jaxmtl.training.planning import BatchShape, step_memory
    from jaxmtl.training.state import make_plan
    from jaxmtl.training.step import train_step

    plan = make_plan(module, optimizer, learning_rate, mesh or make_mesh())
    lines = _state_lines(plan, state_memory(plan))
    multiple = _multiple(plan, num_microbatches)
    if request.lengths is None:
        return lines
    if request.lengths == STORE:
        shape = _largest_shape(make_stream, open_store(), module, multiple)
    else:
        shape = BatchShape(rows=batch_size, source=int(request.lengths[0]), target=int(request.lengths[1]))
    step = functools.partial(train_step, plan=plan, objective=objective, num_tasks=1, num_microbatches=num_microbatches)

    @functools.cache
    def take(rows: int) -> "StepMemory":
        print(f"compiling a step of {rows} rows ...", file=sys.stderr, flush=True)
        return step_memory(step, plan, dataclasses.replace(shape, rows=rows))

    if request.limit is None:
        return lines + _step_lines(shape, take(shape.rows))
    return lines + _fit_lines(shape, take, request.limit, multiple)


def describe_devices(count: int | None) -> None:
    """Makes JAX plan for devices that are not there, as CPU devices; only before it looked for devices.

    Args:
      count: how many; None leaves those that there are.

    Raises:
      InputError: if it is below 1, or JAX looked for devices before and has another number of them.
    """
    if count is None:
        return
    if count < 1:
        raise UsageError(f"--devices is {count}; expected at least 1")
    import jax

    with contextlib.suppress(RuntimeError):  # raised where JAX has its devices already; their number is looked at below
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    if jax.device_count() != count:
        raise UsageError(f"--devices is {count}, but JAX runs with {jax.device_count()} already; use a new process")


def _lengths(text: str) -> tuple[int, int] | str:
    if text == STORE:
        return STORE
    found = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", text)
    if not found:
        raise UsageError(f"--lengths is {text!r}; expected input and target tokens such as 512,128, or '{STORE}'")
    return int(found[1]), int(found[2])


def _bytes(text: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = found and {name.lower(): factor for name, factor in UNITS.items()}.get(found[2].lower())
    if not found or not unit:
        raise UsageError(f"--fit is {text!r}; expected bytes such as 16e9, 16GB or 16GiB ({', '.join(UNITS)[2:]})")
    return float(found[1]) * unit


def _multiple(plan: "Plan", num_microbatches: int) -> int:
    """Returns what divides the rows of every batch."""
    if num_microbatches < 1:
        raise InputError(f"num_microbatches is {num_microbatches}; expected at least 1")
    return plan.mesh.shape["data"] * plan.mesh.shape["fsdp"] * num_microbatches


def _largest_shape(make_stream: Any, store: "TokenStore", module: Any, multiple: int) -> "BatchShape":
    """Returns the shape with the most tokens among those that a training on the store would compile."""
    from jaxmtl.feed.preview import check_rows
    from jaxmtl.models import flops
    from jaxmtl.training.planning import BatchShape

    stream = make_stream(store, cost=functools.partial(flops.forward, module.config), multiple=multiple)
    shapes = []
    for part, _ in stream.parts(1).values():
        check_rows(part)
        found = part.layout.identity()
        for rows, (source, target) in zip(found["rows"], found["shapes"], strict=True):
            of_examples = {name: found[name] for name in ("slots", "longest") if name in found}
            shapes.append(BatchShape(rows=rows, source=source, target=target, layout=found["layout"], **of_examples))
    return max(shapes, key=lambda shape: shape.rows * (shape.source + shape.target))


def _state_lines(plan: "Plan", memory: "StateMemory") -> list[str]:
    from jaxmtl.training.state import num_parameters

    axes = ", ".join(f"{name} {size}" for name, size in plan.mesh.shape.items())
    count, name = num_parameters(plan.shapes.params), type(plan.module).__name__
    return [
        f"{name} of {count:,} parameters; bytes on each of {plan.mesh.size} devices ({axes}):",
        _line("parameters", memory.parameters),
        _line("gradients", memory.gradients),
        _line("optimizer state", memory.optimizer),
        _line("all three", memory.parameters + memory.gradients + memory.optimizer),
    ]


def _step_lines(shape: "BatchShape", memory: "StepMemory") -> list[str]:
    return [
        f"a step on {shape}, as XLA lays it out:",
        _line("parameters, optimizer state, batch", memory.arguments),
        _line("activations and gradients", memory.temporary),
        _line("results besides", memory.results),
        _line("in all", memory.total),
    ]


def _fit_lines(shape: "BatchShape", take: "Callable[[int], StepMemory]", limit: float, multiple: int) -> list[str]:
    from jaxmtl.training.memory import readable
    from jaxmtl.training.planning import largest_batch

    rows = largest_batch(lambda rows: take(rows).total, limit, multiple)
    if not rows:
        raise InputError(
            f"no batch fits in {readable(limit)} on each device: {multiple} rows x {shape.source} / {shape.target} "
            f"tokens take {readable(take(multiple).total)}; split the model over more devices, or shorten rows"
        )
    more = f"{rows + multiple} rows would take {readable(take(rows + multiple).total)}"
    largest = f"largest batch within {readable(limit)} on each device: {rows} rows; {more}"
    return [*_step_lines(dataclasses.replace(shape, rows=rows), take(rows)), largest]


def _line(name: str, size: int) -> str:
    from jaxmtl.training.memory import readable

    return f"  {name:<36}{size:>20,}  {readable(size):>10}"
