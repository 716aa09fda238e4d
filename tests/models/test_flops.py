import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models import bart_config, gpt_config
from jaxmtl.models.flops import forward
from jaxmtl.models.gpt import GPT
from jaxmtl.models.roberta_config import named_config as roberta_config
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config, named_config
from jaxmtl.types import InputError


def test_the_small_shape_needs_what_its_layers_add_up_to():
    # By hand, in 10^9: encoder 1024 x 8 x (4 x 512 x 384 + 3 x 512 x 1024) x 2 = 38.655 and attention 12.885, decoder
    # 128 x 8 x (6 x 512 x 384 + 3 x 512 x 1024) x 2 = 5.637, keys and values of the encoder's states 6.442,
    # attention 0.201 and 1.611, output 4.211.
    expected = 38.655 + 12.885 + 5.637 + 6.442 + 0.201 + 1.611 + 4.211
    assert forward(named_config("t5-v1.1-small"), 1024, 128) / 1e9 == pytest.approx(expected, rel=1e-4)


def test_an_encoder_needs_what_its_layers_add_up_to():
    # By hand, in 10^9: 12 layers x (128 tokens x 2 x 768 x (4 x 768 + 2 x 3072) + attention 4 x 768 x 128 x 128).
    assert forward(roberta_config("roberta-base"), 128, 64) / 1e9 == pytest.approx(12 * (1.811939 + 0.050332), rel=1e-5)


def test_a_decoder_only_model_reads_the_prompt_and_then_the_target():
    # By hand, in 10^9: 12 layers x 640 tokens x (4 x 768 x 768 + 2 x 768 x 3072) x 2 = 108.717, attention
    # 12 x 4 x 768 x (512 x 512 + 128 x 640) = 12.684, output 128 x 768 x 50257 x 2 = 9.881.
    count = forward(gpt_config.named_config("gpt2-124m"), 512, 128)
    assert count / 1e9 == pytest.approx(108.717 + 12.684 + 9.881, rel=1e-4)


def test_bart_base_needs_what_its_layers_add_up_to():
    # Four kernels of attention and two of the feed-forward layer per encoder token; of the decoder's eight kernels two
    # read the encoder's 512 states.
    encoder, attention = 512 * 6 * 2 * (4 * 768**2 + 2 * 768 * 3072), 6 * 4 * 768 * 512**2
    decoder = 64 * 6 * 2 * (6 * 768**2 + 2 * 768 * 3072) + 512 * 6 * 2 * 2 * 768**2
    expected = encoder + attention + decoder + 6 * 4 * 768 * (64**2 + 64 * 512) + 64 * 2 * 768 * 50265
    assert forward(bart_config.named_config("bart-base"), 512, 64) == expected


def test_a_config_that_nobody_counts_is_refused():
    with pytest.raises(InputError, match="operations of a dict cannot be counted"):
        forward({}, 1, 1)


def test_lengths_broadcast():
    config = named_config("t5-v1.1-small")
    table = forward(config, np.array([[8], [16]]), np.array([4, 8, 12]))
    assert table.shape == (2, 3)
    assert table[1, 2] == forward(config, 16, 12)


def test_the_compiler_counts_nearly_the_same_for_a_decoder_only_model():
    sizes = dict(vocab_size=512, embed_dim=64, num_heads=4, mlp_dim=128, token_dim=32, num_layers=1)
    module = GPT(gpt_config.OPTConfig(**sizes))
    # A short prompt: of one block alone the compiler leaves out what nobody asks for, all but its keys and values.
    tokens = [jnp.ones((2, length), jnp.int32) for length in (1, 64)]
    params = jax.jit(module.init)(jax.random.key(0), *tokens)
    counted = jax.jit(module.apply).lower(params, *tokens).compile().cost_analysis()["flops"]
    assert 2 * float(forward(module.config, 1, 64)) == pytest.approx(counted, rel=0.2)


@pytest.mark.parametrize("activations", [("relu",), ("gelu", "linear")])
def test_the_compiler_counts_nearly_the_same(activations):
    sizes = dict(vocab_size=512, embed_dim=64, num_heads=4, head_dim=16, mlp_dim=128)
    layers = dict(num_encoder_layers=1, num_decoder_layers=1, mlp_activations=activations)
    module = T5(T5Config(**sizes, **layers))
    tokens = [jnp.ones((2, length), jnp.int32) for length in (96, 64)]
    params = jax.jit(module.init)(jax.random.key(0), *tokens)
    counted = jax.jit(module.apply).lower(params, *tokens).compile().cost_analysis()["flops"]
    # The compiler also counts softmax, norms and activations: some operations per element of each layer's results.
    assert 2 * float(forward(module.config, 96, 64)) == pytest.approx(counted, rel=0.2)
