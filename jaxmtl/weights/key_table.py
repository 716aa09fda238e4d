"""Moves parameters between our tree and another framework's flat names, by a table that is read in both directions.

Our layers are stacked along axis 0; theirs have one name per layer, with `{l}` where the number stands.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.models.trees import flat, nested
from jaxmtl.types import InputError

Read = Callable[[str], np.ndarray]
Place = Callable[[str, np.ndarray], Any]
LISTED = 10
"""Names of tensors that an error lists of those that do not fit; it counts them all."""


class Tensors(Protocol):
    """What gives a stored model's tensors by their names."""

    def names(self) -> set[str]:
        """Returns the names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape without reading it."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor."""
        ...


@dataclasses.dataclass(frozen=True)
class Key:
    """One parameter under both names.

    Attributes:
      ours: path in our tree, joined by "/", with `{part}` for the part if theirs holds several of ours.
      theirs: their name, with `{l}` for the layer if ours is stacked.
      transpose: True if their matrix is the transpose of ours.
      num_layers: length of axis 0 of ours; 0 if it is not stacked.
      parts: names of ours that lie in theirs side by side along the last axis, equally wide; () if it is one.
    """

    ours: str
    theirs: str
    transpose: bool = False
    num_layers: int = 0
    parts: tuple[str, ...] = ()

    def paths(self) -> list[str]:
        """Returns our paths, one per part."""
        return [self.ours.format(part=part) for part in self.parts] or [self.ours]

    def names(self) -> list[str]:
        """Returns their names, one per layer."""
        return [self.theirs.format(l=layer) for layer in range(self.num_layers)] or [self.theirs]


Table = Sequence[Key]


class PrefixedTensors:
    """Tensors of a part that was saved alone, under the names that they have in the whole model.

    Args:
      tensors: the stored tensors.
      prefix: what the names lack.
    """

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix

    def names(self) -> set[str]:
        """Returns the names of all tensors."""
        return {self._prefix + name for name in self._tensors.names()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape without reading it."""
        return self._tensors.shape(name.removeprefix(self._prefix))

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor."""
        return self._tensors.read(name.removeprefix(self._prefix))


def with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Gives tensors the names that they have in the whole model.

    Args:
      tensors: the stored tensors.
      prefix: what names of the part begin with in the whole model.

    Returns:
      The tensors themselves if one of their names begins so, else the same under longer names.
    """
    if any(name.startswith(prefix) for name in tensors.names()):
        return tensors
    return PrefixedTensors(tensors, prefix)


def check_names(table: Table, names: set[str], ignore: set[str], where: str) -> None:
    """Refuses a set of tensor names that is not exactly the table's.

    Args:
      table: the key table.
      names: names that were found.
      ignore: names that may be there and are not used, with `{l}` for any layer.
      where: the file or folder, for the message.

    Raises:
      InputError: naming missing and unknown tensors.
    """
    expected = {name for key in table for name in key.names()}
    is_ignored = re.compile("|".join(re.escape(name).replace(r"\{l\}", r"\d+") for name in ignore)).fullmatch
    missing = sorted(expected - names)
    unknown = sorted(name for name in names - expected if not is_ignored(name))
    if missing or unknown:
        listed = [
            f"{len(part)} {what}: {', '.join(part[:LISTED])}{', ...' if len(part) > LISTED else ''}"
            for what, part in (("missing", missing), ("unknown", unknown))
            if part
        ]
        raise InputError(f"{where}: tensors do not fit config.json ({'; '.join(listed)}); is it another model?")


def embedding_rows(tensors: Tensors, name: str, width: int, ids: Sequence[int], where: str) -> int:
    """Counts the rows of an embedding, which `config.json` does not say reliably.

    Args:
      tensors: the model's tensors.
      name: the embedding's name.
      width: D.
      ids: token ids that the config names, each of which needs a row.
      where: the folder, for messages.

    Returns:
      V.

    Raises:
      InputError: if the embedding is missing, of another width, or has no row for one of the ids.
    """
    if name not in tensors.names():
        raise InputError(
            f"{where}: tensor {name} is missing; config.json says that it is there: is it another model's?"
        )
    shape = tuple(tensors.shape(name))
    if len(shape) != 2 or shape[0] < 1 or shape[1] != width:
        raise InputError(f"{where}: {name} has shape {shape}, config.json asks for (rows, {width})")
    if max(ids) >= shape[0]:
        raise InputError(
            f"{where}: {name} has {shape[0]} rows, config.json names token id {max(ids)}; is it another's?"
        )
    return shape[0]


def to_ours(table: Table, read: Read, shapes: Any, place: Place, where: str) -> Any:
    """Builds our tree, one leaf at a time, the largest first: while it is read there is little else in memory.

    Args:
      table: the key table.
      read: gives a tensor by their name.
      shapes: our tree with something that has a `shape` as leaves.
      place: takes our path and the host array of a leaf, and puts it where it shall live.
      where: the file or folder, for messages.

    Returns:
      Our tree of whatever `place` returned.

    Raises:
      InputError: if a tensor has another shape than expected.
    """
    expected = flat(shapes)
    leaves = {}
    for key in sorted(table, key=lambda key: -math.prod(expected[key.paths()[0]].shape)):
        shape = tuple(expected[key.paths()[0]].shape)
        wanted = shape[1:] if key.num_layers else shape
        tensors = (_checked(key, name, read(name), wanted, where) for name in key.names())
        for path, leaf in zip(key.paths(), _stacked(key, tensors), strict=True):
            leaves[path] = place(path, leaf)
    return nested(leaves)


def _stacked(key: Key, tensors: Iterator[list[np.ndarray]]) -> list[np.ndarray]:
    """Stacks the parts of one tensor per layer, each as soon as it is read."""
    first = next(tensors)
    if not key.num_layers:
        return first
    stacks = [np.empty((key.num_layers, *part.shape), part.dtype) for part in first]
    for layer, parts in enumerate(itertools.chain([first], tensors)):
        for stack, part in zip(stacks, parts, strict=True):
            stack[layer] = part
    return stacks


def _checked(key: Key, name: str, theirs: np.ndarray, wanted: tuple[int, ...], where: str) -> list[np.ndarray]:
    """Returns a tensor's parts in our orientation, or refuses it in the words of their shapes."""
    if not jnp.issubdtype(theirs.dtype, jnp.floating):
        raise InputError(f"{where}: {name} holds {theirs.dtype}, expected floating-point numbers")
    num_parts = len(key.paths())
    ours = theirs.T if key.transpose else theirs
    whole = (*wanted[:-1], num_parts * wanted[-1])
    if ours.shape != whole:
        asked = whole[::-1] if key.transpose else whole
        raise InputError(f"{where}: {name} has shape {theirs.shape}, config.json asks for {asked}")
    return np.split(ours, num_parts, axis=-1)


def to_theirs(table: Table, params: Mapping) -> Iterator[tuple[str, np.ndarray]]:
    """Yields their names and host arrays, one at a time, in the table's order.

    Args:
      table: the key table.
      params: our tree.

    Yields:
      Name and array, transposed where the table says so.
    """
    leaves = flat(params)
    for key in table:
        parts = [np.asarray(jax.device_get(leaves[path])) for path in key.paths()]
        for layer, name in enumerate(key.names()):
            tensors = [part[layer] for part in parts] if key.num_layers else parts
            tensor = tensors[0] if len(tensors) == 1 else np.concatenate(tensors, axis=-1)
            yield name, tensor.T if key.transpose else tensor
