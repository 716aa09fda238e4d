"""Greedy decoding where a row ends: the end token, padding behind it, and no step more than needed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models.decoding import greedy
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config

SIZES = dict(embed_dim=12, num_heads=3, head_dim=5, mlp_dim=20, num_encoder_layers=2, num_decoder_layers=2)
CONFIG = T5Config(vocab_size=48, **SIZES)
MAX_TOKENS = 8
INPUTS = np.random.default_rng(0).integers(2, 48, (4, 6))
SEEN = np.ones(INPUTS.shape, bool)


class CountedT5(T5):
    """T5 that tells whenever it decodes one position."""

    steps = 0

    def decode_step(self, *args):
        jax.debug.callback(self.count)
        return super().decode_step(*args)

    @classmethod
    def count(cls):
        cls.steps += 1


@pytest.fixture(scope="module")
def ending():
    """Parameters that write the end token where the same with another head write `usual[0, 2]`; and `usual`."""
    tokens = jnp.ones((1, 1), jnp.int32)
    params = nn.unbox(jax.jit(T5(CONFIG).init)(jax.random.key(5), tokens, tokens)["params"])
    usual = np.asarray(greedy(T5(CONFIG), {"params": params}, jnp.asarray(INPUTS), SEEN, max_tokens=MAX_TOKENS))
    end, third = CONFIG.eos_id, usual[0, 2]
    assert third not in usual[0, :2] and third not in usual[1:] and end not in usual, "choose another key"
    head = params["lm_head"]["kernel"]
    head = head.at[:, jnp.array([end, third])].set(head[:, jnp.array([third, end])])
    return dict(params, lm_head={"kernel": head}), usual


def test_a_row_ends_with_the_end_token_and_padding_while_others_go_on(ending):
    params, usual = ending
    tokens = greedy(T5(CONFIG), {"params": params}, jnp.asarray(INPUTS), SEEN, max_tokens=MAX_TOKENS)
    expected = usual.copy()
    expected[0, 2:] = [CONFIG.eos_id] + [CONFIG.pad_id] * (MAX_TOKENS - 3)
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize("rows, steps", [([0, 0], 3), ([0, 1], MAX_TOKENS)], ids=["all", "one"])
def test_no_step_is_taken_once_all_rows_have_ended(ending, rows, steps):
    params, usual = ending
    CountedT5.steps = 0
    tokens = greedy(CountedT5(CONFIG), {"params": params}, jnp.asarray(INPUTS[rows]), SEEN[rows], max_tokens=MAX_TOKENS)
    jax.effects_barrier()
    assert CountedT5.steps == steps
    np.testing.assert_array_equal(tokens[0, :3], [*usual[0, :2], CONFIG.eos_id])
