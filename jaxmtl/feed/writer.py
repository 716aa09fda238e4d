"""Writes a token store: into a folder beside it, task by task, put in place in one move when everything is there.

A run that was stopped leaves that folder behind; the next one keeps each task split that is still what it would
write, by vocabulary, preprocessing and the texts it was made from.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from jaxmtl.feed.manifest import (
    FILE_NAME,
    TOKENIZER_FOLDER,
    Entry,
    Manifest,
    Vocabulary,
    read_manifest,
)
from jaxmtl.feed.parts import Part
from jaxmtl.feed.store import TokenStore, check_made_with
from jaxmtl.feed.unfinished import Rows, UnfinishedParts, write_file
from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import InputError

LOCK_FILE = "lock"


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
        self.parts = UnfinishedParts(
            folder=self.unfinished, vocabulary=Vocabulary.of(tokenizer), preprocessing=dict(preprocessing)
        )
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

    def reuse(self, part: Part) -> bool:
        """Takes over a task split that an earlier, stopped run finished.

        Args:
          part: the task split as it would be made now.

        Returns:
          Whether there was one; if not, `add` it.
        """
        entry = self.parts.finished(part)
        if entry is None:
            return False
        self._entries.setdefault(part.split, {})[part.task] = entry
        return True

    def add(self, part: Part, rows: Rows) -> Entry:
        """Writes the file of one task split.

        Args:
          part: the task split.
          rows: its tokenised examples.

        Returns:
          What the manifest will say about it.

        Raises:
          InputError: if the split is empty, an id is outside the vocabulary, or the disk is full.
        """
        with self._one_line_errors():
            entry = self.parts.write(part, rows)
        self._entries.setdefault(part.split, {})[part.task] = entry
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
        manifest = Manifest(
            vocabulary=self.parts.vocabulary, preprocessing=self.parts.preprocessing, splits=self._entries
        )
        kept = {entry.file for tasks in self._entries.values() for entry in tasks.values()}
        with self._one_line_errors():
            self._tokenizer.save(self.unfinished / TOKENIZER_FOLDER)
            write_file(self.unfinished / FILE_NAME, manifest.to_json().encode())
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

    def _keep_or_clear(self) -> None:
        """Throws away what an earlier run left, unless it was made with the same vocabulary and preprocessing."""
        if self.parts.was_begun():
            return
        for path in [path for path in self.unfinished.iterdir() if path.name != LOCK_FILE]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.parts.begin()

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


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
