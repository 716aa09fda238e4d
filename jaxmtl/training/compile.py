"""Compiles the step once per batch shape, says how long it took, and keeps the result in the run folder."""

import contextlib
import dataclasses
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxmtl.partitioning import batch_sharding, replicated, use_mesh
from jaxmtl.training.memory import StepMemory, analysis, readable
from jaxmtl.training.state import Plan, TrainState
from jaxmtl.training.step import StepMetrics

Step = Callable[..., tuple[TrainState, StepMetrics]]
"""A pure step: called with a state, a batch, and arrays that never change, if it reads any."""


@dataclasses.dataclass(frozen=True)
class Compilation:
    """One compiled shape.

    Attributes:
      shape: rows, source length and target length of the batch.
      seconds: how long tracing and compiling took.
      memory: bytes that it takes on each device; None where the compiler does not tell.
    """

    shape: tuple[int, int, int]
    seconds: float
    memory: StepMemory | None = None


def jitted(step: Step, plan: Plan, given: Sequence[jax.Array] = ()) -> Any:
    """Returns the step as it is compiled: state and batch split as planned, the state's memory given to the new one.

    Args:
      step: the pure step.
      plan: where the state lies.
      given: arrays on the plan's mesh that the step is called with besides state and batch.
    """
    return jax.jit(
        step,
        in_shardings=(plan.shardings, batch_sharding(plan.mesh), *(array.sharding for array in given)),
        out_shardings=(plan.shardings, replicated(plan.mesh)),
        donate_argnums=0,
    )


class CompiledStep:
    """The step on a mesh; the state's memory is reused, so a state must not be used after it was passed in.

    Attributes:
      compilations: all so far.
    """

    def __init__(self, step: Step, plan: Plan, note: Callable[[str], None], given: Sequence[jax.Array] = ()) -> None:
        """Prepares, compiles nothing yet.

        Args:
          step: the pure step.
          plan: where the state lies.
          note: hears of every compilation.
          given: as in `jitted`.
        """
        self.compilations: list[Compilation] = []
        self._plan, self._note, self._given = plan, note, given
        self._programs: dict[tuple, Any] = {}
        self._jitted = jitted(step, plan, given)

    def __call__(self, state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, StepMetrics]:
        """Makes one step."""
        # All fields count: batches of one shape may share more or fewer instructions.
        shapes = tuple(sorted((name, field.shape) for name, field in batch.items()))
        if shapes not in self._programs:
            self._programs[shapes] = self._compile(state, batch)
        return self._programs[shapes](state, batch, *self._given)

    @property
    def seconds(self) -> float:
        """Returns the seconds spent compiling so far."""
        return sum(compilation.seconds for compilation in self.compilations)

    def _compile(self, state: TrainState, batch: Mapping[str, jax.Array]) -> Any:
        began = time.monotonic()
        with use_mesh(self._plan.mesh, self._plan.rules):
            program = self._jitted.lower(state, batch, *self._given).compile()
        (rows, source), target = batch["inputs"].shape, batch["targets"].shape[1]
        compilation = Compilation((rows, source, target), time.monotonic() - began, analysis(program))
        self.compilations.append(compilation)
        count = len(self.compilations)
        self._note(
            f"compiled shape {count}: {rows} rows x {source} / {target} tokens in {compilation.seconds:.1f} s"
            + _described(compilation.memory)
        )
        return program


def _described(memory: StepMemory | None) -> str:
    if memory is None:
        return ""
    held = f"{readable(memory.arguments)} of state and batch, {readable(memory.temporary)} of activations and gradients"
    return f"; on each device {readable(memory.total)}: {held}"


@contextlib.contextmanager
def compilation_cache_in(folder: pathlib.Path) -> Iterator[None]:
    """Keeps compiled programs in a folder while it is entered, so that a resumed run does not compile again.

    Args:
      folder: where to keep them.
    """
    before = jax.config.values["jax_compilation_cache_dir"]
    _set_cache(str(folder))
    try:
        yield
    finally:
        _set_cache(before)


def _set_cache(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # JAX looks at the setting once only


def peak_memory() -> dict[str, float]:
    """Returns the largest memory used so far, in bytes: "host", and "device" where the device tells."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    device = max((stat.get("peak_bytes_in_use", 0) for stat in stats), default=0)
    return peak | ({"device": float(device)} if device else {})
