"""Reads the tasks of the study of task transferability: tagging, classification and question answering, from files.

The folder holds `ner/`, `glue_superglue/` and `qa/`, each with one folder per data set; sets that are not there are
left out. Every task has typed answers (`jaxmtl.tasks.answers`), for models with heads, and the same as text.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxmtl.tasks import transfer_pairs, transfer_questions, transfer_tags
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import InputError, unknown_name

READERS = {"ner": transfer_tags.read, "glue_superglue": transfer_pairs.read, "qa": transfer_questions.read}
"""Folder to its reader: a function of (folder, names, seed) that gives the tasks."""


def load(
    data_dir: str | Path | None, *, names: Sequence[str] | None = None, validation: float = 0.2, seed: int = 0
) -> dict[str, TaskSpec]:
    """Reads the collection.

    Args:
      data_dir: the folder.
      names: names of the tasks to read; None for all that are there.
      validation: part of the examples of tasks without splits of their own that becomes their validation split.
      seed: which part.

    Returns:
      Task name to task.

    Raises:
      InputError: if the folder is missing or holds none of the sets, or a file is bad; names file and line.
      UnknownNameError: if a task that is asked for is not there.
    """
    if data_dir is None or not Path(data_dir).is_dir():
        raise InputError(f"{data_dir}: no such folder; expected one with {', '.join(READERS)}")
    if not 0 < validation < 1:
        raise InputError(f"validation is {validation}; expected a part between 0 and 1")
    found: dict[str, TaskSpec] = {}
    for folder, read in READERS.items():
        for task in read(Path(data_dir) / folder, _asked(names), validation, seed):
            found[task.name] = task
    for name in names or ():
        if name not in found:
            raise unknown_name("task", name, found or _known())
    if not found:
        raise InputError(f"{data_dir}: holds none of the sets {', '.join(_known())}")
    return found if names is None else {name: found[name] for name in names}


def _asked(names: Iterable[str] | None) -> set[str]:
    return _known() if names is None else set(names)


def _known() -> set[str]:
    return {*transfer_tags.SETS, *transfer_pairs.SETS, *transfer_questions.SETS}
