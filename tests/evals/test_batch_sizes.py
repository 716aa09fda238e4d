"""What is generated for an input depends on that input alone: alone or among fifteen others, in every family."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.evals.decoding import Decoding
from jaxmtl.evals.generation import generate_ids
from jaxmtl.models.bart import BART
from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import GPT2Config
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.models.trees import flat, nested
from jaxmtl.weights import Pretrained

V, MAX_TOKENS = 48, 6
SIZES = dict(vocab_size=V, embed_dim=12, num_heads=3, mlp_dim=20)
LAYERS = dict(num_encoder_layers=2, num_decoder_layers=2)
MODULES = {
    "t5": T5(T5Config(**SIZES, **LAYERS, head_dim=4)),
    "bart": BART(BARTConfig(**SIZES, **LAYERS, max_positions=16)),
    "gpt2": GPT(GPT2Config(**SIZES, num_layers=2, max_positions=24, pad_id=V - 1, eos_id=V - 1)),
}
METHODS = {
    "greedy": Decoding(),
    "beam": Decoding(method="beam", num_beams=4),
    "rules": Decoding(no_repeat_ngram=2, repetition_penalty=1.2),
}


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def make_pretrained(family):
    """Makes a model with weights so large that texts differ from input to input."""
    module, tokens = MODULES[family], jnp.ones((1, 1), jnp.int32)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), tokens, tokens)["params"])
    rng = np.random.default_rng(0)
    loud = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32)
    is_table = lambda path: path.endswith(("kernel", "embedding"))
    leaves = {path: loud(leaf) if is_table(path) else leaf for path, leaf in flat(params).items()}
    return Pretrained(config=module.config, module=module, params=nested(leaves), tokenizer=None)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "family", ["t5", *(pytest.param(name, marks=pytest.mark.long) for name in MODULES if name != "t5")]
)
def test_texts_of_one_row_are_those_of_sixteen(family, method):
    pretrained, rng = make_pretrained(family), np.random.default_rng(1)
    # Padded otherwise when alone; few different tokens, so that rules find what was there before.
    inputs = [rng.integers(3, 8, length).tolist() for length in rng.integers(3, 9, 16)]
    options = dict(max_tokens=MAX_TOKENS, decoding=METHODS[method])
    together = [row.tolist() for row in generate_ids(pretrained, inputs, batch_size=16, **options)]
    alone = [row.tolist() for row in generate_ids(pretrained, inputs, batch_size=1, **options)]
    assert together == alone
    assert len({tuple(row) for row in together}) >= 8
