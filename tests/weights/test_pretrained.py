import dataclasses
import json
import logging
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxmtl import partitioning
from jaxmtl.checkpoints import Checkpoints
from jaxmtl.models.t5_config import SIZES, named_config
from jaxmtl.types import InputError
from jaxmtl.weights import (
    Pretrained,
    load_module,
    load_pretrained,
    resize_vocabulary,
    save_pretrained,
    step_of,
    t5_map,
    write_config,
)
from jaxmtl.weights.safetensors_io import SINGLE

QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def change_config(folder, **fields):
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in raw.items() if value is not ...}))


def change_tensors(folder, change):
    tensors = safetensors.numpy.load_file(str(folder / SINGLE))
    change(tensors)
    safetensors.numpy.save_file(tensors, str(folder / SINGLE))


def refused(folder, message, **options):
    with pytest.raises(InputError, match=message) as error:
        load_pretrained(folder, **options)
    assert "\n" not in str(error.value)


def test_what_was_saved_comes_back(pretrained, folder):
    again = load_pretrained(folder)
    assert again.config == pretrained.config
    assert_same(again.params, pretrained.params)
    assert again.tokenizer.fingerprint == pretrained.tokenizer.fingerprint
    assert load_module(folder) == again.module
    assert step_of(folder) == 0


def test_a_folder_without_tokenizer_gives_none(pretrained, tmp_path):
    save_pretrained(tmp_path, dataclasses.replace(pretrained, tokenizer=None))
    assert load_pretrained(tmp_path).tokenizer is None


def test_matrices_are_stored_in_torch_orientation_one_tensor_per_layer(pretrained, folder):
    tensors = safetensors.numpy.load_file(str(folder / SINGLE))
    for layer in range(3):
        ours = pretrained.params["decoder"]["mlp"]["wo"]["kernel"][layer]
        theirs = tensors[f"decoder.block.{layer}.layer.2.DenseReluDense.wo.weight"]
        assert theirs.shape == (16, 24)
        np.testing.assert_array_equal(theirs, np.asarray(ours).T)


def test_configs_of_all_published_sizes_survive_hugging_face_form():
    for name in SIZES:
        config = named_config(name)
        assert t5_map.config_from_hf(t5_map.config_to_hf(config), "x", config.dtype) == config


@pytest.mark.parametrize("mesh", [dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=8), dict(data=1, tensor=8)])
def test_weights_loaded_onto_a_mesh_are_split_and_the_same(pretrained, folder, mesh):
    loaded = load_pretrained(folder, mesh=partitioning.make_mesh(**mesh))
    assert_same(loaded.params, pretrained.params)
    kernel = loaded.params["encoder"]["mlp"]["wo"]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    parts = mesh.get("fsdp", 1) * mesh.get("tensor", 1)
    assert kernel.addressable_shards[0].data.size == kernel.size // parts


