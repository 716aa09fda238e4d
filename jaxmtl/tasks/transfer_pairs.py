"""Reads classification tasks of GLUE and SuperGLUE: rows of JSON that write one or two texts into one field."""

import dataclasses
import json
import re
from collections.abc import Iterator, Set
from pathlib import Path

from jaxmtl.tasks.answers import CLASS, Answer, AnsweredExample
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.tasks.transfer_files import json_lines, make_task
from jaxmtl.types import InputError

CATEGORY = "classification"
NO_LABEL = "-"
"""What rows have whose annotators did not agree; they are left out, as GLUE does."""


@dataclasses.dataclass(frozen=True)
class PairSet:
    r"""How a set writes its texts.

    Attributes:
      folder: name of its folder.
      pattern: regular expression of the field, whose groups are what the texts are made of.
      texts: templates of the texts that the model reads, filled with the groups.
      definition: what to do.
      metric: name of its headline metric.
    """

    folder: str
    pattern: str
    texts: tuple[str, ...]
    definition: str
    metric: str = "accuracy"


_SENTENCES = r"sentence 1: (.*)\nsentence 2: (.*)"
_BOTH = ("{0}", "{1}")
_ENTAILMENT = "Does sentence 1 entail sentence 2?"
SETS = {
    "rte": PairSet("RTE", _SENTENCES, _BOTH, _ENTAILMENT),
    "mnli": PairSet("MNLI", _SENTENCES, _BOTH, _ENTAILMENT),
    "cb": PairSet("CB", _SENTENCES, _BOTH, _ENTAILMENT, "macro_f1"),
    "qqp": PairSet("QQP", r"first sentence: (.*)\nsecond sentence: (.*)", _BOTH, "Do both questions ask the same?"),
    "sst2": PairSet("SST-2", r"Text: (.*)", ("{0}",), "Is the text good or bad about its subject?"),
    "boolq": PairSet("BoolQA", r"question: (.*?)\npassage: (.*)", _BOTH, "Answer the question from the passage."),
    "wic": PairSet("WiC", r"word: (.*?)\n(.*?)\n(.*)", ("{0}: {1}", "{2}"), "Does the word mean the same in both?"),
    "copa": PairSet(
        "COPA", r"(Which .*?) Choose one between A and B\.\n(A: .*)\n(B: .*)", ("{0}", "{1} {2}"), "Choose A or B."
    ),
    "multirc": PairSet(
        "MultiRC",
        r"paragraph: (.*)\nquestion: (.*)\ncandidate answer: (.*)",
        ("{0}", "{1} {2}"),
        "Is the answer right?",
    ),
}
"""Task name to its form, inside `glue_superglue/`. WiC and COPA as one sequence of two texts: methods 5.2."""


def read(folder: Path, names: Set[str], validation: float, seed: int) -> Iterator[TaskSpec]:
    """Reads the sets that are there.

    Args:
      folder: the folder of the sets.
      names: names of sets to read.
      validation: not used: the sets' second file is the validation split of GLUE.
      seed: not used.

    Yields:
      Tasks; the labels are those of `labels.json`, in its order.

    Raises:
      InputError: if a row is bad.
    """
    for name, form in SETS.items():
        home = folder / form.folder
        if name not in names or not home.is_dir():
            continue
        answer = Answer(kind=CLASS, labels=_labels(home / "labels.json"))
        files = {"train": home / "train.jsonl", "validation": home / "test.jsonl"}
        rows = {split: list(_rows(file, form, answer)) for split, file in files.items() if file.exists()}
        examples = {split: _examples(split, part) for split, part in rows.items()}
        yield make_task(
            name,
            category=CATEGORY,
            definition=form.definition,
            metric=form.metric,
            answer=answer,
            examples=examples,
            left_out=sum(label == NO_LABEL for part in rows.values() for _, label in part),
        )


def _labels(file: Path) -> tuple[str, ...]:
    try:
        return tuple(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); expected a JSON list of label names") from error


def _rows(file: Path, form: PairSet, answer: Answer) -> Iterator[tuple[tuple[str, ...], str]]:
    pattern = re.compile(form.pattern, re.DOTALL)
    for where, row in json_lines(file, ("sentence", "label")):
        found, label = pattern.fullmatch(row["sentence"]), row["label"]
        if found is None:
            raise InputError(f"{where}: {row['sentence'][:60]!r}; expected the form {form.pattern}")
        if label not in (*answer.labels, NO_LABEL):
            raise InputError(f"{where}: label {label!r}; expected one of {', '.join(answer.labels)}")
        yield tuple(text.format(*(group.strip() for group in found.groups())) for text in form.texts), label


def _examples(split: str, rows: list[tuple[tuple[str, ...], str]]) -> list[AnsweredExample]:
    return [
        AnsweredExample(id=f"{split}-{number}", inputs="\n".join(texts), targets=(label,), texts=texts, answer=label)
        for number, (texts, label) in enumerate(rows)
        if label != NO_LABEL
    ]
