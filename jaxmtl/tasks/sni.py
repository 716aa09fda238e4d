"""Reads Super-NaturalInstructions files: original task JSON -> TaskSpec. Which tasks and splits: `sni_selection`."""

import dataclasses
import json
import logging
import reprlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxmtl.tasks import metrics
from jaxmtl.tasks.instructions import DEFINITIONS
from jaxmtl.tasks.sni_selection import EveryTask, Selection
from jaxmtl.tasks.spec import Demonstration, TaskSpec, check_task_name
from jaxmtl.tasks.task_lists import read_task_list
from jaxmtl.types import Example, InputError, unknown_name

_log = logging.getLogger(__name__)
_ABSENT = object()
# Optional lists of texts, and the names they get in `TaskSpec.metadata`. The 2021 schema has hardly any of them.
# Other fields are not read: not the stray "Instruction Source", nor URL, which is NaN in one of the real files.
_OPTIONAL = {
    "Source": "source",
    "Domains": "domains",
    "Input_language": "input_language",
    "Output_language": "output_language",
    "Instruction_language": "instruction_language",
}
EMPTY_OUTPUTS = ("keep", "drop", "error")
MISSING = ("error", "skip")


def load(
    data_dir: str | Path | None,
    *,
    selection: Selection | None = None,
    task_list: str | Path | None = None,
    missing: str = "error",
    empty_outputs: str = "keep",
) -> dict[str, TaskSpec]:
    """Reads the tasks of a folder, only those that a list names if there is one.

    Args:
      data_dir: folder with `tasks/*.json` (or with the JSON files themselves).
      selection: which tasks to use and how to split them, see `sni_selection`; default `EveryTask()`.
      task_list: file with one task name a line, relative to `data_dir` or absolute; it takes the place of the
        selection's own lists.
      missing: what to do with a listed task that has no file: "error", or "skip" with a warning.
      empty_outputs: see `read_task`.

    Returns:
      Task name to task, in the list's order, without a list by name. Tasks the selection leaves out are absent.

    Raises:
      InputError: if a folder, list or task is missing or malformed, or nothing is selected.
    """
    _check_choice("missing", missing, MISSING)
    _check_choice("empty_outputs", empty_outputs, EMPTY_OUTPUTS)
    if data_dir is None or not Path(data_dir).is_dir():
        raise InputError(f"SNI folder {str(data_dir)!r} is not there; expected a folder with tasks/*.json")
    selection = EveryTask() if selection is None else selection
    root = Path(data_dir)
    roles = selection.roles(root) if task_list is None else dict.fromkeys(read_task_list(root, task_list))
    tasks = {}
    for path, role in _task_files(root, roles, missing):
        task = read_task(path, empty_outputs=empty_outputs)
        splits = selection.splits(task, role)
        if splits is not None:
            tasks[task.name] = dataclasses.replace(task, splits=splits)
    if not tasks:
        raise InputError(f"no task of {str(root)!r} is selected; check the task list and the selection {selection}")
    num_empty = sum(task.metadata["num_empty_outputs"] for task in tasks.values())
    _log.info("read %d SNI tasks; %d instances with an empty output: %s", len(tasks), num_empty, empty_outputs)
    return tasks


def read_task(path: str | Path, *, empty_outputs: str = "keep") -> TaskSpec:
    """Reads one task file.

    Args:
      path: the JSON file; its stem is the task's name.
      empty_outputs: what to do with instances without any output text: "keep" them with the target "", "drop"
        them, or "error". `metadata["num_empty_outputs"]` counts them in each case.

    Returns:
      The task, without splits. `metadata` holds the file's lists as tuples under lower-case names, `categories`,
      `definitions`, and the counts `num_empty_outputs` and `num_repeated_ids` (repeats get a suffix).

    Raises:
      InputError: if the file cannot be read, is no JSON, or a field is missing or of a wrong type; names the file,
        the field, what was found and what was expected.
    """
    _check_choice("empty_outputs", empty_outputs, EMPTY_OUTPUTS)
    path = Path(path)
    name = check_task_name(path.stem, str(path))
    record = _Record(path, _read_json(path))
    definitions = record.texts("Definition")
    if not definitions or not definitions[0].strip():
        raise record.wrong("Definition", record.get("Definition"), "a text that is not blank, or a list of them")
    categories = record.texts("Categories")
    if not categories:
        raise record.wrong("Categories", record.get("Categories"), "at least one category")
    examples, counts = _examples(record, name, empty_outputs)
    return TaskSpec(
        name=name,
        category=categories[0],
        definition=definitions[0],
        positive=_demonstrations(record, "Positive Examples"),
        negative=_demonstrations(record, "Negative Examples"),
        examples=examples,
        metric=metrics.headline_metric(categories[0]),
        metadata={"categories": categories, DEFINITIONS: definitions, **_optional(record), **counts},
    )


def _check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise unknown_name(f"value of {option}", str(value), known)


