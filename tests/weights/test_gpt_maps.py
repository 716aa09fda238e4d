import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxmtl import partitioning
from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import SIZES, GPT2Config, OPTConfig, named_config
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained, gpt2_map, load_pretrained, opt_map, resize_vocabulary, save_pretrained
from jaxmtl.weights.safetensors_io import SINGLE

TINY = dict(vocab_size=24, embed_dim=16, num_heads=8, num_layers=3, mlp_dim=24, max_positions=10)
CONFIGS = {
    "gpt2": GPT2Config(**TINY, pad_id=23, eos_id=23, tied_head=False, attention_dropout_rate=0.0),
    "opt": OPTConfig(**TINY, token_dim=8, norm="post", dropout_rate=0.2),
}


@pytest.fixture(scope="session", params=CONFIGS)
def model(request):
    config = CONFIGS[request.param]
    shapes = nn.unbox(jax.eval_shape(GPT(config).init, jax.random.key(0), jnp.ones((1, 1), jnp.int32))["params"])
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = tree.unflatten([jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])
    return Pretrained(config, GPT(config), params, None)


@pytest.fixture
def folder(model, tmp_path):
    save_pretrained(tmp_path / "model", model)
    return tmp_path / "model"


of_gpt2 = pytest.mark.parametrize("model", ["gpt2"], indirect=True)


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def change_tensors(folder, change):
    tensors = safetensors.numpy.load_file(str(folder / SINGLE))
    safetensors.numpy.save_file(change(tensors), str(folder / SINGLE))


def change_config(folder, **fields):
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in raw.items() if value is not ...}))


def refused(folder, message):
    with pytest.raises(InputError, match=message) as error:
        load_pretrained(folder)
    assert "\n" not in str(error.value)


def test_what_was_saved_comes_back(model, folder):
    again = load_pretrained(folder)
    assert again.config == model.config
    assert again.module == model.module
    assert_same(again.params, model.params)


def test_weights_loaded_onto_a_mesh_are_split_and_the_same(model, folder):
    loaded = load_pretrained(folder, mesh=partitioning.make_mesh(data=2, fsdp=2, tensor=2))
    assert_same(loaded.params, model.params)
    kernel = loaded.params["layers"]["attention"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_names_may_lack_the_prefix(model, folder):
    prefix = gpt2_map.PREFIX if isinstance(model.config, GPT2Config) else opt_map.PREFIX
    change_tensors(
        folder, lambda tensors: {k.removeprefix(prefix): v for k, v in tensors.items() if "lm_head" not in k}
    )
    if isinstance(model.config, GPT2Config):
        refused(folder, "1 missing: lm_head.weight")  # the file says that it is not the embedding
        change_config(folder, tie_word_embeddings=True)
    again = load_pretrained(folder)
    expected = {name: leaf for name, leaf in model.params.items() if name != "lm_head"}
    assert again.config.tied_head
    assert_same(again.params, expected)


@of_gpt2
def test_query_key_and_value_lie_side_by_side_in_one_tensor(model, folder):
    tensors = safetensors.numpy.load_file(str(folder / SINGLE))
    ours = model.params["layers"]["attention"]
    for layer in range(3):
        kernels = [ours[part]["kernel"][layer] for part in ("query", "key", "value")]
        fused = tensors[f"transformer.h.{layer}.attn.c_attn.weight"]
        assert fused.shape == (16, 48)
        np.testing.assert_array_equal(fused, np.concatenate(kernels, axis=1))
    change_tensors(folder, lambda t: t | {"transformer.h.1.attn.c_attn.bias": np.zeros(47, np.float32)})
    refused(folder, r"transformer.h.1.attn.c_attn.bias has shape \(47,\), config.json asks for \(48,\)")


@of_gpt2
def test_masks_that_older_versions_saved_are_left_aside(model, folder):
    buffers = {f"transformer.h.{layer}.attn.bias": np.ones((1, 1, 10, 10), np.uint8) for layer in range(3)}
    change_tensors(folder, lambda tensors: tensors | buffers)
    assert_same(load_pretrained(folder).params, model.params)
    change_tensors(folder, lambda tensors: tensors | {"transformer.h.0.attn.other": np.ones(1, np.float32)})
    refused(folder, "1 unknown: transformer.h.0.attn.other")


@of_gpt2
def test_a_copy_of_the_embedding_as_output_layer_is_a_tied_head(folder):
    change_tensors(folder, lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].copy()})
    loaded = load_pretrained(folder)
    assert loaded.config.tied_head
    assert "lm_head" not in loaded.params


def test_vocabulary_rows_can_be_added(model):
    wide = resize_vocabulary(model, 32)
    tokens = np.arange(6)[None]
    ours, wider = (one.module.apply({"params": one.params}, tokens) for one in (model, wide))
    np.testing.assert_allclose(wider[..., :24], ours, atol=1e-4 * np.abs(ours).max())


@of_gpt2
@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(n_head=...), "field 'n_head' is missing; expected a GPT-2 config"),
        (dict(n_head=5), "n_head is 5, expected a divisor of n_embd, 16"),
        (dict(n_layer=0), "n_layer is '0', expected an integer from 1"),
        (dict(activation_function="swish"), "activation_function is 'swish'; expected 'gelu_new' or 'gelu' or 'relu'"),
        (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is 'True'; expected False"),
        (dict(add_cross_attention=True), "add_cross_attention is 'True'; expected False"),
        (dict(embd_pdrop=0.5), "embd_pdrop is 0.5, expected that of resid_pdrop, 0.1"),
        (dict(eos_token_id=24), "eos_token_id is 24, expected less than vocab_size, 24"),
        (dict(tie_word_embeddings=1), "tie_word_embeddings is '1', expected true or false"),
        (dict(n_positions=11), r"transformer.wpe.weight has shape \(10, 16\), config.json asks for \(11, 16\)"),
    ],
)
def test_a_config_that_gpt2_cannot_have_is_refused(folder, fields, message):
    change_config(folder, **fields)
    refused(folder, message)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(ffn_dim=None), "x/config.json: field 'ffn_dim' is missing; expected a Hugging Face OPT config"),
        (dict(enable_bias=False), "enable_bias is 'False'; expected True"),
        (dict(_remove_final_layer_norm=True), "_remove_final_layer_norm is 'True'; expected False"),
        (dict(num_attention_heads=3), "num_attention_heads is 3, expected a divisor of hidden_size, 16"),
        (dict(do_layer_norm_before="yes"), "do_layer_norm_before is 'yes', expected true or false"),
    ],
)
def test_a_config_that_opt_cannot_have_is_refused(fields, message):
    raw = opt_map.config_to_hf(CONFIGS["opt"]) | fields
    with pytest.raises(InputError, match=message):
        opt_map.config_from_hf(raw, "x", "float32")


def test_configs_of_all_published_sizes_survive_hugging_face_form():
    for name in SIZES:
        config = named_config(name)
        family = gpt2_map if isinstance(config, GPT2Config) else opt_map
        assert family.config_from_hf(family.config_to_hf(config), "x", "float32") == config


def test_without_an_id_of_padding_the_end_of_a_text_pads():
    raw = gpt2_map.config_to_hf(CONFIGS["gpt2"]) | dict(pad_token_id=None, eos_token_id=7)
    config = gpt2_map.config_from_hf(raw, "x", "float32")
    assert (config.pad_id, config.eos_id) == (7, 7)
