"""Result files that are either whole or not there: predictions, scores and records as JSON."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxmtl.files import explained, write_whole
from jaxmtl.types import InputError, Record

PREDICTIONS = "predictions"
SCORES = "scores.json"
RECORDS = "records.jsonl"


def prediction_file(run_dir: str | os.PathLike, task: str) -> pathlib.Path:
    """Returns where a task's predictions lie."""
    return pathlib.Path(run_dir) / PREDICTIONS / f"{task}.jsonl"


def splits_held(run_dir: str | os.PathLike) -> set[str]:
    """Finds out which splits the results in a folder are about; what is damaged or unfinished tells nothing.

    Args:
      run_dir: the run folder, which need not exist.

    Returns:
      Names of splits; one at most, unless somebody put results together by hand.
    """
    folder, found = pathlib.Path(run_dir), set()
    for path in (folder / RECORDS, *(folder / PREDICTIONS).glob("*.jsonl")):
        # A file is about one split, so its first line tells.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), path.open(encoding="utf-8") as file:
            found.add(json.loads(file.readline())["split"])
    return found


def check_split(run_dir: str | os.PathLike, split: str) -> None:
    """Refuses a folder whose results are about another split: predictions of one would replace those of the other.

    Args:
      run_dir: the run folder, which need not exist.
      split: what is to be evaluated.

    Raises:
      InputError: naming both splits.
    """
    for held in sorted(splits_held(run_dir) - {split}):
        raise InputError(f"{run_dir} holds results of split {held!r}; evaluate split {split!r} into another RUN_DIR")


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines whole, see `jaxmtl.files`.

    Args:
      path: file to write.
      rows: one JSON object each.
    """
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads JSON lines.

    Args:
      path: a file that `write_rows` wrote.

    Returns:
      The objects.

    Raises:
      InputError: if it cannot be read or a line is no JSON object; names the line.
    """
    rows = []
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: no JSON ({error}); delete the file and evaluate again") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: a {type(row).__name__}, expected a JSON object; evaluate again")
        rows.append(row)
    return rows


def key_of(identity: Mapping[str, Any]) -> str:
    """Hashes all that decides the predictions of a task.

    Args:
      identity: JSON values.

    Returns:
      16 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def finished_rows(path: pathlib.Path, key: str, count: int) -> list[dict[str, Any]] | None:
    """Reads predictions that need not be made again.

    Args:
      path: where they would be.
      key: of what they have to be made from, in the field "key" of each.
      count: how many there have to be.

    Returns:
      The predictions; None if there are none, or others, or they were damaged by hand: they are only written whole.
    """
    if not path.is_file():
        return None
    try:
        rows = read_rows(path)
    except InputError:
        return None
    return rows if len(rows) == count and all(row.get("key") == key for row in rows) else None


def read_records(path: pathlib.Path) -> list[Record]:
    """Reads records.

    Args:
      path: a file that `append_records` wrote.

    Returns:
      The records, in file order.

    Raises:
      InputError: if it cannot be read or a line is no record; names the line.
    """
    records = []
    for number, line in enumerate(_lines(path), 1):
        try:
            records.append(Record.from_json(line))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}; delete this line and evaluate again") from error
    return records


def append_records(path: pathlib.Path, records: Sequence[Record]) -> None:
    """Adds records to a file, but none that it holds already, so that a resumed evaluation repeats nothing.

    Args:
      path: the file; made if missing. A last line without its end, left by a crash, is replaced.
      records: what to add.

    Raises:
      InputError: if the file cannot be read or written, or holds something else.
    """
    complete = _drop_unfinished_line(path)
    known = {_identity(record) for record in read_records(path)} if complete else set()
    lines = "".join(record.to_json() + "\n" for record in records if _identity(record) not in known)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())


def _lines(path: pathlib.Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run `jaxmtl evaluate` first") from error
    return lines[:-1] if lines[-1] == "" else lines


def _identity(record: Record) -> tuple:
    return (
        *(record.study, record.run, record.seed, record.step, record.task, record.split, record.metric, record.n),
        *(record.config_hash, record.weights_hash, record.decoding),
    )


def _drop_unfinished_line(path: pathlib.Path) -> bool:
    """Cuts off what follows the last line break; returns whether anything is left."""
    if not path.is_file():
        return False
    with open(path, "rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        file.truncate(end)
    return end > 0
