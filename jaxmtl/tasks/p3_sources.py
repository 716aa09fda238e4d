"""Data sets that P3's templates are applied to: from the files of their owners to rows with the fields of templates.

Fields and labels are those of the data sets on the Hugging Face hub, which templates were written for. Few-shot files
are FiD-ICL's (`fewshot/SET/SHOTS_shot/SEED_seed.jsonl`, fields as on the hub) and FewGLUE's (`fewglue/SET/train.jsonl`,
labels in words).
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmtl.tasks.transfer_files import json_lines
from jaxmtl.types import InputError

TEST, FEW_SHOT, FEWGLUE = "test", "fewshot", "fewglue"
_FILE = re.compile(r"(\d+)_shot/(\d+)_seed\.jsonl")

Convert = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Turns a row of a file into the fields of templates; raises ValueError with what is wrong."""


class PlacedRow(NamedTuple):
    """A row and where it was read.

    Attributes:
      place: file and line.
      fields: field name to value.
    """

    place: str
    fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file of rows.

    Attributes:
      path: inside the data folder.
      columns: fields that each of its rows must have.
      convert: makes the fields of templates.
    """

    path: str
    columns: tuple[str, ...]
    convert: Convert


@dataclasses.dataclass(frozen=True, kw_only=True)
class P3Set:
    """A data set.

    Attributes:
      templates: its folder of templates, as on the hub: data set, or data set and subset.
      fields: fields that rows of FiD-ICL's files must have.
      few_shot: its folder of FiD-ICL's files; "" for none.
      test: the examples that are scored: T0's validation split; None where their file is not published with these.
      fewglue: its file of FewGLUE; None for none.
      suffix: what P3 puts behind the names of its tasks.
    """

    templates: str
    fields: tuple[str, ...]
    few_shot: str = ""
    test: DataFile | None = None
    fewglue: DataFile | None = None
    suffix: str = ""


def _labelled(labels: Mapping[object, object], row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "label": _number(labels, row["label"])}


def _number(labels: Mapping[object, object], label: object) -> object:
    if not isinstance(label, str | int) or label not in labels:
        raise ValueError(f"label {label!r}; expected one of {', '.join(map(str, labels))}")
    return labels[label]


def _from_sentence(
    pattern: str, fields: tuple[str, ...], labels: Mapping[object, object], row: Mapping[str, Any]
) -> dict[str, Any]:
    """Takes apart the one text that O-LoRA's files hold."""
    found = re.fullmatch(pattern, str(row["sentence"]), re.DOTALL)
    if found is None:
        raise ValueError(f"sentence {str(row['sentence'])[:60]!r}; expected the form {pattern}")
    texts = (text.strip() for text in found.groups())
    return {**dict(zip(fields, texts, strict=True)), "label": _number(labels, row["label"])}


