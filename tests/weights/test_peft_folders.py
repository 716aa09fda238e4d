"""PEFT's folders as others write them: what is read, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from peft_toy import CONFIGS, adapter_for, assert_same, model_of, read, updates, write

from jaxmtl.models.trees import flat, nested
from jaxmtl.types import InputError
from jaxmtl.weights import load_adapter, peft_io, save_adapter
from jaxmtl.weights.peft_config import CONFIG
from jaxmtl.weights.peft_io import MODEL


@pytest.fixture(scope="module")
def models():
    return {name: model_of(name) for name in CONFIGS}


def peft_folder(folder, targets=("q_proj", "v_proj"), rank=2, seed=0, **fields):
    """A folder for the toy OPT as PEFT writes it."""
    rng, tensors = np.random.default_rng(seed), {}
    for layer in range(2):
        for module in ("q_proj", "v_proj"):
            name = f"base_model.model.model.decoder.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = rng.normal(size=(rank, 6)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = rng.normal(size=(6, rank)).astype(np.float32)
    targets = targets if isinstance(targets, str) else list(targets)
    config = dict(peft_type="LORA", r=rank, lora_alpha=8, target_modules=targets)
    return write(folder, {**config, **fields}, tensors, {"format": "pt"})


def theirs(layer, module, part):
    return f"base_model.model.model.decoder.layers.{layer}.self_attn.{module}.lora_{part}.weight"


def change(folder, notes=None, **fields):
    config, tensors = read(folder)
    return write(folder, config | fields, tensors, notes)


def check_updates(model, folder, modules=("q_proj", "v_proj")):
    """What was loaded adds what PEFT's rules say."""
    config, tensors = read(folder)
    defaults = dict(rank_pattern={}, alpha_pattern={}, use_rslora=False)
    expected = updates(defaults | {name: value for name, value in config.items() if value is not None}, tensors)
    adapter = load_adapter(folder, model)
    leaves = flat(adapter.tree)
    for path, module in (("query", "q_proj"), ("value", "v_proj")):
        if module not in modules:
            continue
        for layer in range(2):
            a, b = (leaves[f"layers/attention/{path}/{part}"][layer] for part in "ab")
            product = expected.get(f"model.decoder.layers.{layer}.self_attn.{module}", np.zeros((6, 6)))
            np.testing.assert_allclose(adapter.scale * (a @ b).T, product, rtol=1e-5, atol=1e-6)
    return adapter


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(targets=r".*\.(q|v)_proj"),
        dict(targets=("self_attn.q_proj", "v_proj")),
        dict(targets=[f"model.decoder.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in "qv"]),
        dict(targets="all-linear", exclude_modules=["k_proj", "out_proj", "fc1", "fc2", "project_in", "project_out"]),
        dict(targets=("q_proj", "k_proj", "v_proj"), exclude_modules=r".*\.k_proj"),
        dict(use_rslora=True, lora_alpha=0.5),
        dict(rank_pattern=None, alpha_pattern=None, layers_to_transform=[], modules_to_save=[], exclude_modules=None),
        dict(init_lora_weights="gaussian", inference_mode=True, loftq_config={}, megatron_core="megatron.core"),
        dict(
            peft_version="9.0", qalora_group_size=16, a_new_field=None, another=7, a_third={}, runtime_config={"x": 1}
        ),
    ],
    ids=str,
)
def test_folders_of_peft_are_read(models, fields, tmp_path):
    assert check_updates(models["opt"], peft_folder(tmp_path, **fields)).rank == 2


def test_an_absent_rank_and_alpha_are_those_that_peft_takes(models, tmp_path):
    folder = peft_folder(tmp_path, rank=8)
    config, tensors = read(folder)
    write(folder, config | dict(r=..., lora_alpha=...), tensors)
    adapter = load_adapter(folder, models["opt"])
    assert (adapter.rank, adapter.alpha) == (8, 8)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_ranks_and_scales_of_single_layers_become_one(models, use_rslora, tmp_path):
    folder = peft_folder(tmp_path, rank_pattern={"v_proj": 5}, alpha_pattern={"layers.1.self_attn.q_proj": 3})
    config, tensors = read(folder)
    rng = np.random.default_rng(1)
    for layer in range(2):
        tensors[theirs(layer, "v_proj", "A")] = rng.normal(size=(5, 6)).astype(np.float32)
        tensors[theirs(layer, "v_proj", "B")] = rng.normal(size=(6, 5)).astype(np.float32)
    write(folder, config | dict(use_rslora=use_rslora), tensors)
    assert check_updates(models["opt"], folder).rank == 5


@pytest.mark.parametrize("chosen", [[1], 1], ids=str)
def test_layers_that_are_left_out_change_nothing(models, chosen, tmp_path):
    folder = peft_folder(tmp_path, layers_to_transform=chosen)
    config, tensors = read(folder)
    tensors = {name: tensor for name, tensor in tensors.items() if ".layers.0." not in name}
    adapter = check_updates(models["opt"], write(folder, config, tensors))
    assert not any(leaf[0].any() for leaf in jax.tree.leaves(adapter.tree))


