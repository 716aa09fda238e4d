"""Safetensors folders, tensor by tensor: one `model.safetensors`, or shards named by `model.safetensors.index.json`."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxmtl.files import explained, replacing, write_whole
from jaxmtl.types import InputError
from jaxmtl.weights.json_file import read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class TensorFolder:
    """Tensors of a folder by name; a tensor is read from disk when it is asked for.

    Args:
      folder: a folder that holds `model.safetensors` or `model.safetensors.index.json`.

    Raises:
      InputError: if there is neither, a shard is missing, or a file is no safetensors file.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = pathlib.Path(folder)
        self._file_of = self._index()

    def _index(self) -> dict[str, str]:
        index = self.folder / INDEX
        if index.exists():
            return files_of_index(index, read_object(index))
        if (self.folder / SINGLE).exists():
            with _opened(self.folder / SINGLE) as file:
                return {name: SINGLE for name in file.keys()}
        raise InputError(f"{self.folder}: holds neither {SINGLE} nor {INDEX}")

    def names(self) -> set[str]:
        """Returns the names of all tensors."""
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape without reading it."""
        return tuple(self._get(name, lambda file: file.get_slice(name).get_shape()))

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor; bfloat16 comes as `ml_dtypes.bfloat16`."""
        return self._get(name, lambda file: file.get_tensor(name))

    def _get(self, name: str, get: Callable[[safetensors.safe_open], Any]) -> Any:
        # Opened for each tensor: what was read of an open file stays in the process's memory until it is closed.
        path = self.folder / self._file_of[name]
        with _opened(path) as opened, _readable(path, name):
            return get(opened)


def files_of_index(path: pathlib.Path, index: Mapping[str, Any]) -> dict[str, str]:
    """Checks what the index of a sharded model says.

    Args:
      path: the index; the shards lie beside it.
      index: its content.

    Returns:
      Tensor name to the name of its file.

    Raises:
      InputError: if it names no files, or one that is not there.
    """
    file_of = index.get("weight_map")
    if not isinstance(file_of, dict) or not all(is_file_name(file) for file in file_of.values()):
        raise InputError(f"{path}: `weight_map` gives no file name for each tensor; fetch the file again")
    missing = sorted({name for name in file_of.values() if not (path.parent / name).exists()})
    if missing:
        raise InputError(f"{path}: shard {missing[0]} is not in the folder ({len(missing)} missing)")
    return file_of


def read_file(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a whole safetensors file.

    Args:
      path: the file.

    Returns:
      Arrays by name, bfloat16 as `ml_dtypes.bfloat16`; and the texts that were written beside them.

    Raises:
      InputError: if it is no safetensors file or cannot be read.
    """
    tensors = {}
    with _opened(path) as opened:
        for name in opened.keys():
            with _readable(path, name):
                tensors[name] = opened.get_tensor(name)
        return tensors, dict(opened.metadata() or {})


def _opened(path: pathlib.Path) -> safetensors.safe_open:
    try:
        return safetensors.safe_open(str(path), framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error


@contextlib.contextmanager
def _readable(path: pathlib.Path, name: str) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, TypeError, ValueError) as error:  # numpy lacks some of the dtypes
        raise InputError(f"{path}: tensor {name} cannot be read ({error}); fetch it again") from error


def is_file_name(value: object) -> bool:
    """Returns whether a value names a file in the folder itself, so that no index leads out of it."""
    return isinstance(value, str) and value not in ("", "..") and pathlib.PurePath(value).name == value


def _shards(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_tensors(
    folder: str | os.PathLike,
    sizes: Mapping[str, int],
    tensors: Iterable[tuple[str, np.ndarray]],
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes tensors as safetensors, in shards if they are large; only one shard is held in memory.

    Files appear under their names only when they are complete, the index last; shards of an earlier save that are not
    part of this one are removed at the end. An earlier save stays whole until then, unless its shards have the names
    of the new ones: then its index goes first, so that a save that was stopped never passes for a model.

    Args:
      folder: where to write; made if missing.
      sizes: tensor name to bytes, in the order in which `tensors` yields them.
      tensors: names and arrays.
      max_shard_bytes: largest shard, unless one tensor alone is larger.

    Raises:
      InputError: if a file cannot be written.
    """
    folder, shards = pathlib.Path(folder), _shards(sizes, max_shard_bytes)
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else [SINGLE]
    with explained(folder / INDEX):
        if len(shards) > 1 and any((folder / file).exists() for file in files):
            (folder / INDEX).unlink(missing_ok=True)
    stream = iter(tensors)
    for file, names in zip(files, shards, strict=True):
        part = {name: np.ascontiguousarray(array) for name, array in (next(stream) for _ in names)}
        write_file(folder / file, part)
    file_of = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    _write_index(folder, sizes, file_of)


def write_file(path: pathlib.Path, tensors: Mapping[str, np.ndarray], notes: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file that torch reads.

    Args:
      path: file to write or replace, once the new one is complete.
      tensors: arrays by name.
      notes: texts by name, written beside them.

    Raises:
      InputError: if it cannot be written.
    """
    part = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with explained(path), replacing(path) as partial:
        safetensors.numpy.save_file(part, str(partial), {"format": "pt", **(notes or {})})


def _write_index(folder: pathlib.Path, sizes: Mapping[str, int], file_of: Mapping[str, str]) -> None:
    """Names the shards, or makes sure that none are named, and removes those of an earlier save."""
    files = set(file_of.values())
    if files == {SINGLE}:
        with explained(folder / INDEX):
            (folder / INDEX).unlink(missing_ok=True)
    else:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": file_of}
        write_whole(folder / INDEX, json.dumps(index, indent=2))
    with explained(folder):
        for stale in set(folder.glob("model*.safetensors")) - {folder / file for file in files}:
            stale.unlink()
