"""Packed rows with labels through the step and the loop: microbatches and meshes keep examples with their rows."""

import functools

import jax
import numpy as np
import pytest
from labelled_toy import labelled_store
from training_toy import Recorder, assert_trees_equal, toy_run

from jaxmtl.checkpoints import CheckpointPolicy
from jaxmtl.commands.heads import heads_of
from jaxmtl.feed.packing import packed
from jaxmtl.feed.sampler import PooledSampler
from jaxmtl.feed.stream import train_stream
from jaxmtl.models.roberta import RobertaWithHeads
from jaxmtl.models.roberta_config import RobertaConfig
from jaxmtl.partitioning import batch_sharding, make_mesh, use_mesh
from jaxmtl.training import optim
from jaxmtl.training.head_objectives import HeadsLoss
from jaxmtl.training.loop import train
from jaxmtl.training.normalisers import window_tokens
from jaxmtl.training.planning import BatchShape, abstract_batch
from jaxmtl.training.schedules import constant
from jaxmtl.training.state import first_state, make_plan, scratch_params
from jaxmtl.training.step import train_step

SIZES = dict(vocab_size=264, embed_dim=16, num_heads=2, mlp_dim=16, num_layers=1, num_positions=64, remat="none")
RATES = dict(dropout_rate=0.0, attention_dropout_rate=0.0, head_dropout_rate=0.0)
NUM_TASKS = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return labelled_store(tmp_path_factory.mktemp("labelled"))


def stream_of(store, **options):
    return train_stream(store, batch_size=16, sampler=PooledSampler, layout=packed, window=4, multiple=4, **options)


def module_of(store):
    return RobertaWithHeads(RobertaConfig(**SIZES, **RATES, heads=heads_of(store, "train")))


def step_of(store, *, num_microbatches=1, **axes):
    mesh = make_mesh(**(axes or dict(data=1)))
    plan = make_plan(module_of(store), optim.adamw, constant(rate=0.02), mesh)
    options = dict(objective=HeadsLoss(), num_tasks=NUM_TASKS, num_microbatches=num_microbatches)
    step = jax.jit(functools.partial(train_step, plan=plan, normaliser=window_tokens, **options))
    state, batch = first_state(plan, 1, scratch_params(plan, 0)), next(stream_of(store))
    with use_mesh(mesh):
        _, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
    return jax.device_get(metrics), batch


@pytest.fixture(scope="module")
def plain(store):
    return step_of(store)


def test_each_example_weighs_the_same(plain):
    metrics, batch = plain
    real = batch["example_ids"] >= 0
    counts = np.bincount(batch["task_ids"][real], minlength=NUM_TASKS)
    np.testing.assert_allclose(metrics.sums.task_tokens, counts, rtol=1e-5)
    np.testing.assert_allclose(metrics.sums.task_loss.sum(), metrics.sums.loss, rtol=1e-5)
    # Small random weights guess nearly uniformly.
    np.testing.assert_allclose((metrics.sums.task_loss / counts)[:2], np.log([2, 3]), atol=0.25)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(dict(num_microbatches=2), marks=pytest.mark.long),
        pytest.param(dict(num_microbatches=2, data=2, fsdp=1, tensor=1), marks=pytest.mark.long),
        pytest.param(dict(data=2, fsdp=2, tensor=2), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_microbatches_and_meshes_do_not_change_the_step(store, plain, options):
    metrics, _ = step_of(store, **options)
    np.testing.assert_allclose(metrics.sums.task_loss, plain[0].sums.task_loss, rtol=1e-4)
    np.testing.assert_allclose(metrics.sums.task_tokens, plain[0].sums.task_tokens, rtol=1e-4)
    np.testing.assert_allclose(metrics.grad_norm, plain[0].grad_norm, rtol=1e-3)


def test_a_planned_batch_has_the_fields_and_shapes_of_a_real_one(store):
    stream = stream_of(store)
    identity, batch = stream.layout.identity(), next(stream)
    (rows,), ((source, target),) = identity["rows"], identity["shapes"]
    sizes = {name: identity[name] for name in ("layout", "slots", "longest")}
    plan = make_plan(module_of(store), optim.adamw, constant(rate=0.02), make_mesh(data=1))
    planned = abstract_batch(BatchShape(rows=rows, source=source, target=target, **sizes), plan)
    described = lambda fields: {name: (tuple(field.shape), field.dtype) for name, field in fields.items()}
    assert described(planned) == described(batch)


@pytest.mark.long
def test_a_run_on_packed_rows_learns_and_resumes_exactly(store, tmp_path):
    def run(folder, num_steps, every=100):
        options = dict(stream=stream_of(store), task_names=store.task_names("train"), normaliser=window_tokens)
        options |= dict(objective=HeadsLoss(), checkpoints=CheckpointPolicy(every=every), writer=Recorder())
        made = toy_run(folder, module=module_of(store), num_steps=num_steps, **options)
        return train(made), made.writer

    whole, writer = run(tmp_path / "whole", 8)
    assert len(whole.compilations) == 1
    losses = [line["train/loss"] for _, line in writer.lines if "train/loss" in line]
    assert losses[-1] < losses[0]
    run(tmp_path / "parts", 5, every=5)
    assert_trees_equal(run(tmp_path / "parts", 8)[0].params, whole.params)
