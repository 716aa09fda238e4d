"""Weights that are stored as torch's `.bin` files only, read by torch's weights-only loader.

Such a file is a pickle, which may run any code when it is opened; torch's loader of weights refuses whatever is no
tensor. torch is asked for only here, and only by folders without safetensors.
"""

import os
import pathlib
import pickle
import re
from types import ModuleType
from typing import Any

import numpy as np

from jaxmtl.types import InputError
from jaxmtl.weights import safetensors_io
from jaxmtl.weights.json_file import read_object
from jaxmtl.weights.refusals import reason

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
PICKLE_FILES = ("pytorch_model*.bin", INDEX)
"""What a hub is asked for."""
SAFE_SINCE = (2, 6)
"""First torch whose weights-only loader is safe: those before could be made to run code (CVE-2025-32434)."""
BFLOAT16 = "torch.bfloat16"


def has_only_pickles(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds a model's weights as `.bin` files, and not as safetensors too."""
    is_there = [(folder / name).exists() for name in (SINGLE, INDEX)]
    return any(is_there) and not any((folder / name).exists() for name in (safetensors_io.SINGLE, safetensors_io.INDEX))


class PickleFolder:
    """Tensors of a folder of `.bin` files by name; their bytes are read from disk when they are asked for.

    Args:
      folder: a folder that holds `pytorch_model.bin` or `pytorch_model.bin.index.json`.

    Raises:
      InputError: if torch is missing or too old, a shard is missing, or a file holds anything but tensors.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        folder = pathlib.Path(folder)
        index = folder / INDEX
        files = (
            {SINGLE} if not index.exists() else set(safetensors_io.files_of_index(index, read_object(index)).values())
        )
        torch = _torch(folder)
        self._tensors = {name: one for file in sorted(files) for name, one in _loaded(torch, folder / file).items()}

    def names(self) -> set[str]:
        """Returns the names of all tensors."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape without reading it."""
        return tuple(self._tensors[name].shape)

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor; bfloat16 comes as `ml_dtypes.bfloat16`."""
        import ml_dtypes
        import torch  # pyright: ignore[reportMissingImports]  (who has such tensors has it)

        tensor = self._tensors[name].detach()
        if str(tensor.dtype) == BFLOAT16:  # numpy has no such type of its own
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


def _torch(folder: pathlib.Path) -> ModuleType:
    advice = "or save the model again as safetensors (transformers does)"
    try:
        import torch  # pyright: ignore[reportMissingImports]  (who has such tensors has it)
    except ImportError as error:
        raise InputError(
            f"{folder}: holds its weights as .bin files only, which are pickles: torch's weights-only loader reads "
            f"them; install torch, {advice}"
        ) from error
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < SAFE_SINCE:
        raise InputError(
            f"{folder}: holds pickles, and the weights-only loader of torch {torch.__version__} can be made to run "
            f"code; install torch {'.'.join(map(str, SAFE_SINCE))} or newer, {advice}"
        )
    return torch


def _why(error: Exception) -> str:
    """Returns what torch refused; its own message begins with how to load such a file all the same."""
    if not isinstance(error, pickle.UnpicklingError):
        return reason(error)
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"it asks for {found[1]}" if found else "it holds something else than tensors"


def _loaded(torch: Any, path: pathlib.Path) -> dict[str, Any]:
    """Returns a file's tensors, whose bytes stay on disk."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch tells what it refuses, and damage, by errors of many types
        raise InputError(
            f"{path}: torch's weights-only loader refuses it ({_why(error)}); no code of the file was run; save the "
            "model again as safetensors, where you trust the file"
        ) from error
    is_weights = isinstance(found, dict) and all(type(name) is str for name in found)
    strays = [name for name, one in found.items() if not isinstance(one, torch.Tensor)] if is_weights else []
    if not is_weights or strays:
        what = f"{strays[0]!r} is a {type(found[strays[0]]).__name__}" if strays else f"found {type(found).__name__}"
        raise InputError(f"{path}: {what}; expected tensors by their names, as a model's state_dict")
    return found
