"""What a token store says about itself: which vocabulary and preprocessing made it, and what each file holds."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxmtl.tasks.spec import check_task_name
from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import InputError

FORMAT = "jaxmtl token store"
VERSION = 1
FILE_NAME = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The vocabulary behind the ids of a store.

    Attributes:
      fingerprint: SHA-256 of what decides the ids.
      size: ids are 0 ... size - 1.
      pad: id that fills up batches.
      eos: id that ends a text.
    """

    fingerprint: str
    size: int
    pad: int
    eos: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        """Describes a tokenizer as a store keeps it.

        Args:
          tokenizer: what makes the ids.

        Returns:
          Its fingerprint, size and special ids.
        """
        return cls(
            fingerprint=tokenizer.fingerprint,
            size=tokenizer.vocab_size,
            pad=tokenizer.pad_token_id,
            eos=tokenizer.eos_token_id,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of a store: one split of one task.

    Attributes:
      file: path inside the store, `<split>/<task>.arrow`.
      sha256: of the file's content.
      bytes: the file's size.
      num_examples: rows.
      num_input_tokens: ids of all inputs together.
      num_target_tokens: ids of all targets together.
      max_input_tokens: ids of the longest input.
      max_target_tokens: ids of the longest target.
      category: the task's category.
      metric: the task's headline metric.
      origin: SHA-256 of the texts that it was made from.
      num_instruction_tokens: ids of all instructions together.
      max_instruction_tokens: ids of the longest instruction; 0 in a file without instructions.
      answer: what targets are: "" for token ids; "class", "tags" or "span", see `jaxmtl.tasks.answers`.
      labels: names of the labels whose ids the targets hold.
    """

    file: str
    sha256: str
    bytes: int
    num_examples: int
    num_input_tokens: int
    num_target_tokens: int
    max_input_tokens: int
    max_target_tokens: int
    category: str
    metric: str
    origin: str
    num_instruction_tokens: int = 0
    max_instruction_tokens: int = 0
    answer: str = ""
    labels: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a store says about itself.

    Attributes:
      vocabulary: the vocabulary of the ids.
      preprocessing: JSON values that decide what the model reads: the prompt and all its options, the length limits.
      splits: split name to task name to its file; the order of tasks is the order of task ids.
    """

    vocabulary: Vocabulary
    preprocessing: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, Entry]]

    def to_json(self) -> str:
        """Returns the manifest as JSON text."""
        head = {"format": FORMAT, "version": VERSION}
        return json.dumps({**head, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks the manifest of a finished store.

    Args:
      folder: the store.

    Returns:
      The manifest.

    Raises:
      InputError: if there is no finished store, or its manifest is of another version or damaged.
    """
    file = folder / FILE_NAME
    if not folder.is_dir():
        raise InputError(f"token store {folder} does not exist; make one with `jaxmtl cache`")
    if not file.is_file():
        raise InputError(f"{folder} is no finished token store (it has no {FILE_NAME}); make one with `jaxmtl cache`")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"token store manifest {file} cannot be read ({error}); remove the folder and cache again"
        ) from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f"{file} does not describe a token store; expected format {FORMAT!r}")
    if value.get("version") != VERSION:
        raise InputError(
            f"{file}: version {value.get('version')!r}, expected {VERSION}; remove the folder and cache again"
        )
    try:
        return _manifest(value, file)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"token store manifest {file} is damaged ({error}); remove the folder and cache again"
        ) from error


def differences(found: object, asked: object, where: str = "") -> Iterator[tuple[str, object, object]]:
    """Compares two JSON values.

    Args:
      found: what a store was made with.
      asked: what is asked of it.
      where: path of the values, for the result.

    Yields:
      (path, found value, asked value) for each leaf that differs; an absent one is None.
    """
    if isinstance(found, Mapping) and isinstance(asked, Mapping):
        for name in dict.fromkeys([*found, *asked]):
            yield from differences(found.get(name), asked.get(name), f"{where}.{name}" if where else str(name))
    elif found != asked:
        yield where, found, asked


def check_split_name(name: str, where: str) -> str:
    """Checks that a split's name is safe as a folder name of a store.

    Args:
      name: the split.
      where: what the name comes from, for the message.

    Returns:
      The name.

    Raises:
      InputError: if it is not.
    """
    if name == TOKENIZER_FOLDER:
        raise InputError(f"{where}: a split may not be called {name!r}; rename it")
    return check_task_name(name, f"{where}, split")


def file_of(split: str, task: str) -> str:
    """Returns the path of a task split's file inside a store."""
    return f"{split}/{task}.arrow"


def _manifest(value: dict[str, Any], file: Path) -> Manifest:
    splits: dict[str, dict[str, Entry]] = {}
    for split, tasks in value["splits"].items():
        check_split_name(split, str(file))
        # Paths are built from checked names, never taken from the file.
        splits[split] = {
            check_task_name(task, str(file)): Entry(**{**entry, "file": file_of(split, task)})
            for task, entry in tasks.items()
        }
    for entry in (entry for tasks in splits.values() for entry in tasks.values()):
        _check_counts(entry)
    vocabulary = Vocabulary(**value["vocabulary"])
    if not isinstance(value["preprocessing"], dict):
        raise TypeError("preprocessing is no object")
    return Manifest(vocabulary=vocabulary, preprocessing=value["preprocessing"], splits=splits)


def _check_counts(entry: Entry) -> None:
    for field in dataclasses.fields(Entry):
        value = getattr(entry, field.name)
        if type(value) is not field.type or (field.type is int and value < 0):
            raise TypeError(f"{entry.file}: {field.name} is {value!r}")
