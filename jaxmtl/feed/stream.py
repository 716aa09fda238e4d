"""Draws and a token store -> batches, window by window, in an order that can be stopped and resumed exactly."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import numpy as np

from jaxmtl.feed.grouping import grouped
from jaxmtl.feed.layout import Cost, Layout, Placed, num_tokens, on_host
from jaxmtl.feed.layout_choice import MakeLayout
from jaxmtl.feed.loss_history import LossHistory, packed, unpacked
from jaxmtl.feed.packed_labels import contents_of
from jaxmtl.feed.permutation import permute, random_bits, stream_key
from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import AnySampler, Draw, Sampler
from jaxmtl.feed.store import TokenStore
from jaxmtl.tasks import rates
from jaxmtl.types import Batch, InputError

WINDOW = 256
MakeSampler = Callable[..., AnySampler]
"""A sampler class, its rates bound beforehand: called with `sizes=, batch_size=, seed=, categories=`."""
proportional_sampler = functools.partial(Sampler, rates=rates.proportional)


class Stream:
    """Endless training batches; `state` and `restore` continue it exactly, on any number of hosts.

    The rows of `window` steps are drawn at once, cut into batches by the layout, and the batches are shuffled. So every
    drawn row is used once, and over a window the tasks are those drawn. Rows that fill no batch open the next window.

    Args:
      rows: where rows come from.
      sampler: which rows step by step; its sizes are those of `rows`.
      layout: how rows become batches.
      window: steps that are drawn together.
      seed: order of the batches inside a window.
      host_index: which host this is.
      num_hosts: how many hosts share each batch; each gets one contiguous slice of its rows.
      multiple: what the layout's numbers of rows were chosen to be multiples of; another one resumes with the rows of
        before.

    Attributes:
      history: losses for rates that follow them; None if none do.
      stream_names: empty, since all tasks are of one stream.

    Raises:
      InputError: if a row does not fit the layout, hosts do not divide the batches, or the window is below 1.
    """

    stream_names: Sequence[str] = ()

    def __init__(
        self,
        rows: TaskRows,
        sampler: AnySampler,
        layout: Layout,
        *,
        window: int = WINDOW,
        seed: int = 0,
        host_index: int = 0,
        num_hosts: int = 1,
        multiple: int = 1,
    ) -> None:
        if window < 1:
            raise InputError(f"window is {window} batches; expected 1 or more")
        check_hosts(layout.identity()["rows"], host_index, num_hosts)
        self.rows, self.sampler, self.layout, self.window = rows, sampler, layout, window
        period = sampler.loss_period
        self.history = None if period is None else LossHistory(len(rows.names), period)
        self._host_index, self._num_hosts = host_index, num_hosts
        self._key = stream_key(seed, "window")
        # With the sampler's own part, all that decides what the batch at a place of the stream holds.
        self._identity: dict[str, Any] = {**rows.identity(), **layout.identity(), "window": window, "seed": seed}
        self._multiple = self._chosen_for = multiple
        self._waiting = Draw(np.empty(0, np.int32), np.empty(0, np.int64))
        self._emitted = 0  # batches of the windows before this one
        self._begin_window()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        while self._position == len(self._batches):
            if self._batches:
                self._emitted += len(self._batches)
                self._begin_window()
            self._draw_window()
        placed = self._batches[self._position]
        self._position += 1
        share, mine = on_host(placed, self._host_index, self._num_hosts)
        members = placed.members[mine]
        batch = self.layout.read(self.rows, _take(self._drawn, members), share)
        part = self._tokens_per_batch / placed.num_rows
        return {**batch, "expected_tokens": np.full(share.num_rows, part, np.float32)}

    def state(self) -> dict[str, Any]:
        """Returns where the stream stands: JSON values, the sampler's state at the window's start and the place."""
        losses = None if self._losses is None else packed(self._losses)
        place = {
            "batches": self._emitted,
            "position": self._position,
            "waiting": self._waiting_at_start,
            "losses": losses,
        }
        return {**self._identity, **place, "multiple": self._chosen_for, "sampler": self._start}

    def restore(self, state: Mapping[str, Any], observed: Mapping[str, Any] | None = None) -> None:
        """Goes back to where a state was taken; the next batch is the one that came after it.

        Args:
          state: what `state` returned, in this or another process.
          observed: what `observed` returned after the batches before that; only rates that follow losses need it.

        Raises:
          InputError: if it was taken from another stream (tasks, examples, layout, batch size, seed, window) or is
            damaged; names what differs.
        """
        for name, value in self._identity.items():
            what = "batch sizes" if name == "rows" else name
            is_free = name == "rows" and state.get("multiple") != self._multiple
            if state.get(name) != value and not is_free:
                raise InputError(
                    f"stream state was taken with other {what} ({state.get(name)!r}) than token store "
                    f"{self.rows.folder} and this run give ({value!r}); resume with the store and settings of then"
                )
        layout, chosen_for = self.layout.with_rows_of(state), _count(state, "multiple")
        check_hosts(layout.identity()["rows"], self._host_index, self._num_hosts)
        emitted, position = _count(state, "batches"), _count(state, "position")
        start, waiting = state.get("sampler"), state.get("waiting")
        if not isinstance(start, Mapping) or not isinstance(waiting, list):
            raise InputError(f"stream state is damaged: sampler {start!r:.40}, waiting rows {waiting!r:.40}")
        if self.history is not None:
            self.history.restore(observed or {})
        self.sampler.restore(start)
        self.layout, self._chosen_for = layout, chosen_for
        self._identity.update(layout.identity())
        self._waiting = self._checked_waiting(waiting)
        self._emitted = emitted
        self._begin_window()
        if position:
            self._losses = self._checked_losses(state.get("losses"))
            self._draw_window()
        if position > len(self._batches):
            raise InputError(
                f"stream state is damaged: position {position} of a window of {len(self._batches)} batches"
            )
        self._position = position

    def observe(self, task_loss: np.ndarray, task_tokens: np.ndarray) -> None:
        """Hears of a batch that was trained on, in the order of the batches.

        Args:
          task_loss: [N], summed loss of each task in nats.
          task_tokens: [N], its target tokens.
        """
        if self.history is not None:
            self.history.observe(task_loss, task_tokens)

    def observed(self) -> dict[str, Any]:
        """Returns what is kept of observed losses: JSON values, empty if rates do not follow losses."""
        return {} if self.history is None else self.history.state()

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns float64 [N] each: rows drawn per task, this window's all, and how many were asked for."""
        return self._counts

    def parts(self, num_steps: int) -> dict[str, tuple[Self, int]]:
        """Returns the streams that this one is made of, itself only, by name, and how many batches are from each.

        Args:
          num_steps: batches in all.
        """
        return {"tasks": (self, num_steps)}

    def close(self) -> None:
        """Ends a wait for losses that will not come."""
        if self.history is not None:
            self.history.close()

    def _begin_window(self) -> None:
        """Remembers where a window starts, which is what a state holds."""
        self._start, self._counts = self.sampler.state(), self.sampler.counts()
        self._waiting_at_start = np.stack([self._waiting.task_ids, self._waiting.example_ids], axis=1).tolist()
        self._drawn: Draw = self._waiting
        self._losses: np.ndarray | None = None  # what this window's rates saw, once it is drawn
        self._batches: list[Placed] = []
        self._tokens_per_batch = 0.0
        self._position: int = 0

    def _draw_window(self) -> None:
        """Draws until there is a batch, and cuts what was drawn."""
        if self.history is not None and self._losses is None:
            self._losses = self.history.before(self._emitted)
        while not self._batches:
            draw = self.sampler.draw(self.window, self._losses)
            self._drawn = Draw(*(np.concatenate(pair) for pair in zip(self._drawn, draw, strict=True)))
            self._batches, waiting = self.layout.arrange(*self.rows.lengths(self._drawn))
        members = np.concatenate([batch.members for batch in self._batches])
        self._tokens_per_batch = float(self.rows.loss_weights(_take(self._drawn, members)).sum()) / len(self._batches)
        self._waiting, self._counts = _take(self._drawn, waiting), self.sampler.counts()
        places = np.arange(len(self._batches))
        key = random_bits(self._key, np.full_like(places, self._emitted))
        order = permute(places, np.full_like(places, len(places)), key)
        self._batches = [self._batches[place] for place in order]

    def _checked_losses(self, text: object) -> np.ndarray | None:
        """Reads the losses that a window's rates saw; there are none where rates do not follow losses."""
        if self.history is None:
            return None
        try:
            return unpacked(cast(str, text), len(self.rows.names))
        except (TypeError, ValueError) as error:
            raise InputError(f"stream state is damaged: its losses are {text!r:.60}") from error

    def _checked_waiting(self, pairs: list[Any]) -> Draw:
        try:
            array = np.array(pairs, np.int64).reshape(-1, 2)
        except (OverflowError, TypeError, ValueError) as error:
            raise InputError(f"stream state is damaged: its waiting rows are {pairs!r:.60}") from error
        tasks, examples = array[:, 0], array[:, 1]
        sizes = self.rows.sizes
        if ((tasks < 0) | (tasks >= len(sizes))).any() or ((examples < 0) | (examples >= sizes[tasks])).any():
            raise InputError("stream state is damaged: its waiting rows are not in the store")
        return Draw(tasks.astype(np.int32), examples)


