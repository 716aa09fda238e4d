"""Examples with texts as targets in packed rows: an example is a segment of the inputs and one of the targets."""

import dataclasses
from typing import Any

import numpy as np

from jaxmtl.feed.layout import Placed
from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import Draw
from jaxmtl.types import Batch, InputError


@dataclasses.dataclass(frozen=True)
class PackedTexts:
    """A row has S cells for inputs and T for targets; see `Contents`."""

    slots = 1

    def room(self, inputs: np.ndarray, targets: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Takes the cells of both sides, see `Contents`."""
        return np.stack([inputs, targets], axis=1).astype(np.int64), np.array(shape, np.int64)

    def read(self, rows: TaskRows, draw: Draw, placed: Placed) -> Batch:
        """Reads a batch with segments and positions; `task_ids` and `example_ids` are [B, T], -1 where nothing is.

        Raises:
          InputError: if the rows have labels.
        """
        if rows.has_labels:
            raise InputError(f"token store {rows.folder} has labels; pack them as packed_labels.labels")
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
        """Returns the name."""
        return {"layout": "packed"}


def texts(inputs: np.ndarray, targets: np.ndarray, shape: tuple[int, int]) -> PackedTexts:
    """Makes what packed rows of texts are, whatever the lengths.

    Args:
      inputs: not used.
      targets: not used.
      shape: not used.

    Returns:
      The contents.
    """
    return PackedTexts()


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
