import functools

import jax
import numpy as np
import pytest
from training_toy import TASKS, make_batch, tiny_t5

from jaxmtl.partitioning import batch_sharding, make_mesh, use_mesh
from jaxmtl.training import optim
from jaxmtl.training.objectives import EncoderDecoderLoss
from jaxmtl.training.schedules import constant
from jaxmtl.training.state import first_state, make_plan, scratch_params
from jaxmtl.training.step import train_step


def run(mesh, *, num_steps=3, num_microbatches=1, optimizer=optim.adamw, module=None, batches=make_batch):
    plan = make_plan(module or tiny_t5(), optimizer, constant(rate=0.01), mesh)
    step = functools.partial(
        train_step,
        plan=plan,
        objective=EncoderDecoderLoss(z_loss=1e-4),
        num_tasks=len(TASKS),
        num_microbatches=num_microbatches,
    )
    step = jax.jit(step, out_shardings=(plan.shardings, None), donate_argnums=0)
    state, history = first_state(plan, 1, scratch_params(plan, 0)), []
    for index in range(num_steps):
        with use_mesh(mesh):
            state, metrics = step(state, jax.device_put(batches(index), batch_sharding(mesh)))
        history.append(jax.device_get(metrics))
    return state, history


@pytest.fixture(scope="module")
def on_one_device():
    return run(make_mesh(data=1))


@pytest.mark.parametrize("axes", [dict(data=8), dict(fsdp=8), dict(tensor=2), dict(tensor=4, data=2)])
def test_losses_do_not_depend_on_the_mesh(axes, on_one_device):
    mesh = make_mesh(**(dict(data=1) | axes))
    state, history = run(mesh)
    for ours, theirs in zip(history, on_one_device[1], strict=True):
        np.testing.assert_allclose(ours.sums.loss, theirs.sums.loss, rtol=1e-5)
        np.testing.assert_allclose(ours.sums.task_loss, theirs.sums.task_loss, rtol=1e-5)
        np.testing.assert_allclose(ours.grad_norm, theirs.grad_norm, rtol=1e-4)  # squares of sums in another order


def test_fsdp_splits_parameters_and_optimizer_state():
    state, _ = run(make_mesh(data=1, fsdp=8), num_steps=1)
    for tree in (state.params, state.opt_state[1].mu, state.opt_state[1].nu):
        kernel = tree["encoder"]["attention"]["query"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // 8


@pytest.mark.parametrize("optimizer", [optim.adamw, optim.adafactor])
@pytest.mark.parametrize("axes", [dict(data=1), dict(data=2)])
def test_accumulated_steps_equal_whole_steps(optimizer, axes):
    module = tiny_t5(dropout_rate=0.0)  # with dropout, microbatches have masks of their own
    mesh = make_mesh(**axes)
    optimizer = functools.partial(optimizer, max_norm=1.0)
    whole, whole_history = run(mesh, optimizer=optimizer, module=module)
    parts, parts_history = run(mesh, optimizer=optimizer, module=module, num_microbatches=4)
    np.testing.assert_allclose(parts_history[-1].sums.loss, whole_history[-1].sums.loss, rtol=1e-5)
    np.testing.assert_allclose(parts_history[-1].grad_norm, whole_history[-1].grad_norm, rtol=1e-4)
    np.testing.assert_allclose(parts_history[-1].sums.task_tokens, whole_history[-1].sums.task_tokens)


def test_task_sums_add_up_to_the_whole():
    _, (metrics,) = run(make_mesh(data=1), num_steps=1)
    batch = make_batch(0)
    expected = [batch["loss_mask"][batch["task_ids"] == task].sum() for task in range(len(TASKS))]
    np.testing.assert_array_equal(metrics.sums.task_tokens, expected)
    np.testing.assert_allclose(metrics.sums.task_loss.sum(), metrics.sums.loss, rtol=1e-6)


def test_padding_changes_no_loss():
    def padded(index):
        batch = make_batch(index)
        wider = {name: np.pad(batch[name], ((0, 0), (0, 3))) for name in ("inputs", "targets", "loss_mask")}
        return batch | wider

    module = tiny_t5(dropout_rate=0.0)
    _, plain = run(make_mesh(data=1), module=module)
    _, wide = run(make_mesh(data=1), module=module, batches=padded)
    np.testing.assert_allclose([m.sums.loss for m in wide], [m.sums.loss for m in plain], rtol=1e-5)


def test_dropout_follows_seed_and_step():
    batches = lambda _: make_batch(0)
    frozen = functools.partial(optim.adamw, groups=(optim.Group(name="all", matches=lambda _: True, rate=0.0),))
    _, first = run(make_mesh(data=1), num_steps=2, optimizer=frozen, batches=batches)
    _, second = run(make_mesh(data=1), num_steps=2, optimizer=frozen, batches=batches)
    assert [m.sums.loss for m in first] == [m.sums.loss for m in second]
    assert first[0].sums.loss != first[1].sums.loss


def test_a_loss_that_is_not_finite_is_flagged():
    def broken(index):
        batch = make_batch(index)
        return batch | {"loss_mask": np.where(batch["loss_mask"] > 0, np.float32(np.inf), 0)}

    _, (metrics,) = run(make_mesh(data=1), num_steps=1, batches=broken)
    assert not metrics.finite


def test_metrics_tell_norms_and_rate():
    state, (metrics,) = run(make_mesh(data=1), num_steps=1)
    squares = sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(state.params))
    assert metrics.param_norm == pytest.approx(squares**0.5, rel=1e-5)
    assert metrics.learning_rate == pytest.approx(0.01)
    assert metrics.finite and int(state.step) == 1