def test_names_may_lack_the_prefix_of_a_model_with_its_head(models, tmp_path):
    folder = peft_folder(tmp_path, targets=r"decoder\.layers\.\d\.self_attn\.(q|v)_proj")
    config, tensors = read(folder)
    expected = load_adapter(change(folder, target_modules=["q_proj", "v_proj"]), models["opt"])
    short = {name.replace("model.model.decoder", "model.decoder"): tensor for name, tensor in tensors.items()}
    assert_same(load_adapter(write(folder, config, short), models["opt"]), expected)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_floating_point_numbers_are_read_as_float32(models, dtype, tmp_path):
    config, tensors = read(peft_folder(tmp_path))
    write(tmp_path, config, {name: tensor.astype(dtype) for name, tensor in tensors.items()})
    leaf = flat(load_adapter(tmp_path, models["opt"]).tree)["layers/attention/query/a"]
    assert leaf.dtype == jnp.float32
    np.testing.assert_array_equal(leaf[1].T, tensors[theirs(1, "q_proj", "A")].astype(dtype).astype(np.float32))


# --- Refusals


def refused(folder, model, message):
    with pytest.raises(InputError, match=message) as error:
        load_adapter(folder, model)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(peft_type="IA3"), "peft_type is 'IA3'; expected 'LORA'"),
        (dict(peft_type=...), "'peft_type' is missing"),
        (dict(target_modules=...), "'target_modules' is missing"),
        (dict(use_dora=True), "'use_dora' is true; expected a plain LoRA"),
        (dict(lora_bias=True), "'lora_bias' is true"),
        (dict(bias="lora_only"), "bias is 'lora_only'; expected 'none'"),
        (dict(modules_to_save=["lm_head"]), "'modules_to_save' is .*lm_head"),
        (dict(target_parameters=["x"]), "'target_parameters' is"),
        (dict(trainable_token_indices=[3]), "'trainable_token_indices' is"),
        (dict(trainable_token_indices={"embed_tokens": [3]}), "'trainable_token_indices' is"),
        (dict(megatron_config={"x": 1}), "'megatron_config' is"),
        (dict(layer_replication=[[0, 2]]), "'layer_replication' is"),
        (dict(alora_invocation_tokens=[3]), "'alora_invocation_tokens' is"),
        (dict(use_qalora=True), "'use_qalora' is true"),
        (dict(a_later_invention={"x": 1}), "'a_later_invention' is"),
        *[
            (dict(init_lora_weights=kind), f"init_lora_weights is '{kind}', which changes the base's weights")
            for kind in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica")
        ],
        (dict(r=0), "r is '0', expected an integer"),
        (dict(r=True), "r is 'True', expected an integer"),
        (dict(lora_alpha=-1), "lora_alpha is '-1', expected a number"),
        (dict(lora_alpha=float("nan")), "lora_alpha is 'nan'"),
        (dict(use_rslora="yes"), "use_rslora is 'yes', expected true or false"),
        (dict(target_modules=[1]), "target_modules is .*expected names of modules"),
        (dict(target_modules="q_proj("), "target_modules 'q_proj.' is no regular expression"),
        (dict(target_modules=r"(?!x).*q_proj"), "target_modules .* has look-around or a reference back"),
        (dict(exclude_modules="("), "exclude_modules '.' is no regular expression"),
        (dict(layers_to_transform="all"), "layers_to_transform is 'all', expected numbers"),
        (dict(rank_pattern=[2]), "rank_pattern is .*expected numbers by module"),
        (dict(rank_pattern={"q_proj": 1.5}), "rank_pattern: q_proj is '1.5', expected an integer"),
        (dict(alpha_pattern={"q_proj(": 2}), "alpha_pattern .* is no regular expression"),
        (dict(r=3), r"has shape \(2, 6\); this model and adapter_config.json ask for \(3, 6\)"),
        (dict(rank_pattern={"v_proj": 4}), r"v_proj.lora_A.weight has shape \(2, 6\)"),
        (dict(target_modules=["q_proj"]), "layers.0.self_attn.v_proj.*does not name in target_modules"),
        (dict(target_modules=["q_proj", "v_proj", "fc1"]), "lacks model.decoder.layers.0.fc1, .*names in target_mod"),
        (dict(target_modules=[]), "does not name in target_modules"),
        (dict(layers_to_transform=[0]), "holds model.decoder.layers.1.*does not name"),
        (dict(exclude_modules=["v_proj"]), "v_proj.*does not name in target_modules"),
    ],
    ids=str,
)
def test_configs_that_are_no_plain_lora_of_these_tensors_are_refused(models, fields, message, tmp_path):
    refused(change(peft_folder(tmp_path), **fields), models["opt"], message)


def test_a_pattern_that_would_take_for_ever_is_matched_in_linear_time(models, tmp_path):
    # A matcher that goes back tries each of the 2^40 ways to cut a path of 41 letters.
    folder = change(peft_folder(tmp_path), target_modules=r"([a-z_.0-9]+)+!")
    refused(folder, models["opt"], "does not name in target_modules")


