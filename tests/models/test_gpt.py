import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models.decoding import greedy
from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import SIZES, GPT2Config, OPTConfig, named_config
from jaxmtl.models.lengths import check_room
from jaxmtl.models.prompts import not_padding
from jaxmtl.types import InputError
from jaxmtl.weights import gpt2_map, opt_map
from jaxmtl.weights.key_table import to_ours

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TINY = dict(vocab_size=48, embed_dim=12, num_heads=3, num_layers=2, mlp_dim=20, max_positions=24, dropout_rate=0.0)
GPT2 = GPT2Config(**TINY, pad_id=47, eos_id=47)
STYLES = {"gpt2": GPT2, "opt": OPTConfig(**TINY, token_dim=8, norm="post")}
TABLES = {"gpt2": gpt2_map, "opt": opt_map}
PROMPTS, TARGETS = (9, 4, 1), (5, 3, 5)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def golden(name):
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(GPT(STYLES[name]).init, jax.random.key(0), tokens)["params"])
    read = lambda key: arrays[f"weights/{key}"]
    place = lambda path, leaf: jnp.asarray(leaf)
    params = to_ours(TABLES[name].key_table(STYLES[name]), read, shapes, place, "golden")
    return GPT(STYLES[name]), params, arrays


@functools.cache
def model(name):
    module, params, _ = golden(name)
    return module, params


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "train"))
def jitted(module, params, *args, rngs=None, **options):
    return module.apply({"params": params}, *args, rngs=rngs, **options)


def call(name, *args, **options):
    return jitted(*model(name), *args, **options)


def padded(rows, width, pad_id, side="right"):
    array = np.full((len(rows), width), pad_id, np.int32)
    for line, row in zip(array, rows, strict=True):
        line[slice(width - len(row), None) if side == "left" else slice(len(row))] = row
    return array


def some_rows(seed, lengths):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 46, length) for length in lengths]


def behind_prompts(targets, prompts, pad_id):
    """What the decoder reads: each prompt's last token, then the target but its last."""
    first = [[prompt[-1]] for prompt in prompts]
    return np.concatenate([first, padded(targets, max(map(len, targets)), pad_id)[:, :-1]], axis=1).astype(np.int32)


def assert_close(ours, reference, scale=1e-5):
    # Float32 sums of the same numbers in another order.
    assert np.abs(ours - reference).max() <= scale * np.abs(reference).max()


@pytest.mark.parametrize("name", STYLES)
def test_logits_and_greedy_tokens_are_those_that_torch_gave(name):
    module, params, arrays = golden(name)
    mask = arrays["mask"]
    logits = jitted(module, params, arrays["inputs"], input_mask=mask)
    assert logits.dtype == jnp.float32
    # A bug in bias, norm or scaling is orders of magnitude above what another order of sums does.
    assert np.abs(logits - arrays["logits"])[mask].max() <= 1e-4 * np.abs(arrays["logits"][mask]).max()
    tokens = greedy(module, {"params": params}, arrays["inputs"], mask, max_tokens=arrays["greedy"].shape[1])
    np.testing.assert_array_equal(tokens, arrays["greedy"])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", STYLES)
def test_a_target_behind_its_prompt_scores_as_one_sequence(name, side):
    pad_id = STYLES[name].pad_id
    prompts, targets = some_rows(0, PROMPTS), some_rows(1, TARGETS)
    inputs = padded(prompts, 9, pad_id, side)
    assert call(name, inputs, method="first_tokens").tolist() == [row[-1] for row in prompts]
    logits = call(name, inputs, behind_prompts(targets, prompts, pad_id))
    joined = [np.concatenate(both) for both in zip(prompts, targets, strict=True)]
    whole = call(name, padded(joined, 14, pad_id))
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        expected = whole[row, len(prompt) - 1 : len(prompt) - 1 + len(target)]
        assert_close(logits[row, : len(target)], expected)


