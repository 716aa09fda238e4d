"""Examples with labels for heads in packed rows: the encoder reads rows, heads and losses see one example per row.

Each packed row owns E slots, one behind the other, so that rows and their examples go to the same device. A slot has an
example's labels and the columns of its tokens, from which a model gathers the example's states.
Letters in shapes: R packed rows, S their length, E slots of a row, B = R·E slots, L longest example, T its labels.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxmtl.feed.bins import first_fit
from jaxmtl.feed.layout import MakeContents, Placed
from jaxmtl.feed.packed_texts import texts
from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import Draw
from jaxmtl.types import Batch, InputError

_SPARE = 1.5  # slots of a row over the mean number of examples in one
_SAMPLE = 2048  # rows that packing is tried on


@dataclasses.dataclass(frozen=True)
class PackedLabels:
    """A row has S cells for inputs and E slots, each with T labels of its own; see `Contents`.

    Attributes:
      slots: E, the most examples of a row.
      longest: L, the most tokens of an example.

    Raises:
      InputError: if a number is below 1.
    """

    slots: int
    longest: int

    def __post_init__(self) -> None:
        if min(self.slots, self.longest) < 1:
            raise InputError(f"packed rows hold {self.slots} examples of {self.longest} tokens; expected 1 or more")

    def room(self, inputs: np.ndarray, targets: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Takes input cells and a slot, see `Contents`; labels take nothing of what a row shares."""
        needed = np.stack([inputs, np.ones_like(inputs)], axis=1)
        return needed.astype(np.int64), np.array([shape[0], self.slots], np.int64)

    def read(self, rows: TaskRows, draw: Draw, placed: Placed) -> Batch:
        """Reads a batch with `example_columns` [B, L], see `jaxmtl.types.Batch`; targets are those of B slots."""
        # What fills the batch up has the weight 0 and the task of an example in it.
        filler = int(draw.task_ids[0]) if len(draw.task_ids) else 0
        batch = _empty(placed, self.longest, rows.pad_id, filler)
        used = np.zeros((placed.num_rows, 2), np.int64)  # input cells, slots
        for place, (task, example, source, target) in zip(placed.bins.tolist(), rows.read(draw), strict=True):
            start, number = used[place].tolist()
            cells, slot = np.s_[place, start : start + len(source)], place * self.slots + number
            batch["inputs"][cells] = source
            batch["input_segments"][cells] = number + 1
            batch["input_positions"][cells] = np.arange(len(source))
            batch["example_columns"][slot, : len(source)] = np.arange(start, start + len(source))
            batch["targets"][slot, : len(target)] = target
            batch["loss_mask"][slot, : len(target)] = rows.weights(task, target)
            batch["task_ids"][slot], batch["example_ids"][slot] = task, example
            used[place] += len(source), 1
        return batch

    def identity(self) -> dict[str, Any]:
        """Returns the name and both numbers."""
        return {"layout": "packed labels", **dataclasses.asdict(self)}


def labels(inputs: np.ndarray, targets: np.ndarray, shape: tuple[int, int]) -> PackedLabels:
    """Chooses how many examples a row may hold: half as many again as rows hold on average if that does not matter.

    Args:
      inputs: int [M], input lengths of the rows to come.
      targets: int [M], their numbers of labels; they take no room.
      shape: (S, T) of a packed row.

    Returns:
      The contents.

    Raises:
      InputError: if an input is longer than a packed row.
    """
    if inputs.max() > shape[0]:
        raise InputError(f"a row has {inputs.max()} input tokens, but packed rows hold {shape}; give a larger shape")
    some = np.random.default_rng(0).permutation(len(inputs))[:_SAMPLE]
    bins = first_fit(inputs[some, None].astype(np.int64), np.array(shape[:1], np.int64))
    per_row = len(some) / (int(bins.max()) + 1)
    return PackedLabels(slots=math.ceil(_SPARE * per_row), longest=int(inputs.max()))


def contents_of(rows: TaskRows) -> MakeContents:
    """Returns how the examples of some tasks share packed rows.

    Args:
      rows: where they come from.
    """
    return labels if rows.has_labels else texts


def _empty(placed: Placed, longest: int, pad_id: int, task_id: int) -> Batch:
    size, (source, target) = placed.num_rows * placed.slots, placed.shape
    return {
        "inputs": np.full((placed.num_rows, source), pad_id, np.int32),
        "input_segments": np.zeros((placed.num_rows, source), np.int32),
        "input_positions": np.zeros((placed.num_rows, source), np.int32),
        "example_columns": np.full((size, longest), -1, np.int32),
        "targets": np.full((size, target), pad_id, np.int32),
        "loss_mask": np.zeros((size, target), np.float32),
        "task_ids": np.full(size, task_id, np.int32),
        "example_ids": np.full(size, -1, np.int32),
    }