NARROW, WIDE = np.zeros((2, 5), np.float32), np.zeros((2, 6), np.float32)


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({theirs(0, "q_proj", "A"): ...}, "q_proj.lora_A.weight is missing, .*lora_B.weight is there; expected both"),
        ({theirs(1, "v_proj", "B"): ...}, "v_proj.lora_B.weight is missing"),
        ({theirs(0, "q_proj", "A"): NARROW}, r"has shape \(2, 5\); this model .* ask for \(2, 6\)"),
        ({theirs(0, "q_proj", "B"): WIDE}, r"has shape \(2, 6\); this model .* ask for \(6, 2\)"),
        ({theirs(0, "q_proj", "A"): np.ones((2, 6), np.int8)}, "holds int8, expected floating-point"),
        ({theirs(0, "q_proj", "A"): WIDE[0]}, r"has shape \(6,\)"),
        ({theirs(0, "q_proj", "magnitude_vector"): WIDE}, "holds .*magnitude_vector.*; a plain LoRA has"),
        ({"base_model.model.lm_head.weight": WIDE}, "holds .*lm_head.weight; a plain LoRA has"),
        ({"two\nlines.lora_A.weight": WIDE}, "holds two lines.lora_A.weight; a plain LoRA has"),
        ({"q_proj.lora_A.weight": WIDE}, "holds q_proj.lora_A.weight; a plain LoRA has"),
        ({theirs(2, "q_proj", "A"): WIDE, theirs(2, "q_proj", "B"): WIDE}, "no linear layer .*layers.2.self_attn"),
        ({"base_model.model.lm_head.lora_A.weight": WIDE}, "no linear layer lm_head; is it another's"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(models, tensors, message, tmp_path):
    config, found = read(peft_folder(tmp_path))
    refused(write(tmp_path, config, found | tensors), models["opt"], message)


def test_a_file_without_tensors_is_refused(models, tmp_path):
    config, _ = read(peft_folder(tmp_path))
    refused(write(tmp_path, config, {}), models["opt"], "holds no tensors; a plain LoRA has")


def test_missing_and_damaged_files_are_refused(models, tmp_path):
    model, folder = models["opt"], peft_folder(tmp_path)
    config, whole = (folder / CONFIG).read_text(), (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(whole[: len(whole) // 2])
    refused(folder, model, "not a readable safetensors file")
    (folder / MODEL).unlink()
    refused(folder, model, "holds no adapter_model.safetensors; fetch or save")
    (folder / "adapter_model.bin").write_bytes(b"a pickle")
    refused(folder, model, "is a pickle and is not opened: load it with PEFT and save it again")
    (folder / MODEL).write_bytes(whole)
    for text in (config[:-5], "[]", "3"):
        (folder / CONFIG).write_text(text)
        refused(folder, model, "as JSON|one JSON object")
    (folder / CONFIG).unlink()
    refused(folder, model, "holds no adapter_config.json")
    refused(folder / "elsewhere", model, "holds no adapter_config.json")


def test_an_adapter_of_other_weights_is_refused(models, tmp_path):
    model = models["opt"]
    save_adapter(tmp_path, adapter_for(model, "q,v"), model)
    leaves = flat(model.params)
    leaves["token_embedding/embedding"] += 1e-3
    other = dataclasses.replace(model, params=nested(leaves))
    refused(tmp_path, other, "is an adapter of weights with hash '.{16}', this model's is")
    refused(tmp_path, models["bart"], "is an adapter of a model of type 'opt'; this one is 'bart'")


def test_a_model_in_bfloat16_is_the_same_model(models, tmp_path):
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), models["opt"].params)
    whole, half = models["opt"], dataclasses.replace(models["opt"], params=rounded)
    widened = dataclasses.replace(whole, params=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded))
    adapter = adapter_for(whole, "q,v")
    save_adapter(tmp_path / "whole", adapter, whole)
    save_adapter(tmp_path / "half", adapter, half)
    for folder, model in (("whole", half), ("half", half), ("half", widened)):
        assert_same(load_adapter(tmp_path / folder, model), adapter)
    refused(tmp_path / "whole", widened, "this model's is")


# --- Writing


@pytest.mark.parametrize("step", ["write_file", "write_config"])
def test_a_save_that_was_stopped_does_not_load(models, step, tmp_path, monkeypatch):
    model = models["opt"]
    save_adapter(tmp_path, adapter_for(model, "q,v"), model)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(peft_io, step, stop)
        with pytest.raises(KeyboardInterrupt):
            save_adapter(tmp_path, adapter_for(model, "q,k,v,o"), model)
    refused(tmp_path, model, "holds no adapter_config.json")
    adapter = adapter_for(model, "all")
    save_adapter(tmp_path, adapter, model)
    assert_same(load_adapter(tmp_path, model), adapter)


def test_an_adapter_of_another_model_is_not_saved(models, tmp_path):
    with pytest.raises(InputError):
        save_adapter(tmp_path / "new", adapter_for(models["t5"], "q,v"), models["opt"])
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_refused(models, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_adapter(tmp_path / "file", adapter_for(models["opt"], "q,v"), models["opt"])