@pytest.mark.parametrize("name", STYLES)
def test_rows_of_one_prompt_score_as_if_each_had_its_own_and_steps_as_sequences(name):
    pad_id = STYLES[name].pad_id
    prompts = some_rows(0, PROMPTS)
    inputs = padded(prompts, 9, pad_id)
    mask = inputs != pad_id
    rows = np.repeat(behind_prompts(some_rows(1, (5, 5, 5)), prompts, pad_id), 2, axis=0)
    rows[1::2, 1:] = some_rows(2, (4, 4, 4))
    memory = call(name, inputs, mask, method="encode")
    together = call(name, rows, memory, mask, method="decode")
    for which in range(2):
        assert_close(together[which::2], call(name, rows[which::2], memory, mask, method="decode"))
    module, params = model(name)
    cache = module.apply({"params": params}, memory, 5, 2, method="start_cache")
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(cache["self"])} == {(2, 6)}
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(cache["memory"])} == {(2, 3)}
    for position in range(5):
        logits, cache = call(name, rows[:, position], jnp.int32(position), cache, mask, method="decode_step")
        assert_close(logits, together[:, position])


def test_only_the_runs_of_padding_at_the_ends_are_padding():
    tokens = jnp.array([[9, 9, 1, 9, 2, 9], [1, 2, 3, 4, 5, 6], [9, 9, 9, 9, 9, 9]])
    expected = [[0, 0, 1, 1, 1, 0], [1] * 6, [0] * 6]
    assert not_padding(tokens, 9).astype(int).tolist() == expected


def test_without_a_prompt_a_target_follows_the_end_of_another_text():
    empty, target = np.full((1, 3), 47, np.int32), np.array([[47, 5, 6]], np.int32)
    assert call("gpt2", empty, method="first_tokens").tolist() == [47]
    whole = call("gpt2", target, input_mask=np.ones((1, 3), bool))
    assert_close(call("gpt2", empty, target), whole)


def test_padding_behind_a_target_may_reach_past_the_last_position():
    prompt, target = some_rows(0, (22,)), some_rows(1, (3,))
    decoder_inputs = behind_prompts(target, prompt, 47)
    exact = call("gpt2", padded(prompt, 22, 47), decoder_inputs)
    longer = call("gpt2", padded(prompt, 22, 47), np.pad(decoder_inputs, ((0, 0), (0, 9))))
    assert_close(longer[:, :3], exact)


def test_texts_that_are_too_long_are_refused():
    check_room(GPT2, [20, 1], [5, 1], "texts")
    with pytest.raises(InputError, match="texts: row 1 has 21 input and 5 target tokens, the model has room for 25"):
        check_room(GPT2, [3, 21, 2], [3, 5, 20], "texts")
    check_room(object(), [10**6], [10**6], "texts")


def test_rows_that_share_a_prompt_are_not_trained_on():
    memory = call("gpt2", padded(some_rows(0, (4,)), 4, 47), method="encode")
    with pytest.raises(InputError, match="2 rows share 1 prompts"):
        call("gpt2", np.ones((2, 3), np.int32), memory, None, method="decode", train=True, rngs=None)


@pytest.mark.long
@pytest.mark.parametrize("remat", ["none", "full"])
def test_remat_unrolling_and_dropout_of_rate_0_change_no_gradient(remat):
    _, params = model("gpt2")
    prompts, targets = some_rows(0, PROMPTS), some_rows(1, TARGETS)
    batch = padded(prompts, 9, 47), behind_prompts(targets, prompts, 47)

    def gradient(config, train):
        rngs = {"dropout": jax.random.key(0)}
        total = lambda params: jnp.square(GPT(config).apply({"params": params}, *batch, train=train, rngs=rngs)).mean()
        return jax.jit(jax.grad(total))(params)

    def check(path, ours, plain):
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("key/bias"):
            # It shifts all scores of a query alike, which softmax does not see: the gradient is 0 but for rounding.
            assert max(np.abs(ours).max(), np.abs(plain).max()) < 1e-7
        else:
            assert_close(ours, plain, scale=1e-4)

    changed = GPT2Config(**TINY, pad_id=47, eos_id=47, remat=remat, scan_unroll=0)
    jax.tree_util.tree_map_with_path(check, gradient(changed, True), plain_gradient(gradient))


