"""Heads in the training step: sums add up over microbatches, and each example weighs the same."""

import functools

import jax
import numpy as np
import pytest

from jaxmtl.commands.heads import check_heads
from jaxmtl.models.head_config import Head
from jaxmtl.models.roberta import RobertaWithHeads
from jaxmtl.models.roberta_config import RobertaConfig
from jaxmtl.partitioning import batch_sharding, make_mesh, use_mesh
from jaxmtl.training import optim
from jaxmtl.training.head_objectives import HeadsLoss
from jaxmtl.training.schedules import constant
from jaxmtl.training.state import first_state, make_plan, scratch_params
from jaxmtl.training.step import train_step
from jaxmtl.types import InputError

HEADS = (
    Head(name="pairs", kind="class", labels=("a", "b")),
    Head(name="names", kind="tags", labels=("x", "y", "z")),
    Head(name="questions", kind="span"),
)
SIZES = dict(vocab_size=24, embed_dim=16, num_heads=2, mlp_dim=16, num_layers=1, num_positions=12, remat="none")


def module():
    rates = dict(dropout_rate=0.0, attention_dropout_rate=0.0, head_dropout_rate=0.0)
    return RobertaWithHeads(RobertaConfig(**SIZES, **rates, heads=HEADS))


def make_batch(seed=0, rows=8):
    rng = np.random.default_rng(seed)
    tasks, inputs = np.arange(rows) % 3, rng.integers(3, 24, (rows, 8))
    targets, weights = np.ones((rows, 8)), np.zeros((rows, 8))
    for row, task in enumerate(tasks):
        used = (1, rng.integers(2, 9), 2)[task]
        targets[row, :used] = rng.integers(0, (2, 3, 8)[task], used)
        weights[row, :used] = 1 / used
    fields = dict(inputs=inputs, targets=targets, task_ids=tasks, example_ids=np.arange(rows))
    return {name: field.astype(np.int32) for name, field in fields.items()} | {"loss_mask": weights.astype(np.float32)}


def run(*, num_microbatches=1, axes=None, num_steps=2):
    mesh = make_mesh(**(axes or dict(data=1)))
    plan = make_plan(module(), optim.adamw, constant(rate=0.02), mesh)
    options = dict(objective=HeadsLoss(), num_tasks=3, num_microbatches=num_microbatches)
    step = jax.jit(functools.partial(train_step, plan=plan, **options), out_shardings=(plan.shardings, None))
    state, history = first_state(plan, 1, scratch_params(plan, 0)), []
    for index in range(num_steps):
        with use_mesh(mesh):
            state, metrics = step(state, jax.device_put(make_batch(index), batch_sharding(mesh)))
        history.append(jax.device_get(metrics))
    return state, history


@pytest.fixture(scope="module")
def plain():
    return run()


def test_the_loss_is_the_mean_over_examples(plain):
    sums = plain[1][0].sums
    np.testing.assert_allclose(sums.tokens, 8.0, rtol=1e-6)
    np.testing.assert_allclose(sums.task_tokens, [3, 3, 2], rtol=1e-6)
    np.testing.assert_allclose(sums.task_loss.sum(), sums.loss, rtol=1e-6)
    # Small random weights guess nearly uniformly: log 2, log 3 and log 8 nats.
    np.testing.assert_allclose(sums.task_loss / sums.task_tokens, np.log([2, 3, 8]), atol=0.25)


@pytest.mark.long
@pytest.mark.parametrize("options", [dict(num_microbatches=2), dict(axes=dict(data=2, fsdp=2, tensor=2))], ids=str)
def test_microbatches_and_meshes_do_not_change_the_step(plain, options):
    _, history = run(**options)
    for mine, reference in zip(history, plain[1], strict=False):
        np.testing.assert_allclose(mine.sums.loss, reference.sums.loss, rtol=1e-4)
        np.testing.assert_allclose(mine.sums.task_loss, reference.sums.task_loss, rtol=1e-4)
        np.testing.assert_allclose(mine.grad_norm, reference.grad_norm, rtol=1e-3)


@pytest.mark.long
def test_one_mixed_batch_is_learnt():
    mesh = make_mesh(data=1)
    plan = make_plan(module(), optim.adamw, constant(rate=0.02), mesh)
    step = jax.jit(functools.partial(train_step, plan=plan, objective=HeadsLoss(), num_tasks=3))
    state, batch, losses = first_state(plan, 1, scratch_params(plan, 0)), make_batch(), []
    for _ in range(60):
        state, metrics = step(state, batch)
        losses.append(np.asarray(metrics.sums.task_loss / metrics.sums.task_tokens))
    assert (losses[-1] < 0.5 * losses[0]).all()


def test_heads_in_another_order_than_the_tasks_are_refused():
    check_heads(module(), ["pairs", "names", "questions"])
    with pytest.raises(InputError, match="heads for pairs, names, questions; the stream has the tasks names, pairs"):
        check_heads(module(), ["names", "pairs"])
