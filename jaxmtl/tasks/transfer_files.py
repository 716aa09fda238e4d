"""What the readers of the transfer collection share: lines of files, and splits of sets that have none."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxmtl.tasks.answers import Answer, AnsweredExample, with_answer
from jaxmtl.tasks.fewshot import stable_hash
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import InputError


def lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yields where each line of a UTF-8 file stands, and the line without its end.

    Args:
      file: the file.

    Yields:
      ("FILE, line N", text).

    Raises:
      InputError: if the file cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); expected a UTF-8 text file") from error
    for number, line in enumerate(text.split("\n"), 1):
        yield f"{file}, line {number}", line.removesuffix("\r")


def json_lines(file: Path, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields where each row of a JSON-lines file stands, and the row.

    Args:
      file: the file.
      fields: what every row must have.

    Yields:
      ("FILE, line N", object).

    Raises:
      InputError: if a row is no JSON object with these fields.
    """
    for where, line in lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: no JSON ({error}); expected one object per line") from error
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing:
            raise InputError(f"{where}: has no {missing[0]!r}; expected an object with {', '.join(fields)}")
        yield where, row


def held_out(groups: Sequence[str], part: float, seed: int, name: str) -> dict[str, tuple[int, ...]]:
    """Splits examples that have no splits; those of a group (a context) stay together, so that none is seen twice.

    Args:
      groups: the group of each example.
      part: part of the groups to hold out.
      seed: the data seed.
      name: the task.

    Returns:
      "train" and "validation" to indices.
    """
    order = sorted(set(groups), key=lambda group: (stable_hash(seed, name, "validation", group), group))
    out = set(order[: max(1, round(part * len(order)))])
    splits: dict[str, list[int]] = {"train": [], "validation": []}
    for index, group in enumerate(groups):
        splits["validation" if group in out else "train"].append(index)
    return {split: tuple(indices) for split, indices in splits.items()}


def make_task(
    name: str,
    *,
    category: str,
    definition: str,
    metric: str,
    answer: Answer,
    examples: dict[str, list[AnsweredExample]],
    left_out: int = 0,
) -> TaskSpec:
    """Makes a task of examples by split.

    Args:
      name: the task.
      category: its group.
      definition: what to do.
      metric: name of its headline metric.
      answer: what its answers are.
      examples: split to examples; empty splits are left out.
      left_out: rows without an answer in the files, for `metadata`.

    Returns:
      The task.
    """
    rows = tuple(example for part in examples.values() for example in part)
    splits, start = {}, 0
    for split, part in examples.items():
        if part:
            splits[split] = tuple(range(start, start + len(part)))
        start += len(part)
    metadata = with_answer({"categories": (category,), "num_left_out": left_out}, answer)
    return TaskSpec(
        name=name,
        category=category,
        definition=definition,
        examples=rows,
        metric=metric,
        splits=splits,
        metadata=metadata,
    )
