"""Batches of one task: its low-rank updates are in the kernels, and answers are those of applying them on their own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hyper_toy import EVERYTHING, LORA, random_like

from jaxmtl.adapters.hyper_config import GeneratorConfig, HyperConfig
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.hypernet import Hyper, InstructionCache
from jaxmtl.adapters.lora import merge
from jaxmtl.evals import merging, reading, request_adapters
from jaxmtl.evals.generation import generate
from jaxmtl.evals.merging import Merged, worth_merging
from jaxmtl.evals.request_adapters import batch_variables
from jaxmtl.evals.scoring import loss, score_choices
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.trees import flat
from jaxmtl.partitioning import make_mesh, shardings_for

PLAIN = HyperConfig(outputs=(LORA,), fusion="none", memory="input", generator=GeneratorConfig(hidden=6))
ONE, OTHER = "say the opposite", "count the words"
INPUTS = ["a good day", "one two three", "it is cold", "tree", "is it"]
TARGETS = ["bad", "three", "warm", "t r e e", "it is"]
CHOICES = [["yes", "no"]] * 5
CALLS = {
    "losses": lambda model, **options: loss(model, INPUTS, TARGETS, **options),
    "choices": lambda model, **options: score_choices(model, INPUTS, CHOICES, **options),
    "greedy": lambda model, **options: generate(model, INPUTS, max_tokens=5, **options),
    "beam": lambda model, **options: generate(model, INPUTS, max_tokens=5, method="beam", num_beams=2, **options),
}


def cache_of(model, config):
    params = random_like(HyperModel(config, model.module), seed=2, spread=0.2)
    own = {name: tree for name, tree in params.items() if name != "base"}
    return InstructionCache(Hyper(config=config, params=own), model)


def separately(monkeypatch):
    monkeypatch.setattr(request_adapters, "worth_merging", lambda *_: False)


@pytest.fixture(scope="module")
def cache(pretrained):
    return cache_of(pretrained, EVERYTHING)


@pytest.fixture
def applied(monkeypatch):
    """What models are applied to, batch by batch."""
    seen = []
    keep = lambda *given: seen.append(batch_variables(*given)) or seen[-1]
    monkeypatch.setattr(reading, "batch_variables", keep)
    return seen


@pytest.mark.long
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("model", "config"), [("pretrained", EVERYTHING), ("decoder_only", PLAIN)])
def test_answers_are_those_of_updates_on_their_own(request, monkeypatch, applied, model, config, call):
    model = request.getfixturevalue(model)
    adapter = cache_of(model, config).of([ONE] * 5)
    found = call(model, adapter=adapter)
    merged = applied.copy()
    separately(monkeypatch)
    expected = call(model, adapter=adapter)
    own = ["lora" in variables for variables in applied]
    assert own == [False] * len(merged) + [True] * len(merged)
    assert {*merged[0], "lora"} == {*applied[-1]}
    if isinstance(found[0], str):
        assert found == expected
    else:  # float32 sums in another order
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.array_equal(found, call(model))


def test_losses_with_a_plain_adapter_are_those_of_updates_on_their_own(pretrained, make_adapter, monkeypatch, applied):
    adapter = make_adapter(pretrained, 1, targets="all")
    found = loss(pretrained, INPUTS, TARGETS, adapter=adapter)
    assert [set(variables) for variables in applied] == [{"params"}]
    separately(monkeypatch)
    np.testing.assert_allclose(found, loss(pretrained, INPUTS, TARGETS, adapter=adapter), rtol=1e-5)
    assert np.abs(found - loss(pretrained, INPUTS, TARGETS)).max() > 0.01


def test_a_batch_among_several_tasks_is_not_merged(pretrained, cache):
    adapters: Any = request_adapters.request_adapters(pretrained, cache.of([ONE, OTHER, ONE, OTHER]), 4)
    for rows in ([0, 1], [0, 2]):
        found = batch_variables(pretrained, adapters, np.array(rows), 2)
        assert found["params"] is pretrained.params and found["lora"]


def test_what_an_instruction_does_besides_stays(pretrained, cache):
    adapters: Any = request_adapters.request_adapters(pretrained, cache.of([OTHER] * 4), 4)
    found = batch_variables(pretrained, adapters, np.array([0, 2]), 4)
    expected = adapters.adaptation.collections(jnp.zeros(4, int))
    assert {*found, "lora"} == {*expected, "params"}
    merged = merging.merged(pretrained.params, jax.tree.map(lambda leaf: leaf[:, 0], expected["lora"]))
    jax.tree.map(np.testing.assert_array_equal, found["params"], merged)
    np.testing.assert_array_equal(found["instruction"]["index"], expected["instruction"]["index"])
    for own, rest in zip(*(jax.tree.leaves(each["prefix"]) for each in (found, expected)), strict=True):
        np.testing.assert_array_equal(np.stack([own] * 4, axis=1), rest)


def test_all_batches_use_what_is_merged_once(pretrained, make_adapter, monkeypatch, applied):
    merged, counted = merging.merged, []
    monkeypatch.setattr(merging, "merged", lambda *given: counted.append(given) or merged(*given))
    adapter = make_adapter(pretrained, 0)
    loss(pretrained, INPUTS, TARGETS, adapter=adapter, batch_size=2)
    assert len(counted) == 1 and len(applied) == 3
    expected = merge(pretrained.params, adapter)
    for variables in applied:
        jax.tree.map(
            lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6), variables["params"], expected
        )


def test_other_parameters_are_not_those_that_were_merged_before(pretrained, make_adapter):
    kept, tree = Merged(), make_adapter(pretrained, 1).collection()
    first = kept.params(pretrained.params, lambda: tree)
    assert kept.params(pretrained.params, lambda: tree) is first
    assert kept.params(dict(pretrained.params), lambda: tree) is not first


def test_merged_kernels_stay_where_they_were(pretrained, make_adapter, applied):
    adapter = make_adapter(pretrained, 1, targets="all")
    expected = loss(pretrained, INPUTS, TARGETS, adapter=adapter)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = jax.device_put(pretrained.params, shardings_for(abstract_params(pretrained.module), mesh))
    found = loss(dataclasses.replace(pretrained, params=placed), INPUTS, TARGETS, adapter=adapter)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    before, after = flat(placed), flat(applied[-1]["params"])
    assert "lora" not in applied[-1] and before.keys() == after.keys()
    assert {path for path, leaf in before.items() if after[path] is not leaf} == {
        f"{path}/kernel" for path in adapter.targets
    }
    assert all(after[path].sharding == leaf.sharding for path, leaf in before.items())


@pytest.mark.long
def test_an_instruction_changes_the_same_on_a_mesh(pretrained, cache, applied):
    adapter = cache.of([ONE] * 5)
    expected = loss(pretrained, INPUTS, TARGETS, adapter=adapter)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = jax.device_put(pretrained.params, shardings_for(abstract_params(pretrained.module), mesh))
    found = loss(dataclasses.replace(pretrained, params=placed), INPUTS, TARGETS, adapter=adapter)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not any("lora" in variables for variables in applied)


def model_of(pretrained, width, dtype="float32", kept="float32"):
    """A model of which nothing is real but one kernel's shape and the dtypes."""
    params = {"layer": {"kernel": jax.ShapeDtypeStruct((2, width, width), kept)}}
    return dataclasses.replace(pretrained, config=dataclasses.replace(pretrained.config, dtype=dtype), params=params)


def test_few_requests_are_not_worth_merging(pretrained):
    wide = model_of(pretrained, 768)  # 768² / (768 + 768) = 384 tokens
    assert [worth_merging(wide, ["layer"], count) for count in (1, 3, 4, 100)] == [False, False, True, True]
    assert not worth_merging(wide, [], 100)


def test_what_bfloat16_would_round_away_is_not_merged(pretrained):
    for dtypes in (dict(dtype="bfloat16"), dict(kept="bfloat16")):
        assert not worth_merging(model_of(pretrained, 16, **dtypes), ["layer"], 100)
    assert worth_merging(model_of(pretrained, 16), ["layer"], 100)


def test_all_requests_of_a_call_count(pretrained, make_adapter, monkeypatch):
    counts = []
    monkeypatch.setattr(request_adapters, "worth_merging", lambda *given: counts.append(given[2]))
    one, other = make_adapter(pretrained, 1), make_adapter(pretrained, 2)
    for adapter in (one, [one] * 5, [one, other] * 2 + [one]):
        kept = request_adapters.request_adapters(pretrained, adapter, 5)
        batch_variables(pretrained, kept, np.array([0, 2]), 2)
    assert counts == [5, 5]
