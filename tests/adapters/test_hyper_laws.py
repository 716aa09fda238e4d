"""The law of devices: however many share rows and parameters, a hypernetwork answers and learns the same."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hyper_toy import BASE, LORA, SEEDS, batches, descent, numbers, random_adapters, random_like, toy

from jaxmtl.adapters.hyper_config import GeneratorConfig, HyperConfig
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.models.initial import abstract_params
from jaxmtl.partitioning import batch_sharding, make_mesh, shardings_for, use_mesh
from jaxmtl.training.compile import CompiledStep
from jaxmtl.training.given import on_mesh, taken_apart
from jaxmtl.training.hyper_objective import InstructedLoss
from jaxmtl.training.schedules import constant
from jaxmtl.training.state import first_state, make_plan
from jaxmtl.training.step import train_step
from jaxmtl.training.teachers import AdaptedTeacher

# To look for a smaller example takes minutes: eight devices are slow.
FEW = hypothesis.settings(max_examples=5, deadline=None, phases=[hypothesis.Phase.generate])
SPREAD = 0.15
"""Of parameters: with larger ones, norms of some drawn texts make roundings a thousand times as large."""
ONE, EIGHT = (1, 1), (4, 2)
"""Sizes of meshes along `data` and `fsdp`."""
MODULE = HyperModel(HyperConfig(outputs=(LORA,), generator=GeneratorConfig(hidden=6, dropout=0.1)), BASE)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiles 2.5 times as fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def assert_same_leaves(found, expected):
    """Compares gradients, or what they move.

    Devices add float32 numbers up in another order: 1e-7 of the terms, and norms on the way back make a hundred times
    that of it, at the most. Where a leaf's terms cancel, as those of an attention to a single token do, nothing but
    rounding is left; how large the terms were is seen from other leaves alone.
    """
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))

    def compare(path, leaf, other):
        atol = 1e-3 * np.abs(leaf).max() + 1e-5 * largest
        np.testing.assert_allclose(other, leaf, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, expected, found)


@functools.lru_cache
def compiled_loss(data, fsdp):
    module, mesh = toy()[0], make_mesh(data=data, fsdp=fsdp)

    def loss(params, batch):
        read = (batch[name] for name in ("inputs", "decoder_inputs", "instructions", "index"))
        return jnp.mean(jax.nn.log_softmax(module.apply({"params": params}, *read))[..., 5])

    placed = shardings_for(abstract_params(module), mesh)
    return mesh, jax.jit(jax.value_and_grad(loss), in_shardings=(placed, batch_sharding(mesh)))


@pytest.mark.long
@FEW
@hypothesis.given(batches(8, 8))
def test_eight_devices_compute_what_one_does(batch):
    params = random_like(toy()[0], spread=SPREAD)

    def run(sizes):
        mesh, loss = compiled_loss(*sizes)
        with use_mesh(mesh):
            return jax.device_get(loss(params, batch))

    (one, one_grads), (eight, eight_grads) = run(ONE), run(EIGHT)
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    assert_same_leaves(eight_grads, one_grads)


@functools.lru_cache
def compiled_step(data, fsdp):
    """The plan of a state on a mesh, and the step, as the loop makes them."""
    mesh = make_mesh(data=data, fsdp=fsdp)
    teachers = random_adapters(BASE, LORA, ("copying", "", "sorting"))
    objective = InstructedLoss(teacher=AdaptedTeacher(adapters=teachers), updates=teachers, distance="update")
    arrays, together = taken_apart(objective)
    plan = make_plan(MODULE, functools.partial(descent, hyper=MODULE.hyper), constant(rate=1.0), mesh)

    def step(state, batch, *given):
        return train_step(state, batch, plan=plan, objective=together(given), num_tasks=3)

    return plan, CompiledStep(step, plan, lambda _: None, on_mesh(arrays, mesh))


@pytest.mark.long
@FEW
@hypothesis.given(batches(8, 8), numbers(8, 3), numbers(8, 2), SEEDS)
def test_a_step_of_training_on_eight_devices_is_that_on_one(drawn, task_ids, last, seed):
    targets, mask = drawn["decoder_inputs"][:, 1:], np.arange(2) <= last[:, None]
    batch = {
        "inputs": drawn["inputs"],
        "targets": np.where(mask, targets, 0),
        "loss_mask": mask.astype(np.float32),
        "instructions": drawn["instructions"],
        "instruction_index": drawn["index"],
        "task_ids": task_ids,
    }
    params = random_like(MODULE, spread=SPREAD)

    def run(sizes):
        plan, step = compiled_step(*sizes)
        state = first_state(plan, seed, jax.device_put(params, plan.shardings.params))
        after, metrics = jax.device_get(step(state, jax.device_put(batch, batch_sharding(plan.mesh))))
        return jax.tree.map(np.subtract, after.params, params), after.opt_state, metrics

    (moved, momenta, told), (same_moved, same_momenta, same_told) = run(ONE), run(EIGHT)
    assert set(told.sums.task_terms) == {"target", "teacher", "update"}
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5), same_told, told)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(moved["base"]))
    # A parameter of size 1 is rounded to 1e-7 where it moves by 0.1 or more: less than is compared.
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(moved)) > 0.1
    assert_same_leaves(same_moved, moved)
    assert_same_leaves(same_momenta, momenta)
