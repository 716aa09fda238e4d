"""Cross-attention of few queries: what it gives is what keys and values, written out in float64, give."""

import contextlib
import dataclasses
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmtl.models import absorbed, bart_layers, t5_layers
from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.models.masks import Mask
from jaxmtl.models.t5_config import T5Config
from jaxmtl.partitioning import make_mesh, shardings_for

BATCH, LENGTH, WIDTH, HEADS = 2, 9, 12, 3
SIZES = dict(vocab_size=32, embed_dim=WIDTH, num_heads=HEADS, mlp_dim=20, num_encoder_layers=1, num_decoder_layers=1)
MODULES = {
    "t5": t5_layers.MultiHeadAttention(T5Config(head_dim=5, dropout_rate=0.3, **SIZES)),
    "bart": bart_layers.MultiHeadAttention(BARTConfig(attention_dropout_rate=0.3, **SIZES)),
}
BOTH = pytest.mark.parametrize("name", MODULES)


def drawn(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def params_of(module, seed):
    shapes = nn.unbox(jax.eval_shape(lambda: attend(module, {}, drawn(0, 2, 1, WIDTH), init=True)))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [drawn(seed + number, *leaf.shape) / 3 for number, leaf in enumerate(leaves)])


def attend(module, variables, x, mask=None, *, init=False):
    call = (jnp.asarray(x), jnp.asarray(drawn(1, BATCH, LENGTH, WIDTH)), None, mask)
    return module.init(jax.random.key(0), *call, train=False) if init else module.apply(variables, *call, train=False)


@contextlib.contextmanager
def absorbing(gain):
    """Absorbs where that is less arithmetic by this factor; yields the calls that did."""
    calls = mock.Mock(side_effect=absorbed.attend_to_memory)
    with mock.patch.object(absorbed, "LEAST_GAIN", gain), contextlib.ExitStack() as stack:
        for layers in (t5_layers, bart_layers):
            stack.enter_context(mock.patch.object(layers, "attend_to_memory", calls))
        yield calls


ALWAYS, NEVER = 0.0, float("inf")


