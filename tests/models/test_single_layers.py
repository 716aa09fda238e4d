"""Parameters that are taken apart give what the whole ones give, and a program copies none of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import GPT2Config
from jaxmtl.models.initial import initial_arguments
from jaxmtl.models.single_layers import put_together, taken_apart
from jaxmtl.models.stack import unrolled_on_cpus
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config

SIZES = dict(vocab_size=40, embed_dim=12, num_heads=3, mlp_dim=20)
MODULES = {
    "t5": T5(T5Config(**SIZES, head_dim=5, num_encoder_layers=2, num_decoder_layers=3, dropout_rate=0.0)),
    "gpt2": GPT(GPT2Config(**SIZES, num_layers=3, max_positions=8, pad_id=0, eos_id=1)),
}


@pytest.mark.parametrize("family", MODULES)
def test_what_was_taken_apart_and_put_together_is_the_same_and_not_copied(family):
    module = unrolled_on_cpus(MODULES[family])
    arguments = {name: jnp.full((2, 4), 3) for name in initial_arguments(module)}
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), **arguments)["params"])
    apart = taken_apart(module, params)
    assert any(isinstance(leaf, tuple) for leaf in jax.tree.leaves(apart, is_leaf=lambda leaf: isinstance(leaf, tuple)))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(put_together)(apart), params)
    apply = lambda params: module.apply({"params": params}, **arguments)
    run = jax.jit(lambda apart: apply(put_together(apart))).lower(apart).compile()
    np.testing.assert_allclose(run(apart), jax.jit(apply)(params), atol=1e-6)
    sizes = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(params) if jnp.ndim(leaf) == 3}
    assert sizes == {2, 3} or sizes == {3}
    # Nothing as large as a stack of kernels is made: embed x mlp of all layers.
    assert not any(f"f32[{count},12,20]" in run.as_text() for count in sizes)
