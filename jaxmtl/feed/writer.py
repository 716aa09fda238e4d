"""Writes a token store: into a folder beside it, task by task, put in place in one move when everything is there.

A run that was stopped leaves that folder behind; the next one keeps each task split that is still what it would
write, by vocabulary, preprocessing and the texts it was made from.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from jaxmtl.feed.manifest import (
    FILE_NAME,
    TOKENIZER_FOLDER,
    Entry,
    Manifest,
    Vocabulary,
    check_split_name,
    file_of,
    read_manifest,
)
from jaxmtl.feed.store import SCHEMA, TokenStore, check_made_with
from jaxmtl.files import replacing
from jaxmtl.tasks.spec import check_task_name
from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import InputError

IDENTITY_FILE = "made_with.json"
LOCK_FILE = "lock"


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


class StoreWriter:
    """Writes one store; use it in a `with` block, and call `finish` at its end.

    Args:
      folder: the store to make; must not be there yet, or be an empty folder.
      tokenizer: what made the ids; kept in the store.
      preprocessing: JSON values that decide what the model reads, see `tokenise.describe`.

    Raises:
      InputError: if the folder is taken or cannot be written, or another process is writing it.
    """

    def __init__(self, folder: str | Path, tokenizer: Tokenizer, preprocessing: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.unfinished = self.folder.parent / f".{self.folder.name}.unfinished"
        self._tokenizer = tokenizer
        self._vocabulary = Vocabulary.of(tokenizer)
        self._preprocessing = dict(preprocessing)
        self._entries: dict[str, dict[str, Entry]] = {}

    def __enter__(self) -> Self:
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(f"{self.folder} is there already; remove it or choose another folder")
        with self._one_line_errors():
            self.unfinished.mkdir(parents=True, exist_ok=True)
            self._lock = (self.unfinished / LOCK_FILE).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise InputError(f"another process is writing token store {self.folder}; wait for it") from error
        with self._one_line_errors():
            self._keep_or_clear()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def reuse(self, task: str, split: str, origin: str) -> bool:
        """Takes over a task split that an earlier, stopped run finished.

        Args:
          task: name of the task.
          split: name of the split.
          origin: SHA-256 of the texts that it would be made from now.

        Returns:
          Whether there was one; if not, `add` it.
        """
        file, sidecar = self._paths(task, split)
        try:
            entry = Entry(**json.loads(sidecar.read_text(encoding="utf-8")))
            content = file.read_bytes()
        except (OSError, TypeError, ValueError):
            return False  # never written, or not to the end
        if entry.origin != origin or hashlib.sha256(content).hexdigest() != entry.sha256:
            return False
        self._entries.setdefault(split, {})[task] = entry
        return True

    def add(self, task: str, split: str, rows: Rows, *, category: str, metric: str, origin: str) -> Entry:
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
          InputError: if the split is empty, an id is outside the vocabulary, or the disk is full.
        """
        file, sidecar = self._paths(task, split)
        where = f"task {task}, split {split!r}"
        inputs, targets = _ragged(rows.inputs), _ragged(rows.targets)
        _check_rows(rows, where)
        for name, (values, _) in (("input", inputs), ("target", targets)):
            if values.size and not 0 <= values.min() <= values.max() < self._vocabulary.size:
                raise InputError(
                    f"{where}: {name} ids from {values.min()} to {values.max()}; expected 0 to "
                    f"{self._vocabulary.size - 1}, the vocabulary of the store"
                )
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
        with self._one_line_errors():
            _write(file, content)
            _write(sidecar, json.dumps(dataclasses.asdict(entry)).encode())
        self._entries.setdefault(split, {})[task] = entry
        return entry

    def finish(self) -> TokenStore:
        """Writes the manifest and moves the store to its place.

        Returns:
          The finished store.

        Raises:
          InputError: if nothing was added or the disk is full.
        """
        if not self._entries:
            raise InputError(f"token store {self.folder} would be empty; give at least one task")
        manifest = Manifest(vocabulary=self._vocabulary, preprocessing=self._preprocessing, splits=self._entries)
        kept = {entry.file for tasks in self._entries.values() for entry in tasks.values()}
        with self._one_line_errors():
            self._tokenizer.save(self.unfinished / TOKENIZER_FOLDER)
            _write(self.unfinished / FILE_NAME, manifest.to_json().encode())
            for path in [path for path in self.unfinished.rglob("*") if path.is_file()]:
                name = path.relative_to(self.unfinished).as_posix()
                if name not in kept and name != FILE_NAME and not name.startswith(f"{TOKENIZER_FOLDER}/"):
                    path.unlink()  # side files, and tasks of an earlier run that are not asked for any more
            for path in [path for path in self.unfinished.rglob("*") if path.is_dir()]:
                _sync(path)
            _sync(self.unfinished)
            os.replace(self.unfinished, self.folder)
            _sync(self.folder.parent)
        return TokenStore(self.folder)

    def _paths(self, task: str, split: str) -> tuple[Path, Path]:
        check_task_name(task, f"token store {self.folder}, task")
        check_split_name(split, f"token store {self.folder}")
        file = self.unfinished / file_of(split, task)
        return file, file.with_name(f"{file.name}.json")

    def _keep_or_clear(self) -> None:
        """Throws away what an earlier run left, unless it was made with the same vocabulary and preprocessing."""
        identity = {"vocabulary": dataclasses.asdict(self._vocabulary), "preprocessing": self._preprocessing}
        text = json.dumps(identity, sort_keys=True)
        file = self.unfinished / IDENTITY_FILE
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            return
        for path in [path for path in self.unfinished.iterdir() if path.name != LOCK_FILE]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        _write(file, text.encode())

    @contextlib.contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"token store {self.folder} cannot be written ({error.strerror or error}); tasks finished so far stay "
                f"in {self.unfinished} and are used again by the next try"
            ) from error


def existing_store(
    folder: str | Path, tokenizer: Tokenizer, preprocessing: Mapping[str, Any], origins: Mapping[tuple[str, str], str]
) -> TokenStore | None:
    """Looks whether the store that would be written is there already.

    Args:
      folder: the store.
      tokenizer: what would make the ids.
      preprocessing: as for `StoreWriter`.
      origins: (task, split) to SHA-256 of its texts, in the order they would be written in.

    Returns:
      The store, or None if there is none.

    Raises:
      InputError: if there is a store with another content; names a difference.
    """
    folder = Path(folder)
    if not (folder / FILE_NAME).is_file():
        return None
    manifest = read_manifest(folder)
    check_made_with(folder, manifest, tokenizer, preprocessing)
    found = {(task, split): entry.origin for split, tasks in manifest.splits.items() for task, entry in tasks.items()}
    for task, split in dict.fromkeys([*origins, *found]):
        if found.get((task, split)) != origins.get((task, split)):
            raise InputError(
                f"token store {folder} holds other examples of task {task}, split {split!r} than asked for; remove it "
                "or cache into another folder"
            )
    if list(found) != list(origins):
        raise InputError(f"token store {folder} holds its tasks in another order; cache into another folder")
    return TokenStore(folder)


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


def _write(file: Path, content: bytes) -> None:
    with replacing(file) as partial:
        partial.write_bytes(content)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
