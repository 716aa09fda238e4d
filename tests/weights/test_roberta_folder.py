"""RoBERTas of our own making: heads of several tasks, and new heads on an old encoder."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxmtl.commands.heads import encoder_of, encoder_weights
from jaxmtl.models.head_config import Head
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.roberta import roberta
from jaxmtl.models.roberta_config import RobertaConfig
from jaxmtl.partitioning import make_mesh
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained, load_module, load_pretrained, save_pretrained

HEADS = (
    Head(name="topics", kind="class", labels=("a", "b", "c")),
    Head(name="moods", kind="class", labels=("a", "b")),
    Head(name="names", kind="tags", labels=("x", "y")),
    Head(name="questions", kind="span"),
)
TINY = dict(vocab_size=30, embed_dim=8, num_heads=2, mlp_dim=12, num_layers=2, num_positions=16)


def make(**fields):
    config = RobertaConfig(**TINY, **fields)
    rng = np.random.default_rng(0)
    random = lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), jnp.float32)
    return Pretrained(config, roberta(config), jax.tree.map(random, nn.unbox(abstract_params(roberta(config)))), None)


@pytest.mark.parametrize(
    "fields",
    [dict(), dict(heads=HEADS), dict(heads=HEADS[:1], class_head="linear"), dict(heads=HEADS[2:3], num_types=2)],
    ids=["encoder", "many", "linear", "one"],
)
def test_what_is_saved_is_loaded(fields, tmp_path):
    made = make(**fields)
    save_pretrained(tmp_path, made)
    again = load_pretrained(tmp_path)
    assert again.config == made.config
    jax.tree.map(np.testing.assert_array_equal, again.params, made.params)
    assert load_module(tmp_path) == made.module


def test_heads_of_many_tasks_have_a_name_each(tmp_path):
    save_pretrained(tmp_path, make(heads=HEADS))
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    shapes = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("heads.")}
    assert shapes["heads.class.1.dense.weight"] == (8, 8)
    assert shapes["heads.class.1.out_proj.weight"] == (3, 8)  # padded to the most labels
    assert shapes["heads.tags.0.bias"] == (2,) and shapes["heads.span.0.weight"] == (2, 8)


def test_new_heads_take_the_place_of_old_ones(tmp_path):
    made = make(heads=HEADS)
    save_pretrained(tmp_path, made)
    new = (Head(name="slots", kind="tags", labels=("p", "q", "r")),)
    module = roberta(encoder_of(path=str(tmp_path), heads=new, dropout_rate=0.3))
    assert module.config == dataclasses.replace(made.config, heads=new, dropout_rate=0.3)
    params = encoder_weights(path=str(tmp_path), module=module, seed=1)(make_mesh(data=2, fsdp=2))
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(params) == shapes(nn.unbox(abstract_params(module)))
    for name in ("token_embedding", "layers"):
        jax.tree.map(np.testing.assert_array_equal, params[name], made.params[name])
    assert np.asarray(params["heads"]["tags"]["kernel"]).std() > 0.005


def test_missing_and_unknown_tensors_are_named(tmp_path):
    save_pretrained(tmp_path, make(heads=HEADS[2:3]))
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["qa_outputs.bias"] = tensors.pop("classifier.bias")
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(InputError, match="1 missing: classifier.bias; 1 unknown: qa_outputs.bias"):
        load_pretrained(tmp_path)
