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
    """

    members: np.ndarray
    bins: np.ndarray
    num_rows: int
    shape: tuple[int, int]


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
    return Placed(placed.members[mine], placed.bins[mine] - host_index * share, share, placed.shape), mine


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
