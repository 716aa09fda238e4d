"""The adapters that `jaxmtl evaluate` scores a model with: one folder for all tasks, or one for each."""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from jaxmtl.types import InputError, unknown_name

if TYPE_CHECKING:
    from jaxmtl.adapters.lora import Adapter
    from jaxmtl.weights import Pretrained

CONFIG = "adapter_config.json"
"""The file that makes a folder one of PEFT's."""


class AdapterFolders(Mapping):
    """The adapters of a folder of PEFT folders by their names, each loaded when it is asked for.

    Args:
      folder: holds one PEFT folder for each task, named as the task.
      pretrained: the model that they adapt.

    Raises:
      InputError: if the folder holds no PEFT folder.
    """

    def __init__(self, folder: str | os.PathLike, pretrained: "Pretrained") -> None:
        self.pretrained = pretrained
        self.folders = {path.parent.name: path.parent for path in sorted(pathlib.Path(folder).glob(f"*/{CONFIG}"))}
        if not self.folders:
            raise InputError(f"{folder}: holds no folder TASK/{CONFIG}; expected one PEFT folder for each task")

    def __getitem__(self, task: str) -> "Adapter":
        """Loads the adapter of a task.

        Raises:
          UnknownNameError: if there is none.
        """
        if task not in self.folders:
            raise unknown_name("adapter of task", task, self.folders)
        return one_adapter(self.folders[task], self.pretrained)

    def __contains__(self, task: object) -> bool:
        """Looks without loading."""
        return task in self.folders

    def __iter__(self) -> Iterator[str]:
        """Gives the names of the tasks."""
        return iter(self.folders)

    def __len__(self) -> int:
        """Counts the adapters."""
        return len(self.folders)


def load(
    pretrained: "Pretrained",
    *,
    one: str | os.PathLike | None = None,
    by_task: str | os.PathLike | None = None,
) -> "Adapter | Mapping[str, Adapter] | None":
    """Finds the adapters that a run asks for.

    Args:
      pretrained: the model that they adapt.
      one: the PEFT folder of an adapter for all tasks.
      by_task: a folder of PEFT folders, named as the tasks that they are for.

    Returns:
      The adapter, or adapters by task; None if no folder is given.

    Raises:
      InputError: if both are given, or a folder does not hold what it should.
    """
    if one is not None and by_task is not None:
        raise InputError(f"ADAPTER is {str(one)!r} and ADAPTERS {str(by_task)!r}; give one of them")
    if by_task is not None:
        return AdapterFolders(by_task, pretrained)
    return None if one is None else one_adapter(one, pretrained)


def one_adapter(folder: str | os.PathLike, pretrained: "Pretrained") -> "Adapter":
    """Loads the adapter of a PEFT folder.

    Args:
      folder: the folder.
      pretrained: the model that it adapts.

    Returns:
      The adapter.
    """
    from jaxmtl.weights import load_adapter

    return load_adapter(folder, pretrained)
