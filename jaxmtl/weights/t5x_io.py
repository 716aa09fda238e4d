"""T5X checkpoints on disk: an index in msgpack whose arrays lie inside it or, one folder each, beside it as zarr.

The index is the file `checkpoint` of a folder `checkpoint_STEP`, or a file of its own that holds every array. Nothing
in it is trusted but names, shapes and numbers: no code is run, and nothing outside its folder is opened.
Source: methods 6.3.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorstore as ts
from flax import serialization, traverse_util

from jaxmtl.files import explained, replacing_folder, write_whole
from jaxmtl.types import InputError
from jaxmtl.weights.refusals import reason
from jaxmtl.weights.safetensors_io import is_file_name

INDEX = "checkpoint"
VERSION = 3
OLDEST_VERSION = 2
CHUNK_BYTES = 64 * 2**20
"""Largest chunk of an array that is written."""
_STEP = re.compile(r"checkpoint_(\d+)")
_DAMAGED = "it is damaged or no T5X checkpoint: fetch it again"


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a checkpoint is.

    Attributes:
      index: the msgpack file; arrays that are not inside it lie in its folder.
      home: the folder where `config.json` and the tokenizer's files are.
      step: the step it was taken at; 0 if its name does not tell.
    """

    index: pathlib.Path
    home: pathlib.Path
    step: int


def find(path: pathlib.Path) -> Location | None:
    """Looks for a T5X checkpoint.

    Args:
      path: a folder that holds `checkpoint_STEP`, of which the newest is taken; a `checkpoint_STEP`, folder or file; or
        the file of a checkpoint that has another name.

    Returns:
      Where it is; None if there is none.

    Raises:
      InputError: if the folder holds safetensors as well, so that nobody knows which is meant.
    """
    if path.is_file():
        return Location(path, path.parent, _step(path))
    if (path / INDEX).is_file() and not any(path.glob("*.safetensors")):
        return Location(path / INDEX, path if (path / "config.json").exists() else path.parent, _step(path))
    found = [child for child in path.glob("checkpoint_*") if _STEP.fullmatch(child.name)]
    if not found:
        return None
    newest = max(found, key=_step)
    if any(path.glob("*.safetensors")):
        raise InputError(f"{path}: holds safetensors and {newest.name}; give {newest} or move one of the two away")
    return Location(newest if newest.is_file() else newest / INDEX, path, _step(newest))


def _step(path: pathlib.Path) -> int:
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else 0


@dataclasses.dataclass(frozen=True)
class _Stored:
    """An array that lies beside the index."""

    folder: str
    shape: tuple[int, ...]


