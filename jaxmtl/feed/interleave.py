"""Two streams as one: some batches of a stream of tasks, then one batch of a stream of plain text, and so on.

The text stream's task ids come after those of the task stream, so a batch tells by its task ids where it is from.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from jaxmtl.feed.store import TokenStore
from jaxmtl.types import Batch, InputError

STREAM_NAMES = ("tasks", "text")


class Named(Protocol):
    """What knows the names of the tasks that a stream's task ids stand for."""

    @property
    def names(self) -> Sequence[str]:
        """Returns the task names, in the order of task ids."""
        ...


class NamedStream(Protocol):
    """An endless iterator of batches that can be stopped and continued, such as `stream.Stream`."""

    @property
    def rows(self) -> Named:
        """Returns where its rows are from."""
        ...

    def __next__(self) -> Batch:
        """Returns the next batch (this host's rows)."""
        ...

    def state(self) -> dict[str, Any]:
        """Returns the position after the last batch, JSON-able."""
        ...

    def restore(self, state: Mapping[str, Any], observed: Mapping[str, Any] | None) -> None:
        """Goes to a position, having been told of the batches before it."""
        ...

    def observe(self, task_loss: np.ndarray, task_tokens: np.ndarray) -> None:
        """Hears of each batch that was trained on, in order."""
        ...

    def observed(self) -> dict[str, Any]:
        """Returns what it keeps of that, JSON-able."""
        ...

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns float64 [N] each: rows drawn per task, and how many were asked for."""
        ...

    def close(self) -> None:
        """Ends a wait for more to observe."""
        ...


MakeStream = Callable[..., NamedStream]
"""Makes a stream over a store: called with the store, what a row costs, and which host's share to read."""


@dataclasses.dataclass(frozen=True)
class TaskNames:
    """The names of the tasks of several streams.

    Attributes:
      names: task names, in the order of task ids.
    """

    names: tuple[str, ...]