def _referents(row: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(row["target"], dict):
        raise ValueError(f"target is {row['target']!r}; expected an object with spans")
    return {**_labelled(_TRUTH, row), **row["target"]}


def _with_choices(row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        texts = {one["label"]: one["text"] for one in row["question"]["choices"]}
        fields = {"question": row["question"]["stem"], "choices": [*texts.values()], "answer": texts[row["answerKey"]]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"no question with labelled choices and the answer's label ({error!r})") from error
    return {"id": row["id"], **fields}


def _sentence_file(folder: str, pattern: str, fields: tuple[str, ...], labels: Mapping[object, object]) -> DataFile:
    convert = functools.partial(_from_sentence, pattern, fields, labels)
    return DataFile(path=f"glue_superglue/{folder}/test.jsonl", columns=("sentence", "label"), convert=convert)


def _fewglue(folder: str, fields: tuple[str, ...], labels: Mapping[object, object]) -> DataFile:
    convert = functools.partial(_labelled, labels)
    return DataFile(path=f"p3_t0/fewglue/{folder}/train.jsonl", columns=fields, convert=convert)


_TRUTH: Mapping[object, object] = {False: 0, True: 1}  # JSON's own
_WORDS: Mapping[object, object] = {"False": 0, "True": 1}
_THREE: Mapping[object, object] = {"entailment": 0, "contradiction": 1, "neutral": 2}
_PAIR, _SENTENCES = ("premise", "hypothesis"), r"sentence 1: (.*)\nsentence 2: (.*)"
_NLI = (*_PAIR, "label")
_COPA = ("premise", "choice1", "choice2", "question", "label")
_WIC, _BOOLQ = ("word", "sentence1", "sentence2"), ("question", "passage")
_COPA_FORM = r'Which sentence is the (cause|effect) of "(.*)"\? Choose one between A and B\.\nA: (.*)\nB: (.*)'


def _anli(number: int, *, has_dev: bool) -> P3Set:
    convert = functools.partial(_labelled, {"e": 0, "n": 1, "c": 2})
    dev = DataFile(path=f"p3_t0/anli_dev/r{number}_dev.jsonl", columns=_NLI, convert=convert)
    where: dict[str, Any] = dict(few_shot=f"anli-r{number}", suffix=f"_r{number}", test=dev if has_dev else None)
    return P3Set(templates="anli", fields=_NLI, **where)


SETS = {
    "anli_r1": _anli(1, has_dev=True),
    "anli_r2": _anli(2, has_dev=True),
    "anli_r3": _anli(3, has_dev=False),
    "cb": P3Set(
        templates="super_glue/cb",
        fields=_NLI,
        few_shot="super_glue_cb",
        test=_sentence_file("CB", _SENTENCES, _PAIR, _THREE),
        fewglue=_fewglue("CB", _NLI, _THREE),
    ),
    "copa": P3Set(
        templates="super_glue/copa",
        fields=_COPA,
        few_shot="super_glue_copa",
        test=_sentence_file("COPA", _COPA_FORM, ("question", "premise", "choice1", "choice2"), {"A": 0, "B": 1}),
        fewglue=_fewglue("COPA", _COPA, {0: 0, 1: 1}),
    ),
    "hellaswag": P3Set(
        templates="hellaswag",
        fields=("activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label"),
        few_shot="hellaswag",
    ),
    "rte": P3Set(
        templates="super_glue/rte",
        fields=_NLI,
        few_shot="super_glue_rte",
        # The file says "contradiction" for whatever is not entailed.
        test=_sentence_file("RTE", _SENTENCES, _PAIR, {"entailment": 0, "contradiction": 1}),
        fewglue=_fewglue("RTE", _NLI, {"entailment": 0, "not_entailment": 1}),
    ),
    "wic": P3Set(
        templates="super_glue/wic",
        fields=(*_WIC, "label"),
        few_shot="super_glue_wic",
        test=_sentence_file("WiC", r"word: (.*?)\n(.*?)\n(.*)", _WIC, _WORDS),
        fewglue=_fewglue("WiC", (*_WIC, "label"), _TRUTH),
    ),
    "winogrande": P3Set(
        templates="winogrande/winogrande_xl",
        fields=("sentence", "option1", "option2", "answer"),
        few_shot="winogrande_winogrande_xl",
    ),
    "wsc": P3Set(
        templates="super_glue/wsc.fixed",
        fields=("text", "span1_text", "span2_text", "span1_index", "span2_index", "label"),
        few_shot="super_glue_wsc.fixed",
        fewglue=DataFile(path="p3_t0/fewglue/WSC/train.jsonl", columns=("text", "target", "label"), convert=_referents),
    ),
    "boolq": P3Set(
        templates="super_glue/boolq",
        fields=(*_BOOLQ, "label"),
        test=_sentence_file("BoolQA", r"question: (.*?)\npassage: (.*)", _BOOLQ, _WORDS),
        fewglue=_fewglue("BoolQ", (*_BOOLQ, "label"), _TRUTH),
    ),
    "cos_e": P3Set(
        templates="cos_e/v1.11",
        fields=("question", "choices", "answer"),
        test=DataFile(
            path="p3_t0/commonsense_qa/dev_rand_split.jsonl",
            columns=("id", "question", "answerKey"),
            convert=_with_choices,  # CoS-E's questions are CommonsenseQA's
        ),
    ),
}
"""Names as in `evals.aggregate`. The first ten are T0's held-out tasks without StoryCloze, whose files nobody may
publish; T0 saw BoolQ in its largest mixture only, and CoS-E in all."""
HELD_OUT = tuple(SETS)[:10]


def splits(form: P3Set, data_dir: Path, few_shot_files: Sequence[tuple[int, int]] = ()) -> dict[str, list[PlacedRow]]:
    """Reads all rows of a set that are there.

    Args:
      form: the set.
      data_dir: the folder with `p3_t0/` and `glue_superglue/`.
      few_shot_files: shots and seed of each of FiD-ICL's files that is a split of its own too.

    Returns:
      "test" to what is scored; "fewshot" to the different rows of all few-shot files (FiD-ICL's; FewGLUE's where there
      are none), "fewglue" to FewGLUE's, "fewshot_SHOTS_seed_SEED" to those of one of `few_shot_files`. A split whose
      file is not there is left out.

    Raises:
      InputError: if a file is bad; names file and line.
    """
    found = {}
    for name, file in ((TEST, form.test), (FEWGLUE, form.fewglue)):
        if file is not None and (data_dir / file.path).is_file():
            found[name] = list(_converted(data_dir / file.path, file.columns, file.convert))
    published = {}
    folder = data_dir / "p3_t0" / "fewshot" / (form.few_shot or "?")
    for (shots, seed), path in sorted(_few_shot_files(folder)):
        published[shots, seed] = list(_converted(path, form.fields, dict))
    pool = _different(row for rows in published.values() for row in rows) or found.get(FEWGLUE, [])
    chosen = {few_shot_split(*one): published[one] for one in few_shot_files if one in published}
    return {**found, **({FEW_SHOT: pool} if pool else {}), **chosen}


def few_shot_split(shots: int, seed: int) -> str:
    """Returns the name of the split that holds one of FiD-ICL's files."""
    return f"{FEW_SHOT}_{shots}_seed_{seed}"


def key_of(row: PlacedRow) -> str:
    """Returns what two rows share if they are the same example."""
    return json.dumps(dict(row.fields), sort_keys=True)


def _few_shot_files(folder: Path) -> Iterator[tuple[tuple[int, int], Path]]:
    for path in folder.glob("*_shot/*_seed.jsonl"):
        found = _FILE.fullmatch(path.relative_to(folder).as_posix())
        if found is None:
            raise InputError(f"{path}: expected a name like 16_shot/0_seed.jsonl")
        yield (int(found[1]), int(found[2])), path


def _converted(path: Path, columns: tuple[str, ...], convert: Convert) -> Iterator[PlacedRow]:
    for place, row in json_lines(path, columns):
        try:
            yield PlacedRow(place, convert(row))
        except ValueError as error:
            raise InputError(f"{place}: {error}") from error


def _different(rows: Iterator[PlacedRow]) -> list[PlacedRow]:
    return list({key_of(row): row for row in rows}.values())
