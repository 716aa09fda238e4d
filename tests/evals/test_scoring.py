import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxmtl.evals import reading, requests, scoring
from jaxmtl.models import absorbed, t5_layers
from jaxmtl.models.initial import abstract_params
from jaxmtl.partitioning import make_mesh, shardings_for
from jaxmtl.types import InputError

# Results of different shapes differ by float32 rounding alone: sums of a few dozen terms of size 1.
TOLERANCE = 1e-5
INPUTS = ["the cat sat", "", "a dog ran over the green hill to find a ball " * 2, "the cat sat", "is water wet?"]
TARGETS = ["mat", "yes", "a ball", "", "four five six and"]
_apply = jax.jit(
    lambda module, params, inputs, texts: module.apply({"params": params}, inputs, texts), static_argnums=0
)


def one_by_one(pretrained, input_ids, target_ids):
    """Scores a target token by token: one input without padding, softmax by hand in float64.

    The decoder's later positions hold rubbish, which a causal decoder must not see; so each input compiles once.
    """
    nll, inputs = [], np.array([input_ids], np.int32)
    decoder_inputs = np.full((1, 24), 7, np.int32)
    for position, token in enumerate(target_ids):
        decoder_inputs[0, position] = target_ids[position - 1] if position else pretrained.config.decoder_start_id
        logits = _apply(pretrained.module, pretrained.params, inputs, decoder_inputs)[0, position]
        weights = np.exp(np.asarray(logits, np.float64))
        nll.append(-np.log(weights[token] / weights.sum()))
    return np.array(nll)


@pytest.fixture(scope="module")
def expected(pretrained):
    encode = pretrained.tokenizer.encode
    return [one_by_one(pretrained, encode(a), encode(b)) for a, b in zip(INPUTS, TARGETS, strict=True)]


def test_loss_equals_a_token_by_token_loop(pretrained, expected):
    result = scoring.loss(pretrained, INPUTS, TARGETS)
    np.testing.assert_allclose(result, [row.mean() for row in expected], atol=TOLERANCE)


def test_empty_target_costs_its_end_token(pretrained, expected):
    assert len(expected[3]) == 1
    assert scoring.loss(pretrained, [INPUTS[3]], [""])[0] == pytest.approx(expected[3][0], abs=TOLERANCE)


def test_choices_equal_a_token_by_token_loop(pretrained):
    choices = [["yes", "no"], ["blue"], ["one", "two three"], ["a", "b"], ["yes", "no"]]
    encode = pretrained.tokenizer.encode
    sums = scoring.score_choices(pretrained, INPUTS, choices)
    means = scoring.score_choices(pretrained, INPUTS, choices, normalise=True)
    for text, options, total, mean in zip(INPUTS, choices, sums, means, strict=True):
        losses = [one_by_one(pretrained, encode(text), encode(option)) for option in options]
        np.testing.assert_allclose(total, [-row.sum() for row in losses], atol=TOLERANCE * 4)
        np.testing.assert_allclose(mean, [-row.mean() for row in losses], atol=TOLERANCE)


def test_equal_choices_get_equal_scores_so_that_the_first_wins(pretrained):
    scores = scoring.score_choices(pretrained, ["the cat"], [["no", "yes", "yes"]])[0]
    assert scores[1] == scores[2]


def test_so_do_equal_choices_that_are_scored_in_steps_of_different_shapes(pretrained, monkeypatch):
    shapes, measured = [], scoring._measured

    def rounded_by_shape(*call):
        shapes.append(call[-1].shape)
        return measured(*call) * (1 + 1e-6 * call[-1].shape[-1])

    monkeypatch.setattr(scoring, "MAX_TARGET_POSITIONS", 64)
    monkeypatch.setattr(scoring, "_measured", rounded_by_shape)
    scores = scoring.score_choices(pretrained, INPUTS[:1], [["yes", "no", "four five six and " * 3, "yes"]])[0]
    assert len({shape[-1] for shape in shapes}) == 2
    assert scores[0] == scores[3]


def test_the_encoder_runs_once_for_all_choices_of_an_input(pretrained, monkeypatch):
    calls = []
    plain = reading.encode
    monkeypatch.setattr(reading, "encode", lambda *a: calls.append(a[2].shape) or plain(*a))
    scoring.score_choices(pretrained, INPUTS[:2], [["yes", "no", "maybe"], ["a", "b", "c"]])
    assert len(calls) == 1 and calls[0][0] == 2


def test_choices_are_scored_in_parts_where_all_at_once_would_not_fit(pretrained, monkeypatch):
    choices = [["yes", "no", "one", "two", "three"], ["four", "five", "six"]]
    whole = scoring.score_choices(pretrained, INPUTS[:2], choices)
    monkeypatch.setattr(scoring, "MAX_TARGET_POSITIONS", 16)
    parts = scoring.score_choices(pretrained, INPUTS[:2], choices)
    assert [len(row) for row in parts] == [5, 3]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE * 4)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)), batch_size=st.sampled_from([1, 3, 32]))
