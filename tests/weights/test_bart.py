import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxmtl.models.bart import BART
from jaxmtl.models.bart_config import SIZES, BARTConfig, named_config
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained, bart_map, load_pretrained, resize_vocabulary, save_pretrained, save_t5x
from jaxmtl.weights.safetensors_io import SINGLE

SHARED = "model.shared.weight"


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def pretrained():
    config = BARTConfig(
        vocab_size=40,
        embed_dim=12,
        num_heads=3,
        mlp_dim=20,
        num_encoder_layers=2,
        num_decoder_layers=3,
        max_positions=14,
        scale_embedding=True,
        dropout_rate=0.2,
    )
    module = BART(config)
    tokens = jnp.ones((1, 2), jnp.int32)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), tokens, tokens)["params"])
    # All leaves differ from each other, biases and norms too.
    params = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape) / leaf.size, params)
    return Pretrained(config, module, params, None)


@pytest.fixture
def folder(pretrained, tmp_path):
    save_pretrained(tmp_path / "model", pretrained)
    return tmp_path / "model"


def change(folder, edit):
    tensors = edit(safetensors.numpy.load_file(str(folder / SINGLE)))
    safetensors.numpy.save_file(tensors, str(folder / SINGLE))


def change_config(folder, **fields):
    raw = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({name: value for name, value in raw.items() if value is not ...}))


def refused(folder, message):
    with pytest.raises(InputError, match=message) as error:
        load_pretrained(folder)
    assert "\n" not in str(error.value)


def test_what_was_saved_comes_back(pretrained, folder):
    again = load_pretrained(folder)
    assert again.config == pretrained.config
    assert_same(again.params, pretrained.params)


def test_names_and_orientation_are_those_of_methods_6_2(pretrained, folder):
    tensors = safetensors.numpy.load_file(str(folder / SINGLE))
    params = pretrained.params
    per_attention, per_norm = 8, 2
    encoder, decoder = per_attention + 2 * per_norm + 4, 2 * per_attention + 3 * per_norm + 4
    assert len(tensors) == 2 + 2 * (1 + per_norm) + 2 * encoder + 3 * decoder
    assert tensors["final_logits_bias"].shape == (1, 40)
    assert tensors["model.encoder.embed_positions.weight"].shape == (16, 12)
    expected = {
        "model.decoder.layers.2.encoder_attn.k_proj.weight": params["decoder"]["cross_attention"]["key"]["kernel"][2].T,
        "model.encoder.layers.1.fc1.bias": params["encoder"]["mlp"]["wi"]["bias"][1],
        "model.decoder.layers.0.final_layer_norm.bias": params["decoder"]["mlp_norm"]["bias"][0],
        "model.encoder.layernorm_embedding.weight": params["encoder_embedding_norm"]["scale"],
        SHARED: params["token_embedding"]["embedding"],
    }
    for name, leaf in expected.items():
        np.testing.assert_array_equal(tensors[name], leaf)


def test_names_without_prefix_and_without_bias_of_the_logits_are_read(pretrained, folder):
    def edit(tensors):
        tensors.pop("final_logits_bias")
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}

    change(folder, edit)
    again = load_pretrained(folder)
    zero = jnp.zeros_like(pretrained.params["final_logits_bias"])
    assert_same(again.params, pretrained.params | {"final_logits_bias": zero})


def test_other_names_of_the_embedding_must_be_the_embedding(pretrained, folder):
    aliases = ("model.encoder.embed_tokens.weight", "lm_head.weight")
    change(folder, lambda tensors: tensors | {name: tensors[SHARED].copy() for name in aliases})
    assert_same(load_pretrained(folder).params, pretrained.params)
    change(folder, lambda tensors: tensors | {aliases[1]: tensors[SHARED] + 1})
    refused(folder, "lm_head.weight differs from model.shared.weight")


def test_what_a_config_says_of_generation_is_left_aside(pretrained, folder):
    wishes = {"num_beams": 4, "no_repeat_ngram_size": 3, "early_stopping": True, "forced_bos_token_id": 0}
    change_config(folder, **wishes)
    assert load_pretrained(folder).config == pretrained.config


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(d_model=...), "field 'd_model' is missing; expected a BART config"),
        (dict(decoder_ffn_dim=21), "decoder_ffn_dim is 21, expected that of encoder_ffn_dim, 20"),
        (dict(encoder_attention_heads=5, decoder_attention_heads=5), "expected a divisor of d_model, 12"),
        (dict(activation_function="relu"), "activation_function is 'relu'; expected 'gelu'"),
        (dict(normalize_before=True), "normalize_before is 'True'; expected False"),
        (dict(tie_word_embeddings=False), "tie_word_embeddings is 'False'; expected True"),
        (dict(dropout=1.5), "dropout is '1.5', expected a number"),
        (dict(scale_embedding="no"), "scale_embedding is 'no', expected true or false"),
        (dict(bos_token_id=40), "bos_token_id is 40, expected less than vocab_size, 40"),
        (dict(max_position_embeddings=1024), r"embed_positions.weight has shape \(16, 12\), config.json asks for"),
    ],
)
def test_configs_that_do_not_fit_are_refused_in_one_line(folder, fields, message):
    change_config(folder, **fields)
    refused(folder, message)


def test_t5x_checkpoints_hold_no_bart(pretrained, tmp_path):
    with pytest.raises(InputError, match="T5X checkpoints hold T5s, this is a BART"):
        save_t5x(tmp_path, pretrained)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SIZES)
def test_configs_survive_the_way_to_config_json(name):
    config = named_config(name)
    assert bart_map.config_from_hf(bart_map.config_to_hf(config), "x", config.dtype) == config


def test_rows_added_to_the_vocabulary_score_zero_and_change_nothing(pretrained):
    larger = resize_vocabulary(pretrained, 48)
    inputs, targets = jnp.array([[0, 5, 7, 2]]), jnp.array([[2, 0, 9]])
    logits = jax.jit(larger.module.apply)({"params": larger.params}, inputs, targets)
    assert not np.any(logits[..., 40:])
    expected = jax.jit(pretrained.module.apply)({"params": pretrained.params}, inputs, targets)
    np.testing.assert_allclose(logits[..., :40], expected, atol=1e-5)
