"""A layout: several short rows share one row of a batch, told apart by segments; no position is shared."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmtl.feed.bins import batches_of, first_fit
from jaxmtl.feed.layout import Contents, Cost, MakeContents, Placed, checked_rows, num_tokens
from jaxmtl.feed.packed_texts import PackedTexts, texts
from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import Draw
from jaxmtl.types import Batch, InputError

_MULTIPLE = 8
_INPUT_FACTORS, _TARGET_FACTORS = (1.0, 1.5, 2.0), (1.0, 2.0, 4.0)
_SAMPLE = 2048  # rows that packing is tried on


@dataclasses.dataclass(frozen=True)
class Packed:
    """Puts each row into the first bin that has room for it; bins are the rows of batches.

    Attributes:
      shape: (S, T) of a packed row.
      num_rows: rows of a batch.
      contents: how examples share a row.

    Raises:
      InputError: if a number is below 1.
    """

    shape: tuple[int, int]
    num_rows: int
    contents: Contents = PackedTexts()

    def __post_init__(self) -> None:
        if min(*self.shape, self.num_rows) < 1:
            raise InputError(f"packed batches have {self.num_rows} rows of {self.shape}; expected 1 or more of each")

    def arrange(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[list[Placed], np.ndarray]:
        """Packs rows, see `Layout`; the last bins, which are the emptiest, wait if they fill no batch."""
        return batches_of(self.bins(inputs, targets), self.num_rows, self.shape, self.contents.slots)

    def bins(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns the bin of each row, int64 [M].

        Args:
          inputs: int64 [M], input lengths.
          targets: int64 [M], target lengths.

        Raises:
          InputError: if a row is longer than a bin.
        """
        if inputs.max() > self.shape[0] or targets.max() > self.shape[1]:
            raise InputError(
                f"a row has {inputs.max()} input or {targets.max()} target tokens, but packed rows hold {self.shape}; "
                "give a larger shape or cache with lower limits"
            )
        return first_fit(*self.contents.room(inputs, targets, self.shape))

    def read(self, rows: TaskRows, draw: Draw, placed: Placed) -> Batch:
        """Reads a batch, see `Layout`.

        Raises:
          InputError: if the rows have instructions, which a packed row has no place for, or if their targets are not
            what the contents are made for.
        """
        if rows.max_instruction_tokens:
            raise InputError(f"token store {rows.folder} has instructions; packed rows have none, use grouping.grouped")
        return self.contents.read(rows, draw, placed)

    def identity(self) -> dict[str, Any]:
        """Returns what decides the batches."""
        return {**self.contents.identity(), "shapes": [list(self.shape)], "rows": [self.num_rows]}

    def with_rows_of(self, identity: Mapping[str, Any]) -> "Packed":
        """Takes over rows, see `Layout`."""
        return dataclasses.replace(self, num_rows=checked_rows(identity, 1)[0])


def packed(
    inputs: np.ndarray,
    targets: np.ndarray,
    *,
    batch_size: int,
    multiple: int = 1,
    cost: Cost = num_tokens,
    shape: tuple[int, int] | None = None,
    contents: MakeContents = texts,
) -> Packed:
    """Makes the layout with the row length that costs the least per example.

    Args:
      inputs: int [M], input lengths of the rows to come.
      targets: int [M], their target lengths.
      batch_size: examples of a batch, on average; decides how many packed rows it has.
      multiple: what has to divide the rows of every batch: hosts times devices that share them.
      cost: of a row padded to a shape.
      shape: (S, T) of a packed row; None tries some multiples of the longest lengths.
      contents: how examples share a row: `packed_texts.texts` or `packed_labels.labels`.

    Returns:
      The layout.

    Raises:
      InputError: if there are no rows, or one is longer than the shape.
    """
    if len(inputs) == 0:
        raise InputError("cannot choose the length of packed rows: there are no rows")
    some = np.random.default_rng(0).permutation(len(inputs))[:_SAMPLE]
    one_row = lambda shape: Packed(shape, 1, contents(inputs, targets, shape))
    per_row = lambda layout: len(some) / (int(layout.bins(inputs[some], targets[some]).max()) + 1)
    per_example = lambda layout: float(cost(*np.array(layout.shape, np.float64))) / per_row(layout)
    chosen = one_row(shape) if shape else min(map(one_row, _shapes(inputs, targets)), key=per_example)
    num_rows = max(1, round(batch_size / per_row(chosen) / multiple)) * multiple
    return dataclasses.replace(chosen, num_rows=num_rows)


def _shapes(inputs: np.ndarray, targets: np.ndarray) -> list[tuple[int, int]]:
    """Returns the shapes to try, in order."""
    rounded = lambda length: -(-max(int(length), 1) // _MULTIPLE) * _MULTIPLE
    sources = {rounded(int(inputs.max()) * more) for more in _INPUT_FACTORS}
    return sorted((source, rounded(int(targets.max()) * more)) for source in sources for more in _TARGET_FACTORS)
