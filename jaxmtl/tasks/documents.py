"""Readers of plain text: `.txt` files, JSON lines as C4 is published, and data sets of the Hugging Face hub.

Everything is a stream: one document is in memory at a time, and what nobody asks for is not read.
"""

import dataclasses
import gzip
import itertools
import json
import re
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxmtl.types import InputError

TEXT_SUFFIXES = (".txt", ".txt.gz")
JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_TITLE = re.compile(r"= (?!= ).*(?<! =) =")
_HEADING = re.compile(r"(= )+.*( =)+")

Lines = Iterable[tuple[int, str]]
"""(line number from 1, the line without its end)."""
Cut = Callable[[Lines], Iterator[tuple[int, str]]]
"""Lines of a file -> (number of its first line, text) of each document."""


@dataclasses.dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
      id: where it is from, such as "wiki.txt:12"; unique in its collection.
      text: the text.
      source: the file's name, or the hub data set's split.
    """

    id: str
    text: str
    source: str


class Reader(Protocol):
    """Reads documents; a frozen dataclass."""

    def documents(self, data_dir: str | Path | None) -> Iterator[Document]:
        """Reads the documents in their order; raises InputError if something is missing or broken."""
        ...


def articles(lines: Lines) -> Iterator[tuple[int, str]]:
    """Cuts a file in WikiText's form before every title, ` = Title = ` between blank lines.

    Args:
      lines: the file's lines.

    Yields:
      First line and text of each article, its title and headings included.

    Raises:
      InputError: if there is no title.
    """
    start, kept, before, num_titles = 1, [], "", 0
    for (number, line), (_, after) in itertools.pairwise(itertools.chain(lines, [(0, "")])):
        if _TITLE.fullmatch(line.strip()) and not before.strip() and not after.strip():
            if any(map(str.strip, kept)):
                yield start, "\n".join(kept)
            start, kept, num_titles = number, [], num_titles + 1
        kept.append(line)
        before = line
    if not num_titles:
        raise InputError("no line such as ' = Title = ' between blank lines; choose another cut than articles")
    yield start, "\n".join(kept)


def paragraphs(lines: Lines) -> Iterator[tuple[int, str]]:
    """Cuts a file into its lines that are not blank; headings of WikiText's form go with the line after them.

    Args:
      lines: the file's lines.

    Yields:
      First line and text of each paragraph.
    """
    start, kept = 0, []
    for number, line in lines:
        if not line.strip():
            continue
        start = start if kept else number
        kept.append(line)
        if not _HEADING.fullmatch(line.strip()):
            yield start, "\n".join(kept)
            kept = []
    if kept:
        yield start, "\n".join(kept)


def whole(lines: Lines) -> Iterator[tuple[int, str]]:
    """Leaves a file in one piece.

    Args:
      lines: the file's lines.

    Yields:
      1 and the whole text.
    """
    yield 1, "\n".join(line for _, line in lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalFiles:
    """Reads a file, or the files of a folder in the order of their names; what a file is, its name's ending tells.

    Attributes:
      cut: how `.txt` files are cut into documents: `articles`, `paragraphs`, `whole` or a function like them.
      field: the key that holds the text in JSON lines.
      pattern: which files of a folder are read, such as "c4-train.*.json.gz"; by default all but hidden ones.
    """

    cut: Cut = articles
    field: str = "text"
    pattern: str = "*"

    def documents(self, data_dir: str | Path | None) -> Iterator[Document]:
        """Reads the documents.

        Args:
          data_dir: a file or a folder.

        Yields:
          The documents; ids are the file's path inside the folder, ":" and the number of the document's first line.

        Raises:
          InputError: if something is missing, empty or broken; names the file, the line and what was expected.
        """
        root, files = self._files(data_dir)
        for file in files:
            name = file.relative_to(root).as_posix()
            if not file.stat().st_size:
                raise InputError(f"{file} is empty; expected at least one document")
            for number, text in self._texts(file):
                yield Document(f"{name}:{number}", _unicode(text, f"{file} line {number}"), name)

    def _texts(self, file: Path) -> Iterator[tuple[int, str]]:
        if file.name.endswith(JSON_SUFFIXES):
            yield from ((number, self._text_of(file, number, line)) for number, line in _lines(file) if line.strip())
            return
        try:
            yield from self.cut(_lines(file))
        except InputError as error:
            raise error if str(file) in str(error) else InputError(f"{file}: {error}") from error

    def _text_of(self, file: Path, number: int, line: str) -> str:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{file} line {number}: not JSON ({str(error)[:80]}); expected one object a line"
            ) from error
        return _field(row, self.field, f"{file} line {number}")

    def _files(self, data_dir: str | Path | None) -> tuple[Path, list[Path]]:
        path = Path(data_dir) if data_dir is not None else None
        if path is not None and path.is_file():
            files, root = [path], path.parent
        elif path is not None and path.is_dir():
            files = sorted(f for f in path.glob(self.pattern) if f.is_file() and not f.name.startswith("."))
            root = path
        else:
            raise InputError(f"text {str(data_dir)!r} is not there; expected a file or a folder of files")
        if not files:
            raise InputError(f"folder {str(path)!r} has no file {self.pattern!r}; expected text or JSON lines")
        for file in files:
            if not file.name.endswith(TEXT_SUFFIXES + JSON_SUFFIXES):
                known = ", ".join(TEXT_SUFFIXES + JSON_SUFFIXES)
                raise InputError(f"{file} ends in none of {known}; choose files by `pattern`")
        return root, files


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubDataset:
    """Reads a data set of the Hugging Face hub, or a folder in its form, through the `datasets` library.

    Attributes:
      config: name of the configuration, such as "en" of `allenai/c4`; None for the only one.
      splits: the data set's splits to read, one after another.
      field: the column that holds the text.
    """

    config: str | None = None
    splits: Sequence[str] = ("train",)
    field: str = "text"

    def documents(self, data_dir: str | Path | None) -> Iterator[Document]:
        """Reads the documents; a remote data set is read as a stream, not downloaded as a whole.

        Args:
          data_dir: a hub id such as "allenai/c4", or a folder.

        Yields:
          The documents; ids are the split, ":" and the row's number from 0.

        Raises:
          InputError: if `datasets` is not installed, the data set cannot be read, or a row has no text.
        """
        for split in self.splits:
            name = f"data set {str(data_dir)!r}, split {split!r}"
            for number, row in enumerate(self._rows(str(data_dir), split, name)):
                place = f"{name}, row {number}"
                yield Document(f"{split}:{number}", _unicode(_field(row, self.field, place), place), split)

    def _rows(self, data_dir: str, split: str, name: str) -> Iterator[Any]:
        try:
            import datasets
        except ImportError as error:
            raise InputError(f"{name}: needs the library `datasets`; pip install 'jaxmtl[data]'") from error
        try:
            yield from datasets.load_dataset(data_dir, self.config, split=split, streaming=True)
        except Exception as error:  # `datasets` and what it downloads with have no common class
            cause = " ".join(str(error).split())[:200]
            raise InputError(f"{name} cannot be read ({type(error).__name__}: {cause})") from error


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    opener: Any = gzip.open if file.name.endswith(".gz") else open
    number = 0
    try:
        with opener(file, "rb") as source:
            for number, line in enumerate(source, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        at = number if isinstance(error, UnicodeDecodeError) else number + 1
        kind = "gzip-compressed text in UTF-8" if opener is gzip.open else "text in UTF-8"
        raise InputError(f"{file} line {at}: cannot be read ({str(error)[:120]}); expected {kind}") from error


def _field(row: object, field: str, place: str) -> str:
    if not isinstance(row, dict):
        raise InputError(f"{place}: found {type(row).__name__} {reprlib.repr(row)}, expected an object with {field!r}")
    if field not in row:
        raise InputError(f"{place}: no field {field!r}; found {', '.join(map(str, list(row)[:8])) or 'none'}")
    if not isinstance(row[field], str):
        found = f"{type(row[field]).__name__} {reprlib.repr(row[field])}"
        raise InputError(f"{place}: field {field!r}: found {found}, expected a text")
    return row[field]


def _unicode(text: str, place: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: the text holds half a surrogate pair, which is no Unicode") from error
    return text
