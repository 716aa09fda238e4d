"""Layers in T5X checkpoints: one name per layer, or all layers of a stack in one array (T5X's scanned layers).

The latter have the layer on axis 1 and a table of relative positions in every layer; the models that can be read here
have one table per stack, so the tables must agree.
"""

import re
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from jaxmtl.models.trees import flat
from jaxmtl.types import InputError
from jaxmtl.weights import key_table
from jaxmtl.weights.t5x_io import T5XArrays

MOST_LAYERS = 10**4
POSITIONS = "relpos_bias/rel_embedding"
_STACKED = re.compile(r"(encoder|decoder)/layers/(.+)")
_POSITIONS_OF_LAYER = re.compile(rf"(encoder|decoder)/layers_\d+/{POSITIONS}")


class UnscannedArrays:
    """A checkpoint's arrays with one name per layer, however they are stored.

    Args:
      arrays: the arrays as they are stored.

    Raises:
      InputError: if an array of stacked layers has no axis for the layers, or they are more than a model can have.
    """

    def __init__(self, arrays: T5XArrays) -> None:
        self._arrays = arrays
        self._places: dict[str, list[tuple[str, int | None]]] = {}
        self._last: tuple[str, np.ndarray] | None = None
        for name in sorted(arrays.names()):
            for unscanned, layer in self._unscanned(name):
                match = _POSITIONS_OF_LAYER.fullmatch(unscanned)
                shared = f"{match[1]}/{POSITIONS}" if match else unscanned
                self._places.setdefault(shared, []).append((name, layer))

    def _unscanned(self, name: str) -> list[tuple[str, int | None]]:
        """Returns the names per layer that a stored array stands for, each with its place on axis 1."""
        match = _STACKED.fullmatch(name)
        if match is None:
            return [(name, None)]
        shape = self._arrays.shape(name)
        if len(shape) < 2 or not 1 <= shape[1] <= MOST_LAYERS:
            raise InputError(f"{self._arrays.index}: {name} has shape {shape}, expected the layers on axis 1")
        return [(f"{match[1]}/layers_{layer}/{match[2]}", layer) for layer in range(shape[1])]

    def names(self) -> set[str]:
        """Returns the names of all parameters."""
        return set(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a parameter's shape without reading it."""
        stored, layer = self._places[name][0]
        shape = self._arrays.shape(stored)
        return shape if layer is None else (shape[0], *shape[2:])

    def read(self, name: str) -> np.ndarray:
        """Reads one parameter.

        Raises:
          InputError: if it cannot be read, or if it is a table of relative positions that differs between layers.
        """
        first, *others = (self._read(*place) for place in self._places[name])
        if any(not np.array_equal(first, other) for other in others):
            raise InputError(
                f"{self._arrays.index}: each layer has a {POSITIONS} of its own (as in umT5); expected one per stack"
            )
        return first

    def _read(self, stored: str, layer: int | None) -> np.ndarray:
        """Reads a stored array, or one layer of it; the last one is kept for its other layers."""
        if layer is None:
            return self._arrays.read(stored)
        if self._last is None or self._last[0] != stored:
            self._last = (stored, self._arrays.read(stored))
        return self._last[1][:, layer]


def scanned(table: key_table.Table, params: Mapping) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and arrays as T5X's scanned layers are stored.

    Args:
      table: the key table, with a name per layer.
      params: our tree.

    Yields:
      Name and array; one array for all layers of a stack.
    """
    leaves = flat(params)
    depth = {key.ours.split("/")[0]: key.num_layers for key in table if key.num_layers}
    for key in table:
        leaf = np.asarray(jax.device_get(leaves[key.ours]))
        leaf = np.swapaxes(leaf, -1, -2) if key.transpose else leaf
        side = key.theirs.split("/")[0]
        if key.num_layers:
            yield key.theirs.replace("layers_{l}", "layers"), np.moveaxis(leaf, 0, 1)
        elif key.theirs == f"{side}/{POSITIONS}":
            yield f"{side}/layers/{POSITIONS}", np.repeat(leaf[:, None], depth[side], axis=1)
        else:
            yield key.theirs, leaf
