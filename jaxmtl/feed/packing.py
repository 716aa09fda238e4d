"""A layout: several short rows share one row of a batch, told apart by segments; no position is shared."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmtl.feed.layout import Cost, Placed, checked_rows, num_tokens
from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import Draw
from jaxmtl.types import Batch, InputError

_MULTIPLE = 8
_INPUT_FACTORS, _TARGET_FACTORS = (1.0, 1.5, 2.0), (1.0, 2.0, 4.0)
_SAMPLE = 2048  # rows that packing is tried on
BLOCK = 4096
"""Rows that share bins: the look-ahead of packing."""


@dataclasses.dataclass(frozen=True)
class Packed:
    """Puts each row into the first bin that has room for its input and its target; bins are the rows of batches.

    Attributes:
      shape: (S, T), what a bin holds.
      num_rows: rows of a batch.

    Raises:
      InputError: if a number is below 1.
    """

    shape: tuple[int, int]
    num_rows: int

    def __post_init__(self) -> None:
        if min(*self.shape, self.num_rows) < 1:
            raise InputError(f"packed batches have {self.num_rows} rows of {self.shape}; expected 1 or more of each")

    def arrange(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[list[Placed], np.ndarray]:
        """Packs rows, see `Layout`; the last bins, which are the emptiest, wait if they fill no batch."""
        bins = first_fit(inputs, targets, self.shape)
        order = np.argsort(bins, kind="stable")
        num_batches = (int(bins.max()) + 1) // self.num_rows
        ends = np.searchsorted(bins[order], np.arange(num_batches + 1) * self.num_rows)
        groups = [order[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]
        placed = [Placed(group, bins[group] % self.num_rows, self.num_rows, self.shape) for group in groups]
        return placed, np.sort(order[ends[-1] :])

    def read(self, rows: TaskRows, draw: Draw, placed: Placed) -> Batch:
        """Reads a batch with segments and positions; `task_ids` and `example_ids` are [B, T], -1 where nothing is.

        Raises:
          InputError: if the rows have instructions or labels, which a packed row has no place for.
        """
        if rows.max_instruction_tokens or rows.has_labels:
            what = "instructions" if rows.max_instruction_tokens else "labels"
            raise InputError(f"token store {rows.folder} has {what}; packed rows have none, use grouping.grouped")
        batch = _empty(placed.num_rows, placed.shape, rows.pad_id)
        used = np.zeros((placed.num_rows, 3), np.int64)  # input cells, target cells, segments
        for place, (task, example, source, target) in zip(placed.bins.tolist(), rows.read(draw), strict=True):
            start, first, number = used[place]
            cells, heads = np.s_[place, start : start + len(source)], np.s_[place, first : first + len(target)]
            batch["inputs"][cells], batch["targets"][heads] = source, target
            batch["input_segments"][cells] = batch["target_segments"][heads] = number + 1
            batch["input_positions"][cells] = np.arange(len(source))
            batch["target_positions"][heads] = np.arange(len(target))
            batch["loss_mask"][heads] = 1.0
            batch["task_ids"][heads], batch["example_ids"][heads] = task, example
            used[place] += len(source), len(target), 1
        return batch

    def identity(self) -> dict[str, Any]:
        """Returns what decides the batches."""
        return {"layout": "packed", "shapes": [list(self.shape)], "rows": [self.num_rows]}

    def with_rows_of(self, identity: Mapping[str, Any]) -> "Packed":
        """Takes over rows, see `Layout`."""
        return Packed(self.shape, *checked_rows(identity, 1))


def packed(
    inputs: np.ndarray,
    targets: np.ndarray,
    *,
    batch_size: int,
    multiple: int = 1,
    cost: Cost = num_tokens,
    shape: tuple[int, int] | None = None,
) -> Packed:
    """Makes the layout with the row length that costs the least per example.

    Args:
      inputs: int [M], input lengths of the rows to come.
      targets: int [M], their target lengths.
      batch_size: examples of a batch, on average; decides how many packed rows it has.
      multiple: what has to divide the rows of every batch: hosts times devices that share them.
      cost: of a row padded to a shape.
      shape: (S, T) of a packed row; None tries some multiples of the longest lengths.

    Returns:
      The layout.

    Raises:
      InputError: if there are no rows, or one is longer than the shape.
    """
    if len(inputs) == 0:
        raise InputError("cannot choose the length of packed rows: there are no rows")
    chosen = shape or _cheapest_shape(inputs, targets, cost)
    per_row = _examples_per_row(inputs, targets, chosen)
    num_rows = max(1, round(batch_size / per_row / multiple)) * multiple
    return Packed(chosen, num_rows)


def first_fit(inputs: np.ndarray, targets: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Puts each row, in order, into the first bin that has room for it, of those opened in the same block of rows.

    Looking through the bins of a block only keeps the time of a row the same however large the window is.

    Args:
      inputs: int [M], input lengths.
      targets: int [M], target lengths.
      shape: (S, T), room of a bin.

    Returns:
      int64 [M], the bin of each row; bins are numbered in the order in which they were opened.

    Raises:
      InputError: if a row is longer than a bin.
    """
    if inputs.max() > shape[0] or targets.max() > shape[1]:
        raise InputError(
            f"a row has {inputs.max()} input or {targets.max()} target tokens, but packed rows hold {shape}; give a "
            "larger shape or cache with lower limits"
        )
    bins, opened = np.empty(len(inputs), np.int64), 0
    for start in range(0, len(inputs), BLOCK):
        block = slice(start, start + BLOCK)
        bins[block] = opened + _first_fit_in_block(np.stack([inputs[block], targets[block]], axis=1), shape)
        opened = int(bins[block].max()) + 1
    return bins


