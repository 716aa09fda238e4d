"""Draws and a token store -> padded batches, grouped by length, in an order that can be stopped and resumed exactly."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from jaxmtl.feed.permutation import permute, random_bits, stream_key
from jaxmtl.feed.sampler import AnySampler, Draw, Sampler
from jaxmtl.feed.shapes import Shapes, fitted_shapes
from jaxmtl.feed.store import Examples, TokenStore
from jaxmtl.tasks import rates
from jaxmtl.types import Batch, InputError

WINDOW = 64
MakeSampler = Callable[..., AnySampler]
"""A sampler class, its rates bound beforehand: called with `sizes=, batch_size=, seed=`."""
ChooseShapes = Callable[[np.ndarray, np.ndarray], Shapes]
"""Chooses the lengths to pad to from the input and target lengths, int [M] each, of a split."""
proportional_sampler = functools.partial(Sampler, rates=rates.proportional)


class TaskRows:
    """The rows of several tasks of one split, addressed by (task id, example id); files are mapped when first used.

    Args:
      store: where the rows are.
      split: name of the split.
      tasks: task names, in the order of task ids; None for all of the split.

    Raises:
      InputError: if the store has no such split or task, or there is no task.
    """

    def __init__(self, store: TokenStore, split: str, tasks: Sequence[str] | None = None) -> None:
        self.names = store.task_names(split) if tasks is None else list(tasks)
        if not self.names:
            raise InputError(f"no tasks to read from split {split!r} of token store {store.folder}")
        self.entries = [store.entry(name, split) for name in self.names]
        self.sizes = np.array([entry.num_examples for entry in self.entries], np.int64)
        self.max_input_tokens = max(entry.max_input_tokens for entry in self.entries)
        self.max_target_tokens = max(entry.max_target_tokens for entry in self.entries)
        self.pad_id = store.manifest.vocabulary.pad
        self.folder = store.folder
        self._store, self._split = store, split
        self._examples: dict[int, Examples] = {}

    def task(self, task_id: int) -> Examples:
        """Returns one task's rows."""
        if task_id not in self._examples:
            self._examples[task_id] = self._store.examples(self.names[task_id], self._split)
        return self._examples[task_id]

    def lengths(self, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """Looks up how long rows are, without reading them.

        Args:
          draw: M rows.

        Returns:
          Input and target lengths, int64 [M] each.
        """
        inputs, targets = np.empty(len(draw.task_ids), np.int64), np.empty(len(draw.task_ids), np.int64)
        order = np.argsort(draw.task_ids, kind="stable")
        starts = np.flatnonzero(np.diff(draw.task_ids[order], prepend=-1))
        for group in np.split(order, starts[1:]):
            input_lengths, target_lengths = self.task(int(draw.task_ids[group[0]])).lengths()
            inputs[group] = input_lengths[draw.example_ids[group]]
            targets[group] = target_lengths[draw.example_ids[group]]
        return inputs, targets

    def identity(self) -> dict[str, str]:
        """Returns two hashes: of the tasks' names in their order, and of the content of their files."""
        parts = {"tasks": self.names, "examples": [entry.sha256 for entry in self.entries]}
        return {name: hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16] for name, values in parts.items()}

    def split_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns input and target lengths of the whole split, int64 [M] each, whichever of its tasks are read."""
        return self._store.lengths(self._split)

    def pad(self, draw: Draw, shape: tuple[int, int]) -> Batch:
        """Reads rows into padded arrays.

        Args:
          draw: B rows.
          shape: (S, T), at least as long as the longest row.

        Returns:
          The batch; `loss_mask` is 1 on target tokens.
        """
        size = len(draw.task_ids)
        inputs = np.full((size, shape[0]), self.pad_id, np.int32)
        targets = np.full((size, shape[1]), self.pad_id, np.int32)
        loss_mask = np.zeros((size, shape[1]), np.float32)
        for row, (task, example) in enumerate(zip(draw.task_ids.tolist(), draw.example_ids.tolist(), strict=True)):
            source, target = self.task(task).row(example)
            inputs[row, : len(source)] = source
            targets[row, : len(target)] = target
            loss_mask[row, : len(target)] = 1.0
        ids = {"task_ids": draw.task_ids.astype(np.int32), "example_ids": draw.example_ids.astype(np.int32)}
        return {"inputs": inputs, "targets": targets, "loss_mask": loss_mask, **ids}


class Stream:
    """Endless training batches; `state` and `restore` continue it exactly, on any number of hosts.

    `window` batches are drawn at once, their rows grouped by length, cut into batches and shuffled as batches. So
    every drawn row is used once, a step's rows are alike in length, and over a window the tasks are those drawn.

    Args:
      rows: where rows come from.
      sampler: which rows step by step; its sizes are those of `rows`.
      shapes: lengths to pad to, or a function that chooses them from the input and target lengths of the whole split.
      window: batches that are grouped together; 1 keeps the drawn order, without grouping.
      seed: order of the batches inside a window.
      host_index: which host this is.
      num_hosts: how many hosts share each batch; each gets one contiguous slice of its rows.

    Raises:
      InputError: if a row does not fit the shapes, hosts do not divide the batch, or the window is below 1.
    """

    def __init__(
        self,
        rows: TaskRows,
        sampler: AnySampler,
        *,
        shapes: Shapes | ChooseShapes = fitted_shapes,
        window: int = WINDOW,
        seed: int = 0,
        host_index: int = 0,
        num_hosts: int = 1,
    ) -> None:
        if window < 1:
            raise InputError(f"window is {window} batches; expected 1 or more")
        self.rows, self.sampler, self.window = rows, sampler, window
        self.shapes = _checked_shapes(rows, shapes)
        self._slice = host_slice(sampler.batch_size, host_index, num_hosts)
        self._key = stream_key(seed, "window")
        # With the sampler's own part, all that decides what the batch at a place of the stream holds.
        self._identity: dict[str, Any] = {
            **rows.identity(),
            "input lengths": list(self.shapes.inputs),
            "target lengths": list(self.shapes.targets),
            "window": window,
            "seed": seed,
        }
        self._start = sampler.state()
        self._number: int = 0  # windows before this one
        self._position: int = 0
        self._batches: list[tuple[Draw, tuple[int, int]]] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._position == len(self._batches) and self._batches:
            self._start, self._batches = self.sampler.state(), []
            self._number, self._position = self._number + 1, 0
        if not self._batches:
            self._batches = self._draw_window()
        draw, shape = self._batches[self._position]
        self._position += 1
        return self.rows.pad(Draw(draw.task_ids[self._slice], draw.example_ids[self._slice]), shape)

    def state(self) -> dict[str, Any]:
        """Returns where the stream stands: JSON values, the sampler's state at the window's start and the place."""
        place = {"window_number": self._number, "position": self._position}
        return {**self._identity, **place, "sampler": self._start}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to where a state was taken; the next batch is the one that came after it.

        Args:
          state: what `state` returned, in this or another process.

        Raises:
          InputError: if it was taken from another stream (tasks, examples, lengths, batch size, seed, window) or is
            damaged; names what differs.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise InputError(
                    f"stream state was taken with other {name} ({state.get(name)!r}) than token store "
                    f"{self.rows.folder} and this run give ({value!r}); resume with the store and settings of then"
                )
        number, position = _count(state, "window_number"), _count(state, "position")
        start = state.get("sampler")
        if position > self.window or not isinstance(start, Mapping):
            raise InputError(f"stream state is damaged: position {position} of {self.window}, sampler {start!r:.40}")
        self.sampler.restore(start)
        self._start, self._number, self._position = dict(start), number, position
        self._batches = self._draw_window() if position else []

    def _draw_window(self) -> list[tuple[Draw, tuple[int, int]]]:
        draw = self.sampler.draw(self.window)
        inputs, targets = self.rows.lengths(draw)
        order = np.arange(len(inputs)) if self.window == 1 else _grouped(inputs, self.shapes.target_bucket(targets))
        groups = order.reshape(self.window, self.sampler.batch_size)
        window_key = random_bits(self._key, np.array([self._number]))
        places = np.arange(self.window)
        shuffled = permute(places, np.full_like(places, self.window), np.repeat(window_key, self.window))
        return [
            (
                Draw(draw.task_ids[group], draw.example_ids[group]),
                self.shapes.fit(int(inputs[group].max()), int(targets[group].max())),
            )
            for group in groups[shuffled]
        ]


def train_stream(
    store: TokenStore,
    split: str = "train",
    *,
    batch_size: int,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    sampler: MakeSampler = proportional_sampler,
    shapes: Shapes | ChooseShapes = fitted_shapes,
    window: int = WINDOW,
    host_index: int = 0,
    num_hosts: int = 1,
) -> Stream:
    """Makes a training stream over a store.

    Args:
      store: the store.
      split: name of the split.
      batch_size: rows per step, over all hosts.
      seed: data seed.
      tasks: task names, in the order of task ids; None for all of the split.
      sampler: which examples, such as `functools.partial(Sampler, rates=rates.uniform)` or `PooledSampler`.
      shapes: see `Stream`.
      window: see `Stream`.
      host_index: see `Stream`.
      num_hosts: see `Stream`.

    Returns:
      The stream.

    Raises:
      InputError: as for its parts.
    """
    rows = TaskRows(store, split, tasks)
    drawn = sampler(sizes=rows.sizes, batch_size=batch_size, seed=seed)
    hosts = {"host_index": host_index, "num_hosts": num_hosts}
    return Stream(rows, drawn, shapes=shapes, window=window, seed=seed, **hosts)


class EvalStream:
    """One pass over rows in batches of one size, longest first; iterating again starts again.

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
        shapes: Shapes | ChooseShapes = fitted_shapes,
        host_index: int = 0,
        num_hosts: int = 1,
    ) -> None:
        self.rows, self.batch_size = rows, batch_size
        self.shapes = _checked_shapes(rows, shapes)
        self._slice = host_slice(batch_size, host_index, num_hosts)
        tasks = np.repeat(np.arange(len(rows.sizes), dtype=np.int32), rows.sizes)
        starts = np.repeat(np.cumsum(rows.sizes) - rows.sizes, rows.sizes)
        self._all = Draw(tasks, np.arange(len(tasks)) - starts)
        self._inputs, self._targets = rows.lengths(self._all)
        self.order = np.lexsort((-self._targets, -self._inputs))

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.order), self.batch_size):
            real = self.order[start : start + self.batch_size]
            group = np.r_[real, np.repeat(real[-1:], self.batch_size - len(real))]
            shape = self.shapes.fit(int(self._inputs[real].max()), int(self._targets[real].max()))
            mine = group[self._slice]
            batch = self.rows.pad(Draw(self._all.task_ids[mine], self._all.example_ids[mine]), shape)
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
    shapes: Shapes | ChooseShapes = fitted_shapes,
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


