import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models.flops import t5_forward
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config, named_config


def test_the_small_shape_needs_what_its_layers_add_up_to():
    # By hand, in 10^9: encoder 1024 x 8 x (4 x 512 x 384 + 3 x 512 x 1024) x 2 = 38.655 and attention 12.885, decoder
    # 128 x 8 x (6 x 512 x 384 + 3 x 512 x 1024) x 2 = 5.637, keys and values of the encoder's states 6.442,
    # attention 0.201 and 1.611, output 4.211.
    expected = 38.655 + 12.885 + 5.637 + 6.442 + 0.201 + 1.611 + 4.211
    assert t5_forward(named_config("t5-v1.1-small"), 1024, 128) / 1e9 == pytest.approx(expected, rel=1e-4)


def test_lengths_broadcast():
    config = named_config("t5-v1.1-small")
    table = t5_forward(config, np.array([[8], [16]]), np.array([4, 8, 12]))
    assert table.shape == (2, 3)
    assert table[1, 2] == t5_forward(config, 16, 12)


@pytest.mark.parametrize("activations", [("relu",), ("gelu", "linear")])
def test_the_compiler_counts_nearly_the_same(activations):
    sizes = dict(vocab_size=512, embed_dim=64, num_heads=4, head_dim=16, mlp_dim=128)
    layers = dict(num_encoder_layers=1, num_decoder_layers=1, mlp_activations=activations)
    module = T5(T5Config(**sizes, **layers))
    tokens = [jnp.ones((2, length), jnp.int32) for length in (96, 64)]
    params = jax.jit(module.init)(jax.random.key(0), *tokens)
    counted = jax.jit(module.apply).lower(params, *tokens).compile().cost_analysis()["flops"]
    # The compiler also counts softmax, norms and activations: some operations per element of each layer's results.
    assert 2 * float(t5_forward(module.config, 96, 64)) == pytest.approx(counted, rel=0.2)
