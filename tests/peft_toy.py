"""Toy models with adapters, and PEFT's folders read and written without any of ours."""

import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jaxmtl.adapters.lora import Adapter, merge
from jaxmtl.adapters.targets import matching
from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.models.gpt_config import GPT2Config, OPTConfig
from jaxmtl.models.head_config import Head
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.roberta_config import RobertaConfig
from jaxmtl.models.t5_config import T5Config
from jaxmtl.models.trees import flat, nested
from jaxmtl.weights import Pretrained
from jaxmtl.weights.peft_config import CONFIG
from jaxmtl.weights.peft_io import MODEL
from jaxmtl.weights.pretrained import family_of

SIZES = dict(vocab_size=11, embed_dim=6, num_heads=2, mlp_dim=10)
SIDES = dict(num_encoder_layers=2, num_decoder_layers=3)
CONFIGS = {
    "t5": T5Config(**SIZES, **SIDES, head_dim=4),
    "bart": BARTConfig(**SIZES, **SIDES, max_positions=8),
    "gpt2": GPT2Config(**SIZES, num_layers=2, max_positions=8, pad_id=10, eos_id=10),
    "opt": OPTConfig(**SIZES, num_layers=2, max_positions=8, token_dim=4, norm="post"),
    "encoder": RobertaConfig(**SIZES, num_layers=2, num_positions=8),
    "classifier": RobertaConfig(
        **SIZES, num_layers=2, num_positions=8, heads=(Head(name="task", kind="class", labels=("x", "y")),)
    ),
}
CLASSIC = set(
    "peft_type task_type base_model_name_or_path r lora_alpha lora_dropout target_modules bias fan_in_fan_out"
    " inference_mode init_lora_weights modules_to_save layers_to_transform layers_pattern rank_pattern alpha_pattern"
    " use_rslora use_dora revision auto_mapping".split()
)


def model_of(name, dtype=np.float32):
    config, rng = CONFIGS[name], np.random.default_rng(0)
    module = family_of(config).MODULE(config)
    draw = lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape).astype(dtype))
    return Pretrained(config, module, jax.tree.map(draw, nn.unbox(abstract_params(module))), None)


def adapter_for(model, targets, scaling="standard"):
    """An adapter whose `b` is not zero."""
    rng, leaves = np.random.default_rng(1), {}
    for path, kernel in matching(model.module, targets).items():
        for name, sizes in (("a", (kernel.inputs, 3)), ("b", (3, kernel.outputs))):
            leaves[f"{path}/{name}"] = rng.normal(size=kernel.shape(*sizes)).astype(np.float32)
    return Adapter(tree=nested(leaves), rank=3, alpha=5.0, scaling=scaling)


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours.tree, theirs.tree)
    assert (ours.rank, ours.alpha, ours.scaling) == (theirs.rank, theirs.alpha, theirs.scaling)


def assert_same_kernels(model, ours, theirs):
    """Two adapters do the same, up to the order of sums."""
    left, right = flat(merge(model.params, ours)), flat(merge(model.params, theirs))
    for path in left:
        np.testing.assert_allclose(left[path], right[path], atol=1e-5, err_msg=path)


def read(folder):
    tensors = safetensors.numpy.load_file(folder / MODEL)
    return json.loads((folder / CONFIG).read_text()), tensors


def write(folder, config, tensors, notes=None):
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items() if tensor is not ...}
    safetensors.numpy.save_file(tensors, folder / MODEL, notes)
    return folder


def updates(config, tensors):
    """What a folder adds to each module's matrix [out, in], by PEFT's rules and nothing of ours."""
    products = {}
    for name in (name for name in tensors if name.endswith(".lora_A.weight")):
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        of = lambda field, default, module=module: next(
            (value for key, value in config[field].items() if re.match(rf"(.*\.)?({key})$", module)), config[default]
        )
        rank, alpha = of("rank_pattern", "r"), of("alpha_pattern", "lora_alpha")
        assert tensors[name].shape[0] == rank
        scale = alpha / (rank**0.5 if config["use_rslora"] else rank)
        products[module] = scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
    return products
