import functools

import jax
import numpy as np
import pytest
from packing_toy import examples, packed_batch, plain_batch
from training_toy import TASKS, Tiny, TinyConfig, V, broken_mask, make_batch, tiny_t5

from jaxmtl.partitioning import batch_sharding, make_mesh, use_mesh
from jaxmtl.training import optim
from jaxmtl.training.normalisers import batch_tokens, window_tokens
from jaxmtl.training.objectives import EncoderDecoderLoss
from jaxmtl.training.schedules import constant
from jaxmtl.training.state import first_state, make_plan, scratch_params
from jaxmtl.training.step import train_step
from jaxmtl.types import InputError

MESHES = [dict(data=8), dict(fsdp=8), dict(tensor=2), dict(tensor=4, data=2)]


def run(
    *, axes=None, num_steps=3, num_microbatches=1, optimizer=optim.adamw, module=None, batches=make_batch, **options
):
    mesh = make_mesh(**(dict(data=1) | (axes or {})))
    plan = make_plan(module or Tiny(), optimizer, constant(rate=0.01), mesh)
    step = functools.partial(
        train_step,
        plan=plan,
        objective=EncoderDecoderLoss(z_loss=1e-4),
        num_tasks=len(TASKS),
        num_microbatches=num_microbatches,
        **options,
    )
    step = jax.jit(step, out_shardings=(plan.shardings, None), donate_argnums=0)
    state, history = first_state(plan, 1, scratch_params(plan, 0)), []
    for index in range(num_steps):
        with use_mesh(mesh):
            state, metrics = step(state, jax.device_put(batches(index), batch_sharding(mesh)))
        history.append(jax.device_get(metrics))
    return state, history


def assert_same_history(ours, theirs):
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.sums.loss, reference.sums.loss, rtol=1e-5)
        np.testing.assert_allclose(mine.sums.task_loss, reference.sums.task_loss, rtol=1e-5)
        np.testing.assert_allclose(mine.grad_norm, reference.grad_norm, rtol=1e-4)  # squares added in another order


@pytest.fixture(scope="module", params=[optim.adamw, optim.adafactor])
def on_one_device(request):
    return request.param, run(optimizer=request.param)[1]


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_losses_do_not_depend_on_the_mesh(axes, on_one_device):
    optimizer, expected = on_one_device
    assert_same_history(run(axes=axes, optimizer=optimizer)[1], expected)


@pytest.mark.long
def test_losses_of_t5_do_not_depend_on_the_mesh():
    reference = run(module=tiny_t5())[1]
    for axes in (dict(fsdp=8), dict(tensor=4, data=2)):
        assert_same_history(run(axes=axes, module=tiny_t5())[1], reference)


def test_fsdp_splits_parameters_and_optimizer_state():
    state, _ = run(axes=dict(fsdp=8), num_steps=1)
    for tree in (state.params, state.opt_state[1].mu, state.opt_state[1].nu):
        kernel = tree["layers"]
        assert kernel.addressable_shards[0].data.size == kernel.size // 8


@pytest.mark.parametrize("optimizer", [optim.adamw, optim.adafactor])
@pytest.mark.parametrize("axes", [dict(data=1), dict(data=2)], ids=str)
def test_accumulated_steps_equal_whole_steps(optimizer, axes):
    module = Tiny(TinyConfig(dropout_rate=0.0))  # with dropout, microbatches have masks of their own
    options = dict(axes=axes, module=module, optimizer=functools.partial(optimizer, max_norm=1.0))
    parts, whole = run(num_microbatches=4, **options), run(**options)
    assert_same_history(parts[1], whole[1])
    for ours, theirs in zip(jax.tree.leaves(parts[0].params), jax.tree.leaves(whole[0].params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_batch_that_does_not_split_into_microbatches_is_refused():
    with pytest.raises(InputError, match="8 rows does not split into 3 microbatches"):
        run(num_microbatches=3)


def test_task_sums_add_up_to_the_whole():
    _, (metrics,) = run(num_steps=1)
    batch = make_batch(0)
    expected = [batch["loss_mask"][batch["task_ids"] == task].sum() for task in range(len(TASKS))]
    np.testing.assert_array_equal(metrics.sums.task_tokens, expected)
    np.testing.assert_allclose(metrics.sums.task_loss.sum(), metrics.sums.loss, rtol=1e-6)


@pytest.mark.long
def test_packed_accumulated_steps_on_two_devices_equal_plain_steps():
    lengths = [[(4, 3), (5, 2)], [(9, 6)], [(1, 1), (2, 2), (6, 3)], []]
    rows = lambda index: [examples(np.random.default_rng((index, k)), row, V) for k, row in enumerate(lengths)]
    packed = lambda index: packed_batch(rows(index), 9, 6)
    plain = lambda index: plain_batch([example for row in rows(index) for example in row], 9, 6)
    options = dict(num_steps=2, module=tiny_t5(dropout_rate=0.0))
    ours = run(batches=packed, axes=dict(data=2), num_microbatches=2, **options)[1]
    theirs = run(batches=plain, **options)[1]
    assert_same_history(ours, theirs)
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.sums.task_tokens, reference.sums.task_tokens)


def test_padding_changes_no_loss():
    def padded(index):
        batch = make_batch(index)
        return batch | {name: np.pad(batch[name], ((0, 0), (0, 3))) for name in ("inputs", "targets", "loss_mask")}

    module = Tiny(TinyConfig(dropout_rate=0.0))
    assert_same_history(run(module=module, batches=padded)[1], run(module=module)[1])


def test_dropout_follows_seed_and_step():
    # Too small a rate to change any parameter.
    still = functools.partial(optim.adamw, groups=(optim.Group(name="all", matches=lambda _: True, rate=1e-30),))
    options = dict(num_steps=2, optimizer=still, batches=lambda _: make_batch(0))
    first, second = run(**options)[1], run(**options)[1]
    assert [m.sums.loss for m in first] == [m.sums.loss for m in second]
    assert first[0].sums.loss != first[1].sums.loss


def test_a_loss_that_is_not_finite_is_flagged():
    _, (metrics,) = run(num_steps=1, batches=lambda index: broken_mask(index, make_batch(index), at=0))
    assert not metrics.finite


def test_metrics_tell_norms_and_rate():
    state, (metrics,) = run(num_steps=1)
    squares = sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(state.params))
    assert metrics.param_norm == pytest.approx(squares**0.5, rel=1e-5)
    assert metrics.learning_rate == pytest.approx(0.01)
    assert metrics.finite and int(state.step) == 1


def test_a_window_divides_by_its_own_tokens_per_batch():
    batch = make_batch(0)
    part = np.full(len(batch["inputs"]), 2.5, np.float32)
    found = {}
    for normaliser in (batch_tokens, window_tokens):
        _, history = run(num_steps=1, batches=lambda _: {**batch, "expected_tokens": part}, normaliser=normaliser)
        found[normaliser] = float(history[0].grad_norm)
    ratio = batch["loss_mask"].sum() / part.sum()
    assert abs(ratio - 1) > 0.1
    np.testing.assert_allclose(found[window_tokens], ratio * found[batch_tokens], rtol=1e-5)


def test_a_batch_of_another_source_has_no_window():
    with pytest.raises(InputError, match="expected_tokens.*batch_tokens"):
        run(num_steps=1, normaliser=window_tokens)
