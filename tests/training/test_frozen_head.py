"""The loss that makes logits of real target tokens only equals the plain one, in value and gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.adapters.lora import LoRA, init_adapter
from jaxmtl.models.bart import BART
from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import GPT2Config, OPTConfig
from jaxmtl.models.initial import initial_arguments
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.training.frozen_head import FrozenHeadLoss, objective_of
from jaxmtl.training.objectives import EncoderDecoderLoss

SIZES = dict(vocab_size=40, embed_dim=12, num_heads=3, mlp_dim=20)
T5_TOY = T5(T5Config(**SIZES, head_dim=5, num_encoder_layers=1, num_decoder_layers=1))
BART_TOY = BART(BARTConfig(**SIZES, num_encoder_layers=1, num_decoder_layers=1, max_positions=32))
GPT_TOY = GPT(GPT2Config(**SIZES, num_layers=1, max_positions=32, pad_id=0, eos_id=1))
TOLERANCE = 1e-6  # losses of about 4 nats: a few units in the last place


def make_batch(share):
    draw = np.random.default_rng(0)
    ids = lambda length: jnp.asarray(draw.integers(3, 40, (5, length)))
    mask = (draw.random((5, 6)) < share) * draw.random((5, 6))
    return dict(inputs=ids(9), targets=ids(6), loss_mask=jnp.asarray(mask, jnp.float32))


def value_and_grad(module, objective, batch):
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), **initial_arguments(module))["params"])
    # A fresh adapter changes nothing: its other factor would get no gradient.
    tree = jax.tree.map(lambda leaf: leaf + 0.1, init_adapter(module, LoRA(rank=2), jax.random.key(1)).tree)

    def total(tree):
        losses = objective(module, {"params": params, "lora": tree}, batch)
        return losses.objective.sum(), losses

    return jax.jit(jax.value_and_grad(total, has_aux=True))(tree)


@pytest.mark.parametrize(
    ("module", "block", "share"),
    [
        (T5_TOY, 4, 1.0),
        *(
            pytest.param(*one, marks=pytest.mark.long)
            for one in ((T5_TOY, 7, 0.5), (BART_TOY, None, 0.3), (GPT_TOY, 8, 0.5))
        ),
    ],
)
def test_losses_and_gradients_equal_those_of_all_logits(module, block, share):
    batch = make_batch(share)
    plain, blocks = (value_and_grad(module, one, batch) for one in (EncoderDecoderLoss(), FrozenHeadLoss(block=block)))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=TOLERANCE)


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    (value, losses), grads = value_and_grad(T5_TOY, FrozenHeadLoss(block=4), make_batch(0.0))
    assert value == 0 and not losses.loss.any()
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))


def test_a_layer_behind_the_last_states_that_is_adapted_needs_all_logits():
    sizes = dict(SIZES, token_dim=8, num_layers=1, max_positions=32)
    narrow = GPT(OPTConfig(**sizes, pad_id=1, eos_id=2))
    assert objective_of(narrow, LoRA(targets="all")) == EncoderDecoderLoss()
    assert objective_of(narrow, LoRA(targets="q,v")) == FrozenHeadLoss()
