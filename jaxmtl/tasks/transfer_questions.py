"""Reads extractive question answering: SQuAD's JSON, SubjQA's CSV, QED's JSON lines."""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator, Set
from pathlib import Path

from jaxmtl.tasks.answers import SPAN, Answer, AnsweredExample
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.tasks.transfer_files import held_out, json_lines, make_task
from jaxmtl.types import InputError

CATEGORY = "question_answering"
METRIC = "squad_f1"
DEFINITION = "Answer the question with words of the context."
_INDICES = re.compile(r"\((\d+), (\d+)\)")


def squad(file: Path) -> Iterator[AnsweredExample]:
    """Reads SQuAD 1.1's form.

    Args:
      file: the file.

    Yields:
      One example per question.

    Raises:
      InputError: if the file has another form, or an answer does not stand where it says.
    """
    try:
        for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                for row in paragraph["qas"]:
                    spans = [(one["answer_start"], one["text"]) for one in row["answers"]]
                    yield _example(str(file), row["id"], row["question"], paragraph["context"], spans)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{file}: is not in the form of SQuAD 1.1 ({type(error).__name__}: {error})") from error


def subjqa(file: Path) -> Iterator[AnsweredExample]:
    """Reads SubjQA's form; where a review has no answer, it is the review's last word, ANSWERNOTFOUND.

    Answers are read by their place: their text is tokenised in the files.

    Args:
      file: the file.

    Yields:
      One example per question and review, with the answers of all annotators.

    Raises:
      InputError: if the file has another form.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read ({error}); expected a CSV file") from error
    found: dict[str, list[dict[str, str]]] = {}
    for number, row in enumerate(rows, 2):
        if not _INDICES.fullmatch(row.get("human_ans_indices") or "") or not row.get("q_review_id"):
            raise InputError(f"{file}, row {number}: expected q_review_id and human_ans_indices such as (0, 5)")
        found.setdefault(row["q_review_id"], []).append(row)
    for key, group in found.items():
        question, review = group[0]["question"], group[0]["review"]
        places = dict.fromkeys(row["human_ans_indices"] for row in group)
        ends = [tuple(map(int, _INDICES.findall(place)[0])) for place in places]
        yield _example(str(file), key, question, review, [(start, review[start:end]) for start, end in ends])


def qed(file: Path) -> Iterator[AnsweredExample]:
    """Reads QED's form; of an answer in several pieces each piece is right.

    Args:
      file: the file.

    Yields:
      One example per question.

    Raises:
      InputError: if the file has another form, or an answer does not stand where it says.
    """
    fields = ("example_id", "question_text", "paragraph_text", "original_nq_answers")
    for where, row in json_lines(file, fields):
        try:
            spans = [(one["start"], one["string"]) for answer in row["original_nq_answers"] for one in answer]
        except (KeyError, TypeError) as error:
            raise InputError(f"{where}: original_nq_answers has another form than QED's ({error})") from error
        yield _example(where, str(row["example_id"]), row["question_text"], row["paragraph_text"], spans)


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """Where a set's files are.

    Attributes:
      files: split to file; one split "all" is split by contexts.
      form: reads one file.
    """

    files: dict[str, str]
    form: Callable[[Path], Iterator[AnsweredExample]]


def _subjqa(domain: str) -> QuestionSet:
    names = {"train": "train_first200", "validation": "dev", "test": "test_first200"}
    return QuestionSet({split: f"subjqa/{domain}/{name}.csv" for split, name in names.items()}, subjqa)


SETS = {
    "xquad_en": QuestionSet({"all": "xquad/xquad.en.json"}, squad),
    "qed": QuestionSet({"all": "qed/qed-dev.jsonlines"}, qed),
    **{f"subjqa_{domain}": _subjqa(domain) for domain in ("books", "electronics", "grocery")},
}
"""Task name to its files, inside `qa/`. XQuAD and QED have one file, of which a part is held out: methods 5.1."""


def read(folder: Path, names: Set[str], validation: float, seed: int) -> Iterator[TaskSpec]:
    """Reads the sets that are there.

    Args:
      folder: the folder of the sets.
      names: names of sets to read.
      validation: part of the contexts of a set without splits that is held out.
      seed: which part.

    Yields:
      Tasks.

    Raises:
      InputError: if a file is bad.
    """
    for name, where in SETS.items():
        files = {split: folder / file for split, file in where.files.items()}
        files = {split: file for split, file in files.items() if file.exists()}
        if name not in names or not files:
            continue
        examples = {split: list(_named(split, where.form(file))) for split, file in files.items()}
        if "all" in examples:
            every = examples.pop("all")
            splits = held_out([one.texts[1] for one in every], validation, seed, name)
            examples = {split: [every[index] for index in indices] for split, indices in splits.items()}
        answer = Answer(kind=SPAN)
        yield make_task(name, category=CATEGORY, definition=DEFINITION, metric=METRIC, answer=answer, examples=examples)


def _named(split: str, examples: Iterator[AnsweredExample]) -> Iterator[AnsweredExample]:
    """Puts the split before ids: SubjQA has some pairs of question and review in two splits."""
    for example in examples:
        yield example if split == "all" else dataclasses.replace(example, id=f"{split}-{example.id}")


def _example(where: str, key: str, question: str, context: str, spans: list[tuple[int, str]]) -> AnsweredExample:
    for start, text in spans:
        if type(start) is not int or not text or context[start : start + len(text)] != text:
            raise InputError(f"{where}: answer {text!r:.60} of {key} does not stand at character {start}")
    if not spans:
        raise InputError(f"{where}: {key} has no answer; expected at least one")
    return AnsweredExample(
        id=key,
        inputs=f"question: {question.strip()}\ncontext: {context}",
        targets=tuple(text for _, text in spans),
        texts=(question.strip(), context),
        answer=tuple(start for start, _ in spans),
    )
