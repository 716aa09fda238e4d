import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmtl.models.decoding import greedy
from jaxmtl.models.layers import project, relative_buckets
from jaxmtl.models.shifting import shift_right
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import SIZES, T5Config, named_config
from jaxmtl.types import InputError
from jaxmtl.weights import t5_map
from jaxmtl.weights.key_table import to_ours

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TINY = dict(
    vocab_size=48, embed_dim=12, num_heads=3, head_dim=5, mlp_dim=20, num_encoder_layers=2, num_decoder_layers=2
)
STYLES = {
    "v1_0": dict(mlp_activations=("relu",), tied_head=True, head_scale=12**-0.5),
    "v1_1": dict(),
}


def golden(name):
    arrays = dict(np.load(GOLDEN / f"t5_{name}.npz"))
    config = T5Config(**TINY, **STYLES[name])
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)["params"])
    read = lambda name: arrays[f"weights/{name}"]
    params = to_ours(t5_map.key_table(config), read, shapes, lambda path, leaf: jnp.asarray(leaf), "golden")
    return T5(config), params, arrays


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def apply(module, params, inputs, decoder_inputs, *, train=False, rngs=None):
    return module.apply({"params": params}, inputs, decoder_inputs, train=train, rngs=rngs)


@pytest.fixture(scope="module")
def tiny():
    module = T5(T5Config(**TINY))
    tokens = jnp.ones((1, 1), jnp.int32)
    return module, nn.unbox(module.init(jax.random.key(3), tokens, tokens)["params"])


@pytest.mark.parametrize("name", STYLES)
def test_logits_are_those_that_torch_gave(name):
    module, params, arrays = golden(name)
    decoder_inputs = shift_right(jnp.asarray(arrays["targets"]), 0)
    logits = apply(module, params, jnp.asarray(arrays["inputs"]), decoder_inputs)
    assert logits.dtype == jnp.float32
    # Float32 sums in another order; a bug in bias, norm or scaling is orders of magnitude above this.
    assert np.abs(logits - arrays["logits"]).max() <= 1e-4 * np.abs(arrays["logits"]).max()


@pytest.mark.parametrize("name", STYLES)
def test_greedy_tokens_are_those_that_torch_gave(name):
    module, params, arrays = golden(name)
    tokens = greedy(module, {"params": params}, arrays["inputs"], arrays["inputs"] != 0, max_tokens=12)
    np.testing.assert_array_equal(np.asarray(tokens)[:, : arrays["greedy"].shape[1]], arrays["greedy"])


def test_relative_buckets_have_the_known_values():
    # Source: methods 6.1, golden values; relative = key - query.
    kwargs = dict(num_buckets=32, max_distance=128)
    both = {
        -200: 15,
        -128: 15,
        -64: 14,
        -20: 10,
        -8: 8,
        -7: 7,
        -1: 1,
        0: 0,
        1: 17,
        8: 24,
        20: 26,
        64: 30,
        128: 31,
        200: 31,
    }
    causal = {5: 0, 0: 0, -1: 1, -15: 15, -16: 16, -31: 21, -64: 26, -128: 31, -300: 31}
    for expected, bidirectional in ((both, True), (causal, False)):
        keys = jnp.array(list(expected)) + 400
        buckets = relative_buckets(jnp.array([400]), keys, bidirectional=bidirectional, **kwargs)
        assert buckets[0].tolist() == list(expected.values())


@settings(max_examples=10, deadline=None)
@given(padding=st.sampled_from([1, 9]), target_padding=st.sampled_from([0, 4]), seed=st.integers(0, 1000))
def test_padding_does_not_change_logits(tiny, padding, target_padding, seed):
    module, params = tiny
    rng = np.random.default_rng(seed)
    inputs, decoder_inputs = rng.integers(1, 48, (2, 6)), rng.integers(1, 48, (2, 4))
    alone = apply(module, params, inputs, decoder_inputs)
    longer = np.pad(inputs, ((0, 0), (0, padding))), np.pad(decoder_inputs, ((0, 0), (0, target_padding)))
    padded = apply(module, params, *longer)[:, :4]
    np.testing.assert_allclose(padded, alone, atol=2e-5)


