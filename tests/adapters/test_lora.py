"""Adapters: which layers they change, how they start, one for all rows or each row its own, merged or beside."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.adapters import rows
from jaxmtl.adapters.lora import LoRA, check_adapter, init_adapter, merge, unmerge
from jaxmtl.adapters.targets import kernels, matching
from jaxmtl.models.bart import BART
from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import GPT2Config, OPTConfig
from jaxmtl.models.initial import initial_arguments
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.models.trees import flat, nested
from jaxmtl.types import InputError, UnknownNameError

SIZES = dict(vocab_size=40, embed_dim=12, num_heads=3, mlp_dim=20)
T5_CONFIG = T5Config(**SIZES, head_dim=5, num_encoder_layers=2, num_decoder_layers=3, dropout_rate=0.0)
LORA = LoRA(rank=3, alpha=6.0)
INPUTS = np.array([[5, 6, 7, 8, 1], [9, 10, 1, 0, 0], [11, 1, 0, 0, 0]], np.int32)
DECODER_INPUTS = np.array([[0, 4, 5], [0, 6, 7], [0, 8, 0]], np.int32)


def filled(adapter, seed):
    """An adapter whose `b` is not zero."""
    leaves, treedef = jax.tree.flatten(adapter.tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draw = lambda key, leaf: jax.random.normal(key, leaf.shape) * 0.3
    return dataclasses.replace(adapter, tree=jax.tree.unflatten(treedef, map(draw, keys, leaves)))


@pytest.fixture(scope="module")
def t5():
    module = T5(T5_CONFIG)
    params = jax.jit(module.init)(jax.random.key(0), **initial_arguments(module))["params"]
    return module, jax.tree.map(lambda leaf: leaf.value, params, is_leaf=lambda leaf: hasattr(leaf, "names"))


@functools.partial(jax.jit, static_argnums=0)
def logits(module, params, adapters=None, inputs=INPUTS, decoder_inputs=DECODER_INPUTS):
    return module.apply(rows.variables(params, adapters), inputs=inputs, decoder_inputs=decoder_inputs)


def test_a_new_adapter_changes_nothing(t5):
    module, params = t5
    adapter = init_adapter(module, LORA, jax.random.key(1))
    np.testing.assert_array_equal(logits(module, params), logits(module, params, adapter.collection()))


def test_a_layer_adds_the_scaled_product_by_hand(t5):
    module, params = t5
    adapter = filled(init_adapter(module, LORA, jax.random.key(1)), 2)
    by_hand = flat(params)
    factors = flat(adapter.tree)
    for path in adapter.targets:
        pairs = zip(factors[f"{path}/a"], factors[f"{path}/b"], strict=True)
        update = np.stack([np.asarray(a) @ np.asarray(b) for a, b in pairs])
        by_hand[f"{path}/kernel"] = by_hand[f"{path}/kernel"] + 2.0 * update
    expected = logits(module, nested(by_hand))
    found = logits(module, params, adapter.collection())
    assert np.abs(found - logits(module, params)).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_merged_equals_beside_and_comes_out_again(t5):
    module, params = t5
    adapter = filled(init_adapter(module, dataclasses.replace(LORA, targets="all"), jax.random.key(1)), 3)
    merged = merge(params, adapter)
    np.testing.assert_allclose(logits(module, merged), logits(module, params, adapter.collection()), atol=5e-5)
    for back, leaf in zip(jax.tree.leaves(unmerge(merged, adapter)), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(back, leaf, atol=1e-6)


def test_each_row_may_use_its_own_adapter(t5):
    module, params = t5
    several = [filled(init_adapter(module, LORA, jax.random.key(seed)), seed) for seed in range(3)]
    stacked = rows.stack([adapter.collection() for adapter in several])
    chosen = np.array([2, 0, 2], np.int32)
    together = logits(module, params, rows.collection(rows.take(stacked, chosen)))
    for row, number in enumerate(chosen):
        alone = logits(
            module, params, several[number].collection(), INPUTS[row : row + 1], DECODER_INPUTS[row : row + 1]
        )
        np.testing.assert_allclose(together[row], alone[0], atol=2e-5)


def test_rows_of_one_input_share_its_adapter(t5):
    module, params = t5
    several = [filled(init_adapter(module, LORA, jax.random.key(seed)), seed) for seed in range(2)]
    stacked = rows.stack([adapter.collection() for adapter in several])
    adapters = rows.collection(rows.take(stacked, np.array([1, 0])))
    targets = np.array([[0, 4, 5], [0, 6, 7], [0, 8, 9], [0, 4, 6]], np.int32)  # two of each input

    @jax.jit
    def run(params, adapters):
        call = lambda *arguments, method: module.apply(rows.variables(params, adapters), *arguments, method=method)
        return call(targets, call(INPUTS[:2], method="encode"), INPUTS[:2] != 0, method="decode")

    found = run(params, adapters)
    for row, number in enumerate([1, 1, 0, 0]):
        alone = logits(
            module, params, several[number].collection(), INPUTS[row // 2 : row // 2 + 1], targets[row : row + 1]
        )
        np.testing.assert_allclose(found[row], alone[0], atol=2e-5)


def test_dropout_of_a_row_depends_on_its_key_and_positions_alone(t5):
    module, params = t5
    adapter = filled(init_adapter(module, LORA, jax.random.key(1)), 2)
    keys = jax.random.split(jax.random.key(5), 3)

    def run(index, width):
        tree = rows.collection(rows.take(rows.stack([adapter.collection()]), np.zeros(len(index), np.int32)))
        dropped = rows.with_dropout(tree, keys[index], 0.5)
        inputs = np.pad(INPUTS[index], ((0, 0), (0, width - INPUTS.shape[1])))
        return logits(module, params, dropped, inputs, DECODER_INPUTS[index])

    together = run(np.array([0, 1, 2]), 5)
    np.testing.assert_allclose(together[1:2], run(np.array([1]), 9), atol=2e-5)
    assert np.abs(together - logits(module, params, adapter.collection())).max() > 0.05


def test_dropout_keeps_the_mean():
    from jaxmtl.models.low_rank import LowRank, low_rank_update

    x, a, b = np.ones((1, 4000, 2), np.float32), np.eye(2, dtype=np.float32)[None], np.eye(2, dtype=np.float32)[None]
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 1))
    dropped = np.asarray(low_rank_update(x, LowRank(a, b, keys, jnp.float32(0.2))))
    assert set(np.unique(dropped.round(4))) == {0.0, 1.25}
    # 8,000 draws: the share kept has a standard error of 0.0045; five of them.
    assert abs((dropped > 0).mean() - 0.8) < 0.023


def test_values_are_dropped_independently_of_each_other():
    from jaxmtl.models.low_rank import LowRank, low_rank_update

    num_keys, length, width = 8, 500, 16
    x, eye = np.ones((num_keys, length, width), np.float32), np.eye(width, dtype=np.float32)
    keys = jax.random.key_data(jax.random.split(jax.random.key(3), num_keys))
    factors = np.broadcast_to(eye, (num_keys, width, width))
    kept = np.asarray(low_rank_update(x, LowRank(factors, factors, keys, jnp.float32(0.3)))) > 0
    centred = kept - kept.mean()
    # Correlations of n pairs of independent values have a standard error of n^-1/2; five of them.
    for one, other in (
        (centred[:-1], centred[1:]),
        (centred[:, :-1], centred[:, 1:]),
        (centred[..., :-1], centred[..., 1:]),
    ):
        assert abs((one * other).mean() / centred.var()) < 5 * one.size**-0.5


def test_presets_name_the_layers_that_peft_names(t5):
    module, _ = t5
    attention = ["encoder/attention", "decoder/self_attention", "decoder/cross_attention"]
    assert set(matching(module, "q,v")) == {f"{path}/{name}" for path in attention for name in ("query", "value")}
    assert "lm_head" not in kernels(T5(dataclasses.replace(T5_CONFIG, tied_head=False)))
    assert set(matching(module, "all")) == set(kernels(module))
    assert set(matching(module, [r"decoder/.*/query", "encoder/mlp/wo"])) == {
        "decoder/self_attention/query",
        "decoder/cross_attention/query",
        "encoder/mlp/wo",
    }


@pytest.mark.parametrize(
    "module",
    [
        BART(BARTConfig(**SIZES, num_encoder_layers=1, num_decoder_layers=1, max_positions=16)),
        GPT(GPT2Config(**SIZES, num_layers=2, max_positions=16, pad_id=0, eos_id=1)),
        GPT(OPTConfig(**SIZES, token_dim=12, num_layers=2, max_positions=16, pad_id=0, eos_id=1)),
    ],
    ids=["bart", "gpt2", "opt"],
)
def test_other_families_read_adapters_too(module):
    params = jax.jit(module.init)(jax.random.key(0), **initial_arguments(module))["params"]
    params = jax.tree.map(lambda leaf: leaf.value, params, is_leaf=lambda leaf: hasattr(leaf, "names"))
    adapter = filled(init_adapter(module, dataclasses.replace(LORA, targets="all"), jax.random.key(1)), 2)
    targets = {"decoder_inputs": DECODER_INPUTS} if "decoder_inputs" in initial_arguments(module) else {}
    run = jax.jit(lambda params, adapters: module.apply(rows.variables(params, adapters), inputs=INPUTS, **targets))
    beside, merged = run(params, adapter.collection()), run(merge(params, adapter), None)
    assert np.abs(beside - run(params, None)).max() > 0.05
    np.testing.assert_allclose(beside, merged, atol=1e-4)


def test_initialisation_is_pefts(t5):
    module, _ = t5
    layers = matching(module, "q,v")
    leaves = flat(init_adapter(module, LORA, jax.random.key(7)).tree)
    drawn = np.concatenate([leaves[f"{path}/a"].ravel() for path in layers]) * 12**0.5
    assert np.abs(drawn).max() <= 1 and np.abs(drawn).max() > 0.98
    # A uniform draw from ±1 has variance 1/3 with a standard error of 0.3 / √n; five of them.
    assert abs(drawn.var() - 1 / 3) < 5 * 0.3 / len(drawn) ** 0.5
    assert all(not leaves[f"{path}/b"].any() for path in layers)
    alone = flat(
        init_adapter(module, dataclasses.replace(LORA, targets="encoder/attention/value"), jax.random.key(7)).tree
    )
    np.testing.assert_array_equal(alone["encoder/attention/value/a"], leaves["encoder/attention/value/a"])


def test_rank_stabilised_scale():
    adapter = init_adapter(T5(T5_CONFIG), LoRA(rank=4, alpha=8, scaling="rank_stabilised"), jax.random.key(0))
    assert adapter.scale == 4.0 and init_adapter(T5(T5_CONFIG), LORA, jax.random.key(0)).scale == 2.0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(rank=0), InputError, "rank 0"),
        (dict(alpha=0.0), InputError, "alpha 0.0"),
        (dict(dropout=1.0), InputError, "dropout of adapters is 1.0"),
        (dict(scaling="rslora"), UnknownNameError, "rank_stabilised"),
        (dict(targets="encoder/attention/quary"), UnknownNameError, "encoder/attention/query"),
        (dict(targets="(query"), InputError, "no regular expression"),
        (dict(targets=()), InputError, "no target for adapters"),
    ],
)
def test_bad_options_are_refused(change, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        init_adapter(T5(T5_CONFIG), dataclasses.replace(LORA, **change), jax.random.key(0))


def test_an_adapter_that_does_not_fit_is_refused():
    adapter = init_adapter(T5(T5_CONFIG), LORA, jax.random.key(0))
    with pytest.raises(InputError, match="is it another model's"):
        check_adapter(adapter, T5(dataclasses.replace(T5_CONFIG, embed_dim=16)))
    with pytest.raises(UnknownNameError, match="unknown layer of the adapter 'encoder/attention/q'"):
        check_adapter(
            dataclasses.replace(adapter, tree={"encoder": {"attention": {"q": {"a": jnp.zeros(1)}}}}), T5(T5_CONFIG)
        )
    with pytest.raises(InputError, match="empty"):
        check_adapter(dataclasses.replace(adapter, tree={}), T5(T5_CONFIG))
    lonely = {"encoder": {"attention": {"query": {"a": adapter.tree["encoder"]["attention"]["query"]["a"]}}}}
    with pytest.raises(InputError, match="has factors"):
        check_adapter(dataclasses.replace(adapter, tree=lonely), T5(T5_CONFIG))