def _task_files(root: Path, roles: dict[str, Any] | None, missing: str) -> Iterator[tuple[Path, str | None]]:
    folder = root / "tasks" if (root / "tasks").is_dir() else root
    if roles is None:
        yield from ((path, None) for path in sorted(folder.glob("*.json")))
        return
    paths = {name: folder / f"{name}.json" for name in roles}
    absent = [name for name, path in paths.items() if not path.is_file()]
    if absent:
        message = f"{len(absent)} of {len(roles)} listed tasks have no file in {str(folder)!r}: {_some(absent)}"
        if missing == "error":
            raise InputError(f"{message}; get the files, correct the list or pass missing='skip'")
        warnings.warn(f"{message}; skipped", stacklevel=3)
    yield from ((path, roles[name]) for name, path in paths.items() if path.is_file())


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read_json(path: Path) -> Any:
    try:
        # ValueError: broken JSON, bytes that are no UTF-8, numbers too long to parse.
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected an SNI task file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON in UTF-8 ({str(error)[:120]}); expected an SNI task file") from error


class _Record:
    """A JSON object with the place it stands at, so that every message can name file and field."""

    def __init__(self, path: Path, value: Any, place: str = "") -> None:
        self.path, self.value, self.place = path, value, place
        if not isinstance(value, dict):
            raise self.wrong("", value, "a JSON object")

    def wrong(self, field: str, found: Any, expected: str) -> InputError:
        """Builds the error for a field."""
        place = (f"{self.place}.{field}" if field and self.place else field or self.place) or "(whole file)"
        shown = "nothing" if found is _ABSENT else f"{type(found).__name__} {reprlib.repr(found)}"
        return InputError(f"{self.path}: field {place!r}: found {shown}, expected {expected}")

    def get(self, field: str) -> Any:
        """Returns the field's value, or `_ABSENT`."""
        return self.value.get(field, _ABSENT)

    def check_text(self, field: str, value: Any, expected: str = "a text") -> str:
        """Returns `value` if it is text that can be written as UTF-8."""
        if not isinstance(value, str):
            raise self.wrong(field, value, expected)
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise self.wrong(field, value, "text without lone surrogates") from error
        return value

    def texts(self, field: str, *absent: tuple[str, ...]) -> tuple[str, ...]:
        """Returns a field that is a text or a list of texts; `absent` is the value for a missing or null one."""
        value = self.get(field)
        if absent and (value is _ABSENT or value is None):
            return absent[0]
        values = value if isinstance(value, list) else [value]
        return tuple(self.check_text(field, text, "a text or a list of texts") for text in values)

    def records(self, field: str, value: Any) -> Iterator["_Record"]:
        """Returns a field that is a list of JSON objects."""
        if not isinstance(value, list):
            raise self.wrong(field, value, "a list of JSON objects")
        return (_Record(self.path, item, f"{field}[{index}]") for index, item in enumerate(value))


def _optional(record: _Record) -> dict[str, tuple[str, ...]]:
    return {key: record.texts(field, ()) for field, key in _OPTIONAL.items()}


def _demonstrations(record: _Record, field: str) -> tuple[Demonstration, ...]:
    if record.get(field) is _ABSENT:
        return ()
    found = []
    for item in record.records(field, record.get(field)):
        outputs = item.texts("output")
        if not outputs:
            raise item.wrong("output", item.get("output"), "a text or a list of at least one")
        explanation = item.texts("explanation", ())
        inputs = item.check_text("input", item.get("input"))
        found.append(Demonstration(inputs=inputs, output=outputs[0], explanation=next(iter(explanation), None)))
    return tuple(found)


def _examples(record: _Record, name: str, empty_outputs: str) -> tuple[tuple[Example, ...], dict[str, int]]:
    examples: dict[str, Example] = {}
    num_empty = num_repeated = 0
    for index, item in enumerate(record.records("Instances", record.get("Instances"))):
        inputs = item.check_text("input", item.get("input"))
        targets = item.texts("output")
        if not any(text.strip() for text in targets):
            num_empty += 1
            if empty_outputs == "error":
                raise item.wrong(
                    "output", item.get("output"), "an output that is not empty, or empty_outputs='keep' or 'drop'"
                )
            if empty_outputs == "drop":
                continue
            targets = targets or ("",)
        key = _instance_id(item) or f"{name}-{index}"
        if key in examples:
            num_repeated += 1
            key = f"{key}#{index}"
            while key in examples:
                key += "#"
        examples[key] = Example(id=key, inputs=inputs, targets=targets)
    if not examples:
        raise record.wrong("Instances", record.get("Instances"), "at least one instance to use")
    return tuple(examples.values()), {"num_empty_outputs": num_empty, "num_repeated_ids": num_repeated}


def _instance_id(item: _Record) -> str:
    value = item.get("id")
    if value is _ABSENT or value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return item.check_text("id", value, "a text or a number")