def test_bfloat16_is_the_float32_weights_rounded(pretrained, folder):
    loaded = load_pretrained(folder, dtype="bfloat16")
    assert loaded.config.dtype == "bfloat16"
    assert_same(loaded.params, jax.tree.map(lambda leaf: leaf.astype("bfloat16"), pretrained.params))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"d_model": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b"[1]", "expected one JSON object, found list"),
    ],
)
def test_a_broken_config_is_named(folder, content, message):
    (folder / "config.json").write_bytes(content)
    refused(folder, f"config.json: {message}")


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(d_kv=...), "field 'd_kv' is missing; expected a T5 config"),
        (dict(num_heads=None), "field 'num_heads' is missing"),
        (dict(model_type="t55"), "unknown model_type 't55'; closest: t5"),
        (dict(model_type=["t5"]), "unknown model_type"),
        (dict(feed_forward_proj="gated-silu"), "feed_forward_proj is 'gated-silu', expected one of"),
        (dict(feed_forward_proj=["relu"]), "feed_forward_proj is "),
        (dict(d_model="16"), "d_model is '16', expected an integer from 1"),
        (dict(d_model=0), "d_model is '0'"),
        (dict(d_model=True), "d_model is 'True'"),
        (dict(num_layers=2.0), "num_layers is '2.0'"),
        (dict(num_layers=10**9), "num_layers is '1000000000'"),
        (dict(dropout_rate=1.5), "dropout_rate is '1.5', expected a number from 0"),
        (dict(layer_norm_epsilon=float("nan")), "layer_norm_epsilon is 'nan'"),
        (dict(pad_token_id=-1), "pad_token_id is '-1'"),
        (dict(eos_token_id=[1]), "eos_token_id is"),
        (dict(eos_token_id=72), "eos_token_id is 72, expected less than vocab_size, 72"),
        (dict(tie_word_embeddings="no"), "tie_word_embeddings is 'no', expected true or false"),
        (dict(relative_attention_max_distance=16), "more than half of the buckets"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(folder, fields, message):
    change_config(folder, **fields)
    refused(folder, f"config.json: .*{message}")


@pytest.mark.parametrize("dtype", ["float16", "half"])
def test_other_dtypes_are_refused_with_the_reason(folder, dtype):
    refused(folder, "overflow float16; use 'bfloat16' or 'float32'", dtype=dtype)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(QUERY), f"1 missing: {QUERY}.*is it another model"),
        (lambda t: t.update(strange=np.zeros(3)), "1 unknown: strange"),
        (lambda t: t.pop("shared.weight"), "tensor shared.weight is missing"),
        (lambda t: t.update({QUERY: t[QUERY][:5]}), QUERY + r" has shape \(5, 16\), config.json asks for \(24, 16\)"),
        (lambda t: t.update({"shared.weight": np.zeros((72, 8), np.float32)}), r"config.json asks for \(rows, 16\)"),
        (lambda t: t.update({"shared.weight": t["shared.weight"][:1]}), "has 1 rows, config.json names token id 1"),
        (lambda t: t.update({"shared.weight": np.zeros((), np.float32)}), r"config.json asks for \(rows, 16\)"),
        (lambda t: t.update({"lm_head.weight": np.zeros((9, 16), np.float32)}), r"shape \(9, 16\), .*\(72, 16\)"),
        (lambda t: t.update({QUERY: t[QUERY].astype(np.int64)}), "holds int64, expected floating-point"),
    ],
)
def test_tensors_that_do_not_fit_are_named_in_their_own_orientation(folder, change, message):
    change_tensors(folder, change)
    refused(folder, message)


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder):
    def cut(tensors):
        for name in ("shared.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:40]

    change_tensors(folder, cut)
    refused(folder, "the tokenizer has 64 tokens, the embedding only 40 rows")


def test_padding_rows_can_be_added_and_cut_and_tokens_cannot(pretrained):
    wide = resize_vocabulary(pretrained, 80)
    embedding, head = wide.params["token_embedding"]["embedding"], wide.params["lm_head"]["kernel"]
    assert (embedding.shape, head.shape) == ((80, 16), (16, 80))
    assert not np.asarray(embedding[72:]).any() and not np.asarray(head[:, 72:]).any()
    assert_same(resize_vocabulary(wide, 72).params, pretrained.params)
    assert resize_vocabulary(pretrained, 64).config.vocab_size == 64
    with pytest.raises(InputError, match="63 rows would cut tokens: the tokenizer has 64"):
        resize_vocabulary(pretrained, 63)
    with pytest.raises(InputError, match="expected 1 or more"):
        resize_vocabulary(pretrained, 0)


def test_without_a_tokenizer_rows_are_added_and_none_cut(pretrained):
    bare = dataclasses.replace(pretrained, tokenizer=None)
    assert resize_vocabulary(bare, 80).config.vocab_size == 80
    with pytest.raises(InputError, match="71 rows would cut some of the model's 72.*put the tokenizer's files beside"):
        resize_vocabulary(bare, 71)


@pytest.mark.parametrize("path", ["/no/such/folder", "no/such/folder", "two words", "~/model"])
def test_a_path_that_is_no_folder_and_no_hub_id_is_told_without_the_hub(path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: pytest.fail("asked the hub"))
    refused(path, "no such folder; expected a folder with config.json, a run folder or a hub id")


@pytest.mark.parametrize(
    "message, reason",
    [
        ("cannot reach the hub\nand more lines", "LocalEntryNotFoundError: cannot reach the hub"),
        ("", "LocalEntryNotFoundError"),
    ],
)
def test_a_hub_id_without_network_is_told(monkeypatch, message, reason):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name, allow_patterns):
        assert name == "google/t5-v1_1-small" and "*.bin" not in allow_patterns
        raise LocalEntryNotFoundError(message)

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    refused("google/t5-v1_1-small", rf"no such folder, and the hub did not give a model .*\({reason}\)")


def test_a_hub_id_loads_what_the_hub_gives(pretrained, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(folder))
    assert_same(load_pretrained("someone/model").params, pretrained.params)


