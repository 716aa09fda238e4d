import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.training.objectives import Losses, cross_entropy, hf_smoothing, no_smoothing, sum_segments, t5x_smoothing

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 5, 11)).astype(np.float32) * 3
TARGETS = RNG.integers(0, 11, (3, 5)).astype(np.int32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], np.float32)


def row_sums(*args, **options):
    return jax.tree.map(lambda values: values.sum(-1), cross_entropy(*args, **options))


def log_softmax64(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_loss_is_the_masked_sum_of_negative_log_probabilities():
    rows = row_sums(LOGITS, TARGETS, MASK)
    picked = -np.take_along_axis(log_softmax64(LOGITS), TARGETS[..., None], -1)[..., 0]
    np.testing.assert_allclose(rows.loss, (picked * MASK).sum(-1), rtol=1e-6)
    np.testing.assert_allclose(rows.objective, rows.loss, rtol=1e-6)
    np.testing.assert_array_equal(rows.tokens, [5, 2, 0])


def test_uniform_logits_cost_log_of_the_number_of_classes():
    rows = row_sums(jnp.zeros((1, 1, 8)), jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1)))
    assert rows.loss[0] == pytest.approx(np.log(8), abs=1e-6)


def test_z_loss_adds_the_squared_log_normaliser():
    rows = row_sums(LOGITS, TARGETS, MASK, z_loss=0.25)
    squares = np.log(np.exp(LOGITS.astype(np.float64)).sum(-1)) ** 2
    np.testing.assert_allclose(rows.objective - rows.loss, 0.25 * (squares * MASK).sum(-1), rtol=1e-5)


def soft_loss(probabilities):
    return -(probabilities * log_softmax64(LOGITS)).sum(-1)


def test_t5x_smoothing_spreads_over_the_other_classes_and_subtracts_the_entropy():
    rows = row_sums(LOGITS, TARGETS, MASK, smoothing=functools.partial(t5x_smoothing, amount=0.2))
    soft = np.full(LOGITS.shape, 0.2 / 10)
    np.put_along_axis(soft, TARGETS[..., None], 0.8, -1)
    floor = -(0.8 * np.log(0.8) + 0.2 * np.log(0.02))
    np.testing.assert_allclose(rows.objective, ((soft_loss(soft) - floor) * MASK).sum(-1), rtol=1e-5)


def test_t5x_smoothing_is_zero_at_the_optimum():
    best = jnp.log(jnp.array([[[0.9, 0.05, 0.05]]]))
    smoothing = functools.partial(t5x_smoothing, amount=0.1)
    rows = row_sums(best, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1)), smoothing=smoothing)
    assert rows.objective[0] == pytest.approx(0.0, abs=1e-6)


def test_hf_smoothing_spreads_over_all_classes():
    rows = row_sums(LOGITS, TARGETS, MASK, smoothing=functools.partial(hf_smoothing, amount=0.2))
    soft = np.full(LOGITS.shape, 0.2 / 11)
    np.put_along_axis(soft, TARGETS[..., None], 0.8 + 0.2 / 11, -1)
    np.testing.assert_allclose(rows.objective, (soft_loss(soft) * MASK).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [no_smoothing, t5x_smoothing, hf_smoothing])
def test_the_hand_written_gradient_is_that_of_the_formula(smoothing):
    on, off, _ = smoothing(11)

    def formula(logits):
        log_probs = jax.nn.log_softmax(logits)
        soft = off + (on - off) * jax.nn.one_hot(TARGETS, 11)
        z_loss = 0.1 * jax.nn.logsumexp(logits, axis=-1) ** 2
        return jnp.sum(MASK * (z_loss - jnp.sum(soft * log_probs, -1)))

    ours = lambda logits: cross_entropy(logits, TARGETS, MASK, z_loss=0.1, smoothing=smoothing).objective.sum()
    np.testing.assert_allclose(jax.grad(ours)(LOGITS), jax.grad(formula)(LOGITS), atol=1e-6)


def test_losses_are_those_of_single_tokens_and_zero_where_masked():
    losses, alone = cross_entropy(LOGITS, TARGETS, MASK), cross_entropy(LOGITS, TARGETS, np.ones_like(MASK))
    np.testing.assert_array_equal(losses.tokens, MASK)
    np.testing.assert_array_equal(losses.loss, alone.loss * MASK)
    np.testing.assert_array_equal(losses.objective, alone.objective * MASK)


def test_the_tokens_of_each_segment_are_added_up():
    values = jnp.array([[1.0, 2, 4, 8, 16, 32], [1, 2, 4, 8, 16, 32]])
    segments = jnp.array([[1, 1, 2, 3, 3, 0], [0, 0, 0, 0, 0, 0]])
    sums = sum_segments(Losses(objective=values, loss=2 * values, tokens=jnp.ones_like(values)), segments, 2)
    np.testing.assert_array_equal(sums.objective, [[3, 4], [0, 0]])
    np.testing.assert_array_equal(sums.loss, [[6, 8], [0, 0]])
    np.testing.assert_array_equal(sums.tokens, [[2, 1], [0, 0]])


@pytest.mark.torch
@pytest.mark.parametrize("amount", [0.0, 0.1])
def test_torch_gives_the_same_loss(amount):
    import torch

    rows = row_sums(LOGITS, TARGETS, MASK, smoothing=functools.partial(hf_smoothing, amount=amount))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS).flatten(0, 1),
        torch.tensor(TARGETS).flatten().long(),
        reduction="none",
        label_smoothing=amount,
    )
    expected = (expected.numpy().reshape(MASK.shape) * MASK).sum(-1)
    np.testing.assert_allclose(rows.objective, expected, rtol=1e-5)  # both sum 11 classes in float32
