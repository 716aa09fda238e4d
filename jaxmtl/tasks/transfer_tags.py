"""Reads tagging tasks: named entities in columns, one word a line; and slots, one sentence a line in two files."""

import dataclasses
from collections.abc import Iterator, Set
from pathlib import Path

from jaxmtl.tasks.answers import TAGS, Answer, AnsweredExample
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.tasks.transfer_files import held_out, lines, make_task
from jaxmtl.types import InputError

CATEGORY = "sequence_labelling"
METRIC = "entity_f1"
DEFINITION = "Tag each word of the text."
DOCUMENT = "-DOCSTART-"
"""Word that starts a document in CoNLL's files; it is no text."""


@dataclasses.dataclass(frozen=True)
class TagSet:
    """Where a set's files are.

    Attributes:
      files: split to file or, for slots, to the folder of `seq.in` and `seq.out`; one split "all" is split here.
      prefix: what every word begins with that is no part of it.
    """

    files: dict[str, str]
    prefix: str = ""


def _crossner(domain: str) -> TagSet:
    names = {"train": "train", "validation": "dev", "test": "test"}
    return TagSet({split: f"crossner/{domain}/{name}.txt" for split, name in names.items()})


SETS = {
    "wnut17": TagSet({"train": "wnut17/train.conll", "validation": "wnut17/dev.conll", "test": "wnut17/test.conll"}),
    "wikigold": TagSet({"all": "wikigold/wikigold.conll"}),
    "anem": TagSet({"train": "anem/train.conll", "test": "anem/test.conll"}),
    "sec_filings": TagSet({"train": "sec_filings/train.conll", "test": "sec_filings/test.conll"}),
    "ncbi_disease": TagSet(
        {
            "train": "ncbi_disease/train.tsv",
            "validation": "ncbi_disease/devel.tsv",
            "test": "ncbi_disease/test.tsv",
        }
    ),
    "wikiann_en": TagSet(
        {"train": "wikiann_en/train", "validation": "wikiann_en/dev", "test": "wikiann_en/test"}, prefix="en:"
    ),
    "conll2003": _crossner("conll2003"),
    **{f"crossner_{name}": _crossner(name) for name in ("ai", "literature", "music", "politics", "science")},
    "atis": TagSet({"train": "slots_atis/train", "validation": "slots_atis/valid", "test": "slots_atis/test"}),
}
"""Task name to its files, inside `ner/`. Source: the data sets' own splits; Wikigold has none."""

Sentence = list[tuple[str, str]]
"""Words with their tags."""


def read(folder: Path, names: Set[str], validation: float, seed: int) -> Iterator[TaskSpec]:
    """Reads the sets that are there.

    Args:
      folder: the folder of the sets.
      names: names of sets to read.
      validation: part of a set without splits that is held out.
      seed: which part.

    Yields:
      Tasks; labels are all tags that occur in any split, sorted.

    Raises:
      InputError: if a line is bad.
    """
    for name, where in SETS.items():
        files = {split: folder / file for split, file in where.files.items()}
        files = {split: file for split, file in files.items() if file.exists()}
        if name not in names or not files:
            continue
        sentences = {split: list(_sentences(file, where.prefix)) for split, file in files.items()}
        labels = tuple(sorted({tag for part in sentences.values() for one in part for _, tag in one}))
        examples = {split: _examples(split, part) for split, part in sentences.items()}
        if "all" in examples:
            every = examples.pop("all")
            splits = held_out([one.inputs for one in every], validation, seed, name)
            examples = {split: [every[index] for index in indices] for split, indices in splits.items()}
        answer = Answer(kind=TAGS, labels=labels)
        yield make_task(name, category=CATEGORY, definition=DEFINITION, metric=METRIC, answer=answer, examples=examples)


def _examples(split: str, sentences: list[Sentence]) -> list[AnsweredExample]:
    made = []
    for number, sentence in enumerate(sentences):
        words, tags = (tuple(column) for column in zip(*sentence, strict=True))
        text, answer = " ".join(words), " ".join(tags)
        made.append(AnsweredExample(id=f"{split}-{number}", inputs=text, targets=(answer,), texts=words, answer=tags))
    return made


def _sentences(file: Path, prefix: str) -> Iterator[Sentence]:
    if file.is_dir():
        yield from _slots(file)
        return
    sentence: Sentence = []
    for where, line in lines(file):
        columns = line.split("\t") if "\t" in line else line.split(" ")
        if not line.strip():
            if sentence:
                yield sentence
            sentence = []
        elif columns[0] != DOCUMENT:
            word, tag = columns[0].removeprefix(prefix), columns[-1]
            if len(columns) < 2 or not word or not _is_tag(tag):
                raise InputError(f"{where}: {line[:60]!r}; expected a word and, last, a tag such as O or B-PER")
            sentence.append((word, tag))
    if sentence:
        yield sentence


def _slots(folder: Path) -> Iterator[Sentence]:
    for (where, words), (_, tags) in zip(lines(folder / "seq.in"), lines(folder / "seq.out"), strict=False):
        pair = words.split(), tags.split()
        if len(pair[0]) != len(pair[1]) or not all(map(_is_tag, pair[1])):
            raise InputError(f"{where}: {len(pair[0])} words and {len(pair[1])} tags; expected a tag for each word")
        if pair[0]:
            yield list(zip(*pair, strict=True))


def _is_tag(tag: str) -> bool:
    return tag == "O" or (tag[:2] in ("B-", "I-") and len(tag) > 2)
