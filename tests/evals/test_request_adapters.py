"""Requests with adapters of their own: what comes out is what the model gives with each adapter merged into it."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxmtl.adapters.lora import merge
from jaxmtl.evals import generation, scoring
from jaxmtl.evals.request_adapters import request_adapters
from jaxmtl.models.initial import abstract_params
from jaxmtl.partitioning import make_mesh, shardings_for
from jaxmtl.types import InputError, UnknownNameError

INPUTS = ["the cat sat", "a", "is water wet", "the cat sat", "is it", "a dog", "the cat sat"]
TARGETS = ["mat", "yes", "a ball", "mat", "no", "ran", "mat"]
CHOICES = [["yes", "no"]] * 7
OWN = [0, 1, 2, 1, 0, 0, 2]
MAX_TOKENS = 5


@pytest.fixture(scope="module", params=["pretrained", pytest.param("decoder_only", marks=pytest.mark.long)])
def model(request):
    return request.getfixturevalue(request.param)


def three(model, make_adapter):
    """Adapters of two ranks, of which one changes other layers."""
    ranks, targets = (2, 3, 2), ("q,v", "q,v", "q,k,v,o")
    return [make_adapter(model, *of) for of in zip(range(1, 4), ranks, targets, strict=True)]


@pytest.fixture(scope="module")
def adapters(model, make_adapter):
    return three(model, make_adapter)


def each(adapters):
    return [adapters[number] for number in OWN]


def separately(model, adapters, call):
    """Calls with the weights merged with each adapter, and takes of each call the requests that use the adapter."""
    merged = [dataclasses.replace(model, params=merge(model.params, adapter)) for adapter in adapters]
    results = [call(one) for one in merged]
    return [results[number][row] for row, number in enumerate(OWN)]


def test_losses_are_those_of_merged_weights(model, adapters):
    expected = separately(model, adapters, lambda merged: scoring.loss(merged, INPUTS, TARGETS))
    found = scoring.loss(model, INPUTS, TARGETS, adapter=each(adapters))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    same = found[[0, 3, 6]]  # one request with three adapters
    assert np.ptp(same) > 0.01 * same.mean()


def test_scores_of_choices_are_those_of_merged_weights(model, adapters):
    expected = separately(model, adapters, lambda merged: scoring.score_choices(merged, INPUTS, CHOICES))
    found = scoring.score_choices(model, INPUTS, CHOICES, adapter=each(adapters))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, dict(method="beam", num_beams=3)], ids=["greedy", "beam"])
def test_texts_are_those_of_merged_weights(model, adapters, options):
    options = dict(options, max_tokens=MAX_TOKENS)
    expected = separately(model, adapters, lambda merged: generation.generate(merged, INPUTS, **options))
    assert generation.generate(model, INPUTS, adapter=each(adapters), **options) == expected
    assert len({expected[row] for row in (0, 3, 6)}) > 1


@pytest.fixture(scope="module")
def expected(pretrained, make_adapter):
    adapters = three(pretrained, make_adapter)
    return adapters, separately(pretrained, adapters, lambda merged: scoring.loss(merged, INPUTS, TARGETS))


orders = given(order=st.permutations(range(7)), batch_size=st.sampled_from([3, 32]))
few = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@orders
def test_losses_depend_on_neither_order_nor_batch_size_nor_neighbours(pretrained, expected, order, batch_size):
    adapters, losses = expected
    inputs, targets = [INPUTS[row] for row in order], [TARGETS[row] for row in order]
    options = dict(adapter=[adapters[OWN[row]] for row in order], batch_size=batch_size)
    found = scoring.loss(pretrained, inputs, targets, **options)
    np.testing.assert_allclose(found, [losses[row] for row in order], rtol=1e-5)


@pytest.mark.long
@few
@orders
def test_texts_depend_on_neither_order_nor_batch_size_nor_neighbours(model, adapters, order, batch_size):
    texts = generation.generate(model, INPUTS, max_tokens=MAX_TOKENS, adapter=each(adapters))
    options = dict(adapter=[adapters[OWN[row]] for row in order], batch_size=batch_size)
    found = generation.generate(model, [INPUTS[row] for row in order], max_tokens=MAX_TOKENS, **options)
    assert found == [texts[row] for row in order]


def test_one_adapter_for_all_is_the_same_for_each(pretrained, make_adapter):
    adapter = make_adapter(pretrained, 1)
    copies = [dataclasses.replace(adapter) for _ in INPUTS]
    found = [scoring.loss(pretrained, INPUTS, TARGETS, adapter=one) for one in (adapter, [adapter] * 7, copies)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5)
    assert np.abs(found[0] - scoring.loss(pretrained, INPUTS, TARGETS)).max() > 0.01


def test_an_adapter_of_several_requests_is_kept_once(pretrained, make_adapter):
    one, other = make_adapter(pretrained, 1), make_adapter(pretrained, 2)
    found = request_adapters(pretrained, [one, other, one, one, other], 5)
    assert found.index.tolist() == [0, 1, 0, 0, 1]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(found.tree)} == {2}
    alone = request_adapters(pretrained, [one, one], 2)
    assert alone.index is None
    assert jax.tree.map(np.shape, alone.tree) == jax.tree.map(np.shape, one.tree)


def test_rows_that_fill_a_batch_use_the_adapter_of_the_first(pretrained, make_adapter):
    stacks = [make_adapter(pretrained, seed) for seed in range(3)]
    adapters = request_adapters(pretrained, stacks, 3)
    rows = jax.tree.leaves(adapters.of_rows(np.array([2, 0]), 4))
    for leaf, *expected in zip(rows, *(jax.tree.leaves(one.collection()) for one in stacks), strict=True):
        assert leaf.shape[1] == 4
        for row, number in enumerate([2, 0, 2, 2]):
            np.testing.assert_array_equal(leaf[:, row], expected[number])


def test_losses_with_adapters_are_the_same_on_a_mesh(pretrained, expected):
    adapters, losses = expected
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = jax.device_put(pretrained.params, shardings_for(abstract_params(pretrained.module), mesh))
    found = scoring.loss(dataclasses.replace(pretrained, params=placed), INPUTS, TARGETS, adapter=each(adapters))
    np.testing.assert_allclose(found, losses, rtol=1e-5)


def test_no_request_needs_no_adapter(pretrained):
    assert scoring.loss(pretrained, [], [], adapter=[]).shape == (0,)
    assert generation.generate(pretrained, [], adapter=[], max_tokens=2) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda model, adapter: scoring.loss(model, ["a", "b"], ["c", "d"], adapter=adapter),
        lambda model, adapter: scoring.score_choices(model, ["a", "b"], [["c"], ["d"]], adapter=adapter),
        lambda model, adapter: generation.generate(model, ["a", "b"], max_tokens=2, adapter=adapter),
    ],
    ids=["loss", "score_choices", "generate"],
)
def test_a_wrong_adapter_is_refused_wherever_one_enters(pretrained, decoder_only, make_adapter, call):
    good = make_adapter(pretrained, 1)
    with pytest.raises(UnknownNameError, match="unknown layer of the adapter 'layers/attention/query'"):
        call(pretrained, [good, make_adapter(decoder_only, 1)])
    with pytest.raises(InputError, match="has factors"):
        call(pretrained, dataclasses.replace(good, rank=3))
    with pytest.raises(InputError, match="the adapter is empty"):
        call(pretrained, dataclasses.replace(good, tree={}))
    with pytest.raises(InputError, match="3 adapters for 2 inputs; expected one for all, or one for each"):
        call(pretrained, [good] * 3)


def test_adapters_of_other_requests_are_refused(pretrained, make_adapter):
    adapters = request_adapters(pretrained, [make_adapter(pretrained, seed) for seed in range(2)], 2)
    with pytest.raises(InputError, match="adapters of 2 requests for 1 inputs"):
        scoring.token_losses(pretrained, [[5, 1]], [[6, 1]], adapters=adapters)
    with pytest.raises(InputError, match="adapters of 2 requests for 3 inputs"):
        generation.generate_ids(pretrained, [[5, 1]] * 3, max_tokens=2, adapters=adapters)
