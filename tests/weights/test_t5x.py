import dataclasses
import json
import pathlib
import pickle
import shutil

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import tensorstore as ts
from flax import serialization, traverse_util
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxmtl.models.t5_config import T5Config
from jaxmtl.models.trees import flat
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained, load_module, load_pretrained, save_pretrained, save_t5x, step_of, unread
from jaxmtl.weights.t5x import FORMS
from jaxmtl.weights.t5x_io import T5XArrays, find

REAL = pathlib.Path(__file__).parents[3] / "shared" / "data" / "weights"
WRITTEN_BY_T5X = ["t5x_v1_1", "t5x_v1_0"]
QUERY = "target.encoder.layers_0.attention.query.kernel"
NUM_PER_ENCODER_LAYER, NUM_PER_DECODER_LAYER = 9, 14  # kernels and norms of a gated layer


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def refused(path, message):
    with pytest.raises(InputError, match=message) as error:
        load_pretrained(path)
    assert "\n" not in str(error.value)


def read_index(path):
    """Reads an index with msgpack alone; arrays stay bytes."""
    return msgpack.unpackb(path.read_bytes(), raw=False, ext_hook=lambda code, data: (code, data))


def change_index(checkpoint, change):
    contents = serialization.msgpack_restore((checkpoint / "checkpoint").read_bytes())
    change(contents)
    (checkpoint / "checkpoint").write_bytes(serialization.msgpack_serialize(contents))


@pytest.fixture
def home(pretrained, tmp_path):
    """A folder with a checkpoint of its own for each test, to be spoilt."""
    save_t5x(tmp_path / "model", pretrained, step=7)
    return tmp_path / "model"


@pytest.mark.parametrize("form", FORMS)
def test_what_was_saved_comes_back(pretrained, tmp_path, form):
    save_t5x(tmp_path, pretrained, step=7, form=form)
    for path in (tmp_path, tmp_path / "checkpoint_7"):
        again = load_pretrained(path)
        assert again.config == pretrained.config
        assert_same(again.params, pretrained.params)
        assert again.tokenizer.fingerprint == pretrained.tokenizer.fingerprint
        assert load_module(path) == again.module
        assert (step_of(path), unread(path)) == (7, "")


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_stored_as_such(pretrained, tmp_path, form):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), pretrained.params)
    save_t5x(tmp_path, dataclasses.replace(pretrained, params=params), form=form)
    assert_same(load_pretrained(tmp_path, dtype="bfloat16").params, params)


def test_a_folder_is_laid_out_as_t5x_does(pretrained, home):
    checkpoint = home / "checkpoint_7"
    num_arrays = 2 * NUM_PER_ENCODER_LAYER + 3 * NUM_PER_DECODER_LAYER + 6  # 2 embeddings' tables, head and norms
    assert len(list(checkpoint.iterdir())) == num_arrays + 1
    assert sorted(path.name for path in (checkpoint / QUERY).iterdir()) == [".zarray", "0.0"]
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []
    contents = read_index(checkpoint / "checkpoint")
    assert contents["version"] == 3
    code, packed = contents["optimizer"]["state"]["step"]
    assert (code, msgpack.unpackb(packed)) == (1, [[], "int32", b"\7\0\0\0"])
    assert contents["optimizer"]["target"]["encoder"]["layers_0"]["attention"]["query"]["kernel"] == {
        "driver": "zarr",
        "dtype": "float32",
        "kvstore": {"driver": "file", "path": f"{QUERY}/"},
        "metadata": {"chunks": [16, 24], "compressor": {"id": "gzip", "level": 1}, "shape": [16, 24]},
    }


