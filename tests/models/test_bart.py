import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packing_toy import examples, packed_batch

from jaxmtl.models.bart import BART
from jaxmtl.models.bart_config import SIZES, BARTConfig, named_config
from jaxmtl.models.decoding import greedy
from jaxmtl.models.decoding_cache import capacity
from jaxmtl.models.lengths import check_room
from jaxmtl.models.masks import Segments
from jaxmtl.models.shifting import shift_right, shift_right_in_segments
from jaxmtl.types import InputError
from jaxmtl.weights import bart_map
from jaxmtl.weights.key_table import to_ours

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bart.npz"
TINY = dict(vocab_size=48, embed_dim=12, num_heads=3, mlp_dim=20, num_encoder_layers=2, num_decoder_layers=2)
TINY |= dict(max_positions=16, init_stddev=0.3)
PAD, START = 1, 2


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def golden():
    """The tiny torch model's weights in our module, and what torch computed."""
    arrays = dict(np.load(GOLDEN))
    module = BART(BARTConfig(**TINY))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens, tokens)["params"])
    read = lambda name: arrays[f"weights/{name}"]
    params = to_ours(bart_map.key_table(module.config), read, shapes, lambda path, leaf: jnp.asarray(leaf), "golden")
    return module, params, arrays


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "train"))
def apply(module, params, *args, method=None, train=False, rngs=None):
    return module.apply({"params": params}, *args, method=method, train=train, rngs=rngs)


def random_batch(rows=3, source=9, target=6, seed=0):
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(4, 48, (rows, source)), rng.integers(4, 48, (rows, target))
    inputs[-1, source - 2 :] = PAD
    return jnp.asarray(inputs), jnp.asarray(targets)


def assert_near(ours, reference):
    # Float32 sums in another order; a bug in bias, norm or scaling is orders of magnitude above this.
    assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()


def test_logits_and_the_encoder_s_states_are_those_that_torch_gave():
    module, params, arrays = golden()
    inputs = jnp.asarray(arrays["inputs"])
    logits = apply(module, params, inputs, shift_right(jnp.asarray(arrays["targets"]), START))
    assert logits.dtype == jnp.float32
    assert_near(logits, arrays["logits"])
    real = arrays["inputs"] != PAD
    assert_near(np.asarray(apply(module, params, inputs, method="encode"))[real], arrays["encoded"][real])


def test_greedy_tokens_are_those_that_torch_gave():
    module, params, arrays = golden()
    inputs = jnp.asarray(arrays["inputs"])
    tokens = greedy(module, {"params": params}, inputs, inputs != PAD, max_tokens=12)
    np.testing.assert_array_equal(np.asarray(tokens)[:, : arrays["greedy"].shape[1]], arrays["greedy"])


def test_padding_at_the_end_does_not_change_logits_even_past_the_last_position():
    module, params, _ = golden()
    inputs, targets = random_batch()
    alone = apply(module, params, inputs, targets)
    longer = (jnp.pad(array, ((0, 0), (0, 12)), constant_values=PAD) for array in (inputs, targets))
    np.testing.assert_allclose(apply(module, params, *longer)[:, :6], alone, atol=2e-5)


def test_positions_are_counted_from_the_start_of_the_row_whatever_stands_there():
    module, params, _ = golden()
    inputs, targets = random_batch()
    behind = jnp.pad(inputs, ((0, 0), (3, 0)), constant_values=PAD)
    moved = {"embedding": jnp.roll(params["encoder_positions"]["embedding"], -3, axis=0)}  # 0 has the row of 3
    expected = apply(module, params | {"encoder_positions": moved}, inputs, targets)
    np.testing.assert_allclose(apply(module, params, behind, targets), expected, atol=2e-5)
    assert np.abs(apply(module, params, inputs, targets) - expected).max() > 1e-3


def test_steps_give_the_logits_of_the_whole_and_rows_share_one_memory():
    module, params, _ = golden()
    inputs, _ = random_batch(rows=2)
    _, targets = random_batch(rows=6, seed=1)  # three rows for each input
    mask = inputs != PAD
    decoder_inputs = shift_right(targets, START)
    memory = apply(module, params, inputs, mask, method="encode")
    whole = apply(module, params, decoder_inputs, memory, mask, method="decode")
    repeated = apply(module, params, jnp.repeat(inputs, 3, axis=0), decoder_inputs)
    np.testing.assert_allclose(whole, repeated, atol=2e-5)
    variables = {"params": params}
    cache = module.apply(variables, memory, 6, 3, method="start_cache")
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(cache["self"])} == {(2, 6)} and capacity(cache["self"]) == 6
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(cache["memory"])} == {(2, 2)} and capacity(cache["memory"]) == 9
    step = jax.jit(functools.partial(module.apply, variables, method="decode_step"))
    for position in range(6):
        logits, cache = step(decoder_inputs[:, position], jnp.asarray(position), cache, mask)
        np.testing.assert_allclose(logits, whole[:, position], atol=2e-5)


