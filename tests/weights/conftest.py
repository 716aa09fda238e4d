import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.tokenizers import train_sentencepiece
from jaxmtl.weights import Pretrained, save_pretrained


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    texts = [
        "the cat sat on the mat and looked at the dog",
        "a dog ran over the green hill to find a ball",
        "say yes or no: is water wet? yes, it is wet",
        "count the birds: one two three four five six",
        "name the colour of the sky in one word: blue",
    ]
    return train_sentencepiece(texts * 4, tmp_path_factory.mktemp("vocabulary") / "spiece.model", 64, 4)


@pytest.fixture(scope="session")
def pretrained(tokenizer):
    """A tiny T5 v1.1 with random weights; all its sizes differ, and all divide by 8 where a mesh may split them."""
    config = T5Config(
        vocab_size=72, embed_dim=16, num_heads=8, head_dim=3, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=3
    )
    module = T5(config)
    tokens = jnp.ones((1, 2), jnp.int32)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), tokens, tokens)["params"])
    return Pretrained(config, module, params, tokenizer)


@pytest.fixture
def folder(pretrained, tmp_path):
    """A Hugging Face folder of its own for each test, to be spoilt."""
    save_pretrained(tmp_path / "model", pretrained)
    return tmp_path / "model"