def test_large_arrays_are_cut_into_chunks(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmtl.weights.t5x_io.CHUNK_BYTES", 600)
    save_t5x(tmp_path, pretrained)
    metadata = json.loads((tmp_path / "checkpoint_0" / QUERY / ".zarray").read_text())
    assert metadata["chunks"] == [8, 12]  # of [16, 24] in float32: 1536 bytes, then 768, then 384
    assert_same(load_pretrained(tmp_path).params, pretrained.params)


def arrays_by_hand():
    """A T5 of v1.0 with scanned layers, 1 encoder and 2 decoder layers, D 4, 2 heads of 3, F 5, V 8."""
    rng = np.random.default_rng(0)
    attention = {f"{part}/kernel": (4, 6) for part in ("query", "key", "value")} | {"out/kernel": (6, 4)}
    mlp = {"mlp/wi/kernel": (4, 5), "mlp/wo/kernel": (5, 4)}
    shapes = {"token_embedder/embedding": (8, 4)}
    layers = {"encoder": (1, {"attention": "attention"})}
    layers["decoder"] = (2, {"self_attention": "self_attention", "encoder_decoder_attention": "cross_attention"})
    for side, (depth, attentions) in layers.items():
        parts = {f"{name}/{part}": shape for name in attentions for part, shape in attention.items()} | mlp
        parts |= {f"pre_{norm}_layer_norm/scale": (4,) for norm in (*attentions.values(), "mlp")}
        shapes |= {f"{side}/layers/{part}": (shape[0], depth, *shape[1:]) for part, shape in parts.items()}
        shapes |= {f"{side}/{side}_norm/scale": (4,), f"{side}/layers/relpos_bias/rel_embedding": (2, depth, 32)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for side in layers:
        table = arrays[f"{side}/layers/relpos_bias/rel_embedding"]
        table[:] = table[:, :1]
    return arrays


CONFIG_BY_HAND = dict(vocab_size=8, d_model=4, num_heads=2, d_kv=3, d_ff=5, num_layers=1, num_decoder_layers=2)


def write_by_hand(home, arrays, state=None):
    """Writes a checkpoint with TensorStore and msgpack, in the older form of its specs."""
    specs = {}
    for name, array in arrays.items():
        folder = f"target.{name.replace('/', '.')}"
        kvstore = {"driver": "file", "path": str(home / "checkpoint_3" / folder) + "/"}
        store = ts.open({"driver": "zarr", "kvstore": kvstore}, create=True, dtype="float32", shape=array.shape)
        store.result().write(array).result()
        metadata = {"shape": list(array.shape)}
        specs[name] = {"driver": "zarr", "kvstore": {"driver": "gfile"}, "path": folder, "metadata": metadata}
    target = traverse_util.unflatten_dict(specs, sep="/")
    contents = {"version": 3, "optimizer": {"target": target, "state": state or {}}}
    (home / "checkpoint_3" / "checkpoint").write_bytes(serialization.msgpack_serialize(contents))
    (home / "config.json").write_text(json.dumps(CONFIG_BY_HAND))


def test_scanned_layers_are_found_on_axis_1(tmp_path):
    arrays = arrays_by_hand()
    write_by_hand(tmp_path, arrays)
    loaded = load_pretrained(tmp_path)
    config = loaded.config
    assert (config.tied_head, config.head_scale, config.mlp_activations) == (True, 0.5, ("relu",))
    params = flat(loaded.params)
    of_decoder = lambda name: np.moveaxis(arrays[f"decoder/layers/{name}"], 1, 0)
    np.testing.assert_array_equal(params["decoder/mlp/wo/kernel"], of_decoder("mlp/wo/kernel"))
    cross = of_decoder("encoder_decoder_attention/out/kernel")
    np.testing.assert_array_equal(params["decoder/cross_attention/out/kernel"], cross)
    norm = of_decoder("pre_cross_attention_layer_norm/scale")
    np.testing.assert_array_equal(params["decoder/cross_attention_norm/scale"], norm)
    bias = arrays["decoder/layers/relpos_bias/rel_embedding"][:, 0].T
    np.testing.assert_array_equal(params["decoder_bias/embedding"], bias)


def test_what_is_saved_scanned_is_what_a_hand_lays_out(tmp_path):
    arrays = arrays_by_hand()
    write_by_hand(tmp_path / "by_hand", arrays)
    save_t5x(tmp_path / "saved", load_pretrained(tmp_path / "by_hand"), form="t5x_scanned")
    for name, array in arrays.items():
        folder = tmp_path / "saved" / "checkpoint_0" / f"target.{name.replace('/', '.')}"
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/"}}
        np.testing.assert_array_equal(ts.open(spec).result().read().result(), array)


def test_position_tables_that_differ_between_layers_are_refused(tmp_path):
    arrays = arrays_by_hand()
    arrays["decoder/layers/relpos_bias/rel_embedding"][0, 1, 5] += 1
    write_by_hand(tmp_path, arrays)
    refused(tmp_path, "each layer has a relpos_bias/rel_embedding of its own")


def test_the_optimizer_is_left_aside_and_said(tmp_path):
    slot = {"v": np.zeros(4, np.float32), "m": np.zeros(1, np.float32)}
    state = {"step": np.asarray(3, np.int32), "param_states": {"encoder": {"encoder_norm": {"scale": slot}}}}
    write_by_hand(tmp_path, arrays_by_hand(), state)
    load_pretrained(tmp_path)
    assert unread(tmp_path) == "2 arrays of the optimizer's state were not read"


def test_a_checkpoint_without_config_says_which_one_fits(pretrained, home):
    (home / "config.json").unlink()
    with pytest.raises(InputError, match="put one there that says") as error:
        load_pretrained(home / "checkpoint_7")
    message = str(error.value)
    (home / "config.json").write_text(message[message.index("{") :])
    again = load_pretrained(home)
    assert again.config == pretrained.config
    assert_same(again.params, pretrained.params)


def test_the_newest_checkpoint_is_taken_and_saving_replaces_one(pretrained, home):
    newer = dataclasses.replace(pretrained, params=jax.tree.map(lambda leaf: leaf + 1, pretrained.params))
    save_t5x(home, pretrained, step=12)
    save_t5x(home, newer, step=12, form="t5x_scanned")
    assert step_of(home) == 12
    assert_same(load_pretrained(home).params, newer.params)
    assert_same(load_pretrained(home / "checkpoint_7").params, pretrained.params)
    assert sorted(path.name for path in home.glob(".*")) == []


def test_two_kinds_of_weights_in_one_folder_are_refused(pretrained, home, tmp_path):
    save_pretrained(home, pretrained)
    refused(home, "holds safetensors and checkpoint_7; give .*checkpoint_7 or move")
    assert step_of(home / "checkpoint_7") == 7
    with pytest.raises(InputError, match="holds safetensors, which would hide"):
        save_t5x(home, pretrained)


def remove_query(checkpoint):
    shutil.rmtree(checkpoint / QUERY)


def cut_chunk(checkpoint):
    chunk = checkpoint / QUERY / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:40])


