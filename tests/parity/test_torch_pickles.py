"""Models stored as torch's `.bin` files against the same models as safetensors."""

import json
import os

import jax
import numpy as np
import pytest

from jaxmtl.types import InputError
from jaxmtl.weights import load_pretrained

pytestmark = pytest.mark.torch


def t5():
    import transformers

    sizes = dict(vocab_size=31, d_model=16, num_heads=2, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2)
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


def bart():
    import transformers

    sides = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    sizes = dict(vocab_size=31, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32)
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **sides))


def gpt2():
    import transformers

    config = transformers.GPT2Config(
        vocab_size=31, n_embd=16, n_head=2, n_layer=2, n_positions=32, bos_token_id=30, eos_token_id=30
    )
    return transformers.GPT2LMHeadModel(config)


MODELS = {"T5 v1.0": t5, "BART": bart, "GPT-2": gpt2}


@pytest.fixture
def folders(request, tmp_path):
    """A model as safetensors, its state_dict, and a folder with its config alone."""
    import torch

    torch.manual_seed(0)
    model = MODELS[getattr(request, "param", "T5 v1.0")]()
    model.save_pretrained(tmp_path / "safe")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_bytes((tmp_path / "safe" / "config.json").read_bytes())
    return tmp_path / "safe", model.state_dict(), tmp_path / "bin"


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


@pytest.mark.parametrize("folders", MODELS, indirect=True)
def test_one_file_gives_the_same_parameters(folders):
    import torch

    safe, tensors, folder = folders
    torch.save(tensors, folder / "pytorch_model.bin")
    assert_same(load_pretrained(folder), load_pretrained(safe))


def test_shards_and_bfloat16_give_the_same_parameters(folders):
    import torch

    safe, tensors, folder = folders
    half = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    names = sorted(half)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in shards.items():
        torch.save({name: half[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    # Both sides round float32 to the nearest bfloat16, ties to even.
    assert_same(load_pretrained(folder, dtype="bfloat16"), load_pretrained(safe, dtype="bfloat16"))


class Harmful:
    """What a pickle may do on being opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused_and_runs_none(folders, tmp_path):
    import torch

    _, tensors, folder = folders
    torch.save({**tensors, "more": Harmful(tmp_path / "harm")}, folder / "pytorch_model.bin")
    with pytest.raises(
        InputError, match="pytorch_model.bin: torch's .* refuses it .it asks for posix.mkdir.; no code"
    ) as caught:
        load_pretrained(folder)
    assert "weights_only=False" not in str(caught.value) and "`False`" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        ({"epoch": 3}, "'epoch' is a int; expected tensors by their names"),
        ([1, 2], "found list; expected tensors by their names"),
    ],
    ids=str,
)
def test_what_is_no_state_dict_is_refused(folders, content, message):
    import torch

    torch.save(content, folders[2] / "pytorch_model.bin")
    with pytest.raises(InputError, match=message):
        load_pretrained(folders[2])


def test_a_damaged_file_is_refused_in_one_line(folders):
    import torch

    _, tensors, folder = folders
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:900])
    with pytest.raises(InputError, match="refuses it") as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)
