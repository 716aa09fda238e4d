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
from jaxmtl.feed.parts import Part
from jaxmtl.feed.store import CHOICES, INSTRUCTED_SCHEMA, SCHEMA
from jaxmtl.files import replacing
from jaxmtl.tasks.answers import IGNORED, SPAN
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
      instructions: token ids of what a hypernetwork reads for each example; None if there is nothing of the kind.
      choices: the answer choices of each example; None where answers are open.
    """

    ids: Sequence[str]
    inputs: Sequence[Sequence[int]]
    targets: Sequence[Sequence[int]]
    references: Sequence[Sequence[str]]
    instructions: Sequence[Sequence[int]] | None = None
    choices: Sequence[Sequence[str]] | None = None

    def columns(self) -> dict[str, Sequence[Sequence[int]]]:
        """Returns the columns of token ids by the name of their column in a file."""
        columns = {"inputs": self.inputs, "targets": self.targets}
        return columns if self.instructions is None else {**columns, "instructions": self.instructions}


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

    def path(self, part: Part) -> Path:
        """Returns the path of a task split's file.

        Args:
          part: the task split.

        Returns:
          A path inside the folder.

        Raises:
          InputError: if one of its names is unsafe.
        """
        check_task_name(part.task, f"token store in {self.folder}, task")
        check_split_name(part.split, f"token store in {self.folder}")
        return self.folder / file_of(part.split, part.task)

    def finished(self, part: Part) -> Entry | None:
        """Looks for a task split that was written to its end.

        Args:
          part: the task split as it would be made now.

        Returns:
          What the manifest will say about it; None if it is not there, damaged or made from other texts.
        """
        file = self.path(part)
        try:
            entry = Entry(**json.loads(_beside(file).read_text(encoding="utf-8")))
            content = file.read_bytes()
        except (OSError, TypeError, ValueError):
            return None  # never written, or not to the end
        return entry if entry.origin == part.origin and hashlib.sha256(content).hexdigest() == entry.sha256 else None

    def write(self, part: Part, rows: Rows) -> Entry:
        """Writes the file of one task split.

        Args:
          part: the task split.
          rows: its tokenised examples.

        Returns:
          What the manifest will say about it.

        Raises:
          InputError: if the split is empty or an id is outside the vocabulary.
          OSError: if it cannot be written.
        """
        file = self.path(part)
        where = f"task {part.task}, split {part.split!r}"
        _check_rows(rows, where)
        columns = {name: _ragged(column) for name, column in rows.columns().items()}
        for name, (ids, _) in columns.items():
            if name == "targets" and part.answer:
                _check_answers(where, part, ids)
            else:
                self._check_ids(where, name.removesuffix("s"), ids)
        try:
            content = _arrow_file(rows, columns)
        except (TypeError, UnicodeError, pa.ArrowException) as error:
            raise InputError(
                f"{where}: an id, reference or choice is no Unicode text ({str(error)[:100]!r})"
            ) from error
        entry = Entry(
            file=file_of(part.split, part.task),
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            num_examples=len(rows.ids),
            category=part.category,
            metric=part.metric,
            origin=part.origin,
            answer=part.answer,
            labels=list(part.labels),
            **_token_counts(columns),
        )
        write_file(file, content)
        write_file(_beside(file), json.dumps(dataclasses.asdict(entry)).encode())
        return entry

    def _identity(self) -> str:
        identity = {"vocabulary": dataclasses.asdict(self.vocabulary), "preprocessing": dict(self.preprocessing)}
        return json.dumps(identity, sort_keys=True)

    def _check_ids(self, where: str, name: str, ids: np.ndarray) -> None:
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary.size:
            raise InputError(
                f"{where}: {name} ids from {ids.min()} to {ids.max()}; expected 0 to {self.vocabulary.size - 1}, the "
                "vocabulary of the store"
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
    columns = rows.columns()
    counts = {len(column) for column in (rows.ids, rows.references, rows.choices or rows.ids, *columns.values())}
    if len(counts) != 1:
        raise InputError(f"{where}: {sorted(counts)} ids, references, {', '.join(columns)}; expected as many of each")
    for name, column in columns.items():
        for index, ids in enumerate(column):
            if not len(ids):
                raise InputError(
                    f"{where}: example {rows.ids[index]!r} has {name} without any token; expected at least one"
                )


def _check_answers(where: str, part: Part, ids: np.ndarray) -> None:
    """Refuses label ids that have no label, and places before the first token."""
    most = np.iinfo(np.int32).max if part.answer == SPAN else len(part.labels) - 1
    wrong = ids[(ids != IGNORED) & ((ids < 0) | (ids > most))]
    if wrong.size:
        raise InputError(f"{where}: targets hold {wrong[0]}; expected {IGNORED} or 0 to {most} for {part.answer!r}")


_Ragged = tuple[np.ndarray, np.ndarray]
"""All ids of a column, int32 [n], and where its rows end, int64 [rows + 1]."""


def _ragged(rows: Sequence[Sequence[int]]) -> _Ragged:
    ends = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=ends[1:])
    return np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(ends[-1])), ends


def _token_counts(columns: Mapping[str, _Ragged]) -> dict[str, int]:
    counts = {}
    for name, (ids, ends) in columns.items():
        counts[f"num_{name.removesuffix('s')}_tokens"] = len(ids)
        counts[f"max_{name.removesuffix('s')}_tokens"] = int(np.diff(ends).max())
    return counts


def _arrow_file(rows: Rows, columns: Mapping[str, _Ragged]) -> bytes:
    schema = SCHEMA if rows.instructions is None else INSTRUCTED_SCHEMA
    arrays = {
        "id": pa.array(list(rows.ids), SCHEMA.field("id").type),
        "references": pa.array([list(texts) for texts in rows.references], SCHEMA.field("references").type),
    }
    if rows.choices is not None:
        schema = schema.append(CHOICES)
        arrays[CHOICES.name] = pa.array([list(texts) for texts in rows.choices], CHOICES.type)
    for name, (ids, ends) in columns.items():
        arrays[name] = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(ids))
    batch = pa.record_batch([arrays[name] for name in schema.names], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()
