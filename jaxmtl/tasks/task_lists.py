"""Files with one task name a line, such as the official splits."""

from pathlib import Path

from jaxmtl.tasks.spec import check_task_name
from jaxmtl.types import InputError


def read_task_list(folder: Path, task_list: str | Path) -> list[str]:
    """Reads a file with one task name a line.

    Args:
      folder: what a relative path starts from.
      task_list: the file.

    Returns:
      The names in the file's order, each once.

    Raises:
      InputError: if the file cannot be read, is empty, or a line is no task name.
    """
    path = folder / task_list
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"task list {path}: cannot be read ({error}); expected one task name a line") from error
    named = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    names = dict.fromkeys(check_task_name(name, f"{path} line {number}") for number, name in named)
    if not names:
        raise InputError(f"task list {path} is empty; expected one task name a line")
    return list(names)
