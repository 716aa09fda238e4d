"""Small models with hypernetworks, and instructions, for the tests of both."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.adapters.hyper_config import BottleneckOutput, GeneratorConfig, HyperConfig, PrefixOutput
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.lora import LoRA
from jaxmtl.models.attention import einsum_attention
from jaxmtl.models.initial import initial_arguments
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.models.trees import flat, nested

SIZES = dict(vocab_size=40, embed_dim=12, num_heads=3, mlp_dim=20)
QUICK = dict(dropout_rate=0.0, remat="none", attention=einsum_attention)
LAYERS = dict(num_encoder_layers=2, num_decoder_layers=2)
T5_CONFIG = T5Config(**SIZES, **LAYERS, **QUICK, head_dim=5, mlp_activations=("relu",))
BASE = T5(T5_CONFIG)
LORA = LoRA(rank=3, alpha=6.0)
EVERYTHING = HyperConfig(
    outputs=(LORA, PrefixOutput(length=2), BottleneckOutput(width=4)), generator=GeneratorConfig(hidden=6)
)
"""All outputs, fusion and concatenation at once."""
INPUTS = np.array([[5, 6, 7, 8, 1], [9, 10, 1, 0, 0], [11, 1, 0, 0, 0], [12, 13, 14, 1, 0]], np.int32)
DECODER_INPUTS = np.array([[0, 4, 5], [0, 6, 7], [0, 8, 9], [0, 4, 9]], np.int32)
INSTRUCTIONS = np.array([[21, 22, 23, 1, 0, 0], [24, 25, 1, 0, 0, 0], [26, 27, 28, 29, 30, 1]], np.int32)
INDEX = np.array([2, 0, 2, 1], np.int32)


def initial(module, seed=0):
    """Parameters of a hypernetwork as they start, on a random model: what is not returned is not compiled."""

    def own(key):
        params = nn.unbox(module.init(key, **initial_arguments(module))["params"])
        return {name: tree for name, tree in params.items() if name != "base"}

    return jax.jit(own)(jax.random.key(seed)) | {"base": random_like(module.base)}


def random_like(module, seed=1, spread=0.3):
    """Random parameters of a module's shapes: nothing is 0, and nothing is compiled to draw them."""
    init = lambda: nn.unbox(module.init(jax.random.key(0), **initial_arguments(module))["params"])
    rng = np.random.default_rng(seed)
    leaves = {}
    for path, leaf in flat(jax.eval_shape(init)).items():
        is_scale = path.endswith("scale")
        leaves[path] = (is_scale + spread * rng.normal(size=leaf.shape)).astype(np.float32)
    return nested(leaves)


def shaken(params, seed=1, spread=0.1):
    """Parameters away from their start, so that nothing is 0."""
    rng = np.random.default_rng(seed)
    move = lambda leaf: np.asarray(leaf) + rng.normal(scale=spread, size=leaf.shape).astype(np.float32)
    return jax.tree.map(move, params)


@functools.lru_cache
def toy(config=EVERYTHING, base=BASE, reader=None):
    """A model with a hypernetwork, and shaken parameters."""
    module = HyperModel(config, base, reader)
    return module, random_like(module)


@functools.partial(jax.jit, static_argnums=0)
def logits(module, params, inputs, decoder_inputs, instructions, index=None):
    return module.apply({"params": params}, inputs, decoder_inputs, instructions, index)


@functools.partial(jax.jit, static_argnums=0)
def adapt(module, params, instructions):
    return module.apply({"params": params}, instructions, method="adapt")


@functools.partial(jax.jit, static_argnums=0)
def plain_logits(base, params, inputs, decoder_inputs):
    return base.apply({"params": params}, inputs, decoder_inputs)


def summed(module, params, weights=None):
    """A scalar that depends on all that a batch of mixed instructions gives."""
    given = module.apply({"params": params}, INPUTS, DECODER_INPUTS, INSTRUCTIONS, INDEX)
    shape = given.shape
    return jnp.sum(given * np.random.default_rng(0).normal(size=shape).astype(np.float32))
