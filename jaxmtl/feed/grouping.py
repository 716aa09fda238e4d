"""A layout: rows of like length share a batch, padded to one of a few shapes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxmtl.feed.layout import Cost, MakeContents, Placed, checked_rows, num_tokens
from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import Draw
from jaxmtl.feed.shapes import NUM_SHAPES, Shapes, cheapest_shapes
from jaxmtl.types import Batch, InputError


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Sorts rows by the cheapest shape that holds them; what fills no batch there moves on to a larger shape.

    Attributes:
      shapes: lengths to pad to.
      num_rows: rows of a batch, one number for each shape.

    Raises:
      InputError: if there are not as many numbers of rows as shapes, or one is below 1.
    """

    shapes: Shapes
    num_rows: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.num_rows) != len(self.shapes.pairs) or min(self.num_rows) < 1:
            raise InputError(f"batches have {self.num_rows} rows; expected 1 or more for each of {self.shapes.pairs}")

    def arrange(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[list[Placed], np.ndarray]:
        """Cuts rows into batches, see `Layout`."""
        fits = self.shapes.holds(inputs, targets)
        self.shapes.fit(int(inputs.max()), int(targets.max()))  # says so if a row fits nowhere
        cheapest = fits.argmax(axis=1)
        placed, waiting = [], np.empty(0, np.int64)
        for shape, size in enumerate(self.num_rows):
            ready = fits[waiting, shape]
            here = np.concatenate([waiting[ready], np.flatnonzero(cheapest == shape)])
            full = len(here) - len(here) % size
            placed += [self._place(group, inputs, targets, shape) for group in here[:full].reshape(-1, size)]
            waiting = np.concatenate([waiting[~ready], here[full:]])
        return placed, np.sort(waiting)

    def _place(self, group: np.ndarray, inputs: np.ndarray, targets: np.ndarray, shape: int) -> Placed:
        """Pads a group to the cheapest shape that holds it, of those whose batches have as many rows."""
        members = np.sort(group)
        holding = self.shapes.holds(inputs[members].max(keepdims=True), targets[members].max(keepdims=True))[0]
        alike = [k for k in range(shape) if holding[k] and self.num_rows[k] == len(members)]
        return Placed(members, np.arange(len(members)), len(members), self.shapes.pairs[[*alike, shape][0]])

    def read(self, rows: TaskRows, draw: Draw, placed: Placed) -> Batch:
        """Reads a batch, see `Layout`."""
        return pad(rows, draw, placed.shape)

    def identity(self) -> dict[str, Any]:
        """Returns what decides the batches."""
        return {"layout": "grouped", "shapes": [list(pair) for pair in self.shapes.pairs], "rows": list(self.num_rows)}

    def with_rows_of(self, identity: Mapping[str, Any]) -> "Grouped":
        """Takes over rows, see `Layout`."""
        return Grouped(self.shapes, checked_rows(identity, len(self.shapes.pairs)))


RowsOf = Callable[..., tuple[int, ...]]
"""Chooses the rows of a batch of each shape: called with (shapes, batch size, multiple, cost)."""


def same_rows(shapes: Shapes, batch_size: int, multiple: int, cost: Cost) -> tuple[int, ...]:
    """Gives all batches the same number of rows.

    Args:
      shapes: the shapes.
      batch_size: rows of a batch.
      multiple: not used.
      cost: not used.

    Returns:
      `batch_size` for each shape.
    """
    return (batch_size,) * len(shapes.pairs)


def same_cost(shapes: Shapes, batch_size: int, multiple: int, cost: Cost) -> tuple[int, ...]:
    """Gives batches of short rows more rows and batches of long ones fewer, so that all cost about the same.

    Args:
      shapes: the shapes.
      batch_size: rows of a batch of the middle shape; it sets the budget of all.
      multiple: every number of rows is a multiple of this.
      cost: of a row padded to a shape.

    Returns:
      The number of rows for each shape, at least `multiple`.
    """
    costs = np.array([float(cost(np.array(float(s)), np.array(float(t)))) for s, t in shapes.pairs])
    budget = batch_size * float(np.median(costs))
    return tuple(max(multiple, int(budget / one) // multiple * multiple) for one in costs)


def grouped(
    inputs: np.ndarray,
    targets: np.ndarray,
    *,
    batch_size: int,
    multiple: int = 1,
    cost: Cost = num_tokens,
    num_shapes: int = NUM_SHAPES,
    rows: RowsOf = same_rows,
    contents: MakeContents | None = None,
) -> Grouped:
    """Makes the layout with the cheapest shapes for given rows.

    Args:
      inputs: int [M], input lengths of the rows to come.
      targets: int [M], their target lengths.
      batch_size: rows of a batch.
      multiple: what has to divide the rows of every batch: hosts times devices that share them.
      cost: of a row padded to a shape.
      num_shapes: most shapes, each of which is compiled once.
      rows: chooses the rows of each shape's batches: `same_rows` or `same_cost`.
      contents: not used: an example has a row of its own, whatever its targets are.

    Returns:
      The layout.
    """
    shapes = cheapest_shapes(inputs, targets, num_shapes=num_shapes, cost=cost)
    return Grouped(shapes, rows(shapes, batch_size, multiple, cost))


def pad(rows: TaskRows, draw: Draw, shape: tuple[int, int]) -> Batch:
    """Reads rows into padded arrays, one row each.

    Args:
      rows: where they come from.
      draw: B rows.
      shape: (S, T), at least as long as the longest row.

    Returns:
      The batch; `loss_mask` is 1 on target tokens, and on the labels of a row 1 over their number. Where the store has
      instructions, also `instructions` [B, I].
    """
    size = len(draw.task_ids)
    inputs = np.full((size, shape[0]), rows.pad_id, np.int32)
    targets = np.full((size, shape[1]), rows.pad_id, np.int32)
    loss_mask = np.zeros((size, shape[1]), np.float32)
    for place, (task, _, source, target) in enumerate(rows.read(draw)):
        inputs[place, : len(source)] = source
        targets[place, : len(target)] = target
        loss_mask[place, : len(target)] = rows.weights(task, target)
    extra = {"instructions": padded_instructions(rows, draw)} if rows.max_instruction_tokens else {}
    ids = {"task_ids": draw.task_ids.astype(np.int32), "example_ids": draw.example_ids.astype(np.int32)}
    return {"inputs": inputs, "targets": targets, "loss_mask": loss_mask, **ids, **extra}


def padded_instructions(rows: TaskRows, draw: Draw) -> np.ndarray:
    """Reads the instructions of rows.

    Args:
      rows: where they come from.
      draw: B rows.

    Returns:
      int32 [B, I], I being the longest of all tasks, so that all hosts have one shape.
    """
    padded = np.full((len(draw.task_ids), rows.max_instruction_tokens), rows.pad_id, np.int32)
    for place, ids in enumerate(rows.instructions(draw)):
        padded[place, : len(ids)] = ids
    return padded
