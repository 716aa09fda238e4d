"""How much memory a training needs on each device, known before anything is allocated.

Parameters, gradients and optimiser state follow from shapes and shardings. What a step needs beyond them only the
compiler knows: XLA says how it laid out the buffers of a compiled step.
"""

import dataclasses
import math
from typing import Any

import jax

from jaxmtl.training.state import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateMemory:
    """Bytes that lie on each device.

    Attributes:
      parameters: of the parameters.
      gradients: of the gradients, which exist only during a step.
      optimizer: of the optimiser's state.
    """

    parameters: int
    gradients: int
    optimizer: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes that a compiled step takes on each device, as XLA lays out its buffers.

    Attributes:
      arguments: of parameters, optimiser state, batch, and what an objective holds, such as teachers.
      temporary: of activations and gradients, as far as they are there at the same time.
      results: of results that do not lie in the arguments' place.
    """

    arguments: int
    temporary: int
    results: int

    @property
    def total(self) -> int:
        """Returns the sum: what a device has to have."""
        return self.arguments + self.temporary + self.results


def state_memory(plan: Plan) -> StateMemory:
    """Adds up what the state of a training takes on each device; nothing is compiled or allocated.

    Args:
      plan: the plan.
    """
    parameters = bytes_per_device(plan.shapes.params)
    return StateMemory(parameters=parameters, gradients=parameters, optimizer=bytes_per_device(plan.shapes.opt_state))


def bytes_per_device(shapes: Any) -> int:
    """Returns the bytes of a tree's part on one device; each device's part is equally large.

    Args:
      shapes: tree of arrays or shapes that carry their shardings.
    """
    part = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return sum(part(leaf) for leaf in jax.tree.leaves(shapes))


def analysis(program: Any) -> StepMemory | None:
    """Returns what XLA says of a compiled program's memory, None where it says nothing.

    Args:
      program: what `jax.jit(...).lower(...).compile()` returned.
    """
    found = program.memory_analysis()
    if found is None or not found.argument_size_in_bytes:
        return None
    return StepMemory(
        arguments=found.argument_size_in_bytes,
        temporary=found.temp_size_in_bytes,
        results=found.output_size_in_bytes - found.alias_size_in_bytes,
    )


def readable(size: float) -> str:
    """Returns bytes in a unit that suits them, such as "1.39 GB".

    Args:
      size: in bytes.
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size:.0f} bytes"
