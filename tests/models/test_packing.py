import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packing_toy import examples, packed_batch, plain_batch

from jaxmtl.models import attention
from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import OPTConfig
from jaxmtl.models.masks import Segments
from jaxmtl.models.shifting import shift_right, shift_right_in_segments
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.training.objectives import EncoderDecoderLoss, sum_segments
from jaxmtl.types import InputError

TINY = dict(vocab_size=48, embed_dim=12, num_heads=3, head_dim=5, mlp_dim=20, dropout_rate=0.0)
TINY |= dict(num_encoder_layers=2, num_decoder_layers=2, relative_buckets=8, relative_max_distance=10)
DECODER_ONLY = dict(vocab_size=48, embed_dim=12, num_heads=3, num_layers=2, mlp_dim=20, max_positions=36)
STYLES = {
    "v1_0": T5(T5Config(**TINY, mlp_activations=("relu",), tied_head=True, head_scale=12**-0.5)),
    "v1_1": T5(T5Config(**TINY)),
    "decoder_only": GPT(OPTConfig(**DECODER_ONLY, dropout_rate=0.0, pad_id=0, eos_id=1, init_stddev=0.3)),
}
# Rows of (input length, target length): padding behind three examples, none behind one, an empty row, inputs without
# a token, one token each.
ROWS = [[(7, 4), (3, 2), (9, 5)], [(23, 13)], [], [(1, 1), (12, 6), (0, 3)]]
SOURCE, TARGET = 23, 13
OBJECTIVE = EncoderDecoderLoss(z_loss=1e-3)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def random_module(style):
    module, tokens = STYLES[style], jnp.ones((1, 1), jnp.int32)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(3), tokens, tokens)["params"])
    for name in {"encoder_bias", "decoder_bias"} & params.keys():  # as large as the scores: a wrong distance shows
        params[name] = jax.tree.map(lambda table: 8 * table, params[name])
    return module, params


def both_batches(seed=0):
    rng = np.random.default_rng(seed)
    rows = [examples(rng, row, TINY["vocab_size"]) for row in ROWS]
    packed = packed_batch(rows, SOURCE, TARGET)
    return packed, plain_batch([example for row in rows for example in row], SOURCE, TARGET)


def value_and_grads(module, params, batch):
    def objective(params):
        losses = OBJECTIVE(module, {"params": params}, batch, dropout_key=None)
        return losses.objective.sum() / losses.tokens.sum(), losses

    return jax.jit(jax.value_and_grad(objective, has_aux=True))(params)


@functools.cache
def plain_value_and_grads(style):
    return value_and_grads(*random_module(style), both_batches()[1])


def assert_close_to_scale(ours, reference):
    # Float32 sums of the same numbers in another order.
    assert np.abs(ours - reference).max() <= 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize(
    "scores", [pytest.param(0, id="rows", marks=pytest.mark.long), pytest.param(attention.CACHED_SCORES, id="einsum")]
)
@pytest.mark.parametrize(
    "style", ["v1_1", *(pytest.param(style, marks=pytest.mark.long) for style in ("v1_0", "decoder_only"))]
)
def test_packing_changes_neither_losses_nor_gradients(monkeypatch, style, scores):
    monkeypatch.setattr(attention, "CACHED_SCORES", scores)
    module, params = random_module(style)
    packed, _ = both_batches()
    (total, packed_losses), packed_grads = value_and_grads(module, params, packed)
    (expected, plain_losses), plain_grads = plain_value_and_grads(style)
    sums = sum_segments(packed_losses, packed["target_segments"], 3)
    held = np.array([[k < len(row) for k in range(3)] for row in ROWS])
    for name in ("objective", "loss", "tokens"):
        assert_close_to_scale(getattr(sums, name)[held], getattr(plain_losses, name).sum(-1))
        assert not np.any(getattr(sums, name)[~held])
    assert_close_to_scale(total, expected)
    for (path, ours), reference in zip(
        jax.tree_util.tree_leaves_with_path(packed_grads), jax.tree.leaves(plain_grads), strict=True
    ):
        if jax.tree_util.keystr(path, simple=True, separator="/") == "layers/attention/key/bias":
            # It adds the same to all scores of a query, which changes no weight: both gradients are rounding.
            assert max(np.abs(ours).max(), np.abs(reference).max()) <= 1e-6
        else:
            assert_close_to_scale(ours, reference)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(module, params, batch):
    inputs, targets = (Segments(batch[f"{side}_segments"], batch[f"{side}_positions"]) for side in ("input", "target"))
    segments = dict(input_segments=inputs, target_segments=targets)
    first = module.apply({"params": params}, batch["inputs"], **segments, method="first_tokens")
    decoder_inputs = shift_right_in_segments(batch["targets"], targets.positions, first)
    return module.apply({"params": params}, batch["inputs"], decoder_inputs, **segments)