def spec_of(contents):
    return contents["optimizer"]["target"]["encoder"]["layers_0"]["attention"]["query"]["kernel"]


def store_as(dtype, shape):
    def change(checkpoint):
        kvstore = {"driver": "file", "path": f"{checkpoint / QUERY}/"}
        shutil.rmtree(checkpoint / QUERY)
        store = ts.open({"driver": "zarr", "kvstore": kvstore}, create=True, dtype=dtype, shape=shape).result()
        store.write(np.ones(shape, dtype)).result()
        change_index(checkpoint, lambda contents: spec_of(contents)["metadata"].update(shape=list(shape)))

    return change


def index(change):
    return lambda checkpoint: change_index(checkpoint, change)


@pytest.mark.parametrize(
    "damage, message",
    [
        (remove_query, f"{QUERY}.*cannot be read.*NOT_FOUND"),
        (cut_chunk, f"{QUERY}.*cannot be read.*Error reading local file"),
        (lambda c: (c / QUERY / "0.0").unlink(), f"{QUERY}.*cannot be read.*missing"),
        (lambda c: (c / QUERY / ".zarray").write_text("{"), f"{QUERY}.*cannot be read"),
        (lambda c: (c / "checkpoint").write_bytes(b"\xc1 no msgpack"), "cannot be read as msgpack"),
        (lambda c: (c / "checkpoint").write_bytes(pickle.dumps({"target": 1})), "cannot be read as msgpack"),
        (lambda c: (c / "checkpoint").write_bytes(b""), "cannot be read as msgpack"),
        (lambda c: (c / "checkpoint").unlink(), "no such file; expected the msgpack index"),
        (store_as("float32", (16, 23)), r"has shape \(16, 23\), config.json asks for \(16, 24\)"),
        (store_as("int32", (16, 24)), "holds int32, expected floating-point"),
        (index(lambda c: spec_of(c)["metadata"].update(shape=[24, 16])), r"has shape \(16, 24\), its index says"),
        (index(lambda c: spec_of(c)["metadata"].update(shape="wide")), "has shape wide, expected whole numbers"),
        (index(lambda c: spec_of(c)["kvstore"].update(path="../elsewhere/")), "in '../elsewhere/', expected a folder"),
        (index(lambda c: spec_of(c)["kvstore"].update(path="/etc")), "in '/etc', expected a folder beside the index"),
        (index(lambda c: spec_of(c)["kvstore"].update(path="a/../../b")), "expected a folder beside the index"),
        (index(lambda c: c.update(version=1)), "is of version 1, expected 2 or 3"),
        (index(lambda c: c["optimizer"].update(target=3)), "has no table 'target'"),
        (index(lambda c: c["optimizer"]["target"].update(hyper=np.ones(2))), "1 unknown: hyper"),
        (index(lambda c: c["optimizer"]["target"].update(hyper="x")), "hyper is str, expected an array"),
        (index(lambda c: c["optimizer"]["target"].pop("decoder")), "missing"),
        (index(lambda c: c["optimizer"]["target"].pop("token_embedder")), "token_embedder/embedding is missing"),
        (lambda c: (c / "checkpoint").write_bytes(msgpack.packb([1, 2])), "holds list, expected a table"),
    ],
)
def test_damage_is_told_in_one_line(home, damage, message):
    damage(home / "checkpoint_7")
    refused(home, message)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), num_kept=st.floats(0.5, 1.5))