def test_a_failing_save_leaves_the_earlier_model_whole(pretrained, folder, monkeypatch):
    def full_disk(tensors, path, metadata):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(safetensors.numpy, "save_file", full_disk)
    with pytest.raises(InputError, match="model.safetensors: cannot be written .No space left"):
        save_pretrained(folder, jax.tree.map(lambda x: x, pretrained))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def make_run(folder, pretrained, best_step=None):
    """Writes a run folder with checkpoints at steps 2 and 4; the weights of step 2 are twice those given."""
    write_config(folder / "model", pretrained.config)
    pretrained.tokenizer.save(folder / "model")
    params = {2: jax.tree.map(lambda leaf: 2 * leaf, pretrained.params), 4: pretrained.params}
    with Checkpoints(folder, keep=2) as checkpoints:
        for step, tree in params.items():
            checkpoints.save(step, tree, {"count": np.zeros(())}, {"step": step, "best_step": best_step})
    return params


@pytest.mark.parametrize("best, expected", [(None, 4), (2, 2), (3, 4)])
def test_a_run_folder_gives_its_best_checkpoint_else_its_latest(pretrained, tmp_path, best, expected):
    params = make_run(tmp_path, pretrained, best)
    loaded = load_pretrained(tmp_path)
    assert step_of(tmp_path) == expected
    assert loaded.config == pretrained.config
    assert loaded.tokenizer.fingerprint == pretrained.tokenizer.fingerprint
    assert_same(loaded.params, params[expected])


def test_reading_a_run_folder_warns_of_nothing(pretrained, tmp_path, caplog):
    make_run(tmp_path, pretrained)
    caplog.clear()
    load_pretrained(tmp_path)
    load_pretrained(tmp_path, mesh=partitioning.make_mesh(data=1, fsdp=8), dtype="bfloat16")
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_a_run_folder_loads_onto_a_mesh(pretrained, tmp_path):
    make_run(tmp_path, pretrained)
    loaded = load_pretrained(tmp_path, mesh=partitioning.make_mesh(data=1, fsdp=8), dtype="bfloat16")
    kernel = loaded.params["encoder"]["mlp"]["wo"]["kernel"]
    assert kernel.dtype == "bfloat16" and kernel.addressable_shards[0].data.size == kernel.size // 8
    assert_same(loaded.params, jax.tree.map(lambda leaf: leaf.astype("bfloat16"), pretrained.params))


def test_damaged_run_folders_are_told(pretrained, tmp_path):
    mixed = tmp_path / "mixed"
    make_run(mixed, pretrained)
    write_config(mixed / "model", dataclasses.replace(pretrained.config, mlp_dim=32))
    refused(
        mixed, r"decoder/mlp/wi_0/kernel: found shape \(3, 16, 24\), expected .*\(3, 16, 32\); model/config.json is"
    )
    empty = tmp_path / "empty"
    make_run(empty, pretrained)
    (mixed / "model").rename(tmp_path / "away")
    refused(mixed, "model: holds no config.json")
    for step in ("2", "4"):
        (empty / "checkpoints" / step).rename(tmp_path / f"away{step}")
    refused(empty, "holds no complete checkpoint; train first")


@pytest.mark.parametrize("gone", ["progress", "params"])
def test_a_checkpoint_that_lost_a_part_is_told(pretrained, tmp_path, gone):
    make_run(tmp_path, pretrained)
    (tmp_path / "checkpoints" / "4" / gone).rename(tmp_path / "away")
    refused(tmp_path, "this checkpoint cannot be read")


def test_a_checkpoint_whose_files_were_cut_short_is_told(pretrained, tmp_path):
    make_run(tmp_path, pretrained)
    for path in (tmp_path / "checkpoints" / "4" / "params").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])
    refused(tmp_path, "this checkpoint cannot be read")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**12) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.dictionaries(st.sampled_from(sorted(t5_map.config_to_hf(named_config("t5-small")))), JSON, min_size=1))
def test_no_config_gives_anything_but_one_line(folder, fields):
    path = folder / "config.json"
    good = path.read_text()
    change_config(folder, **fields)
    try:
        module = load_module(folder)
        assert dataclasses.is_dataclass(module.config)
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        path.write_text(good)


def test_loading_gives_what_the_contract_names(folder):
    assert [field.name for field in dataclasses.fields(Pretrained)] == ["config", "module", "params", "tokenizer"]
    loaded = load_pretrained(folder)
    tokens = np.array([[3, 4, 1]], np.int32)
    logits = loaded.module.apply({"params": loaded.params}, inputs=tokens, decoder_inputs=tokens)
    assert logits.shape == (1, 3, 72) and logits.dtype == np.float32
