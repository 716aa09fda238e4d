"""Anyone's own JSON-lines file becomes tasks: one row is one example.

A row is a JSON object with `inputs` (or `input`) and `targets` (or `target`, `output`, `outputs`: a text or a list of
references). Optional: `task` (default: the file's name), `id`, `split`, and what belongs to the whole task and may
stand in any of its rows: `definition` (a text, or a list of them where a task has several instructions: the first is
its definition, see also `instructions.each_instruction`), `category`, `metric`, `positive` and `negative` (lists of
objects with `input`, `output` and perhaps `explanation`). Where all rows of a task have `choices` (a list of texts, the
first reference among them), answers can be ranked. Other keys are not read.
"""

import dataclasses
import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxmtl.tasks import metrics
from jaxmtl.tasks.choices import ChoiceExample
from jaxmtl.tasks.fewshot import seeded_order
from jaxmtl.tasks.instructions import DEFINITIONS
from jaxmtl.tasks.spec import Demonstration, TaskSpec, check_task_name
from jaxmtl.types import Example, InputError, unknown_name

INPUT_KEYS = ("inputs", "input")
TARGET_KEYS = ("targets", "target", "output", "outputs")
SHARED_KEYS = ("definition", "category", "metric", "positive", "negative")
DEFAULT_CATEGORY = "Other"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fractions:
    """How to split a task whose rows name no split: "train", "validation" and "test".

    Rows with the same input always go to the same split. "train" always gets at least one input; with three different
    inputs or more, so does each other split whose fraction is above 0.

    Attributes:
      validation: part of the different inputs.
      test: part of the different inputs.
      seed: the data seed; the split depends on it and on the task's rows only.

    Raises:
      InputError: if the fractions leave nothing to train on.
    """

    validation: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or not self.validation + self.test < 1:
            raise InputError(
                f"fractions are validation {self.validation}, test {self.test}; expected 0 or more, their sum below 1"
            )

    def splits(self, name: str, examples: tuple[Example, ...]) -> dict[str, tuple[int, ...]]:
        """Splits one task.

        Args:
          name: the task's name.
          examples: its examples.

        Returns:
          Split name to indices; empty splits are left out.
        """
        rows: dict[str, list[int]] = {}
        for index, example in enumerate(examples):
            rows.setdefault(example.inputs, []).append(index)
        groups = list(rows.values())
        order = [groups[index] for index in seeded_order(len(groups), self.seed, name, "split")]
        num_test, num_validation = self._numbers(len(order))
        parts = {
            "train": order[num_test + num_validation :],
            "validation": order[num_test : num_test + num_validation],
            "test": order[:num_test],
        }
        return {split: tuple(i for group in part for i in group) for split, part in parts.items() if part}

    def _numbers(self, count: int) -> tuple[int, int]:
        """Returns how many of the different inputs are for "test" and for "validation"."""
        least = 1 if count >= 3 else 0
        test, validation = (max(least, int(count * part)) if part else 0 for part in (self.test, self.validation))
        # What the least number adds may be the one that training needs; the larger split gives it back.
        excess = max(0, test + validation - (count - 1))
        return (test - excess, validation) if test >= validation else (test, validation - excess)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
    place: str  # "file line 3"
    task: str
    fields: dict[str, Any]

    def wrong(self, key: str, expected: str) -> InputError:
        found = (
            f"{type(self.fields[key]).__name__} {reprlib.repr(self.fields[key])}" if key in self.fields else "nothing"
        )
        return InputError(f"{self.place}: field {key!r}: found {found}, expected {expected}")


def load(data_dir: str | Path | None, *, splits: Fractions | None = None) -> dict[str, TaskSpec]:
    """Reads tasks from a `.jsonl` file or from all `.jsonl` files of a folder.

    Args:
      data_dir: the file or the folder.
      splits: how to split tasks whose rows name no split; default `Fractions()`.

    Returns:
      Task name to task, in order of first appearance.

    Raises:
      InputError: if something is missing or malformed; names file, line and field.
    """
    splits = Fractions() if splits is None else splits
    groups: dict[str, list[_Row]] = {}
    for path in _files(data_dir):
        for row in _rows(path):
            groups.setdefault(row.task, []).append(row)
    if not groups:
        raise InputError(f"{data_dir}: no rows; expected one JSON object a line")
    return {name: _task(name, rows, splits) for name, rows in groups.items()}


def demonstrations(path: str | Path) -> tuple[Demonstration, ...]:
    """Reads worked examples of one task from a file, one a line: `input`, `output` and perhaps `explanation`.

    Args:
      path: a `.jsonl` file.

    Returns:
      The demonstrations in the file's order, at least one.

    Raises:
      InputError: if something is missing or malformed; names file, line and field.
    """
    found = demonstrations_of(_read(Path(path)), str(path))
    if not found:
        raise InputError(f"{path}: no rows; expected one JSON object with input and output a line")
    return found


def demonstrations_of(text: str, where: str) -> tuple[Demonstration, ...]:
    """Reads worked examples of one task as `demonstrations` does.

    Args:
      text: JSON lines; may be empty.
      where: what errors call it.

    Returns:
      The demonstrations.

    Raises:
      InputError: if something is malformed; names line and field.
    """
    return tuple(_demonstration(row) for row in _parsed(text, where, "examples"))


def _files(data_dir: str | Path | None) -> list[Path]:
    path = Path(data_dir) if data_dir is not None else None
    if path is not None and path.is_file():
        return [path]
    if path is None or not path.is_dir():
        raise InputError(f"{str(data_dir)!r} is not there; expected a .jsonl file or a folder of them")
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise InputError(f"folder {str(path)!r} has no .jsonl file; expected at least one")
    return files


