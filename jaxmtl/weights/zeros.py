"""Tensors that a checkpoint may lack because they are zero."""

from collections.abc import Mapping

import numpy as np

from jaxmtl.weights.key_table import Tensors


class TensorsWithZeros:
    """A model's tensors, and zeros for those that it lacks.

    Args:
      tensors: the stored tensors.
      shapes: shape by name of what may be absent.
    """

    def __init__(self, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._tensors = tensors
        self._shapes = {name: shape for name, shape in shapes.items() if name not in tensors.names()}

    def names(self) -> set[str]:
        """Returns the names of all tensors."""
        return self._tensors.names() | self._shapes.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape without reading it."""
        return self._shapes.get(name) or self._tensors.shape(name)

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor."""
        return np.zeros(self._shapes[name], np.float32) if name in self._shapes else self._tensors.read(name)