class T5XArrays:
    """The parameters of a checkpoint by name; one that lies beside the index is read when it is asked for.

    Args:
      location: what `find` gave.

    Raises:
      InputError: if the index is missing, damaged, of a version nobody writes any more, or names what is not its own.
    """

    def __init__(self, location: Location) -> None:
        self.index = location.index
        contents = _read_index(location.index)
        target = dict(_leaves(contents.get("target"), location.index))
        self._arrays = {name: _array(name, leaf, location.index) for name, leaf in target.items()}
        state = contents.get("state")
        self.num_ignored = sum(1 for name, _ in _leaves(state, location.index) if name != "step") if state else 0
        """How many arrays of the optimizer the checkpoint holds, which nobody reads."""

    def names(self) -> set[str]:
        """Returns the names of all parameters, joined by "/"."""
        return set(self._arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a parameter's shape without reading it."""
        return tuple(self._arrays[name].shape)

    def read(self, name: str) -> np.ndarray:
        """Reads one parameter; bfloat16 comes as `ml_dtypes.bfloat16`.

        Args:
          name: the parameter's.

        Returns:
          Its values.

        Raises:
          InputError: if they cannot be read, or have another shape than the checkpoint says.
        """
        array = self._arrays[name]
        if isinstance(array, np.ndarray):
            return array
        folder = (self.index.parent / array.folder).absolute()
        # TensorStore gives zeros for a chunk that is missing, unless told not to.
        spec = _spec(f"{folder}/") | {"fill_missing_data_reads": False}
        try:
            store = ts.open(spec, open=True).result()
            found = tuple(store.shape)
            values = store.read().result() if found == array.shape else None
        except (ValueError, OSError, MemoryError) as error:
            raise InputError(f"{folder}: array {name} cannot be read ({reason(error)}); fetch it again") from error
        if values is None:
            raise InputError(f"{folder}: array {name} has shape {found}, its index says {array.shape}; fetch it again")
        return values


def _read_index(path: pathlib.Path) -> dict[str, Any]:
    """Returns what the index says of `target` (parameters) and `state` (the optimizer)."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the msgpack index of a T5X checkpoint")
    try:
        contents = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack, numpy and flax each have errors of their own for what is not msgpack
        raise InputError(f"{path}: cannot be read as msgpack ({reason(error)}); {_DAMAGED}") from error
    if not isinstance(contents, dict):
        raise InputError(f"{path}: holds {type(contents).__name__}, expected a table; {_DAMAGED}")
    version = contents.get("version", OLDEST_VERSION)
    if type(version) is not int or not OLDEST_VERSION <= version <= VERSION:
        raise InputError(f"{path}: is of version {str(version)[:20]}, expected {OLDEST_VERSION} or {VERSION}")
    contents = contents.get("optimizer", contents)
    if not isinstance(contents, dict) or not isinstance(contents.get("target"), dict):
        raise InputError(f"{path}: has no table 'target' of parameters; {_DAMAGED}")
    return contents


def _leaves(tree: Any, where: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Yields paths and leaves of nested tables, without recursion: a damaged file may be nested deeply."""
    stack = [("", tree)]
    while stack:
        path, node = stack.pop()
        if not isinstance(node, dict) or "kvstore" in node:
            yield path, node
            continue
        for key, child in node.items():
            if not isinstance(key, str):
                raise InputError(f"{where}: a name is {str(key)[:40]!r}, expected text; {_DAMAGED}")
            stack.append((f"{path}/{key}" if path else key, child))


def _array(name: str, leaf: Any, where: pathlib.Path) -> np.ndarray | _Stored:
    """Reads a leaf of the index: an array, or the name of the folder that holds one."""
    if isinstance(leaf, np.ndarray):
        return leaf
    if not isinstance(leaf, dict):
        raise InputError(f"{where}: {name} is {type(leaf).__name__}, expected an array; {_DAMAGED}")
    kvstore, metadata = leaf["kvstore"], leaf.get("metadata")
    path = kvstore.get("path", leaf.get("path")) if isinstance(kvstore, dict) else None  # two forms of its specs
    folder = path.rstrip("/") if isinstance(path, str) else path
    if not is_file_name(folder):
        raise InputError(f"{where}: {name} is said to be in {str(path)[:80]!r}, expected a folder beside the index")
    shape = metadata.get("shape") if isinstance(metadata, dict) else None
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise InputError(f"{where}: {name} has shape {str(shape)[:40]}, expected whole numbers; {_DAMAGED}")
    return _Stored(str(folder), tuple(shape))


def write_folder(path: pathlib.Path, arrays: Iterable[tuple[str, np.ndarray]], step: int) -> None:
    """Writes a checkpoint with every array as zarr beside the index, as T5X does; one array is held at a time.

    Args:
      path: the folder, `checkpoint_STEP`; it gets its name, and an older one is removed, once it is complete.
      arrays: names, joined by "/", and arrays.
      step: the step to note.

    Raises:
      InputError: if it cannot be written.
    """
    specs = {}
    with explained(path), replacing_folder(path) as partial:
        for name, array in arrays:
            folder = f"target.{name.replace('/', '.')}/"
            metadata = {
                "chunks": _chunks(array.shape, array.dtype.itemsize),
                "compressor": {"id": "gzip", "level": 1},
                "shape": list(array.shape),
            }
            of_array = {"dtype": array.dtype.name, "metadata": metadata}
            specs[name] = _spec(folder) | of_array
            try:
                store = ts.open(_spec(f"{partial.absolute()}/{folder}") | of_array, create=True).result()
                store.write(array).result()
            except ValueError as error:  # TensorStore's form of every error of a file system
                raise OSError(reason(error)) from error
        (partial / INDEX).write_bytes(_index(specs, step))


def write_file(path: pathlib.Path, arrays: Iterable[tuple[str, np.ndarray]], step: int) -> None:
    """Writes a checkpoint as one file with every array inside; all of them are held at a time.

    Args:
      path: the file, replaced once the new one is complete.
      arrays: names, joined by "/", and arrays.
      step: the step to note.

    Raises:
      InputError: if it cannot be written.
    """
    write_whole(path, _index(dict(arrays), step))


def _index(leaves: dict[str, Any], step: int) -> bytes:
    target = traverse_util.unflatten_dict(dict(sorted(leaves.items())), sep="/")
    optimizer = {"state": {"step": np.asarray(step, np.int32)}, "target": target}
    return serialization.msgpack_serialize({"version": VERSION, "optimizer": optimizer})


def _spec(path: str) -> dict[str, Any]:
    return {"driver": "zarr", "kvstore": {"driver": "file", "path": path}}


def _chunks(shape: tuple[int, ...], itemsize: int) -> list[int]:
    """Divides the longest axis, always into equal parts, until a chunk is small enough."""
    chunks = list(shape)
    while math.prod(chunks) * itemsize > CHUNK_BYTES:
        axis = chunks.index(max(chunks))
        chunks[axis] = next(size for size in range(chunks[axis] - 1, 0, -1) if shape[axis] % size == 0)
    return chunks
