import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models.head_config import Head
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.roberta import Roberta, RobertaWithHeads, roberta
from jaxmtl.models.roberta_config import SIZES, RobertaConfig, named_config
from jaxmtl.models.roberta_layers import position_ids
from jaxmtl.types import InputError, UnknownNameError
from jaxmtl.weights import roberta_map
from jaxmtl.weights.key_table import to_ours

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "roberta.npz"
TINY = dict(vocab_size=30, embed_dim=8, num_heads=2, mlp_dim=12, num_layers=2, num_positions=16)
LABELS = ("a", "b", "c")
HEADS = {kind: Head(name="t", kind=kind, labels=() if kind == "span" else LABELS) for kind in ("class", "tags", "span")}


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, inputs):
    return module.apply({"params": params}, inputs)


@pytest.fixture(scope="module")
def tiny():
    module = Roberta(RobertaConfig(**TINY))
    rng = np.random.default_rng(3)
    random = lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), jnp.float32)
    return module, jax.tree.map(random, nn.unbox(abstract_params(module)))


@pytest.mark.parametrize("kind", HEADS)
def test_logits_are_those_that_torch_gave(kind):
    arrays = dict(np.load(GOLDEN))
    config = RobertaConfig(**TINY, heads=(HEADS[kind],))
    shapes = nn.unbox(abstract_params(roberta(config)))
    read = lambda name: arrays[f"weights/{kind}/{name}"]
    params = to_ours(roberta_map.key_table(config), read, shapes, lambda path, leaf: jnp.asarray(leaf), "golden")
    logits = apply(roberta(config), params, jnp.asarray(arrays["inputs"]))
    ours = np.asarray(next(one for one in (logits.classes, logits.tags, logits.spans) if one is not None))
    reference, real = arrays[f"logits/{kind}"], arrays["inputs"] != 1
    assert ours.dtype == np.float32
    if kind != "class":  # what stands on padding means nothing
        ours, reference = ours[real], reference[real]
    # Float32 sums in another order; a bug in positions, norms or scaling is orders of magnitude above this.
    assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()


def test_positions_count_real_tokens_wherever_padding_is():
    # By hand, padding id 1: the first token has position 2.
    real = jnp.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    assert position_ids(real, 1).tolist() == [[2, 3, 4, 1, 1], [1, 1, 2, 3, 4], [1, 1, 1, 1, 1]]


def test_padding_on_either_side_does_not_change_states(tiny):
    inputs = jnp.array([[0, 7, 8, 2], [0, 9, 4, 2]])
    alone = apply(*tiny, inputs)
    right = apply(*tiny, jnp.pad(inputs, ((0, 0), (0, 3)), constant_values=1))[:, :4]
    left = apply(*tiny, jnp.pad(inputs, ((0, 0), (3, 0)), constant_values=1))[:, 3:]
    np.testing.assert_allclose(right, alone, atol=2e-5)
    np.testing.assert_allclose(left, alone, atol=2e-5)