def host_slice(batch_size: int, host_index: int, num_hosts: int) -> slice:
    """Returns the rows of each global batch that one host reads.

    Args:
      batch_size: rows of the global batch.
      host_index: which host.
      num_hosts: how many hosts.

    Returns:
      A contiguous slice; the slices of all hosts are disjoint and complete.

    Raises:
      InputError: if the hosts do not divide the batch or there is no such host.
    """
    if batch_size < 1 or num_hosts < 1 or batch_size % num_hosts:
        raise InputError(f"batch size {batch_size} cannot be shared by {num_hosts} hosts; make it a multiple")
    if not 0 <= host_index < num_hosts:
        raise InputError(f"host index is {host_index}; expected 0 to {num_hosts - 1}")
    share = batch_size // num_hosts
    return slice(host_index * share, (host_index + 1) * share)


def _checked_shapes(rows: TaskRows, shapes: Shapes | ChooseShapes) -> Shapes:
    if not isinstance(shapes, Shapes):
        shapes = shapes(*rows.split_lengths())
    shapes.fit(rows.max_input_tokens, rows.max_target_tokens)
    return shapes


def _count(state: Mapping[str, Any], name: str) -> int:
    value = state.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"stream state is damaged: its {name} is {value!r}")
    return value


def _grouped(inputs: np.ndarray, target_buckets: np.ndarray) -> np.ndarray:
    # Up and down in turn: where one target bucket ends and the next begins, the batch they share is alike in length.
    direction = np.where(target_buckets % 2 == 0, 1, -1)
    return np.lexsort((inputs * direction, target_buckets))
