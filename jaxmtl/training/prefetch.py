"""Reads ahead: a thread draws batches and copies them to the devices while the step runs."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxmtl.partitioning import batch_share
from jaxmtl.types import Batch, InputError


class Stream(Protocol):
    """An iterator of batches that can be stopped and continued."""

    def __next__(self) -> Batch:
        """Returns the next batch: this host's rows, see `partitioning.batch_share`."""
        ...

    def state(self) -> dict[str, Any]:
        """Returns the position after the last batch, JSON-able."""
        ...

    def restore(self, state: Mapping[str, Any], observed: Mapping[str, Any]) -> None:
        """Goes to a position, having been told of the batches before it."""
        ...

    def observe(self, task_loss: np.ndarray, task_tokens: np.ndarray) -> None:
        """Hears of each batch that was trained on, in order: [N] summed loss in nats and target tokens of each task."""
        ...

    def observed(self) -> dict[str, Any]:
        """Returns what it keeps of that, JSON-able."""
        ...

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns float64 [N] each: rows drawn of each task so far, and how many its share asked for."""
        ...

    def close(self) -> None:
        """Ends a wait for more to observe."""
        ...


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A batch ready for the step.

    Attributes:
      batch: global arrays on the devices.
      task_ids: int32 [m], the tasks in it, this host's.
      num_tokens: number of input and target tokens that are not padding, this host's.
      stream_state: the stream's position after this batch.
    """

    batch: dict[str, jax.Array]
    task_ids: np.ndarray
    num_tokens: int
    stream_state: dict[str, Any]


class Prefetcher:
    """Iterates over a stream from a thread; a context manager that ends the thread.

    Attributes:
      waited: seconds that the consumer has waited for input so far.
    """

    def __init__(self, stream: Stream, sharding: NamedSharding, pad_id: int, depth: int = 2) -> None:
        """Starts to read.

        Args:
          stream: where batches come from; nobody else may use it meanwhile.
          sharding: how rows are split over devices.
          pad_id: id that fills up inputs.
          depth: batches held ready.
        """
        self.waited = 0.0
        self._num_batches = 0
        self._stream, self._sharding, self._pad_id = stream, sharding, pad_id
        self._queue: queue.Queue[Fetched | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._stream.close()
        self._thread.join()

    def __iter__(self) -> Iterator[Fetched]:
        return self

    def __next__(self) -> Fetched:
        """Returns the next batch; an error of the stream (also its end) is raised here."""
        began = time.monotonic()
        item = self._queue.get()
        self.waited += time.monotonic() - began
        if isinstance(item, BaseException):
            self._stop.set()
            raise item
        return item

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                item: Fetched | BaseException = fetch(self._stream, self._sharding, self._pad_id)
                self._num_batches += 1
            except StopIteration:
                item = InputError(f"the training stream ended after {self._num_batches} batches; it must not end")
            except BaseException as error:  # handed to the consumer, who raises it
                item = error
            if not _put(self._queue, item, self._stop.is_set) or isinstance(item, BaseException):
                return


def fetch(stream: Stream, sharding: NamedSharding, pad_id: int) -> Fetched:
    """Draws one batch and copies it to the devices.

    Args:
      stream: where it comes from.
      sharding: how its rows are split over devices.
      pad_id: id that fills up inputs.

    Returns:
      The batch with what the host needs to know about it.
    """
    batch = next(stream)
    num_tokens = int(np.count_nonzero(batch["inputs"] != pad_id) + np.count_nonzero(batch["loss_mask"]))
    task_ids = np.unique(batch["task_ids"])
    return Fetched(to_devices(batch, sharding), task_ids[task_ids >= 0], num_tokens, stream.state())


def to_devices(batch: Batch, sharding: NamedSharding) -> dict[str, jax.Array]:
    """Makes global arrays of this host's rows.

    Args:
      batch: this host's rows: its share as `partitioning.batch_share` tells.
      sharding: how rows are split over devices.

    Returns:
      The fields as arrays on the devices.

    Raises:
      InputError: if the rows cannot be split evenly, or several hosts' rows share instructions.
    """
    _, num_shares = batch_share(cast(Mesh, sharding.mesh))
    if num_shares > 1 and "instruction_index" in batch:
        raise InputError("rows of several processes cannot share instructions; give each row its own instruction")
    for rows in sorted({len(field) * num_shares for field in batch.values()}):
        try:
            sharding.shard_shape((rows,))
        except ValueError as error:
            raise InputError(
                f"a batch of {rows} rows does not split evenly over the mesh's axes data and fsdp; change batch or mesh"
            ) from error

    def place(field: np.ndarray) -> jax.Array:
        # Without the whole shape, rows that hosts have in common would be taken for rows of their own.
        shape = (len(field) * num_shares, *field.shape[1:])
        return jax.make_array_from_process_local_data(sharding, field, shape)

    return {name: place(field) for name, field in batch.items()}


def _put(items: queue.Queue, item: Any, stopped: Callable[[], bool]) -> bool:
    """Puts an item, but gives up once nobody will take it; returns whether it was put."""
    while not stopped():
        try:
            items.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
