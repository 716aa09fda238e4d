"""Many heads on a mixed batch do what each of them does alone on its own rows."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmtl.models.head_config import Head, stacks
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.masks import HIDDEN
from jaxmtl.models.roberta import RobertaWithHeads
from jaxmtl.models.roberta_config import RobertaConfig
from jaxmtl.training.head_objectives import HeadsLoss, log_scaling, no_scaling
from jaxmtl.types import InputError, UnknownNameError

labels = lambda count: tuple(f"label{k}" for k in range(count))
HEADS = (
    Head(name="topics", kind="class", labels=labels(5)),
    Head(name="names", kind="tags", labels=labels(3)),
    Head(name="questions", kind="span"),
    Head(name="moods", kind="class", labels=labels(2)),
    Head(name="slots", kind="tags", labels=labels(7)),
)
CONFIG = RobertaConfig(
    vocab_size=30, embed_dim=8, num_heads=2, mlp_dim=12, num_layers=1, num_positions=14, heads=HEADS, remat="none"
)
B, S, T = 7, 9, 8


def random_batch(task_ids, seed):
    """Rows of 4 to 9 tokens; what a row's kind does not use of `targets` is filled with anything."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, S + 1, B)
    inputs = np.where(np.arange(S) < lengths[:, None], rng.integers(4, 30, (B, S)), 1)
    targets, weights = rng.integers(-100, 300, (B, T)), np.zeros((B, T))
    for row, task in enumerate(task_ids):
        head = HEADS[task]
        used = {"class": 1, "span": 2, "tags": rng.integers(2, min(lengths[row], T) + 1)}[head.kind]
        counted = np.r_[True, rng.random(used - 1) < 0.6] if head.kind == "tags" else np.ones(used, bool)
        most = lengths[row] if head.kind == "span" else head.num_labels
        targets[row, :used] = np.where(counted, rng.integers(0, most, used), -100)
        weights[row, :used] = counted / counted.sum()
    fields = dict(inputs=inputs, targets=targets, task_ids=np.array(task_ids), example_ids=np.arange(B))
    return {name: field.astype(np.int32) for name, field in fields.items()} | {"loss_mask": weights.astype(np.float32)}


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(1)
    # Every leaf random and large, so that biases and label columns that are padding matter if they are looked at.
    random = lambda leaf: jnp.asarray(rng.normal(0.0, 0.5, leaf.shape), jnp.float32)
    return jax.tree.map(random, nn.unbox(abstract_params(RobertaWithHeads(CONFIG))))


@functools.partial(jax.jit, static_argnums=(0, 3))
def loss_and_gradient(config, params, batch, scaling=no_scaling):
    def loss(params):
        losses = HeadsLoss(scaling=scaling)(RobertaWithHeads(config), {"params": params}, batch)
        return losses.objective.sum(), losses

    return jax.grad(loss, has_aux=True)(params)


def alone(params, task):
    """The model that has the head of one task only, its label columns cut to those it has."""
    head = HEADS[task]
    slot = stacks(HEADS)[head.kind].slots[task]

    def cut(path, leaf):
        leaf = leaf[slot : slot + 1]
        is_dense = any(getattr(key, "key", "") == "dense" for key in path)
        return leaf if is_dense else leaf[..., : head.num_labels]

    heads = {head.kind: jax.tree_util.tree_map_with_path(cut, params["heads"][head.kind])}
    return dataclasses.replace(CONFIG, heads=(head,)), {**params, "heads": heads}, cut


def assert_close(left, right):
    np.testing.assert_allclose(left, right, atol=2e-5, rtol=2e-5)


@pytest.mark.long
@settings(max_examples=4, deadline=None)
@given(task_ids=st.lists(st.integers(0, 4), min_size=B, max_size=B), seed=st.integers(0, 1000))
def test_a_mixed_batch_has_the_losses_and_gradients_of_separate_models(params, task_ids, seed):
    batch = random_batch(task_ids, seed)
    grads, losses = loss_and_gradient(CONFIG, params, batch)
    encoder = jax.tree.map(jnp.zeros_like, {name: leaf for name, leaf in params.items() if name != "heads"})
    for task in range(len(HEADS)):
        mine = np.array(task_ids) == task
        config, own, cut = alone(params, task)
        # All rows are computed, so that shapes stay; those of other tasks weigh nothing.
        part = batch | {"task_ids": np.zeros(B, np.int32), "loss_mask": batch["loss_mask"] * mine[:, None]}
        expected, own_losses = loss_and_gradient(config, own, part)
        assert_close(losses.loss[mine], own_losses.loss[mine])
        kind = HEADS[task].kind
        found = jax.tree_util.tree_map_with_path(cut, grads["heads"][kind])
        jax.tree.map(assert_close, found, expected["heads"][kind])
        encoder = jax.tree.map(jnp.add, encoder, {name: leaf for name, leaf in expected.items() if name != "heads"})
    jax.tree.map(assert_close, {name: grads[name] for name in encoder}, encoder)
    np.testing.assert_allclose(losses.tokens, 1.0, rtol=1e-6)


