"""Arrays of an objective: taken out, put on a mesh, and put back."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxmtl.partitioning import make_mesh
from jaxmtl.training.given import on_mesh, taken_apart


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weighted:
    """An objective with an array and a name."""

    weights: Any
    name: str = "weighted"

    def __call__(self, module, variables, batch, *, dropout_key=None):
        return self.weights @ batch


def test_an_objective_is_put_together_of_other_arrays():
    arrays, together = taken_apart(Weighted(np.arange(3.0)))
    (own,) = arrays
    np.testing.assert_array_equal(own, [0, 1, 2])
    batch = np.array([1.0, 10.0, 100.0])
    run = jax.jit(lambda given, batch: together(given)(None, None, batch))
    assert run(arrays, batch) == 210 and run([own * 2], batch) == 420
    assert together(arrays).name == "weighted"


def test_a_class_that_is_no_tree_stays_as_it_is():
    objective = lambda *args, **options: None
    arrays, together = taken_apart(objective)
    assert arrays == [] and together([]) is objective


def test_arrays_that_lie_on_the_mesh_stay_and_others_are_copied_to_each_device():
    mesh = make_mesh(data=4, fsdp=2)
    split = jax.device_put(np.arange(8.0), NamedSharding(mesh, PartitionSpec("data")))
    kept, copied, moved = on_mesh([split, np.arange(3), jax.device_put(np.ones(2), jax.devices()[1])], mesh)
    assert kept is split
    for array, values in ((copied, [0, 1, 2]), (moved, [1, 1])):
        assert array.sharding.is_fully_replicated and array.sharding.device_set == set(mesh.devices.flat)
        np.testing.assert_array_equal(array, values)
