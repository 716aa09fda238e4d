"""Lengths -> bins: which rows share a row of a packed batch, and which bins make a batch."""

import numpy as np

from jaxmtl.feed.layout import Placed

BLOCK = 4096
"""Rows that share bins: the look-ahead of packing."""


def first_fit(needed: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Puts each row, in order, into the first bin that has room for it, of those opened in the same block of rows.

    Looking through the bins of a block only keeps the time of a row the same however large the window is.

    Args:
      needed: int64 [M, K], what each row takes of the K things that a bin has; none of it more than the room.
      room: int64 [K], how much a bin has of each.

    Returns:
      int64 [M], the bin of each row; bins are numbered in the order in which they were opened.
    """
    bins, opened = np.empty(len(needed), np.int64), 0
    for start in range(0, len(needed), BLOCK):
        block = slice(start, start + BLOCK)
        bins[block] = opened + _first_fit_in_block(needed[block], room)
        opened = int(bins[block].max()) + 1
    return bins


def _first_fit_in_block(needed: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Packs rows of one block into bins numbered from 0."""
    left = np.tile(room, (len(needed), 1))
    bins, opened = np.empty(len(needed), np.int64), 0
    for number, row in enumerate(needed):
        fitting = (left[: opened + 1] >= row).all(axis=1)
        place = int(fitting.argmax())
        left[place] -= row
        bins[number] = place
        opened = max(opened, place + 1)
    return bins


def batches_of(bins: np.ndarray, num_rows: int, shape: tuple[int, int], slots: int) -> tuple[list[Placed], np.ndarray]:
    """Makes batches of bins, in their order; the last bins, which are the emptiest, wait if they fill no batch.

    Args:
      bins: int64 [M], the bin of each row.
      num_rows: bins of a batch.
      shape: (S, T), see `Placed`.
      slots: see `Placed`.

    Returns:
      The batches, and int64 [m], the rows that wait.
    """
    order = np.argsort(bins, kind="stable")
    num_batches = (int(bins.max()) + 1) // num_rows
    ends = np.searchsorted(bins[order], np.arange(num_batches + 1) * num_rows)
    groups = [order[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]
    placed = [Placed(group, bins[group] % num_rows, num_rows, shape, slots) for group in groups]
    return placed, np.sort(order[ends[-1] :])
