"""Reads a token store: one memory-mapped Arrow file per task split, opened when first asked for."""

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jaxmtl.feed.manifest import TOKENIZER_FOLDER, Entry, Manifest, Vocabulary, differences, read_manifest
from jaxmtl.tokenizers import Tokenizer, load_tokenizer
from jaxmtl.types import InputError, Progress, unknown_name

SCHEMA = pa.schema(
    [
        ("inputs", pa.large_list(pa.int32())),
        ("targets", pa.large_list(pa.int32())),
        ("id", pa.large_string()),
        ("references", pa.large_list(pa.large_string())),
    ]
)
INSTRUCTED_SCHEMA = SCHEMA.append(pa.field("instructions", pa.large_list(pa.int32())))
"""Where each example also has something for a hypernetwork to read."""
CHOICES = pa.field("choices", pa.large_list(pa.large_string()))
"""Last of the columns where each example has answer choices."""
_SCHEMAS = [SCHEMA, INSTRUCTED_SCHEMA, SCHEMA.append(CHOICES), INSTRUCTED_SCHEMA.append(CHOICES)]


class Examples:
    """The rows of one task split; token ids are views of the mapped file, nothing is copied.

    Args:
      file: an Arrow file of one record batch of `SCHEMA` or `INSTRUCTED_SCHEMA`, with or without `CHOICES` behind it.

    Attributes:
      starts: where in `file_ids` the inputs of all rows begin, one behind the other, and where their targets do.
      has_instructions: whether rows also have something for a hypernetwork to read.

    Raises:
      InputError: if the file is missing or not what it should be.
    """

    def __init__(self, file: Path) -> None:
        self._batch, self._file = _map_batch(file)
        self._input_ids, self._input_ends = _ragged_views(self._batch.column(0), file)
        self._target_ids, self._target_ends = _ragged_views(self._batch.column(1), file)
        columns = (self._input_ids, self._target_ids)
        self.starts = tuple(_place_in(self._file, column, file) for column in columns)
        self.has_instructions = "instructions" in self._batch.schema.names
        if self.has_instructions:
            self._instruction_ids, self._instruction_ends = _ragged_views(self._batch.column(4), file)

    def __len__(self) -> int:
        return self._batch.num_rows

    def file_ids(self) -> np.ndarray:
        """Returns the whole file as int32, a view of it.

        Where tasks are many, a reader of rows waits for the arrays that it looks up: one for a task, not two, and made
        at once with those of the other tasks, so that they lie together.
        """
        return np.frombuffer(self._file, np.int32, self._file.size // np.int32().itemsize)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns one example's ids.

        Args:
          index: 0 ... len - 1.

        Returns:
          Inputs int32 [s] and targets int32 [t], views of the file.
        """
        first, end = self._input_ends[index], self._input_ends[index + 1]
        start, stop = self._target_ends[index], self._target_ends[index + 1]
        return self._input_ids[first:end], self._target_ids[start:stop]

    def instruction(self, index: int) -> np.ndarray:
        """Returns what a hypernetwork reads for one example; only where the manifest counts instructions.

        Args:
          index: 0 ... len - 1.

        Returns:
          int32 [i], a view of the file.
        """
        return self._instruction_ids[self._instruction_ends[index] : self._instruction_ends[index + 1]]

    def rows(self, indices: Iterable[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Returns the ids of several examples.

        Args:
          indices: each 0 ... len - 1, in any order.

        Returns:
          A list of inputs and a list of targets, each as in `row`.
        """
        found = [self.row(index) for index in indices]
        return [inputs for inputs, _ in found], [targets for _, targets in found]

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the number of ids of every input and of every target, int64 [rows] each."""
        return np.diff(self._input_ends), np.diff(self._target_ends)

    @functools.cached_property
    def ids(self) -> list[str]:
        """The examples' own ids."""
        return self._batch.column(2).to_pylist()

    @functools.cached_property
    def references(self) -> list[list[str]]:
        """All reference texts of every example."""
        return self._batch.column(3).to_pylist()

    @functools.cached_property
    def choices(self) -> list[list[str]] | None:
        """The answer choices of every example; None where answers are open."""
        return self._batch.column(CHOICES.name).to_pylist() if CHOICES.name in self._batch.schema.names else None


class TokenStore:
    """A finished token store. Opening reads the manifest and looks at file sizes; rows are read when asked for.

    Args:
      folder: the store.

    Raises:
      InputError: if it is no finished store, or a file is missing or of another size than when it was written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        self._opened: dict[tuple[str, str], Examples] = {}
        self._ends: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for split in self.manifest.splits:
            for entry in self.manifest.splits[split].values():
                self._check_size(entry)

    def task_names(self, split: str) -> list[str]:
        """Returns the tasks of a split; a task's place in the list is its task id.

        Args:
          split: name of a split.

        Returns:
          Task names, in the order they were cached in.

        Raises:
          UnknownNameError: if the store has no such split.
        """
        return list(self._tasks(split))

    def sizes(self, split: str) -> np.ndarray:
        """Returns the number of examples of each task of a split.

        Args:
          split: name of a split.

        Returns:
          int64 [N], in the order of `task_names`.

        Raises:
          UnknownNameError: if the store has no such split.
        """
        return np.array([entry.num_examples for entry in self._tasks(split).values()], np.int64)

    def entry(self, task: str, split: str) -> Entry:
        """Returns what the manifest says about a task split.

        Args:
          task: name of a task.
          split: name of a split.

        Returns:
          The entry.

        Raises:
          UnknownNameError: if the store has no such split, or the split no such task.
        """
        tasks = self._tasks(split)
        if task not in tasks:
            raise unknown_name(f"task of split {split!r} of token store {self.folder}", task, tasks)
        return tasks[task]

    def examples(self, task: str, split: str) -> Examples:
        """Maps the file of a task split, once.

        Args:
          task: name of a task.
          split: name of a split.

        Returns:
          Its rows.

        Raises:
          UnknownNameError: if there is no such task or split.
          InputError: if the file is damaged.
        """
        key = (task, split)
        if key not in self._opened:
            entry = self.entry(task, split)
            examples = Examples(self.folder / entry.file)
            if len(examples) != entry.num_examples:
                raise _damaged(self.folder / entry.file, f"{len(examples)} rows, expected {entry.num_examples}")
            if examples.has_instructions != (entry.max_instruction_tokens > 0):
                raise _damaged(self.folder / entry.file, "instructions and their count do not go together")
            self._opened[key] = examples
        return self._opened[key]

    def ends(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Looks up where rows would end if all tasks' were one behind the other; maps all files of the split, once.

        Args:
          split: name of a split.

        Returns:
          Ends of inputs and of targets, int64 [rows of all tasks + 1] each, the first of them 0.

        Raises:
          UnknownNameError: if the store has no such split.
          InputError: if a file is damaged.
        """
        if split not in self._ends:
            pairs = [self.examples(task, split).lengths() for task in self._tasks(split)]
            inputs, targets = (np.cumsum(np.concatenate([[0], *lengths])) for lengths in zip(*pairs, strict=True))
            self._ends[split] = inputs, targets
        return self._ends[split]

    def lengths(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns how long all rows of a split are: inputs and targets, int64 [rows of all tasks] each.

        Args:
          split: name of a split.

        Raises:
          UnknownNameError: if the store has no such split.
          InputError: if a file is damaged.
        """
        inputs, targets = self.ends(split)
        return np.diff(inputs), np.diff(targets)

    def tokenizer(self) -> Tokenizer:
        """Loads the tokenizer that the store was made with.

        Returns:
          The tokenizer.

        Raises:
          InputError: if its files are missing or changed.
        """
        tokenizer = load_tokenizer(self.folder / TOKENIZER_FOLDER)
        if tokenizer.fingerprint != self.manifest.vocabulary.fingerprint:
            raise _damaged(self.folder / TOKENIZER_FOLDER, "not the vocabulary that the manifest names")
        return tokenizer

    def check(
        self,
        *,
        vocabulary: Tokenizer | Vocabulary | None = None,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:
        """Refuses the store if it was made with anything else than what is asked for.

        Args:
          vocabulary: what the model reads with; None if it does not matter.
          preprocessing: what `tokenise.describe` returns; None if it does not matter.

        Raises:
          InputError: if something differs; names each field with both values.
        """
        check_made_with(self.folder, self.manifest, vocabulary, preprocessing)

    def verify(self, progress: Progress | None = None) -> None:
        """Reads every file and compares its checksum with the manifest's.

        Args:
          progress: called with (files done, files in all, file).

        Raises:
          InputError: if a file has changed or cannot be read; names it and what to do.
        """
        entries = [entry for tasks in self.manifest.splits.values() for entry in tasks.values()]
        for number, entry in enumerate(entries, start=1):
            self._check_size(entry)
            if _checksum(self.folder / entry.file) != entry.sha256:
                raise _damaged(self.folder / entry.file, "its checksum is not the manifest's")
            if progress is not None:
                progress(number, len(entries), entry.file)
        self.tokenizer()

    def _tasks(self, split: str) -> Mapping[str, Entry]:
        if split not in self.manifest.splits:
            raise unknown_name(f"split of token store {self.folder}", split, self.manifest.splits)
        return self.manifest.splits[split]

    def _check_size(self, entry: Entry) -> None:
        try:
            size = os.stat(self.folder / entry.file).st_size
        except OSError as error:
            raise _damaged(self.folder / entry.file, error.strerror or str(error)) from error
        if size != entry.bytes:
            raise _damaged(self.folder / entry.file, f"{size} bytes, expected {entry.bytes}")


def check_made_with(
    folder: Path,
    manifest: Manifest,
    vocabulary: Tokenizer | Vocabulary | None,
    preprocessing: Mapping[str, Any] | None,
) -> None:
    """Compares a manifest with what is asked for, see `TokenStore.check`.

    Args:
      folder: the store, for the message.
      manifest: what the store says about itself.
      vocabulary: what is asked for; None if it does not matter.
      preprocessing: what is asked for; None if it does not matter.

    Raises:
      InputError: if something differs; names each field with both values.
    """
    found: list[tuple[str, object, object]] = []
    if vocabulary is not None:
        asked = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary.of(vocabulary)
        found += differences(vars(manifest.vocabulary), vars(asked), "vocabulary")
    if preprocessing is not None:
        found += differences(manifest.preprocessing, preprocessing, "preprocessing")
    if found:
        text = "; ".join(f"{where} is {old!r}, asked for {new!r}" for where, old, new in found)
        raise InputError(f"token store {folder} was made differently: {text}; cache into another folder")


def _map_batch(file: Path) -> tuple[pa.RecordBatch, pa.Buffer]:
    """Maps a file: its record batch, and all of its bytes."""
    try:
        # The mapping outlives the closed file, so thousands of tasks need no open file each.
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_file(mapped) as reader:
            if reader.num_record_batches != 1 or reader.schema not in _SCHEMAS:
                raise _damaged(file, "not one record batch of the expected columns")
            batch = reader.get_batch(0)
            batch.validate()  # lengths only: nothing is read that is not asked for
            mapped.seek(0)
            return batch, mapped.read_buffer()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, " ".join(str(error).split())) from error


def _ragged_views(column: pa.LargeListArray, file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        # Arrow's own `to_numpy` imports pandas first, which takes most of a second.
        values, ends = np.from_dlpack(column.values), np.from_dlpack(column.offsets)
    except pa.ArrowException as error:
        raise _damaged(file, " ".join(str(error).split())) from error
    if ends[0] != 0 or ends[-1] != len(values) or (np.diff(ends) < 0).any():
        raise _damaged(file, "row ends that do not fit the ids")
    return values, ends


def _place_in(content: pa.Buffer, column: np.ndarray, file: Path) -> int:
    """Returns where in a mapped file a column of ids begins, in ids."""
    place, rest = divmod(column.ctypes.data - content.address, column.itemsize)
    if len(column) and (rest or not 0 <= place <= content.size // column.itemsize - len(column)):
        raise _damaged(file, "ids that are not in a multiple of four bytes")
    return place


def _checksum(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise _damaged(file, error.strerror or str(error)) from error


def _damaged(file: Path, reason: str) -> InputError:
    # Caching opens a store that is there instead of making it again, so it must go first.
    return InputError(
        f"token store file {file} is damaged or missing ({reason}); remove the store's folder and make it again with "
        "`jaxmtl cache` (`jaxmtl info STORE` checks a whole store)"
    )