def by_hand(module, params, x, seen):
    """Each row, query and head on its own, in float64."""
    memory, heads = drawn(1, BATCH, LENGTH, WIDTH).astype(np.float64), module.config.num_heads
    project = lambda layer, y: y @ params[layer]["kernel"].astype(np.float64) + params[layer].get("bias", 0.0)
    rows, scale = x.shape[0] // BATCH, module.config.head_dim**-0.5 if "bias" in params["query"] else 1.0
    mixed = np.zeros((*x.shape[:2], heads, module.config.head_dim))
    for row, query in enumerate(project("query", x.astype(np.float64)) * scale):
        real = memory[row // rows][seen[row // rows]]
        if not len(real):
            continue
        keys, values = (project(layer, real).reshape(len(real), heads, -1) for layer in ("key", "value"))
        for place, one in enumerate(query.reshape(x.shape[1], heads, -1)):
            scores = np.einsum("hk,shk->hs", one, keys)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[row, place] = np.einsum("hs,shk->hk", weights / weights.sum(axis=1, keepdims=True), values)
    return project("out", mixed.reshape(*x.shape[:2], -1))


@BOTH
@given(rows=st.sampled_from([1, 3]), queries=st.sampled_from([1, 4]), seed=st.integers(0, 2**16), data=st.data())
def test_it_is_what_keys_and_values_give(name, rows, queries, seed, data):
    lengths = data.draw(st.lists(st.integers(0, LENGTH), min_size=BATCH, max_size=BATCH))
    seen = np.arange(LENGTH) < np.array(lengths)[:, None]
    module, x = MODULES[name], drawn(seed, BATCH * rows, queries, WIDTH)
    params = params_of(module, seed)
    with absorbing(ALWAYS) as calls:
        found = attend(module, {"params": params}, x, Mask(keys=jnp.asarray(seen)))
    assert calls.call_count == 1
    # Sums of a few dozen float32 terms of size 1.
    np.testing.assert_allclose(found, by_hand(module, params, x, seen), atol=2e-5)


def others(module):
    """What may add to a cross-attention's keys and values, by name."""
    inner, width = HEADS * module.config.head_dim, (HEADS, module.config.head_dim)
    both = lambda *shape: {name: drawn(len(name), *shape) for name in ("key", "value")}
    update = lambda seed, *rows: {"a": drawn(seed, *rows, WIDTH, 2) / 3, "b": drawn(seed + 1, *rows, 2, inner) / 3}
    dropping = {"keys": np.arange(2 * BATCH, dtype=np.uint32).reshape(BATCH, 2), "drop_rate": np.float32(0.5)}
    found = {
        "a prefix": {"prefix": both(1, 4, inner)},
        "prefixes": {"prefix": both(BATCH, 4, inner)},
        "instructions": {"instruction": both(3, 4, *width) | {"index": np.array([2, 0])}},
        "an update": {"lora": {"key": update(5), "value": update(7)}},
        "updates": {"lora": {"key": update(5, BATCH), "value": update(7, BATCH)}},
        "updates that drop": {"lora": {"key": update(5, BATCH) | dropping, "value": update(7, BATCH) | dropping}},
    }
    return found | {"all": found["prefixes"] | found["instructions"] | found["updates that drop"]}


@BOTH
@pytest.mark.parametrize(
    "kind", ["a prefix", "prefixes", "instructions", "an update", "updates", "updates that drop", "all"]
)
def test_what_adapts_an_attention_counts_as_where_keys_and_values_are_made(name, kind):
    module, x = MODULES[name], drawn(3, BATCH * 3, 2, WIDTH)
    given = others(module)[kind]
    variables, length = {"params": params_of(module, 4)}, 4 + LENGTH if "instruction" in given else LENGTH
    seen = Mask(keys=jnp.arange(length) < jnp.array([[length], [length - 5]]))
    with absorbing(ALWAYS) as calls:
        found = attend(module, variables | given, x, seen)
        plain = attend(module, variables, x)
    with absorbing(NEVER) as others_calls:
        expected = attend(module, variables | given, x, seen)
    assert calls.call_count == 2 and not others_calls.called
    assert np.abs(expected - plain).max() > 1e-2
    # Sums of a few dozen float32 terms of size 1.
    np.testing.assert_allclose(found, expected, atol=2e-5)


def results(module, x, mask, adapted, gain):
    """What training with dropout gives: found, gradients by x, memory, and floats of the variables, absorbing calls."""
    memory, variables = drawn(1, BATCH, LENGTH, WIDTH), {"params": params_of(module, 4)} | adapted
    leaves, tree = jax.tree.flatten(variables)
    is_float = [np.issubdtype(leaf.dtype, np.floating) and leaf.ndim > 0 for leaf in leaves]

    def total(given):
        x, memory, floats = given
        whole = jax.tree.unflatten(tree, [floats.get(i, leaf) for i, leaf in enumerate(leaves)])
        found = module.apply(whole, x, memory, None, mask, train=True, rngs={"dropout": jax.random.key(0)})
        return jnp.sum(found * drawn(9, *found.shape)), found

    with absorbing(gain) as calls:
        given = (x, memory, {i: leaf for i, leaf in enumerate(leaves) if is_float[i]})
        (_, found), (by_x, by_memory, by_floats) = jax.value_and_grad(total, has_aux=True)(given)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    return found, (by_x, by_memory, {paths[i]: leaf for i, leaf in by_floats.items()}), calls.call_count


@BOTH
@pytest.mark.parametrize("kind", ["packed", "instructions", "all"])
def test_training_with_dropout_moves_everything_as_where_keys_and_values_are_made(name, kind):
    module, x = MODULES[name], drawn(3, BATCH, 4, WIDTH)
    adapted = {} if kind == "packed" else others(module)[kind]
    mask = Mask(keys=jnp.tile(jnp.arange(4 + LENGTH) > 1, (BATCH, 1)))
    if kind == "packed":
        segments = jnp.tile(jnp.arange(LENGTH) // 3 + 1, (BATCH, 1))
        mask = Mask(keys=segments, queries=jnp.array([[1, 1, 2, 2], [1, 2, 2, 3]]))
    found, gradients, absorbed = results(module, x, mask, adapted, ALWAYS)
    expected, their_gradients, projected = results(module, x, mask, adapted, NEVER)
    assert (absorbed, projected) == (1, 0)
    # Sums of a hundred float32 terms of size 1.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), (found, gradients), (expected, their_gradients)
    )
    undropped = module.apply(
        {"params": params_of(module, 4)} | adapted, x, drawn(1, BATCH, LENGTH, WIDTH), None, mask, train=False
    )
    assert np.abs(found - undropped).max() > 1e-2
    key_bias = "['params']['key']['bias']"  # of all keys that a query sees, it moves nothing
    moved = {path: np.abs(leaf).max() > 1e-3 for path, leaf in gradients[2].items() if path != key_bias}
    assert all(moved.values()), moved
    assert np.abs(gradients[0]).max() > 1e-3 and np.abs(gradients[1]).max() > 1e-3


@BOTH
def test_a_query_that_sees_nothing_moves_nothing(name):
    module, x = MODULES[name], drawn(3, BATCH, 4, WIDTH)
    mask = Mask(keys=jnp.array([[True] * LENGTH, [False] * LENGTH]))
    _, (by_x, by_memory, by_params), absorbed = results(module, x, mask, {}, ALWAYS)
    assert absorbed == 1 and all(np.isfinite(leaf).all() for leaf in by_params.values())
    assert np.abs(by_x[0]).max() > 1e-3 and np.abs(by_memory[0]).max() > 1e-3
    assert not np.any(by_x[1]) and not np.any(by_memory[1])


@BOTH
def test_bfloat16_is_as_near_to_float32_as_keys_and_values_are(name):
    half = dataclasses.replace(MODULES[name].config, dtype="bfloat16")
    module, x = MODULES[name].clone(config=half), drawn(3, BATCH * 3, 2, WIDTH)
    variables = {"params": params_of(module, 4)} | others(module)["prefixes"] | others(module)["updates"]
    with absorbing(NEVER):
        exact = attend(MODULES[name], variables, x)
        projected = attend(module, variables, x)
    with absorbing(ALWAYS) as calls:
        found = attend(module, variables, x)
    assert calls.call_count == 1 and found.dtype == jnp.bfloat16
    error = lambda y: float(np.linalg.norm(y.astype(np.float32) - exact) / np.linalg.norm(exact))
    # Both round some five times on the way, each by up to 2^-9 = 0.2% of a value.
    assert error(projected) < 0.01 and error(found) < 0.01


@BOTH
def test_parameters_count_as_they_are_made_too(name):
    module, x = MODULES[name], drawn(3, BATCH, 1, WIDTH)
    boxed = attend(module, {}, x, init=True)
    with absorbing(ALWAYS) as calls:
        np.testing.assert_array_equal(attend(module, boxed, x), attend(module, nn.unbox(boxed), x))
    assert calls.call_count == 2


@BOTH
@pytest.mark.parametrize("heads", [2, 3])  # a device holds one, or one and a half
def test_kernels_that_devices_share_count_as_whole_ones(name, heads):
    changed = dict(num_heads=heads) | (dict(head_dim=4) if name == "t5" else {})
    module = MODULES[name].clone(config=dataclasses.replace(MODULES[name].config, **changed))
    x, params = drawn(3, BATCH * 3, 2, WIDTH), params_of(module, 4)
    boxed = jax.eval_shape(lambda: attend(module, {}, x[:BATCH], init=True))["params"]
    placed = jax.device_put(params, shardings_for(boxed, make_mesh(data=1, fsdp=2, tensor=2)))
    run = jax.jit(lambda params: attend(module, {"params": params}, x))
    with absorbing(ALWAYS) as calls:
        found = run(placed)
    assert calls.call_count == 1
    assert placed["key"]["kernel"].addressable_shards[0].data.size == params["key"]["kernel"].size // 4
    # Sums of a few dozen float32 terms of size 1.
    np.testing.assert_allclose(found, by_hand(module, params, x, np.ones((BATCH, LENGTH), bool)), atol=2e-5)


@pytest.mark.parametrize("queries, does", [(1, True), (12, True), (24, True), (48, False), (256, False)])
def test_few_queries_absorb_and_save_arithmetic(queries, does):
    module = t5_layers.MultiHeadAttention(T5Config(**SIZES | dict(embed_dim=512, num_heads=6, head_dim=64)))
    call = jax.eval_shape(lambda: (jnp.zeros((2, queries, 512)), jnp.zeros((2, 224, 512))))
    variables = nn.unbox(
        jax.eval_shape(lambda *call: module.init(jax.random.key(0), *call, None, None, train=False), *call)
    )

    def cost(gain):
        with absorbing(gain) as calls:
            run = jax.jit(lambda variables, *call: module.apply(variables, *call, None, None, train=False))
            compiled = run.lower(variables, *call).compile()
        return compiled.cost_analysis()["flops"], calls.called

    (chosen, absorbs), (projected, _) = cost(absorbed.LEAST_GAIN), cost(NEVER)
    assert absorbs == does
    assert chosen < 0.75 * projected if does else chosen == projected
