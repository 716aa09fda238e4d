"""Collections of tasks by name: `load("toy", None)` gives a dictionary from task name to TaskSpec."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from jaxmtl.tasks import jsonl, p3, sni, text, toy, transfer
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import InputError, unknown_name

READERS: dict[str, Callable[..., dict[str, TaskSpec]]] = {
    "jsonl": jsonl.load,
    "p3": p3.load,
    "sni": sni.load,
    "text": text.load,
    "toy": toy.load,
    "transfer": transfer.load,
}
"""Collection name to its reader: a function of (data_dir, **options); `data_dir` has a default where none is needed."""


class Tasks(dict[str, TaskSpec]):
    """Task name to task; asking for an unknown task names the closest ones."""

    def __missing__(self, name: str) -> NoReturn:
        raise unknown_name("task", name, self)


def load(collection: str, data_dir: str | Path | None, **options: Any) -> Tasks:
    """Reads the tasks of a collection.

    Args:
      collection: a key of `READERS`.
      data_dir: the collection's folder (jsonl, text: a file works too); None for a collection made by code.
      **options: the reader's own options, see its `load`.

    Returns:
      Task name to task.

    Raises:
      UnknownNameError: if the collection or an option is unknown; names the closest ones.
      InputError: if a folder is missing, or given to a collection that has none, or the data is bad.
    """
    if collection not in READERS:
        raise unknown_name("collection", collection, READERS)
    reader = READERS[collection]
    parameters = inspect.signature(reader).parameters
    known = [name for name in parameters if name != "data_dir"]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of collection {collection!r}", option, known)
    if data_dir is None and parameters["data_dir"].default is inspect.Parameter.empty:
        raise InputError(
            f"collection {collection!r} needs its folder: give data_dir (jaxmtl tasks {collection} FOLDER, or "
            "--gin.DATA_DIR=FOLDER)"
        )
    return Tasks(reader(data_dir, **options))


def specs(collection: str, data_dir: str | Path | None = None, **options: Any) -> list[TaskSpec]:
    """Reads the tasks of a collection as a list, the form that registration and caching take.

    Args:
      collection: as in `load`.
      data_dir: as in `load`.
      **options: as in `load`.

    Returns:
      The task specs.

    Raises:
      InputError: as in `load`.
    """
    return list(load(collection, data_dir, **options).values())