@pytest.mark.parametrize("options", [dict(remat="full"), dict(remat="none"), dict(scan_unroll=0)], ids=str)
def test_memory_and_speed_options_leave_gradients_alone(tiny, options):
    module, params = tiny
    other = Roberta(RobertaConfig(**TINY, **options))
    inputs = jnp.array([[0, 7, 8, 2, 1], [0, 9, 4, 3, 2]])
    grads = [jax.grad(lambda p, m=m: jnp.square(apply(m, p, inputs)[:, 1:3]).sum())(params) for m in (module, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *grads)


def test_dropout_needs_a_key_and_changes_states(tiny):
    module, params = tiny
    inputs = jnp.array([[0, 7, 8, 2]])
    dropping = jax.jit(functools.partial(module.apply, train=True))
    dropped = dropping({"params": params}, inputs, rngs={"dropout": jax.random.key(0)})
    assert np.abs(dropped - apply(module, params, inputs)).max() > 1e-2


def test_states_are_bfloat16_and_logits_float32_where_asked():
    config = RobertaConfig(**TINY, dtype="bfloat16", heads=tuple(HEADS[kind] for kind in ("class",)))
    module = RobertaWithHeads(config)
    shapes = nn.unbox(abstract_params(module))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    assert jax.eval_shape(module.apply, {"params": shapes}, tokens).classes.dtype == jnp.float32
    encoder = Roberta(dataclasses.replace(config, heads=()))
    assert jax.eval_shape(encoder.apply, {"params": shapes}, tokens).dtype == jnp.bfloat16


def test_more_tokens_than_positions_are_refused(tiny):
    module, params = tiny
    with pytest.raises(InputError, match="padded to 15 tokens, this model has positions for 14"):
        apply(module, params, jnp.zeros((1, 15), jnp.int32))


def test_every_parameter_of_a_published_size_is_in_the_key_table():
    for name in SIZES:
        config = named_config(name, heads=tuple(dataclasses.replace(head, name=k) for k, head in HEADS.items()))
        leaves = jax.tree_util.tree_leaves_with_path(nn.unbox(abstract_params(roberta(config))))
        ours = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}
        assert ours == {key.ours for key in roberta_map.key_table(config)}
    # Published: RoBERTa base has 124.65 million parameters without its language model head and with pooler (0.59).
    base = nn.unbox(abstract_params(Roberta(named_config("roberta-base"))))
    assert sum(leaf.size for leaf in jax.tree.leaves(base)) == 124_645_632 - 768 * 769


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(embed_dim=9), "embed_dim is 9; expected a multiple of num_heads, 2"),
        (dict(num_layers=0), "num_layers is 0; expected an integer, at least 1"),
        (dict(num_positions=2), "num_positions is 2; expected more than pad_id \\+ 1, 2"),
        (dict(pad_id=30), "pad_id is 30; expected less than vocab_size, 30"),
        (dict(attention_dropout_rate=1.0), "attention_dropout_rate is 1.0; expected at least 0 and below 1"),
        (dict(class_head="mlp"), "class_head is 'mlp'; expected one of dense_tanh, linear"),
        (dict(model_type="bert"), "model_type is 'bert'; expected one of roberta, xlm-roberta"),
        (dict(dtype="float16"), "dtype 'float16' is not possible for RoBERTa: .*; use 'bfloat16' or 'float32'"),
        (dict(heads=[HEADS["class"], HEADS["tags"]]), "two heads are for task 't'"),
    ],
    ids=str,
)
def test_what_no_roberta_can_be_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        RobertaConfig(**TINY | fields)


def test_an_unknown_size_names_the_closest():
    with pytest.raises(UnknownNameError, match="closest: roberta-base"):
        named_config("roberta-bas")


@pytest.mark.parametrize(
    "fields",
    [
        dict(),
        dict(heads=(HEADS["tags"],), model_type="xlm-roberta"),
        dict(heads=(HEADS["class"],), class_head="linear", num_types=2),
        dict(heads=tuple(dataclasses.replace(head, name=kind) for kind, head in HEADS.items()), pad_id=5),
    ],
    ids=str,
)
def test_what_a_config_may_say_survives_its_config_json(fields):
    config = RobertaConfig(**TINY, **fields)
    assert roberta_map.config_from_hf(roberta_map.config_to_hf(config), "x", config.dtype) == config


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(hidden_size=None), "field 'hidden_size' is missing; expected a RoBERTa config"),
        (dict(hidden_act="relu"), "hidden_act is 'relu'; expected 'gelu'"),
        (dict(position_embedding_type="relative_key"), "position_embedding_type is 'relative_key'"),
        (dict(hidden_size=9), "x/config.json: RoBERTa: embed_dim is 9; expected a multiple"),
        (dict(hidden_dropout_prob=1), "hidden_dropout_prob is '1', expected a number from 0 to 0.999"),
        (dict(jaxmtl_heads=[{"task": "x"}]), "jaxmtl_heads is .*; expected name, kind and labels"),
        (dict(jaxmtl_heads=None, architectures=["RobertaForTokenClassification"], id2label=["a"]), "id2label is "),
        (dict(problem_type="regression"), "problem_type is 'regression'; expected 'single_label_classification'"),
    ],
    ids=str,
)
def test_a_bad_config_json_is_refused(fields, message):
    raw = roberta_map.config_to_hf(RobertaConfig(**TINY)) | fields
    with pytest.raises(InputError, match=message):
        roberta_map.config_from_hf(raw, "x", "float32")