def _rows(path: Path) -> Iterator[_Row]:
    return _parsed(_read(path), str(path), path.stem)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected JSON lines in UTF-8") from error


def _parsed(text: str, where: str, name: str) -> Iterator[_Row]:
    # Split at "\n" only: JSON text may hold other line separators.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{where} line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not JSON ({str(error)[:120]}); expected one object a line") from error
        if not isinstance(fields, dict):
            raise InputError(f"{place}: found {type(fields).__name__} {reprlib.repr(fields)}, expected a JSON object")
        task = fields.get("task", name)
        if not isinstance(task, str):
            raise InputError(f"{place}: field 'task': found {reprlib.repr(task)}, expected a text")
        yield _Row(place=place, task=check_task_name(task, place), fields=fields)


def _task(name: str, rows: list[_Row], fractions: Fractions) -> TaskSpec:
    shared = {key: _shared(key, rows) for key in SHARED_KEYS}
    category = _optional_text(shared["category"], "category") or DEFAULT_CATEGORY
    metric = _optional_text(shared["metric"], "metric") or metrics.headline_metric(category)
    if metric not in metrics.METRICS:
        raise unknown_name(f"metric of task {name}", metric, metrics.METRICS)
    examples = _examples(name, rows)
    definitions = _definitions(shared["definition"])
    return TaskSpec(
        name=name,
        category=category,
        definition=definitions[0],
        positive=_demonstrations(shared["positive"], "positive"),
        negative=_demonstrations(shared["negative"], "negative"),
        examples=examples,
        metric=metric,
        splits=_named_splits(rows) or fractions.splits(name, examples),
        metadata={"categories": (category,), DEFINITIONS: definitions},
    )


def _shared(key: str, rows: list[_Row]) -> _Row | None:
    """Returns the first row that gives the key; all rows that do must agree."""
    giving = [row for row in rows if key in row.fields]
    for row in giving[1:]:
        if row.fields[key] != giving[0].fields[key]:
            raise row.wrong(key, f"what {giving[0].place} gives for the same task")
    return giving[0] if giving else None


def _text(row: _Row, key: str) -> str:
    value = row.fields.get(key)
    if not isinstance(value, str):
        raise row.wrong(key, "a text")
    return _storable(row, key, value)


def _storable(row: _Row, key: str, value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise row.wrong(key, "text without lone surrogates") from error
    return value


def _optional_text(row: _Row | None, key: str) -> str:
    return "" if row is None else _text(row, key)


def _definitions(row: _Row | None) -> tuple[str, ...]:
    if row is None or not isinstance(value := row.fields["definition"], list):
        return (_optional_text(row, "definition"),)
    if not value or not all(isinstance(text, str) for text in value):
        raise row.wrong("definition", "a text or a list of at least one text")
    return tuple(_storable(row, "definition", text) for text in value)


def _only_key(row: _Row, keys: tuple[str, ...]) -> str:
    given = [key for key in keys if key in row.fields]
    if len(given) != 1:
        shown = ", ".join(given or map(str, list(row.fields)[:8])) or "nothing"
        raise InputError(f"{row.place}: expected one of the fields {', '.join(keys)}; found {shown}")
    return given[0]


def _targets(row: _Row) -> tuple[str, ...]:
    key = _only_key(row, TARGET_KEYS)
    value = row.fields[key]
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(text, str) for text in values):
        raise row.wrong(key, "a text or a list of at least one text")
    return tuple(_storable(row, key, text) for text in values)


def _examples(name: str, rows: list[_Row]) -> tuple[Example, ...]:
    places: dict[str, str] = {}
    examples = []
    for index, row in enumerate(rows):
        key = row.fields.get("id", f"{name}-{index}")
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise row.wrong("id", "a text or a number")
        key = _storable(row, "id", str(key))
        if key in places:
            raise InputError(f"{row.place}: id {key!r} of task {name} is also that of {places[key]}; ids must differ")
        places[key] = row.place
        texts: dict[str, Any] = dict(inputs=_text(row, _only_key(row, INPUT_KEYS)), targets=_targets(row))
        choices = _choices(row, texts["targets"][0])
        examples.append(
            Example(id=key, **texts) if choices is None else ChoiceExample(id=key, choices=choices, **texts)
        )
    return tuple(examples)


def _choices(row: _Row, answer: str) -> tuple[str, ...] | None:
    value = row.fields.get("choices")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value) or answer not in value:
        raise row.wrong("choices", f"a list of texts, {answer[:40]!r} among them")
    return tuple(_storable(row, "choices", text) for text in value)


def _named_splits(rows: list[_Row]) -> dict[str, tuple[int, ...]]:
    splits: dict[str, list[int]] = {}
    named = [row for row in rows if "split" in row.fields]
    for index, row in enumerate(rows if named else ()):
        if "split" not in row.fields:
            raise row.wrong("split", f"a text, as {named[0].place} names a split for the same task")
        splits.setdefault(_text(row, "split"), []).append(index)
    return {split: tuple(indices) for split, indices in splits.items()}


def _demonstrations(row: _Row | None, key: str) -> tuple[Demonstration, ...]:
    if row is None:
        return ()
    items = row.fields[key]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise row.wrong(key, "a list of objects with input, output and perhaps explanation")
    place = f"{row.place}: {key}"
    return tuple(
        _demonstration(_Row(place=f"{place}[{index}]", task=row.task, fields=item)) for index, item in enumerate(items)
    )


def _demonstration(row: _Row) -> Demonstration:
    return Demonstration(
        inputs=_text(row, _only_key(row, INPUT_KEYS)),
        output=_targets(row)[0],
        explanation=_text(row, "explanation") if row.fields.get("explanation") is not None else None,
    )
