import json
import sys
import types

import pytest

from jaxmtl.types import InputError
from jaxmtl.weights import load_pretrained
from jaxmtl.weights.safetensors_io import SINGLE as SAFE
from jaxmtl.weights.torch_pickles import INDEX, SINGLE


@pytest.fixture
def pickled(folder):
    """A folder whose weights are a pickle only; nothing here opens it."""
    (folder / SAFE).unlink()
    (folder / SINGLE).write_bytes(b"a pickle")
    return folder


def test_without_torch_pickles_are_refused_with_advice(pickled, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"\.bin files only, which are pickles: .*; install torch, or save the model"):
        load_pretrained(pickled)


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu121"])
def test_a_torch_whose_loader_is_not_safe_is_refused(pickled, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=version))
    with pytest.raises(InputError, match="can be made to run code; install torch 2.6 or newer"):
        load_pretrained(pickled)


def test_safetensors_are_taken_where_there_are_both(folder, pretrained, monkeypatch):
    (folder / SINGLE).write_bytes(b"a pickle")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert load_pretrained(folder).hash == pretrained.hash


def test_a_missing_shard_is_named(pickled):
    (pickled / SINGLE).unlink()
    (pickled / INDEX).write_text(json.dumps({"weight_map": {"shared.weight": "pytorch_model-00001-of-00002.bin"}}))
    with pytest.raises(InputError, match="shard pytorch_model-00001-of-00002.bin is not in the folder"):
        load_pretrained(pickled)


def test_a_hub_is_asked_for_pickles_only_where_it_has_no_safetensors(folder, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append([pattern for pattern in allow_patterns if ".bin" in pattern])
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    load_pretrained("someone/model")
    assert asked == [[]]
    (folder / SAFE).unlink()
    with pytest.raises(InputError, match="holds neither model.safetensors nor"):
        load_pretrained("someone/model")
    assert asked == [[], [], ["pytorch_model*.bin", INDEX]]
