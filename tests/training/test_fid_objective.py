import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models.shifting import shift_right
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.training.fid_objective import FusionLoss
from jaxmtl.training.objectives import EncoderDecoderLoss, t5x_smoothing
from jaxmtl.types import InputError

SIZES = dict(vocab_size=20, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=12)
CONFIG = T5Config(**SIZES, num_encoder_layers=1, num_decoder_layers=1, mlp_activations=("relu",), tied_head=False)
MODULE = T5(CONFIG)
BATCH = {
    "support_inputs": np.array([[5, 6, 7, 1], [8, 1, 0, 0], [0, 0, 0, 0]], np.int32),
    "inputs": np.array([[9, 10, 0], [11, 12, 13]], np.int32),
    "targets": np.array([[5, 1, 0], [6, 7, 1]], np.int32),
    "loss_mask": np.array([[1, 1, 0], [1, 1, 1]], np.float32),
}


@pytest.fixture(scope="module")
def params():
    tokens = jnp.ones((1, 4), jnp.int32)
    return nn.unbox(jax.jit(MODULE.init)(jax.random.key(0), tokens, tokens)["params"])


def scored(params, batch, **options):
    return jax.jit(lambda params, batch: FusionLoss(**options)(MODULE, {"params": params}, batch))(params, batch)


def test_losses_equal_a_loop_over_single_queries(params):
    encode = jax.jit(lambda ids: MODULE.apply({"params": params}, ids, method="encode"))
    decode = jax.jit(lambda ids, memory: MODULE.apply({"params": params}, ids, memory, None, method="decode"))
    real = lambda row: row[row != 0]
    supports = [encode(real(row)[None])[0] for row in BATCH["support_inputs"][:2]]
    losses = scored(params, BATCH)
    for number in range(2):
        memory = np.concatenate([*supports, encode(real(BATCH["inputs"][number])[None])[0]])[None]
        target = real(BATCH["targets"][number])
        logits = np.asarray(decode(shift_right(target[None], 0), memory), np.float64)[0]
        nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(target)), target]
        np.testing.assert_allclose(losses.loss[number, : len(target)], nll, rtol=1e-5)
        assert not np.any(losses.loss[number, len(target) :])
    np.testing.assert_array_equal(losses.objective, losses.loss)
    np.testing.assert_array_equal(losses.tokens, BATCH["loss_mask"])


@pytest.mark.parametrize("supports", [np.zeros((0, 4), np.int32), np.zeros((2, 4), np.int32)])
def test_without_supports_it_is_the_plain_objective(params, supports):
    options = dict(z_loss=0.1, smoothing=t5x_smoothing)
    found = scored(params, {**BATCH, "support_inputs": supports}, **options)
    plain = jax.jit(lambda params, batch: EncoderDecoderLoss(**options)(MODULE, {"params": params}, batch))
    np.testing.assert_allclose(found.objective, plain(params, BATCH).objective, rtol=1e-5)


def test_padding_of_supports_changes_nothing(params):
    wider = {**BATCH, "support_inputs": np.pad(BATCH["support_inputs"], ((0, 1), (0, 3)))}
    np.testing.assert_allclose(scored(params, wider).loss, scored(params, BATCH).loss, rtol=1e-5)


def test_gradients_flow_through_the_encoder_of_supports(params):
    def objective(table):
        changed = {**params, "token_embedding": {**params["token_embedding"], "embedding": table}}
        return FusionLoss()(MODULE, {"params": changed}, BATCH).objective.sum()

    table = params["token_embedding"]["embedding"]
    gradient = np.asarray(jax.jit(jax.grad(objective))(table))
    assert np.any(gradient[8])  # the token stands in a support alone
    assert not np.any(gradient[14])  # this one nowhere
    step = np.zeros(table.shape, np.float32)
    step[8] = 2e-3
    compiled = jax.jit(objective)
    slope = float(compiled(table + step) - compiled(table - step)) / 4e-3
    # Rounding of a sum of size 10 is a few 1e-6, of the slope thus about 1e-3.
    assert slope == pytest.approx(gradient[8].sum(), abs=2e-3)


def test_dropout_needs_its_key(params):
    module = T5(T5Config(**SIZES, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.5))
    tokens = jnp.ones((1, 4), jnp.int32)
    own = nn.unbox(jax.jit(module.init)(jax.random.key(0), tokens, tokens)["params"])
    run = jax.jit(lambda key: FusionLoss()(module, {"params": own}, BATCH, dropout_key=key).loss.sum())
    one, same, other = (float(run(jax.random.key(seed))) for seed in (1, 1, 2))
    assert one == same != other


def test_wrong_batches_are_named(params):
    with pytest.raises(InputError, match="needs 'support_inputs'"):
        FusionLoss()(MODULE, {"params": params}, {name: BATCH[name] for name in ("inputs", "targets", "loss_mask")})
    with pytest.raises(InputError, match="packed"):
        FusionLoss()(MODULE, {"params": params}, {**BATCH, "input_segments": BATCH["inputs"]})
