"""What a layout is: the way in which drawn rows become batches of few shapes.

Letters: M drawn rows, R rows of a batch, S and T padded input and target length.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import Draw
from jaxmtl.types import Batch, InputError

Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""What a row costs that is padded to (S, T): two float64 arrays that broadcast, to float64, in any unit."""


def num_tokens(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Takes as the cost of a row its cells: right where time goes with length, as in small models on short texts."""
    return inputs + targets


class Placed(NamedTuple):
    """One batch of a window.

    Attributes:
      members: int64 [m], the drawn rows that are in it.
      bins: int64 [m], ascending, the row of the batch that each goes to.
      num_rows: R.
      shape: (S, T).
      slots: rows of T targets for each of the R rows.
    """

    members: np.ndarray
    bins: np.ndarray
    num_rows: int
    shape: tuple[int, int]
    slots: int = 1

    @property
    def num_cells(self) -> int:
        """Returns how many input and target tokens the batch has room for."""
        return self.num_rows * (self.shape[0] + self.slots * self.shape[1])


class Layout(Protocol):
    """Cuts drawn rows into batches and reads them."""

    def arrange(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[list[Placed], np.ndarray]:
        """Cuts rows into batches; the same lengths always give the same batches.

        Args:
          inputs: int64 [M], input lengths.
          targets: int64 [M], target lengths.

        Returns:
          The batches, and int64 [m], the rows that fill no batch and have to wait.
        """
        ...

    def read(self, rows: TaskRows, draw: Draw, placed: Placed) -> Batch:
        """Reads a batch.

        Args:
          rows: where rows come from.
          draw: the batch's members.
          placed: where they go.

        Returns:
          Padded arrays.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """Returns JSON values that decide what `arrange` does."""
        ...

    def with_rows_of(self, identity: Mapping[str, Any]) -> Self:
        """Takes over how many rows batches have: that number was chosen for the hosts there were at the start.

        Args:
          identity: that of a layout of the same kind and shapes.

        Returns:
          The layout with those rows.

        Raises:
          InputError: if the rows are damaged.
        """
        ...


class Contents(Protocol):
    """How examples share the rows of packed batches: what they take of a row, and which fields tell them apart."""

    def room(self, inputs: np.ndarray, targets: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Says what has to fit into a row.

        Args:
          inputs: int64 [M], input lengths.
          targets: int64 [M], target lengths.
          shape: (S, T) of a packed row.

        Returns:
          int64 [M, K], what each example takes of K things, and int64 [K], how much a row has of each.
        """
        ...

    @property
    def slots(self) -> int:
        """Returns the rows of targets for each row of a batch, see `Placed`."""
        ...

    def read(self, rows: TaskRows, draw: Draw, placed: Placed) -> Batch:
        """Reads a batch, see `Layout`."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns JSON values: what the layout is called, and what `room` follows from."""
        ...


MakeContents = Callable[[np.ndarray, np.ndarray, tuple[int, int]], Contents]
"""Makes the contents of packed rows from input and target lengths, int [M] each, and the shape of a row."""


def on_host(placed: Placed, host_index: int, num_hosts: int) -> tuple[Placed, np.ndarray]:
    """Cuts out one host's share of a batch, a contiguous range of its rows.

    Args:
      placed: the whole batch; the hosts divide its number of rows.
      host_index: which host.
      num_hosts: how many hosts share each batch.

    Returns:
      The share, its bins counted from 0, and bool [m], which members are in it.
    """
    share = placed.num_rows // num_hosts
    mine = placed.bins // share == host_index
    cut = placed._replace(members=placed.members[mine], bins=placed.bins[mine] - host_index * share, num_rows=share)
    return cut, mine


def checked_rows(identity: Mapping[str, Any], num_shapes: int) -> tuple[int, ...]:
    """Reads the rows of a layout's identity that was stored.

    Args:
      identity: JSON values, what `Layout.identity` returned.
      num_shapes: how many shapes the layout has.

    Returns:
      Rows of the batches of each shape.

    Raises:
      InputError: if they are not one number of rows for each shape.
    """
    rows = identity.get("rows")
    if not isinstance(rows, list) or len(rows) != num_shapes or any(type(one) is not int or one < 1 for one in rows):
        raise InputError(f"stream state is damaged: rows of its batches are {rows!r:.60}")
    return tuple(rows)
