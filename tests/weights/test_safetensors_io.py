import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from jaxmtl.types import InputError
from jaxmtl.weights.safetensors_io import INDEX, SINGLE, TensorFolder, write_tensors

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(4, np.float32),
    "c": np.zeros((5, 2), np.float32),
}
SIZES = {name: tensor.nbytes for name, tensor in TENSORS.items()}


def write(folder, **options):
    write_tensors(folder, SIZES, TENSORS.items(), **options)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("max_bytes, count", [(10**9, 1), (40, 2), (1, 3)])
def test_tensors_come_back_from_one_file_and_from_shards(tmp_path, max_bytes, count):
    write(tmp_path, max_shard_bytes=max_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) == count
    read = TensorFolder(tmp_path)
    assert read.names() == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert read.shape(name) == tensor.shape
        np.testing.assert_array_equal(read.read(name), tensor)


def test_the_index_is_what_the_format_asks_for(tmp_path):
    write(tmp_path, max_shard_bytes=40)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(SIZES.values())
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(safetensors.numpy.load_file(str(tmp_path / file))[name], TENSORS[name])


def test_files_of_an_earlier_save_are_removed(tmp_path):
    write(tmp_path, max_shard_bytes=1)
    write(tmp_path)
    assert files(tmp_path) == [SINGLE]
    write(tmp_path, max_shard_bytes=40)
    assert files(tmp_path) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX]


def fill_disk(monkeypatch, after=0):
    """Lets some files be written, and half of the next one."""
    save, left = safetensors.numpy.save_file, [after]

    def save_or_fail(tensors, path, metadata):
        if left[0] == 0:
            pathlib.Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        left[0] -= 1
        save(tensors, path, metadata)

    monkeypatch.setattr(safetensors.numpy, "save_file", save_or_fail)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_failing_write_leaves_the_earlier_file_and_no_partial_one(tmp_path, monkeypatch):
    write(tmp_path)
    before = contents(tmp_path)
    fill_disk(monkeypatch)
    with pytest.raises(InputError, match=f"{SINGLE}: cannot be written .No space left"):
        write(tmp_path)
    assert contents(tmp_path) == before


def test_shards_of_two_saves_never_pass_for_one_model(tmp_path, monkeypatch):
    write(tmp_path, max_shard_bytes=1)
    fill_disk(monkeypatch, after=1)
    others = [(name, tensor + 1) for name, tensor in TENSORS.items()]
    with pytest.raises(InputError, match="model-00002-of-00003.safetensors: cannot be written"):
        write_tensors(tmp_path, SIZES, others, max_shard_bytes=1)
    with pytest.raises(InputError, match="holds neither"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("earlier", [10**9, 40], ids=["one file", "other shards"])
def test_an_earlier_save_stays_whole_until_the_new_one_is_complete(tmp_path, monkeypatch, earlier):
    write(tmp_path, max_shard_bytes=earlier)
    fill_disk(monkeypatch, after=2)
    others = [(name, tensor + 1) for name, tensor in TENSORS.items()]
    with pytest.raises(InputError, match="cannot be written"):
        write_tensors(tmp_path, SIZES, others, max_shard_bytes=1)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(TensorFolder(tmp_path).read(name), tensor)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"holds neither {SINGLE} nor {INDEX}$"):
        TensorFolder(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path, max_shard_bytes=1)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"shard model-00002-of-00003.safetensors is not in the folder \(1 missing\)"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": null}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../other/model.safetensors"}}',
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": "/model.safetensors"}}',
    ],
)
def test_an_index_that_names_no_files_of_the_folder_is_refused(tmp_path, content):
    write(tmp_path)
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(InputError, match=INDEX):
        TensorFolder(tmp_path)


def test_an_index_that_names_the_wrong_shard_is_told(tmp_path):
    write(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"nowhere": SINGLE}}))
    with pytest.raises(InputError, match="tensor nowhere cannot be read"):
        TensorFolder(tmp_path).read("nowhere")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:-10],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"x" + content[9:],
        lambda content: content + b"more",
    ],
    ids=["empty", "short", "truncated", "length", "header", "longer"],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    write(tmp_path)
    (tmp_path / SINGLE).write_bytes(damage((tmp_path / SINGLE).read_bytes()))
    with pytest.raises(InputError, match=f"{SINGLE}: not a readable safetensors file .*; fetch it again"):
        TensorFolder(tmp_path)


@given(st.integers(0, 300), st.binary(min_size=1, max_size=12))
def test_bytes_changed_in_the_header_give_one_line_or_tensors(tmp_path_factory, where, change):
    folder = tmp_path_factory.mktemp("fuzzed")
    write(folder)
    content = bytearray((folder / SINGLE).read_bytes())
    where = where % len(content)
    content[where : where + len(change)] = change
    (folder / SINGLE).write_bytes(content)
    try:
        read = TensorFolder(folder)
        for name in read.names():
            assert read.read(name).shape == read.shape(name)
    except InputError as error:
        assert "\n" not in str(error)
