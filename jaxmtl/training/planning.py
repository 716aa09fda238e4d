"""What a step on batches of some shape takes on each device: it is compiled for shapes, and no array is made."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np

from jaxmtl.partitioning import batch_sharding, use_mesh
from jaxmtl.training.compile import Step, jitted
from jaxmtl.training.memory import StepMemory, analysis
from jaxmtl.training.state import Plan
from jaxmtl.types import InputError

_MOST_GROWTH = 64  # rows of a try are at most so many times those of the one before
_TOKENS = {"inputs": "RS", "targets": "RT", "loss_mask": "RT"}
_PLAIN = _TOKENS | {"task_ids": "R", "example_ids": "R", "expected_tokens": "R"}
_INPUT_SEGMENTS = {"inputs": "RS", "input_segments": "RS", "input_positions": "RS"}
_SEGMENTS = _INPUT_SEGMENTS | {"target_segments": "RT", "target_positions": "RT"}
_EXAMPLES = {"example_columns": "BL", "targets": "BT", "loss_mask": "BT", "task_ids": "B", "example_ids": "B"}
FIELDS: Mapping[str, Mapping[str, str]] = {
    "grouped": _PLAIN,
    "packed": _PLAIN | _SEGMENTS | {"task_ids": "RT", "example_ids": "RT"},
    "packed labels": _INPUT_SEGMENTS | _EXAMPLES | {"expected_tokens": "R"},
}
"""Fields of a batch by the name of its layout; letters are axes: R rows, S source length, T target length, B slots of
the examples of all rows, L length of the longest example."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The shape of a batch.

    Attributes:
      rows: R, over all devices.
      source: S in tokens.
      target: T in tokens.
      layout: one of `FIELDS`.
      slots: most examples of a packed row, where they have rows of targets.
      longest: L in tokens, of packed rows.
    """

    rows: int
    source: int
    target: int
    layout: str = "grouped"
    slots: int = 1
    longest: int = 1

    def __post_init__(self) -> None:
        """Refuses sizes below 1.

        Raises:
          InputError: with the sizes.
        """
        if min(self.rows, self.source, self.target) < 1:
            raise InputError(f"a batch is {self}; expected 1 or more rows, input tokens and target tokens")

    def __str__(self) -> str:
        """Returns rows and lengths."""
        return f"{self.rows} rows x {self.source} / {self.target} tokens"


def abstract_batch(shape: BatchShape, plan: Plan) -> dict[str, jax.ShapeDtypeStruct]:
    """Describes a batch without making it.

    Args:
      shape: its shape.
      plan: where it lies.

    Returns:
      The fields of its layout, split over the devices as training does.

    Raises:
      InputError: if its rows cannot be split evenly.
    """
    multiple = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    if shape.rows % multiple:
        raise InputError(
            f"a batch of {shape.rows} rows does not split over data x fsdp = {multiple} devices; change it"
        )
    length = {"R": shape.rows, "S": shape.source, "T": shape.target}
    length |= {"B": shape.rows * shape.slots, "L": shape.longest}
    dtype = lambda name: np.float32 if name in ("loss_mask", "expected_tokens") else np.int32
    return {
        name: jax.ShapeDtypeStruct([length[axis] for axis in axes], dtype(name), sharding=batch_sharding(plan.mesh))
        for name, axes in FIELDS[shape.layout].items()
    }


def step_memory(step: Step, plan: Plan, shape: BatchShape) -> StepMemory:
    """Compiles a step and asks XLA what it takes; nothing else is allocated.

    Args:
      step: the pure step.
      plan: where the state lies.
      shape: of the batch.

    Returns:
      Bytes on each device.

    Raises:
      InputError: if the batch does not fit the devices, or the devices' compiler does not tell.
    """
    with use_mesh(plan.mesh, plan.rules):
        program = jitted(step, plan).lower(plan.shapes, abstract_batch(shape, plan)).compile()
    found = analysis(program)
    if found is None:
        kind = plan.mesh.devices.flat[0].device_kind
        raise InputError(f"the compiler for {kind} does not tell what memory a step takes; describe devices instead")
    return found


def largest_batch(total: Callable[[int], float], limit: float, multiple: int = 1) -> int:
    """Finds the largest batch whose memory stays within a limit, in few tries: memory grows about evenly with rows.

    Args:
      total: gives the bytes that a batch of some rows takes; each call may take long.
      limit: bytes.
      multiple: the rows tried are multiples of this.

    Returns:
      Rows R with total(R) <= limit < total(R + multiple), both of which were tried; 0 if `multiple` rows do not fit.
    """
    sizes: dict[int, float] = {}

    def fits(count: int) -> bool:
        sizes[count] = total(count * multiple)
        return sizes[count] <= limit

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        slope = (sizes[high] - sizes[low]) / (high - low)
        reach = high + 1 + (limit - sizes[high]) / slope if slope > 0 else math.inf
        low, high = high, int(min(reach, _MOST_GROWTH * high))
    halve = False
    while high - low > 1:
        # Interpolating is quick where memory grows evenly; halving in turns bounds the tries where it does not.
        share = 0.5 if halve else (limit - sizes[low]) / (sizes[high] - sizes[low])
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        low, high = (middle, high) if fits(middle) else (low, middle)
        halve = not halve
    return low * multiple
