"""One pass over the rows of a split, for evaluation: each row once, rows of like length together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxmtl.feed.grouping import pad
from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import Draw
from jaxmtl.feed.shapes import Shapes, cheapest_shapes
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.stream import check_hosts
from jaxmtl.types import Batch, InputError

ChooseShapes = Callable[[np.ndarray, np.ndarray], Shapes]
"""Chooses the shapes to pad to from the input and target lengths, int [M] each, of a split."""


class EvalStream:
    """One pass over rows in batches of one size, the largest shapes first; iterating again starts again.

    The last batch is filled up with copies of its last row whose `loss_mask` is 0 and whose `example_ids` are -1, so
    that nothing they do counts and generation does not wait for them.

    Args:
      rows: what to go through.
      batch_size: rows per batch, over all hosts.
      shapes: lengths to pad to, or a function that chooses them from the input and target lengths of the whole split.
      host_index: which host this is.
      num_hosts: how many hosts share each batch; each gets one contiguous slice of its rows.

    Raises:
      InputError: if a row does not fit the shapes, or hosts do not divide the batch.
    """

    def __init__(
        self,
        rows: TaskRows,
        batch_size: int,
        *,
        shapes: Shapes | ChooseShapes = cheapest_shapes,
        host_index: int = 0,
        num_hosts: int = 1,
    ) -> None:
        self.rows, self.batch_size = rows, batch_size
        self.shapes = shapes if isinstance(shapes, Shapes) else shapes(*rows.split_lengths())
        self.shapes.fit(rows.max_input_tokens, rows.max_target_tokens)
        check_hosts([batch_size], host_index, num_hosts)
        share = batch_size // num_hosts
        self._slice = slice(host_index * share, (host_index + 1) * share)
        tasks = np.repeat(np.arange(len(rows.sizes), dtype=np.int32), rows.sizes)
        starts = np.repeat(np.cumsum(rows.sizes) - rows.sizes, rows.sizes)
        self._all = Draw(tasks, np.arange(len(tasks)) - starts)
        self._inputs, self._targets = rows.lengths(self._all)
        cheapest = self.shapes.holds(self._inputs, self._targets).argmax(axis=1)
        self.order = np.lexsort((-self._targets, -self._inputs, -cheapest))

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.order), self.batch_size):
            real = self.order[start : start + self.batch_size]
            group = np.r_[real, np.repeat(real[-1:], self.batch_size - len(real))]
            shape = self.shapes.fit(int(self._inputs[real].max()), int(self._targets[real].max()))
            mine = group[self._slice]
            batch = pad(self.rows, Draw(self._all.task_ids[mine], self._all.example_ids[mine]), shape)
            filler = np.arange(self.batch_size)[self._slice] >= len(real)
            batch["loss_mask"][filler] = 0.0
            batch["example_ids"][filler] = -1
            yield batch


def eval_stream(
    store: TokenStore,
    split: str,
    *,
    batch_size: int,
    tasks: Sequence[str] | None = None,
    shapes: Shapes | ChooseShapes = cheapest_shapes,
    host_index: int = 0,
    num_hosts: int = 1,
) -> EvalStream:
    """Makes one pass over a split of a store.

    Args:
      store: the store.
      split: name of the split.
      batch_size: rows per batch, over all hosts.
      tasks: task names, in the order of task ids; None for all of the split.
      shapes: see `EvalStream`.
      host_index: see `EvalStream`.
      num_hosts: see `EvalStream`.

    Returns:
      The stream.

    Raises:
      InputError: as for its parts.
    """
    rows = TaskRows(store, split, tasks)
    return EvalStream(rows, batch_size, shapes=shapes, host_index=host_index, num_hosts=num_hosts)


def unsort(values: Sequence[Any], order: np.ndarray) -> list[Any]:
    """Puts per-row results of an `EvalStream` back into the order of (task, example).

    Args:
      values: one result per real row, in stream order, rows that only fill a batch left out.
      order: int64 [M], the stream's `order`.

    Returns:
      The results, the first task's first example first.

    Raises:
      InputError: if there are not as many results as rows.
    """
    if len(values) != len(order):
        raise InputError(f"{len(values)} results for {len(order)} rows; leave out rows whose example_ids are -1")
    back: list[Any] = [None] * len(order)
    for value, place in zip(values, order.tolist(), strict=True):
        back[place] = value
    return back
