"""Arrays that an objective holds, such as the parameters of teachers: arguments of the compiled step.

As constants they would be written into the program of every shape of batches, and be compiled with it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxmtl.partitioning import replicated
from jaxmtl.training.objectives import Objective


def taken_apart(objective: Objective) -> tuple[list[jax.Array], Callable[[Sequence[Any]], Objective]]:
    """Takes the arrays out of an objective.

    Args:
      objective: a tree whose leaves are arrays and all else that it is made of; a class that is not registered as a
        tree is a leaf without arrays.

    Returns:
      The arrays, each once, and what puts an objective together again from arrays in their places.
    """
    leaves, structure = jax.tree.flatten(objective)
    is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
    arrays = {id(leaf): leaf for leaf, one in zip(leaves, is_array, strict=True) if one}
    number = {key: place for place, key in enumerate(arrays)}
    places = {place: number[id(leaf)] for place, leaf in enumerate(leaves) if is_array[place]}
    # The arrays themselves are not kept here: those on a mesh may be other ones.
    others = [None if one else leaf for leaf, one in zip(leaves, is_array, strict=True)]

    def together(given: Sequence[Any]) -> Objective:
        whole = [given[places[place]] if place in places else other for place, other in enumerate(others)]
        return jax.tree.unflatten(structure, whole)

    return [*arrays.values()], together


def on_mesh(arrays: Sequence[Any], mesh: Mesh) -> list[jax.Array]:
    """Puts arrays on the devices of a mesh: those that lie there stay as they are, of others each device gets a copy.

    Args:
      arrays: of one process or of a mesh.
      mesh: the devices.
    """
    # What lies on one device of this process cannot be put on devices of others; what is in its memory can.
    reachable = np.asarray if jax.process_count() > 1 else lambda array: array
    return [array if _is_on(array, mesh) else jax.device_put(reachable(array), replicated(mesh)) for array in arrays]


def _is_on(array: Any, mesh: Mesh) -> bool:
    sharding = getattr(array, "sharding", None)
    return isinstance(sharding, NamedSharding) and sharding.mesh == mesh
