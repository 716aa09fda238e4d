"""The task splits of a store that is being written: each a file of its own, so that many processes can write at once.

Beside each finished file lies what the manifest will say about it; a file without that was not written to its end.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jaxmtl.feed.manifest import Entry, Vocabulary, check_split_name, file_of
from jaxmtl.feed.store import SCHEMA
from jaxmtl.files import replacing
from jaxmtl.tasks.spec import check_task_name
from jaxmtl.types import InputError

IDENTITY_FILE = "made_with.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """The tokenised examples of one task split.

    Attributes:
      ids: the examples' own ids.
      inputs: token ids of each input.
      targets: token ids of each target.
      references: all reference texts of each example.
    """

    ids: Sequence[str]
    inputs: Sequence[Sequence[int]]
    targets: Sequence[Sequence[int]]
    references: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnfinishedParts:
    """Writes and finds the task splits of an unfinished store.

    Attributes:
      folder: where they are until the store is finished.
      vocabulary: the vocabulary of the ids.
      preprocessing: JSON values that decide what the model reads, see `tokenise.describe`.
    """

    folder: Path
    vocabulary: Vocabulary
    preprocessing: Mapping[str, Any]

    def begin(self) -> None:
        """Writes down what the parts are made with."""
        write_file(self.folder / IDENTITY_FILE, self._identity().encode())

    def was_begun(self) -> bool:
        """Tells whether the folder is there and what it holds was made with this vocabulary and preprocessing."""
        file = self.folder / IDENTITY_FILE
        return file.is_file() and file.read_text(encoding="utf-8") == self._identity()

    def path(self, task: str, split: str) -> Path:
        """Returns the path of a task split's file.

        Args:
          task: name of the task.
          split: name of the split.

        Returns:
          A path inside the folder.

        Raises:
          InputError: if one of the names is unsafe.
        """
        check_task_name(task, f"token store in {self.folder}, task")
        check_split_name(split, f"token store in {self.folder}")
        return self.folder / file_of(split, task)

    def finished(self, task: str, split: str, origin: str) -> Entry | None:
        """Looks for a task split that was written to its end.

        Args:
          task: name of the task.
          split: name of the split.
          origin: SHA-256 of the texts that it would be made from now.

        Returns:
          What the manifest will say about it; None if it is not there, damaged or made from other texts.
        """
        file = self.path(task, split)
        try:
            entry = Entry(**json.loads(_beside(file).read_text(encoding="utf-8")))
            content = file.read_bytes()
        except (OSError, TypeError, ValueError):
            return None  # never written, or not to the end
        return entry if entry.origin == origin and hashlib.sha256(content).hexdigest() == entry.sha256 else None

    def write(self, task: str, split: str, rows: Rows, *, category: str, metric: str, origin: str) -> Entry:
        """Writes the file of one task split.

        Args:
          task: name of the task.
          split: name of the split.
          rows: its tokenised examples.
          category: the task's category.
          metric: the task's headline metric.
          origin: SHA-256 of the texts that it was made from.

        Returns:
          What the manifest will say about it.

        Raises:
          InputError: if the split is empty or an id is outside the vocabulary.
          OSError: if it cannot be written.
        """
        file = self.path(task, split)
        where = f"task {task}, split {split!r}"
        inputs, targets = _ragged(rows.inputs), _ragged(rows.targets)
        _check_rows(rows, where)
        self._check_ids(where, input=inputs[0], target=targets[0])
        try:
            content = _arrow_file(rows, inputs, targets)
        except (TypeError, UnicodeError, pa.ArrowException) as error:
            raise InputError(f"{where}: an id or reference is no Unicode text ({str(error)[:100]!r})") from error
        entry = Entry(
            file=file_of(split, task),
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            num_examples=len(rows.ids),
            num_input_tokens=len(inputs[0]),
            num_target_tokens=len(targets[0]),
            max_input_tokens=int(np.diff(inputs[1]).max()),
            max_target_tokens=int(np.diff(targets[1]).max()),
            category=category,
            metric=metric,
            origin=origin,
        )
        write_file(file, content)
        write_file(_beside(file), json.dumps(dataclasses.asdict(entry)).encode())
        return entry

    def _identity(self) -> str:
        identity = {"vocabulary": dataclasses.asdict(self.vocabulary), "preprocessing": dict(self.preprocessing)}
        return json.dumps(identity, sort_keys=True)

    def _check_ids(self, where: str, **ids: np.ndarray) -> None:
        for name, values in ids.items():
            if values.size and not 0 <= values.min() <= values.max() < self.vocabulary.size:
                raise InputError(
                    f"{where}: {name} ids from {values.min()} to {values.max()}; expected 0 to "
                    f"{self.vocabulary.size - 1}, the vocabulary of the store"
                )


def write_file(file: Path, content: bytes) -> None:
    """Writes a file that is either whole or not there.

    Args:
      file: the file; its folder is made if missing.
      content: what it holds.
    """
    with replacing(file) as partial:
        partial.write_bytes(content)


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _check_rows(rows: Rows, where: str) -> None:
    if not rows.ids:
        raise InputError(f"{where} has no examples; leave the split out, or the task")
    counts = {len(rows.ids), len(rows.inputs), len(rows.targets), len(rows.references)}
    if len(counts) != 1:
        raise InputError(f"{where}: {sorted(counts)} ids, inputs, targets and references; expected as many of each")
    for index, (inputs, targets) in enumerate(zip(rows.inputs, rows.targets, strict=True)):
        if not len(inputs) or not len(targets):
            raise InputError(f"{where}: example {rows.ids[index]!r} has an input or target without any token")


def _ragged(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    ends = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=ends[1:])
    return np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(ends[-1])), ends


def _arrow_file(rows: Rows, inputs: tuple[np.ndarray, np.ndarray], targets: tuple[np.ndarray, np.ndarray]) -> bytes:
    columns = [
        *(pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values)) for values, ends in (inputs, targets)),
        pa.array(list(rows.ids), SCHEMA.field("id").type),
        pa.array([list(texts) for texts in rows.references], SCHEMA.field("references").type),
    ]
    batch = pa.record_batch(columns, schema=SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()