@pytest.mark.long
def test_packed_examples_have_the_logits_that_they_have_alone():
    module, params, _ = golden()
    row = examples(np.random.default_rng(2), [(9, 4), (8, 6)], 48)  # 17 tokens; the model has 16 positions
    packed = packed_batch([row], 22, 13)
    sides = {side: Segments(packed[f"{side}_segments"], packed[f"{side}_positions"]) for side in ("input", "target")}
    segments = {f"{side}_segments": one for side, one in sides.items()}
    first = module.apply({"params": params}, packed["inputs"], **segments, method="first_tokens")
    decoder_inputs = shift_right_in_segments(jnp.asarray(packed["targets"]), packed["target_positions"], first)
    together = module.apply({"params": params}, packed["inputs"], decoder_inputs, **segments)[0]
    start = 0
    for inputs, targets, _ in row:
        alone = module.apply(
            {"params": params},
            inputs[None],
            shift_right(jnp.asarray(targets)[None], START),
            jnp.ones((1, len(inputs)), bool),
        )[0]
        np.testing.assert_allclose(together[start : start + len(targets)], alone, atol=2e-5)
        start += len(targets)


@pytest.mark.parametrize("rate", ["dropout_rate", "attention_dropout_rate", "activation_dropout_rate"])
def test_each_dropout_changes_what_training_sees(rate):
    _, params, _ = golden()
    rates = dict.fromkeys(("dropout_rate", "attention_dropout_rate", "activation_dropout_rate"), 0.0)
    module = BART(BARTConfig(**TINY, **(rates | {rate: 0.5})))
    batch = random_batch()
    dropped = apply(module, params, *batch, train=True, rngs={"dropout": jax.random.key(0)})
    assert np.abs(apply(golden()[0], params, *batch) - dropped).max() > 0.01


def test_the_bias_of_the_logits_is_not_trained():
    module, params, _ = golden()
    batch = random_batch()
    grads = jax.jit(jax.grad(lambda params: jnp.square(module.apply({"params": params}, *batch)).sum()))(params)
    assert not np.any(grads["final_logits_bias"])
    assert np.any(grads["decoder"]["cross_attention"]["key"]["kernel"])


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(num_heads=5), "num_heads is 5; expected a divisor of embed_dim, 12"),
        (dict(dropout_rate=1.0), "dropout_rate is 1.0"),
        (dict(dtype="float16"), "dtype 'float16' is not possible for BART"),
        (dict(remat="some"), "unknown remat policy"),
        (dict(mlp_dim=0), "mlp_dim is 0"),
        (dict(eos_id=48), "eos_id is 48; expected less than vocab_size, 48"),
        (dict(scale_embedding=1), "scale_embedding is 1"),
        (dict(norm_epsilon=1e-6), "norm_epsilon is 1e-06"),
    ],
)
def test_configs_that_no_bart_has_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        BARTConfig(**(TINY | fields))


@pytest.mark.parametrize("name, millions", [("bart-base", 139), ("bart-large", 406)])
def test_named_sizes_have_the_published_number_of_parameters(name, millions):
    module = BART(named_config(name))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens, tokens)["params"]
    bias = module.config.vocab_size  # which is no parameter there
    assert round((sum(leaf.size for leaf in jax.tree.leaves(shapes)) - bias) / 1e6) == millions
    assert set(SIZES) == {"bart-base", "bart-large"}


def test_bfloat16_gives_float32_logits_near_those_of_float32():
    module, params, _ = golden()
    half = BART(BARTConfig(**TINY, dtype="bfloat16"))
    batch = random_batch()
    ours, exact = apply(half, params, *batch), apply(module, params, *batch)
    assert ours.dtype == jnp.float32
    # bfloat16 keeps 8 bits: a few hundredths of the scale after some layers.
    assert np.abs(ours - exact).max() <= 0.1 * np.abs(exact).max()


def test_inputs_and_targets_have_room_each_for_themselves():
    config = BARTConfig(**TINY)
    check_room(config, [16, 3], [16, 2], "texts")
    with pytest.raises(InputError, match="texts: row 1 has 17 input and 2 target tokens, .* room for 16 of input"):
        check_room(config, [16, 17], [16, 2], "texts")
    with pytest.raises(InputError, match="texts: row 0 has 1 input and 20 target tokens, .* room for 16 of target"):
        check_room(config, [1], [20], "texts")