@functools.cache
def _plain():
    return {}


def plain_gradient(gradient):
    return _plain().setdefault("gradient", gradient(GPT2, False))


def test_dropout_differs_between_keys_and_layers_and_only_in_training():
    _, params = model("gpt2")
    module = GPT(GPT2Config(**TINY | {"dropout_rate": 0.5}, pad_id=47, eos_id=47))
    inputs = padded(some_rows(0, (9,)), 9, 47)
    run = lambda key: jitted(module, params, inputs, train=True, rngs={"dropout": jax.random.key(key)})
    assert not np.allclose(run(0), run(1))
    np.testing.assert_array_equal(run(0), run(0))
    assert_close(jitted(module, params, inputs), call("gpt2", inputs))


def test_bfloat16_gives_float32_logits_near_those_of_float32():
    _, params = model("gpt2")
    inputs = padded(some_rows(0, (9, 4)), 9, 47)
    low = jitted(GPT(GPT2Config(**TINY, pad_id=47, eos_id=47, dtype="bfloat16")), params, inputs)
    exact = call("gpt2", inputs)
    assert low.dtype == jnp.float32
    # bfloat16 keeps 8 bits; a few roundings per layer are near 2% of the scale.
    assert np.abs(low - exact)[inputs != 47].max() <= 0.05 * np.abs(exact).max()


def test_sizes_have_the_published_numbers_of_parameters():
    # In millions. Source: GPT-2's released checkpoints; OPT's model cards and, for 350m, its checkpoint.
    published = {"gpt2-124m": 124.4, "gpt2-355m": 354.8, "gpt2-774m": 774.0, "gpt2-1.5b": 1557.6}
    published |= {"opt-125m": 125.2, "opt-350m": 331.2, "opt-1.3b": 1315.8, "opt-2.7b": 2651.6}
    published |= {"opt-6.7b": 6658.5, "opt-13b": 12853.5}
    assert published.keys() == SIZES.keys()
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    for name, millions in published.items():
        shapes = jax.eval_shape(GPT(named_config(name)).init, jax.random.key(0), tokens)
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.06), name


@pytest.mark.parametrize(
    "make, fields, message",
    [
        (GPT2Config, dict(dtype="float16"), "float16.*GPT2.*past the range of float16; use 'bfloat16'"),
        (OPTConfig, dict(num_heads=5), "OPT: num_heads is 5; expected a divisor of embed_dim, 12"),
        (GPT2Config, dict(norm="post"), "GPT2: norm is 'post'; expected 'pre'"),
        (GPT2Config, dict(token_dim=6), "GPT2: token_dim is 6; expected embed_dim, 12"),
        (OPTConfig, dict(position_offset=0), "OPT: position_offset is 0; expected 2"),
        (OPTConfig, dict(activation="swish"), "activation is 'swish'; expected one of gelu_new, gelu, relu"),
        (GPT2Config, dict(eos_id=48), "eos_id is 48; expected less than vocab_size, 48"),
        (GPT2Config, dict(remat="some"), "unknown remat policy 'some'"),
        (OPTConfig, dict(attention_dropout_rate=1.0), "attention_dropout_rate is 1.0; expected at least 0"),
        (OPTConfig, dict(max_positions=0), "max_positions is 0; expected an integer, at least 1"),
    ],
)
def test_a_config_that_no_model_has_is_refused(make, fields, message):
    with pytest.raises(InputError, match=message):
        make(**TINY | dict(pad_id=1, eos_id=2) | fields)


def test_an_unknown_size_names_the_closest():
    with pytest.raises(InputError, match="unknown GPT-2 or OPT size 'gpt2-125m'; closest: gpt2-124m"):
        named_config("gpt2-125m")