def test_rows_do_not_see_each_other(tiny):
    module, params = tiny
    rng = np.random.default_rng(0)
    inputs, decoder_inputs = rng.integers(1, 48, (5, 6)), rng.integers(1, 48, (5, 4))
    together = apply(module, params, inputs, decoder_inputs)
    one_by_one = [apply(module, params, inputs[i : i + 1], decoder_inputs[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(together, np.stack(one_by_one), atol=2e-5)


def test_the_decoder_sees_no_later_position(tiny):
    module, params = tiny
    inputs, decoder_inputs = jnp.ones((1, 3), jnp.int32), jnp.arange(1, 7)[None]
    changed = decoder_inputs.at[0, 4].set(40)
    before, after = (apply(module, params, inputs, x) for x in (decoder_inputs, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


def test_decoding_step_by_step_gives_the_logits_of_the_whole_sequence(tiny):
    module, params = tiny
    rng = np.random.default_rng(1)
    inputs, decoder_inputs = jnp.asarray(rng.integers(1, 48, (3, 7))).at[0, 4:].set(0), rng.integers(1, 48, (3, 5))
    mask = inputs != 0

    def steps(model):
        cache = model.start_cache(model.encode(inputs, mask), 8)
        for position in range(5):
            logits, cache = model.decode_step(decoder_inputs[:, position], jnp.int32(position), cache, mask)
            yield logits

    stepped = jax.jit(nn.apply(lambda model: jnp.stack(list(steps(model)), 1), module))({"params": params})
    whole = apply(module, params, inputs, decoder_inputs)
    np.testing.assert_allclose(stepped, whole, atol=2e-5)


def test_rows_that_share_an_input_get_what_they_get_with_an_input_each(tiny):
    module, params = tiny
    rng = np.random.default_rng(4)
    inputs, rows = jnp.asarray(rng.integers(1, 48, (2, 7))).at[0, 4:].set(0), jnp.asarray(rng.integers(1, 48, (6, 5)))
    mask = inputs != 0

    def shared(model):
        memory = model.encode(inputs, mask)
        cache, stepped = model.start_cache(memory, 5, rows_per_input=3), []
        for position in range(5):
            logits, cache = model.decode_step(rows[:, position], jnp.int32(position), cache, mask)
            stepped.append(logits)
        return model.decode(rows, memory, mask), jnp.stack(stepped, 1)

    alone = apply(module, params, jnp.repeat(inputs, 3, axis=0), rows)
    for logits in jax.jit(nn.apply(shared, module))({"params": params}):
        np.testing.assert_allclose(logits, alone, atol=2e-5)


def test_greedy_takes_the_first_of_equals_and_never_a_padding_row(tiny):
    module, params = tiny
    seen = jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3), bool)
    loud = jax.tree.map(jnp.zeros_like, params) | {"lm_head": {"kernel": jnp.zeros((12, 48))}}
    tokens = greedy(module, {"params": loud}, *seen, max_tokens=4)
    assert tokens.tolist() == [[0] * 4] * 2  # all logits equal: the first id, which is padding, not the end
    head = params["lm_head"]["kernel"].at[:, 40:].multiply(1000.0)
    tokens = greedy(module, {"params": params | {"lm_head": {"kernel": head}}}, *seen, max_tokens=6, num_tokens=40)
    assert int(tokens.max()) < 40


def test_an_empty_row_ends_at_once(tiny):
    module, params = tiny
    inputs = jnp.array([[5, 6, 7], [0, 0, 0]])
    tokens = greedy(module, {"params": params}, inputs, inputs != 0, max_tokens=5)
    assert tokens[1].tolist() == [0] * 5
    assert int(tokens[0, 0]) != 0


@pytest.mark.long
@pytest.mark.parametrize("options", [dict(remat="full"), dict(remat="none"), dict(scan_unroll=0)], ids=str)
def test_memory_and_speed_options_leave_gradients_alone(tiny, options):
    module, params = tiny
    other = T5(T5Config(**TINY, **options))
    inputs, decoder_inputs = jnp.ones((2, 5), jnp.int32), jnp.ones((2, 3), jnp.int32)
    grads = [
        jax.grad(lambda p, m=m: jnp.square(apply(m, p, inputs, decoder_inputs)).mean())(params) for m in (module, other)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *grads)


@pytest.mark.parametrize("width", [3, 4, 5])
def test_a_projection_has_the_gradient_of_a_product(width):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 3, 4)), jax.random.normal(keys[1], (4, width))
    weight = jax.random.normal(keys[2], (2, 3, width))
    ours, product = (
        jax.value_and_grad(lambda a, way=way: (way(*a) * weight).sum())((x, kernel)) for way in (project, jnp.dot)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, product)


def test_dropout_changes_with_the_key_and_only_in_training(tiny):
    module, params = tiny
    inputs, decoder_inputs = jnp.ones((2, 5), jnp.int32), jnp.ones((2, 3), jnp.int32)
    run = lambda seed: apply(module, params, inputs, decoder_inputs, train=True, rngs={"dropout": jax.random.key(seed)})
    assert np.abs(run(0) - run(1)).max() > 1e-3
    np.testing.assert_array_equal(run(0), run(0))


def test_bfloat16_keeps_float32_parameters_and_logits(tiny):
    _, params = tiny
    module = T5(T5Config(**TINY, dtype="bfloat16"))
    inputs, decoder_inputs = jnp.ones((2, 5), jnp.int32), jnp.ones((2, 3), jnp.int32)
    logits = apply(module, params, inputs, decoder_inputs)
    exact = apply(T5(T5Config(**TINY)), params, inputs, decoder_inputs)
    assert logits.dtype == jnp.float32
    # bfloat16 has 8 bits of mantissa: 2^-8 per product, a few layers deep.
    assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()


def test_float16_is_refused_with_the_reason():
    with pytest.raises(InputError, match="overflow float16"):
        T5Config(**TINY, dtype="float16")


# Parameters by the papers' tables: millions, rounded.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("t5-small", 60.5), ("t5-base", 222.9), ("t5-large", 737.7), ("t5-3b", 2851.6), ("t5-11b", 11307.3)]
    + [("t5-v1.1-small", 77.0), ("t5-v1.1-base", 247.6), ("t5-v1.1-large", 783.2), ("t5-v1.1-xl", 2849.8)]
    + [("t5-v1.1-xxl", 11135.3)],
)
def test_named_sizes_have_the_published_number_of_parameters(name, millions):
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(T5(named_config(name)).init, jax.random.key(0), tokens, tokens)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert round(count / 1e6, 1) == millions
    assert name in SIZES


def test_initial_weights_have_the_stated_spread():
    config = T5Config(**TINY | dict(embed_dim=256, mlp_dim=512, head_dim=64, vocab_size=1000))
    tokens = jnp.ones((1, 1), jnp.int32)
    params = nn.unbox(T5(config).init(jax.random.key(0), tokens, tokens)["params"])
    attention = params["decoder"]["cross_attention"]
    expected = {
        "token_embedding": (params["token_embedding"]["embedding"], 1.0),
        "query": (attention["query"]["kernel"], (256 * 64) ** -0.5),
        "key": (attention["key"]["kernel"], 256**-0.5),
        "out": (attention["out"]["kernel"], (3 * 64) ** -0.5),
        "wi": (params["encoder"]["mlp"]["wi_1"]["kernel"], 256**-0.5),
        "wo": (params["encoder"]["mlp"]["wo"]["kernel"], 512**-0.5),
        "lm_head": (params["lm_head"]["kernel"], 256**-0.5),
    }
    for name, (kernel, stddev) in expected.items():
        assert float(kernel.std()) == pytest.approx(stddev, rel=0.03), name