def train_stream(
    store: TokenStore,
    split: str = "train",
    *,
    batch_size: int,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    sampler: MakeSampler = proportional_sampler,
    layout: MakeLayout = grouped,
    cost: Cost = num_tokens,
    window: int = WINDOW,
    multiple: int | None = None,
    host_index: int = 0,
    num_hosts: int = 1,
) -> Stream:
    """Makes a training stream over a store.

    Args:
      store: the store.
      split: name of the split.
      batch_size: rows per step, over all hosts; where batches differ in rows, examples per step on average.
      seed: data seed.
      tasks: task names, in the order of task ids; None for all of the split.
      limit: most examples of a task; None for all.
      sampler: which examples, such as `functools.partial(Sampler, rates=rates.uniform)` or `PooledSampler`.
      layout: makes the layout from the lengths of the whole split: `grouped`, `packed` or `cheapest`.
      cost: of a row padded to a shape; layouts are chosen by it.
      window: see `Stream`; rates that change make it no longer than the steps over which they hardly do.
      multiple: what has to divide the rows of every batch where the layout chooses them; the number of hosts if None.
      host_index: see `Stream`.
      num_hosts: see `Stream`.

    Returns:
      The stream.

    Raises:
      InputError: as for its parts.
    """
    rows, multiple = TaskRows(store, split, tasks, limit=limit, seed=seed), multiple or num_hosts
    drawn = sampler(sizes=rows.sizes, batch_size=batch_size, seed=seed, categories=rows.categories)
    options = dict(batch_size=batch_size, multiple=multiple, cost=cost, contents=contents_of(rows))
    placed = layout(*rows.split_lengths(), **options)
    window = window if drawn.steady_steps is None else min(window, drawn.steady_steps)
    hosts = dict(host_index=host_index, num_hosts=num_hosts)
    return Stream(rows, drawn, placed, window=window, seed=seed, multiple=multiple, **hosts)


def check_hosts(batch_sizes: Sequence[int], host_index: int, num_hosts: int) -> None:
    """Checks that hosts can share batches.

    Args:
      batch_sizes: rows of each kind of batch.
      host_index: which host.
      num_hosts: how many hosts.

    Raises:
      InputError: if the hosts do not divide a batch or there is no such host.
    """
    for size in batch_sizes:
        if size < 1 or num_hosts < 1 or size % num_hosts:
            raise InputError(f"batch size {size} cannot be shared by {num_hosts} hosts; make it a multiple")
    if not 0 <= host_index < num_hosts:
        raise InputError(f"host index is {host_index}; expected 0 to {num_hosts - 1}")


def _take(draw: Draw, members: np.ndarray) -> Draw:
    return Draw(draw.task_ids[members], draw.example_ids[members])


def _count(state: Mapping[str, Any], name: str) -> int:
    value = state.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"stream state is damaged: its {name} is {value!r}")
    return value