def test_losses_depend_on_neither_order_nor_batch_size_nor_neighbours(pretrained, expected, order, batch_size):
    inputs, targets = [INPUTS[i] for i in order], [TARGETS[i] for i in order]
    result = scoring.loss(pretrained, inputs, targets, batch_size=batch_size)
    np.testing.assert_allclose(result, [expected[i].mean() for i in order], atol=TOLERANCE)


def test_losses_are_the_same_on_a_mesh(pretrained, expected):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = jax.device_put(pretrained.params, shardings_for(abstract_params(pretrained.module), mesh))
    result = scoring.loss(dataclasses.replace(pretrained, params=placed), INPUTS, TARGETS)
    np.testing.assert_allclose(result, [row.mean() for row in expected], atol=TOLERANCE)


@pytest.fixture
def looks(monkeypatch):
    """Makes every cross-attention look at the memory itself; counts the looks that are traced."""
    calls = mock.Mock(side_effect=absorbed.attend_to_memory)
    monkeypatch.setattr(absorbed, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(t5_layers, "attend_to_memory", calls)
    jax.clear_caches()
    yield calls
    jax.clear_caches()


@pytest.mark.parametrize("sizes", [dict(), dict(data=2, fsdp=2, tensor=2)], ids=["one device", "mesh"])
def test_so_are_those_of_targets_that_look_at_the_memory_itself(looks, pretrained, expected, sizes):
    if sizes:
        placed = jax.device_put(
            pretrained.params, shardings_for(abstract_params(pretrained.module), make_mesh(**sizes))
        )
        pretrained = dataclasses.replace(pretrained, params=placed)
    result = scoring.loss(pretrained, INPUTS, TARGETS)
    assert looks.called
    np.testing.assert_allclose(result, [row.mean() for row in expected], atol=TOLERANCE)


def test_long_inputs_keep_their_first_tokens_and_the_end(pretrained):
    ids = requests.encode_inputs(pretrained, [INPUTS[2]], 6)[0]
    whole = pretrained.tokenizer.encode(INPUTS[2])
    assert ids == [*whole[:5], pretrained.tokenizer.eos_token_id]
    cut = scoring.loss(pretrained, [INPUTS[2]], ["mat"], max_input_tokens=6)[0]
    nll = one_by_one(pretrained, ids, pretrained.tokenizer.encode("mat"))
    assert cut == pytest.approx(nll.mean(), abs=TOLERANCE)


def test_no_request_gives_no_result(pretrained):
    assert scoring.loss(pretrained, [], []).shape == (0,)
    assert scoring.score_choices(pretrained, [], []) == []


@pytest.mark.parametrize("row", [-1, 0])
def test_padding_rows_of_the_embedding_are_never_scored(pretrained, row):
    bad = pretrained.tokenizer.vocab_size if row == 0 else row
    with pytest.raises(InputError, match=f"target 1 holds token id {bad}; the vocabulary has ids 0 to 69"):
        scoring.token_losses(pretrained, [[5, 1], [5, 1]], [[6, 1], [bad, 1]])
    with pytest.raises(InputError, match="input 0 holds token id"):
        scoring.token_losses(pretrained, [[bad, 1]], [[6, 1]])


def test_wrong_requests_are_named(pretrained):
    with pytest.raises(InputError, match="2 inputs but 1 targets"):
        scoring.loss(pretrained, ["a", "b"], ["c"])
    with pytest.raises(InputError, match="list of texts"):
        scoring.loss(pretrained, "a", ["c"])
    with pytest.raises(InputError, match="text 1 is a NoneType"):
        scoring.loss(pretrained, ["a", None], ["c", "d"])
    with pytest.raises(InputError, match="choices of input 1 are \\[\\]"):
        scoring.score_choices(pretrained, ["a", "b"], [["c"], []])
    with pytest.raises(InputError, match="input 0 has no token"):
        scoring.token_losses(pretrained, [[]], [[1]])
    with pytest.raises(InputError, match="batch_size is 0"):
        scoring.loss(pretrained, ["a"], ["c"], batch_size=0)
    with pytest.raises(InputError, match="no tokenizer"):
        scoring.loss(dataclasses.replace(pretrained, tokenizer=None), ["a"], ["c"])


@given(length=st.integers(1, 10_000))
def test_buckets_hold_a_length_and_waste_less_than_half(length):
    assert length <= requests.bucket(length) < 2 * length + 1


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9))
def test_a_plan_holds_every_request_once_and_the_largest_first(lengths, batch_size):
    batches = requests.plan([(length,) for length in lengths], batch_size)
    order = [int(i) for batch in batches for i in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    assert all(len(batch) <= batch_size for batch in batches)
