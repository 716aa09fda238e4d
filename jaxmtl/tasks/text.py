"""Plain text as a task for unsupervised training: each document is an example with the text as its only target.

What is made of the texts (spans to fill in, prefixes to continue) is an objective's choice when they are cached, see
`jaxmtl.data.text_objectives`.
"""

import collections
import dataclasses
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jaxmtl.tasks.documents import Document, LocalFiles, Reader
from jaxmtl.tasks.fewshot import stable_hash
from jaxmtl.tasks.mapped_examples import mapped_examples
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import Example, InputError

CATEGORY = "Text"
NAME = "text"
_SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}
_log = logging.getLogger(__name__)

Split = Callable[[Document], str]
"""Says which split a document belongs to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashSplit:
    """Puts documents into "train" or "validation" by hash of (seed, text): the same text always into the same one.

    Attributes:
      validation: share of the documents that are for validation.
      seed: the data seed.

    Raises:
      InputError: if the share is not in 0 ... 1.
    """

    validation: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise InputError(f"share of documents for validation is {self.validation}; expected 0 or more, below 1")

    def __call__(self, document: Document) -> str:
        """Returns "train" or "validation"."""
        place = stable_hash(self.seed, "text split", document.text) / 2**64
        return "validation" if place < self.validation else "train"


def split_of_file(document: Document) -> str:
    """Takes the split from the file's (or hub split's) name: `wiki.valid.txt`, `c4-validation.00000-of-00008.json.gz`.

    Args:
      document: the document.

    Returns:
      "train", "validation" or "test".

    Raises:
      InputError: if the name holds none of train, valid, validation, dev and test as a word, or several.
    """
    found = {_SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", document.source.lower()) if word in _SPLIT_NAMES}
    if len(found) != 1:
        raise InputError(
            f"text file {document.source!r}: expected exactly one of {', '.join(_SPLIT_NAMES)} in its name"
        )
    return found.pop()


def load(
    data_dir: str | Path | None,
    *,
    reader: Reader | None = None,
    split: Split | None = None,
    max_documents: int | None = None,
    name: str = NAME,
) -> dict[str, TaskSpec]:
    """Reads text as one task. Documents stay on disk, mapped into memory.

    Args:
      data_dir: what the reader takes: a file, a folder, a hub id.
      reader: `documents.LocalFiles(...)`, the default, or `documents.HubDataset(...)`.
      split: `HashSplit(...)`, the default, or `split_of_file`, or a function of a document.
      max_documents: reading stops after so many documents with text; None to read all.
      name: name of the task.

    Returns:
      The name to the task. Documents without text (blank ones) are left out; their number is logged and stands in
      `metadata` as `num_blank`.

    Raises:
      InputError: if something is missing, empty or broken; names the file, the line and what was expected.
    """
    if max_documents is not None and max_documents < 1:
        raise InputError(f"limit of documents of {data_dir} is {max_documents}; expected 1 or more, or None for all")
    num_blank = itertools.count()
    found = (reader or LocalFiles()).documents(data_dir)
    documents = itertools.islice(_with_text(found, num_blank), max_documents)
    splits: dict[str, list[int]] = collections.defaultdict(list)
    examples = mapped_examples(_examples(documents, split or HashSplit(), splits))
    blank = next(num_blank)
    if not examples:
        raise InputError(f"{data_dir}: {blank} documents, none of them with text")
    if blank:
        _log.warning("%s: %d documents without text are left out, %d stay", data_dir, blank, len(examples))
    task = TaskSpec(
        name=name,
        category=CATEGORY,
        definition="",
        examples=examples,
        splits={part: tuple(splits[part]) for part in sorted(splits, key=_split_order)},
        metadata={"num_blank": blank},
    )
    return {name: task}


def _with_text(documents: Iterable[Document], num_blank: Iterator[int]) -> Iterator[Document]:
    for document in documents:
        if document.text.strip():
            yield document
        else:
            next(num_blank)


def _examples(documents: Iterable[Document], split: Split, splits: dict[str, list[int]]) -> Iterator[Example]:
    for index, document in enumerate(documents):
        splits[split(document)].append(index)
        yield Example(id=document.id, inputs="", targets=(document.text.strip(),))


def _split_order(split: str) -> tuple[bool, str]:
    return split != "train", split