@pytest.mark.long
def test_labels_that_a_task_does_not_have_get_no_gradient_and_no_probability(params):
    grads, _ = loss_and_gradient(CONFIG, params, random_batch([3, 1, 3, 1, 3, 1, 3], 0))
    assert not np.asarray(grads["heads"]["class"]["out"]["kernel"])[1, :, 2:].any()
    assert not np.asarray(grads["heads"]["tags"]["bias"])[0, 3:].any()
    inputs = jnp.asarray(random_batch([3] * B, 0)["inputs"])
    logits = RobertaWithHeads(CONFIG).apply({"params": params}, inputs, jnp.full(B, 3))
    assert (np.asarray(logits.classes)[:, 2:] == HIDDEN).all()
    assert (jax.nn.softmax(logits.classes)[:, 2:] == 0).all()
    assert (np.asarray(logits.spans)[np.asarray(inputs) == 1] == HIDDEN).all()


def test_heads_of_other_tasks_get_no_gradient(params):
    heads = loss_and_gradient(CONFIG, params, random_batch([0] * B, 0))[0]["heads"]
    assert not any(np.asarray(leaf).any() for kind in ("tags", "span") for leaf in jax.tree.leaves(heads[kind]))
    assert not np.asarray(heads["class"]["dense"]["kernel"])[1].any()


def test_log_scaling_divides_by_the_loss_of_a_uniform_guess(params):
    batch = random_batch([0, 1, 2, 3, 4, 2, 0], 5)
    _, plain = loss_and_gradient(CONFIG, params, batch)
    _, scaled = loss_and_gradient(CONFIG, params, batch, log_scaling)
    tokens = (batch["inputs"] != 1).sum(1)
    by_hand = np.log([5, 3, tokens[2], 2, 7, tokens[5], 5])
    np.testing.assert_allclose(scaled.objective[:, 0] * by_hand, plain.objective[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(scaled.loss, plain.loss)


def test_a_span_costs_the_mean_of_its_two_ends_whatever_the_padding(params):
    batch = random_batch([2] * B, 1)
    logits = RobertaWithHeads(CONFIG).apply({"params": params}, batch["inputs"], batch["task_ids"]).spans
    _, losses = loss_and_gradient(CONFIG, params, batch)
    for row in range(B):
        ends = np.asarray(logits[row])[batch["inputs"][row] != 1].astype(np.float64)
        nats = np.log(np.exp(ends).sum(0)) - [ends[batch["targets"][row, k], k] for k in (0, 1)]
        np.testing.assert_allclose(losses.loss[row, 0], nats.mean(), rtol=1e-4)


def test_the_linear_head_has_no_dense_layer():
    config = dataclasses.replace(CONFIG, class_head="linear")
    shapes = jax.eval_shape(RobertaWithHeads(config).init, jax.random.key(0), jax.ShapeDtypeStruct((2, 5), jnp.int32))
    assert set(shapes["params"]["heads"]["class"]) == {"out"}


@pytest.mark.parametrize(
    "fields, error, message",
    [
        (dict(kind="regression", labels=("a",)), UnknownNameError, "unknown kind of answer 'regression'"),
        (
            dict(kind="class", labels=()),
            InputError,
            "answers of kind 'class' have the labels .*; expected at least one",
        ),
        (dict(kind="tags", labels=("a", "a")), InputError, "expected at least one, none of them twice"),
        (dict(kind="span", labels=("a",)), InputError, "expected none"),
    ],
    ids=str,
)
def test_heads_that_make_no_sense_are_refused(fields, error, message):
    with pytest.raises(error, match=message):
        Head(name="t", **fields)