def _first_fit_in_block(lengths: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Packs rows of lengths int64 [M, 2] into bins numbered from 0."""
    room = np.tile(np.array(shape, np.int64), (len(lengths), 1))
    bins, opened = np.empty(len(lengths), np.int64), 0
    for number, needed in enumerate(lengths):
        fitting = (room[: opened + 1] >= needed).all(axis=1)
        place = int(fitting.argmax())
        room[place] -= needed
        bins[number] = place
        opened = max(opened, place + 1)
    return bins


def _empty(num_rows: int, shape: tuple[int, int], pad_id: int) -> Batch:
    source, target = (num_rows, shape[0]), (num_rows, shape[1])
    return {
        "inputs": np.full(source, pad_id, np.int32),
        "targets": np.full(target, pad_id, np.int32),
        "input_segments": np.zeros(source, np.int32),
        "target_segments": np.zeros(target, np.int32),
        "input_positions": np.zeros(source, np.int32),
        "target_positions": np.zeros(target, np.int32),
        "loss_mask": np.zeros(target, np.float32),
        "task_ids": np.full(target, -1, np.int32),
        "example_ids": np.full(target, -1, np.int32),
    }


def _cheapest_shape(inputs: np.ndarray, targets: np.ndarray, cost: Cost) -> tuple[int, int]:
    longest = (int(inputs.max()), int(targets.max()))
    rounded = lambda length: -(-max(int(length), 1) // _MULTIPLE) * _MULTIPLE
    shapes = {
        (rounded(longest[0] * more), rounded(longest[1] * further))
        for more in _INPUT_FACTORS
        for further in _TARGET_FACTORS
    }
    per_example = lambda shape: float(cost(*np.array(shape, np.float64))) / _examples_per_row(inputs, targets, shape)
    return min(sorted(shapes), key=per_example)


def _examples_per_row(inputs: np.ndarray, targets: np.ndarray, shape: tuple[int, int]) -> float:
    """Packs evenly chosen rows to see how many share a bin."""
    some = np.random.default_rng(0).permutation(len(inputs))[:_SAMPLE]
    bins = first_fit(inputs[some], targets[some], shape)
    return len(some) / (int(bins.max()) + 1)
