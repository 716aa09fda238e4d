"""Heads on packed rows: each example has the loss and the gradient that it has in a row of its own."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models import attention
from jaxmtl.models.head_config import Head
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.masks import Segments
from jaxmtl.models.roberta import RobertaWithHeads
from jaxmtl.models.roberta_config import RobertaConfig
from jaxmtl.models.roberta_layers import position_ids
from jaxmtl.training.head_objectives import HeadsLoss, log_scaling
from jaxmtl.types import InputError

HEADS = (
    Head(name="topics", kind="class", labels=("a", "b", "c", "d")),
    Head(name="names", kind="tags", labels=("x", "y", "z")),
    Head(name="questions", kind="span"),
    Head(name="moods", kind="class", labels=("good", "bad")),
)
SIZES = dict(vocab_size=30, embed_dim=8, num_heads=2, mlp_dim=12, num_layers=2, num_positions=14, heads=HEADS)
NO_DROPOUT = dict(dropout_rate=0.0, attention_dropout_rate=0.0, head_dropout_rate=0.0)
MODULE = RobertaWithHeads(RobertaConfig(**SIZES, **NO_DROPOUT))
# Which examples share a row: padding behind some rows, none behind one, a row without any.
ROWS, SLOTS, S, L, T = [[0, 1, 2], [3, 4], [], [5, 6, 7]], 4, 24, 12, 7
LENGTHS, TASKS = [5, 9, 4, 12, 12, 6, 12, 3], [0, 1, 2, 1, 2, 3, 2, 0]
PLACES = [row * SLOTS + number for row, members in enumerate(ROWS) for number in range(len(members))]


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(1)
    random = lambda leaf: jnp.asarray(rng.normal(0.0, 0.5, leaf.shape), jnp.float32)
    return jax.tree.map(random, nn.unbox(abstract_params(MODULE)))


def plain_batch():
    rng = np.random.default_rng(0)
    inputs = np.where(np.arange(L) < np.array(LENGTHS)[:, None], rng.integers(3, 30, (8, L)), 1)
    targets, weights = np.ones((8, T)), np.zeros((8, T))
    for row, (length, task) in enumerate(zip(LENGTHS, TASKS, strict=True)):
        head = HEADS[task]
        used = {"class": 1, "span": 2, "tags": min(length, T)}[head.kind]
        targets[row, :used] = rng.integers(0, length if head.kind == "span" else head.num_labels, used)
        weights[row, :used] = 1 / used
    fields = dict(inputs=inputs, targets=targets, task_ids=np.array(TASKS))
    return {name: field.astype(np.int32) for name, field in fields.items()} | {"loss_mask": np.float32(weights)}


def packed_batch(plain):
    """Packs by hand; slots that hold no example have the task 1."""
    by_row = {name: np.zeros((len(ROWS), S), np.int32) for name in ("input_segments", "input_positions")}
    by_row["inputs"], size = np.ones((len(ROWS), S), np.int32), len(ROWS) * SLOTS
    columns = np.full((size, L), -1, np.int32)
    for row, members in enumerate(ROWS):
        start = 0
        for number, example in enumerate(members):
            cells = np.arange(start, start + LENGTHS[example])
            by_row["inputs"][row, cells] = plain["inputs"][example, : len(cells)]
            by_row["input_segments"][row, cells] = number + 1
            by_row["input_positions"][row, cells] = np.arange(len(cells))
            columns[row * SLOTS + number, : len(cells)] = cells
            start += len(cells)
    by_slot = {"task_ids": np.ones(size, np.int32)}
    by_slot |= {name: np.zeros((size, T), plain[name].dtype) for name in ("targets", "loss_mask")}
    for name, field in by_slot.items():
        field[PLACES] = plain[name]
    return {**by_row, **by_slot, "example_columns": columns}


@functools.partial(jax.jit, static_argnums=0)
def value_and_grads(scores, params, batch):
    """Compiles anew for another number of `attention.CACHED_SCORES`, which the caller sets."""

    def objective(params):
        losses = HeadsLoss(scaling=log_scaling)(MODULE, {"params": params}, batch)
        return losses.objective.sum(), losses

    return jax.value_and_grad(objective, has_aux=True)(params)


def assert_close_to_scale(ours, reference):
    # Float32 sums of the same numbers in another order. Weights of a softmax are rounded by 1e-7 each, which shows
    # where gradients cancel: in the biases of keys and of spans, which change no weight, to nothing else.
    assert np.abs(ours - reference).max() <= 1e-5 * np.abs(reference).max() + 1e-6


@pytest.mark.parametrize(
    "scores", [pytest.param(0, id="rows", marks=pytest.mark.long), pytest.param(attention.CACHED_SCORES, id="einsum")]
)
def test_packing_changes_neither_losses_nor_gradients(monkeypatch, params, scores):
    plain = plain_batch()
    (expected, plain_losses), plain_grads = value_and_grads(attention.CACHED_SCORES, params, plain)
    monkeypatch.setattr(attention, "CACHED_SCORES", scores)
    (total, losses), grads = value_and_grads(scores, params, packed_batch(plain))
    others = np.setdiff1d(np.arange(len(ROWS) * SLOTS), PLACES)
    for name in ("objective", "loss", "tokens"):
        assert_close_to_scale(getattr(losses, name)[np.array(PLACES)], getattr(plain_losses, name))
        assert not np.any(getattr(losses, name)[others])
    assert (plain_losses.loss > 0).all()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    jax.tree.map(assert_close_to_scale, grads, plain_grads)


def test_dropout_drops_in_packed_rows(params):
    module = RobertaWithHeads(RobertaConfig(**SIZES))
    batch = packed_batch(plain_batch())
    score = jax.jit(lambda key: HeadsLoss()(module, {"params": params}, batch, dropout_key=key).loss[np.array(PLACES)])
    first, second = score(jax.random.key(0)), score(jax.random.key(1))
    assert np.isfinite(first).all() and (np.abs(first - second) > 1e-6).mean() > 0.8


def test_positions_begin_anew_in_each_segment():
    # By hand, padding id 1: the first token of an example has position 2.
    segments = Segments(jnp.array([[1, 1, 1, 2, 2, 0]]), jnp.array([[0, 1, 2, 0, 1, 0]]))
    assert position_ids(segments, 1).tolist() == [[2, 3, 4, 2, 3, 1]]


@pytest.mark.parametrize("missing", ["example_columns", "input_positions", "input_segments"])
def test_batches_with_some_of_the_fields_are_refused(params, missing):
    batch = {name: field for name, field in packed_batch(plain_batch()).items() if name != missing}
    message = "pack rows with labels" if missing == "example_columns" else "a packed batch has 'input_segments' and"
    with pytest.raises(InputError, match=message):
        HeadsLoss()(MODULE, {"params": params}, batch)


def test_examples_of_more_tokens_than_positions_are_refused(params):
    batch = packed_batch(plain_batch())
    wider = {"example_columns": np.pad(batch["example_columns"], ((0, 0), (0, 1)), constant_values=-1)}
    with pytest.raises(InputError, match="padded to 13 tokens, this model has positions for 12"):
        HeadsLoss()(MODULE, {"params": params}, batch | wider)