def test_no_byte_of_an_index_gives_anything_but_one_line(home, place, byte, num_kept):
    checkpoint = home / "checkpoint_7"
    whole = (checkpoint / "checkpoint").read_bytes()
    content = bytearray(whole)
    content[int(place * len(content))] = byte
    (checkpoint / "checkpoint").write_bytes(content[: int(num_kept * len(content))])
    try:
        arrays = T5XArrays(find(checkpoint))
        for name in sorted(arrays.names())[:5]:
            arrays.read(name)
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        (checkpoint / "checkpoint").write_bytes(whole)


def test_a_stack_without_an_axis_for_layers_is_refused(tmp_path):
    arrays = arrays_by_hand()
    arrays["encoder/layers/pre_mlp_layer_norm/scale"] = np.ones(4, np.float32)
    write_by_hand(tmp_path, arrays)
    refused(tmp_path, r"has shape \(4,\), expected the layers on axis 1")


def test_a_config_of_another_family_is_refused(home):
    raw = json.loads((home / "config.json").read_text())
    (home / "config.json").write_text(json.dumps(raw | {"model_type": "gpt2"}))
    refused(home, "model_type is 'gpt2'; T5X checkpoints hold 't5'")


def test_a_write_that_fails_leaves_the_old_checkpoint(pretrained, home, monkeypatch):
    def fail(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: disk full\nmore")

    monkeypatch.setattr(ts, "open", fail)
    with pytest.raises(InputError, match="checkpoint_7: cannot be written .*disk full"):
        save_t5x(home, pretrained, step=7)
    monkeypatch.undo()
    assert_same(load_pretrained(home).params, pretrained.params)
    assert sorted(path.name for path in home.glob(".*")) == []


@pytest.mark.real_data
@pytest.mark.parametrize("name", WRITTEN_BY_T5X)
def test_logits_are_those_of_t5x(name):
    golden = np.load(REAL / name / "golden.npz")
    model = load_pretrained(REAL / name)
    logits = model.module.apply({"params": model.params}, golden["inputs"], golden["decoder_inputs"])
    # T5X hides padded targets from each other as well; what follows the last target is nobody's score.
    real = golden["targets"] != 0
    np.testing.assert_allclose(np.asarray(logits)[real], golden["logits"][real], rtol=0, atol=1e-5)
    assert "arrays of the optimizer's state were not read" in unread(REAL / name)


def parameters(checkpoint):
    """Returns all files of the parameters by path: the arrays' metadata as it is, chunks unpacked by hand."""
    import gzip

    files = (path for path in checkpoint.glob("target.*/*"))
    read = lambda path: path.read_text() if path.name == ".zarray" else gzip.decompress(path.read_bytes())
    return {str(path.relative_to(checkpoint)): read(path) for path in files}


@pytest.mark.real_data
@pytest.mark.parametrize("name", WRITTEN_BY_T5X)
def test_what_is_written_is_what_t5x_wrote(name, tmp_path):
    save_t5x(tmp_path, load_pretrained(REAL / name))
    ours, theirs = tmp_path / "checkpoint_0", REAL / name / "checkpoint_0"
    assert parameters(ours) == parameters(theirs)
    assert not list(ours.glob("state.*"))
    left, right = (read_index(path / "checkpoint") for path in (ours, theirs))
    assert left["version"] == right["version"]
    assert left["optimizer"]["target"] == right["optimizer"]["target"]
    assert left["optimizer"]["state"]["step"] == right["optimizer"]["state"]["step"]


@pytest.mark.real_data
def test_the_single_file_is_read_and_written_as_t5x_does(tmp_path):
    source = REAL / "t5x_test_t5_tiny.checkpoint_0"
    shutil.copy(source, tmp_path / "checkpoint_0")
    with pytest.raises(InputError, match="put one there that says") as error:
        load_pretrained(tmp_path)
    message = str(error.value)
    (tmp_path / "config.json").write_text(message[message.index("{") :])
    loaded = load_pretrained(tmp_path)
    assert sum(leaf.size for leaf in jax.tree.leaves(loaded.params)) == 518_240
    assert isinstance(loaded.config, T5Config) and isinstance(loaded, Pretrained)
    save_t5x(tmp_path / "again", loaded, form="t5x_file")
    target = lambda path: read_index(path)["optimizer"]["target"]
    assert target(tmp_path / "again" / "checkpoint_0") == target(source)
