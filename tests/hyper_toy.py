"""Small models with hypernetworks, and instructions, for the tests of both."""

import dataclasses
import functools

import flax.linen as nn
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmtl.adapters.hyper_config import BottleneckOutput, GeneratorConfig, HyperConfig, PrefixOutput
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.lora import LoRA, init_adapter
from jaxmtl.models.attention import einsum_attention
from jaxmtl.models.initial import initial_arguments
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.models.trees import flat, nested
from jaxmtl.training import optim
from jaxmtl.training.hyper_groups import groups_of
from jaxmtl.training.teachers import task_adapters

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
SEEDS = st.integers(0, 2**31 - 1)


def texts(count, width, lengths=None):
    """Draws int32 [count, width]: ids, and padding behind their ends."""
    ids = hnp.arrays(np.int32, (count, width), elements=st.integers(2, 39))
    lengths = st.integers(1, width) if lengths is None else lengths
    ends = hnp.arrays(np.int32, (count, 1), elements=lengths)
    return st.tuples(ids, ends).map(lambda drawn: np.where(np.arange(width) < drawn[1], drawn[0], 0))


def numbers(rows, count):
    """Draws int32 [rows], each below `count`."""
    return hnp.arrays(np.int32, rows, elements=st.integers(0, count - 1))


def batches(rows=4, count=3, *, input_lengths=None, instruction_lengths=None):
    """Draws what `logits` takes: of one shape, so that it is compiled once."""
    begun = lambda ids: np.pad(ids, ((0, 0), (1, 0)))
    return st.fixed_dictionaries(
        {
            "inputs": texts(rows, 5, input_lengths),
            "decoder_inputs": hnp.arrays(np.int32, (rows, 2), elements=st.integers(2, 39)).map(begun),
            "instructions": texts(count, 6, instruction_lengths),
            "index": numbers(rows, count),
        }
    )


def initial(module, seed=0):
    """Parameters of a hypernetwork as they start, on a random model: what is not returned is not compiled."""
    return _own(module, jax.random.key(seed)) | {"base": random_like(module.base, seed + 1)}


@functools.partial(jax.jit, static_argnums=0)
def _own(module, key):
    params = nn.unbox(module.init(key, **initial_arguments(module))["params"])
    return {name: tree for name, tree in params.items() if name != "base"}


def random_like(module, seed=1, spread=0.3):
    """Random parameters of a module's shapes: nothing is 0, and nothing is compiled to draw them."""
    rng = np.random.default_rng(seed)
    leaves = {}
    for path, leaf in flat(_shapes(module)).items():
        is_scale = path.endswith("scale")
        leaves[path] = (is_scale + spread * rng.normal(size=leaf.shape)).astype(np.float32)
    return nested(leaves)


@functools.lru_cache
def _shapes(module):
    init = lambda: nn.unbox(module.init(jax.random.key(0), **initial_arguments(module))["params"])
    return jax.eval_shape(init)


def random_adapters(base, lora, group_of_task, spread=0.3):
    """Adapters that are not 0, one for each group of tasks but those without a name."""
    start = init_adapter(base, lora, jax.random.key(0))
    names = sorted({group for group in group_of_task if group})
    trees = {name: shaken(start.tree, seed, spread) for seed, name in enumerate(names)}
    return task_adapters({name: dataclasses.replace(start, tree=tree) for name, tree in trees.items()}, group_of_task)


def descent(learning_rate, stacked, *, hyper):
    """Gradient descent with momentum, of what a hypernetwork's training moves.

    Unlike Adam and Adafactor it divides by no gradient, so that a gradient's rounding error stays as small as it is.
    """
    make = lambda stacked: optax.sgd(learning_rate, momentum=0.9)
    return optim.in_groups(make, learning_rate, stacked, groups_of(hyper))


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