@pytest.mark.parametrize("side", ["input", "target"])
@pytest.mark.parametrize("style", ["v1_1", "decoder_only"])
def test_a_segment_changes_no_other_segment(style, side):
    module, params = random_module(style)
    packed, _ = both_batches()
    inside = packed[f"{side}_segments"] == 2
    changed = packed | {f"{side}s": np.where(inside, 50 - packed[f"{side}s"], packed[f"{side}s"])}
    before, after = logits_of(module, params, packed), logits_of(module, params, changed)
    moved = np.abs(before - after).max(-1)
    others = packed["target_segments"] != 2
    assert np.isfinite(before).all() and moved[others].max() <= 1e-6
    rows = np.array([len(row) > 1 for row in ROWS])
    assert (moved.max(1, where=~others, initial=0)[rows] > 1e-3).all()


def test_padding_passes_no_gradient():
    module, params = random_module("v1_0")
    packed, _ = both_batches()
    padding = packed["target_segments"] == 0

    def of_padding(params):
        hidden = {"loss_mask": padding.astype(np.float32)}
        return OBJECTIVE(module, {"params": params}, packed | hidden, dropout_key=None).objective.sum()

    def encoder_part(params):
        grads = jax.grad(of_padding)(params)
        return grads["encoder"], grads["encoder_bias"], grads["decoder"]["cross_attention"]

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(encoder_part)(params)))


def test_a_target_follows_the_last_token_of_its_own_prompt():
    inputs = Segments(jnp.array([[1, 1, 2, 4, 0]]), jnp.array([[0, 1, 0, 0, 0]]))
    targets = Segments(jnp.array([[1, 2, 2, 3, 4, 0]]), jnp.array([[0, 0, 1, 0, 0, 0]]))
    tokens = jnp.array([[11, 12, 13, 14, 0]])
    found = STYLES["decoder_only"].apply(
        {}, tokens, None, **dict(input_segments=inputs, target_segments=targets), method="first_tokens"
    )
    assert found.tolist() == [[12, 13, 13, 1, 14, 1]]  # the third prompt is empty: what ends a text comes before


def test_each_segment_is_shifted_right_by_itself():
    targets, positions = jnp.array([[5, 6, 7, 8, 9, 0]]), jnp.array([[0, 1, 0, 0, 1, 0]])
    assert shift_right_in_segments(targets, positions, 3).tolist() == [[3, 5, 3, 3, 8, 3]]
    np.testing.assert_array_equal(shift_right_in_segments(targets, jnp.arange(6)[None], 3), shift_right(targets, 3))


@pytest.mark.parametrize("side", ["input", "target"])
def test_a_batch_with_segments_on_one_side_is_refused(side):
    module, params = random_module("v1_1")
    packed, _ = both_batches()
    half = {name: field for name, field in packed.items() if name not in (f"{side}_segments", f"{side}_positions")}
    with pytest.raises(InputError, match="has both"):
        OBJECTIVE(module, {"params": params}, half, dropout_key=None)