class InterleavedStream:
    """Endless batches: `every` of the main stream, one of the text stream, and again.

    The streams may differ in shapes and batch sizes. Each keeps its own order, seed and state, so the main stream's
    batches are those of a run without text. `restore` goes on exactly where `state` was taken.

    Args:
      main: batches of tasks.
      text: batches of text.
      every: batches of the main stream before each one of the text stream.
      names: what the two streams are called in logs.

    Attributes:
      rows: knows the task names of both streams, in the order of task ids.
      stream_names: name of the stream of each task, in the order of task ids.

    Raises:
      InputError: if `every` is below 1, or the streams share their name or a task's name.
    """

    def __init__(
        self, main: NamedStream, text: NamedStream, *, every: int = 3, names: Sequence[str] = STREAM_NAMES
    ) -> None:
        if every < 1:
            raise InputError(f"interleaving: {every} task batches before each text batch; expected 1 or more")
        if len(set(names)) != 2 or len(names) != 2:
            raise InputError(f"interleaving: the streams are called {list(names)}; expected two different names")
        self.every = every
        self.rows = TaskNames((*main.rows.names, *text.rows.names))
        self.stream_names = (names[0],) * len(main.rows.names) + (names[1],) * len(text.rows.names)
        _check_different(main.rows.names, text.rows.names)
        self._names, self._main, self._text = tuple(names), main, text
        self._first_text_id = len(main.rows.names)
        self._position = 0  # main batches since the last text batch
        self._num_observed = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._position < self.every:
            batch = next(self._main)
            self._position += 1
            return batch
        batch = next(self._text)
        self._position = 0
        ids = batch["task_ids"]  # negative ones fill up packed rows and stand for no task
        return {**batch, "task_ids": np.where(ids < 0, ids, ids + np.int32(self._first_text_id))}

    def stream_of(self, task_ids: np.ndarray) -> str:
        """Tells which stream a batch is from.

        Args:
          task_ids: int32, any shape: those of one batch; negative ones do not count.

        Returns:
          One of the two names.

        Raises:
          InputError: if the ids are of no batch of this stream: there are none, or of both streams.
        """
        found = {self.stream_names[task] for task in np.unique(task_ids).tolist() if task >= 0}
        if len(found) != 1:
            raise InputError(f"task ids of a batch are from the streams {sorted(found)}; expected exactly one")
        return found.pop()

    def state(self) -> dict[str, Any]:
        """Returns where the stream stands: JSON values, both streams' states and the place between them."""
        return {
            "every": self.every,
            "names": list(self._names),
            "position": self._position,
            "main": self._main.state(),
            "text": self._text.state(),
        }

    def restore(self, state: Mapping[str, Any], observed: Mapping[str, Any] | None = None) -> None:
        """Goes back to where a state was taken; the next batch is the one that came after it.

        Args:
          state: what `state` returned, in this or another process.
          observed: what `observed` returned after the batches before that; only rates that follow losses need it.

        Raises:
          InputError: if it was taken from another stream or is damaged.
        """
        for name, value in (("every", self.every), ("names", list(self._names))):
            if state.get(name) != value:
                raise InputError(
                    f"stream state was taken with {name} {state.get(name)!r}, but this run has {value!r}; resume with "
                    "the same interleaving"
                )
        position = state.get("position")
        parts: list[Any] = [state.get(name) for name in ("main", "text")]
        if (
            type(position) is not int
            or not 0 <= position <= self.every
            or not all(isinstance(p, Mapping) for p in parts)
        ):
            raise InputError(f"stream state is damaged: position {position!r} of {self.every}, streams {parts!r:.60}")
        told = observed or {}
        self._main.restore(parts[0], told.get("main"))
        self._text.restore(parts[1], told.get("text"))
        self._num_observed, self._position = told.get("batches", 0), position

    def observe(self, task_loss: np.ndarray, task_tokens: np.ndarray) -> None:
        """Hears of a batch that was trained on, in the order of the batches.

        Args:
          task_loss: [N], summed loss of each task of both streams in nats.
          task_tokens: [N], its target tokens.
        """
        first = self._first_text_id
        if self._num_observed % (self.every + 1) < self.every:
            self._main.observe(task_loss[:first], task_tokens[:first])
        else:
            self._text.observe(task_loss[first:], task_tokens[first:])
        self._num_observed += 1

    def observed(self) -> dict[str, Any]:
        """Returns what both streams keep of observed losses: JSON values."""
        return {"batches": self._num_observed, "main": self._main.observed(), "text": self._text.observed()}

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns float64 [N] each: rows drawn per task of both streams, and how many its share asked for."""
        drawn, asked = zip(self._main.counts(), self._text.counts(), strict=True)
        return np.concatenate(drawn), np.concatenate(asked)

    def parts(self, num_steps: int) -> dict[str, tuple[NamedStream, int]]:
        """Returns both streams by name, and how many of the first batches are from each.

        Args:
          num_steps: batches of both.
        """
        num_text = num_steps // (self.every + 1)
        return dict(zip(self._names, ((self._main, num_steps - num_text), (self._text, num_text)), strict=True))

    def close(self) -> None:
        """Ends a wait for losses that will not come."""
        self._main.close()
        self._text.close()


def interleaved_stream(
    store: TokenStore,
    *,
    text_store: TokenStore,
    make_main: MakeStream,
    make_text: MakeStream,
    every: int = 3,
    names: Sequence[str] = STREAM_NAMES,
    **options: Any,
) -> InterleavedStream:
    """Makes a training stream over a store of tasks and a store of text.

    Args:
      store: the tasks.
      text_store: the text, made with the same vocabulary.
      make_main: called with `store`: `stream.train_stream` with its other arguments bound.
      make_text: called with `text_store`.
      every: see `InterleavedStream`.
      names: see `InterleavedStream`.
      **options: what both streams are made with besides: cost of a row, hosts.

    Returns:
      The stream.

    Raises:
      InputError: if the vocabularies differ, or as for its parts.

    Source: three steps of instruction tuning, then one on C4 of equal batch size, in the study on multi-task transfer
    during instruction tuning.
    """
    text_store.check(vocabulary=store.manifest.vocabulary)
    return InterleavedStream(make_main(store, **options), make_text(text_store, **options), every=every, names=names)


def _check_different(main: Sequence[str], text: Sequence[str]) -> None:
    shared = sorted(set(main) & set(text))
    if shared:
        raise InputError(f"interleaving: both streams have tasks called {shared[:3]}; cache one under another name")
