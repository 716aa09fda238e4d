"""PEFT's folders: what is written, what comes back. Against PEFT itself: tests/parity/test_peft.py."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy
from peft_toy import CLASSIC, CONFIGS, adapter_for, assert_same, assert_same_kernels, model_of, read, updates, write

from jaxmtl.models.trees import flat, nested
from jaxmtl.weights import load_adapter, save_adapter
from jaxmtl.weights.peft_config import CONFIG
from jaxmtl.weights.peft_io import MODEL


@pytest.fixture(scope="module")
def models():
    return {name: model_of(name) for name in CONFIGS}


@pytest.mark.parametrize("targets", ["q,v", pytest.param("all", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_saved_comes_back_bit_by_bit(models, name, targets, tmp_path):
    adapter = adapter_for(models[name], targets)
    save_adapter(tmp_path, adapter, models[name])
    assert_same(load_adapter(tmp_path, models[name]), adapter)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, MODEL]


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_rank_stabilised_adapters_come_back(models, name, tmp_path):
    adapter = adapter_for(models[name], "q,v", scaling="rank_stabilised")
    save_adapter(tmp_path, adapter, models[name])
    again = load_adapter(tmp_path, models[name])
    assert again.alpha == pytest.approx(adapter.alpha, rel=1e-15)
    assert_same(dataclasses.replace(again, alpha=adapter.alpha), adapter)


def test_names_shapes_and_values_are_those_of_peft(models, tmp_path):
    adapter = adapter_for(models["t5"], "q,v")
    save_adapter(tmp_path, adapter, models["t5"])
    config, tensors = read(tmp_path)
    name = "base_model.model.decoder.block.2.layer.1.EncDecAttention.v"
    leaves = flat(adapter.tree)
    np.testing.assert_array_equal(tensors[f"{name}.lora_A.weight"], leaves["decoder/cross_attention/value/a"][2].T)
    np.testing.assert_array_equal(tensors[f"{name}.lora_B.weight"], leaves["decoder/cross_attention/value/b"][2].T)
    assert len(tensors) == 2 * 2 * (2 + 3 + 3)
    assert config.keys() == CLASSIC
    fields = dict(peft_type="LORA", task_type="SEQ_2_SEQ_LM", r=3, lora_alpha=5, target_modules=["q", "v"], bias="none")
    assert {name: config[name] for name in fields} == fields
    with safetensors.safe_open(tmp_path / MODEL, "numpy") as file:
        notes = file.metadata()
    assert notes["format"] == "pt" and notes["model_type"] == "t5" and len(notes["base_hash"]) == 16


TASKS = {"bart": "SEQ_2_SEQ_LM", "gpt2": "CAUSAL_LM", "opt": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION"}


@pytest.mark.parametrize("name", ["bart", "gpt2", "opt", "encoder", "classifier"])
def test_task_type_and_orientation_follow_the_model(models, name, tmp_path):
    save_adapter(tmp_path, adapter_for(models[name], "q,v"), models[name])
    config, tensors = read(tmp_path)
    assert config["task_type"] == TASKS.get(name)
    assert config["fan_in_fan_out"] == (name == "gpt2")
    if name in ("encoder", "classifier"):  # the encoder alone has no `roberta.` in its paths
        assert all(("roberta." in tensor) == (name == "classifier") for tensor in tensors)


@pytest.mark.parametrize(
    "name, targets, expected",
    [
        ("t5", "q,k,v,o", ["k", "o", "q", "v"]),
        ("t5", "decoder/cross_attention/query", ["EncDecAttention.q"]),
        ("t5", "encoder/attention/query", r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.q"),
        ("bart", ["encoder/mlp/wi", "decoder/mlp/wi"], ["fc1"]),
        ("gpt2", "layers/attention/query", ["c_attn"]),
        ("gpt2", "layers/attention/out", ["attn.c_proj"]),
        ("opt", "all", ["fc1", "fc2", "k_proj", "out_proj", "project_in", "project_out", "q_proj", "v_proj"]),
        ("encoder", "layers/attention/.*", ["attention.output.dense", "key", "query", "value"]),
        ("encoder", "layers/wo", r"encoder\.layer\.\d+\.output\.dense"),
    ],
)
def test_target_modules_are_the_shortest_names_of_these_layers_alone(models, name, targets, expected, tmp_path):
    adapter = adapter_for(models[name], targets)
    save_adapter(tmp_path, adapter, models[name])
    assert read(tmp_path)[0]["target_modules"] == expected
    assert_same(load_adapter(tmp_path, models[name]), adapter)


def with_equal_a(adapter, paths):
    leaves = flat(adapter.tree)
    leaves |= {f"{path}/a": leaves[f"{paths[0]}/a"] for path in paths}
    return dataclasses.replace(adapter, tree=nested(leaves))


QUERY, KEY, VALUE = (f"layers/attention/{part}" for part in ("query", "key", "value"))


@pytest.mark.parametrize(
    "targets, equal, rank",
    [
        ([QUERY, VALUE], [], 6),
        ([QUERY, VALUE], [QUERY, VALUE], 3),
        ([KEY], [], 3),
        ([QUERY, KEY, VALUE], [], 9),
        ([QUERY, KEY, VALUE], [QUERY, VALUE], 6),
        ([QUERY, KEY, VALUE], [QUERY, KEY, VALUE], 3),
        ([VALUE, "layers/mlp/wi"], [], 3),
        ([QUERY, VALUE, "layers/mlp/wi"], [], 6),
    ],
)
@pytest.mark.parametrize("scaling", ["standard", "rank_stabilised"])
def test_layers_side_by_side_are_written_as_one_that_does_the_same(models, targets, equal, rank, scaling, tmp_path):
    model = models["gpt2"]
    adapter = with_equal_a(adapter_for(model, targets, scaling=scaling), equal or [QUERY] * (QUERY in targets))
    save_adapter(tmp_path, adapter, model)
    config, tensors = read(tmp_path)
    assert tensors["base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"].shape == (rank, 6)
    is_mixed = rank > 3 and "layers/mlp/wi" in targets
    assert config["r"] == (3 if is_mixed else rank) and bool(config["rank_pattern"]) == is_mixed
    leaves = flat(adapter.tree)
    of_part = lambda path: adapter.scale * leaves[f"{path}/a"][1] @ leaves[f"{path}/b"][1]
    parts = [of_part(path) if path in targets else np.zeros((6, 6)) for path in (QUERY, KEY, VALUE)]
    update = updates(config, tensors)["transformer.h.1.attn.c_attn"]
    np.testing.assert_allclose(update, np.concatenate(parts, 1).T, rtol=1e-5, atol=1e-6)
    again = load_adapter(tmp_path, model)
    assert again.alpha == pytest.approx(adapter.alpha, rel=1e-15)
    assert_same(dataclasses.replace(again, alpha=adapter.alpha), adapter)


def test_without_a_note_layers_side_by_side_share_one_a(models, tmp_path):
    model = models["gpt2"]
    adapter = adapter_for(model, [QUERY, VALUE])
    save_adapter(tmp_path, adapter, model)
    write(tmp_path, *read(tmp_path))
    again = load_adapter(tmp_path, model)
    assert again.rank == 6 and again.targets == (KEY, QUERY, VALUE)
    leaves = flat(again.tree)
    np.testing.assert_array_equal(leaves[f"{QUERY}/a"], leaves[f"{VALUE}/a"])
    assert_same_kernels(model, again, adapter)


@pytest.mark.parametrize(
    "note", ["{", "3", "[3]", '[["x"]]', f'[["{QUERY}"], ["{QUERY}"]]', f'[["{QUERY}"]]', '[[["x"]]]', "null"]
)
def test_a_note_that_does_not_fit_the_factors_is_left_aside(models, note, tmp_path):
    model = models["gpt2"]
    adapter = adapter_for(model, [QUERY, VALUE])
    save_adapter(tmp_path, adapter, model)
    write(tmp_path, *read(tmp_path), {"groups": note})
    assert_same_kernels(model, load_adapter(tmp_path, model), adapter)
