"""The laws of hypernetworks: they start as the model itself and learn, and nobody's padding or neighbours matter."""

import functools

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hyper_toy import (
    BASE,
    DECODER_INPUTS,
    INDEX,
    INPUTS,
    INSTRUCTIONS,
    LAYERS,
    LORA,
    QUICK,
    SEEDS,
    SIZES,
    T5_CONFIG,
    adapt,
    batches,
    initial,
    logits,
    plain_logits,
    shaken,
    summed,
    toy,
)

from jaxmtl.adapters import rows
from jaxmtl.adapters.hyper_config import (
    BottleneckOutput,
    DecoderPooling,
    GeneratorConfig,
    HyperConfig,
    MeanPooling,
    PrefixOutput,
)
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.hyper_presets import PRESETS, hint, tagi, tagi_code, text_to_lora
from jaxmtl.adapters.slots import layout_of
from jaxmtl.models.bart import BART
from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import OPTConfig
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.stepping import Request
from jaxmtl.models.t5 import T5
from jaxmtl.models.trees import flat
from jaxmtl.types import InputError, UnknownNameError

UPDATES = HyperConfig(
    outputs=(LORA, BottleneckOutput(width=4)), memory="input", generator=GeneratorConfig(hidden=6, sharing="layer")
)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiles 2.5 times as fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


EXAMPLES = hypothesis.settings(max_examples=15, deadline=None)
FEW = hypothesis.settings(max_examples=5, deadline=None)


def started(config, reader=None, seed=0):
    module = HyperModel(config, BASE, reader)
    return module, initial(module, seed)


@functools.partial(jax.jit, static_argnums=0)
def gradient(module, params):
    return jax.grad(lambda own: summed(module, params | own))({k: v for k, v in params.items() if k != "base"})


@pytest.mark.long
@EXAMPLES
@hypothesis.given(SEEDS, batches())
def test_at_the_start_the_model_is_itself_whatever_the_instruction(seed, batch):
    module, params = started(UPDATES, seed=seed)
    found = logits(module, params, **batch)
    np.testing.assert_array_equal(found, plain_logits(BASE, params["base"], batch["inputs"], batch["decoder_inputs"]))
    generated = adapt(module, params, batch["instructions"]).generated
    updates = {path: leaf for path, leaf in flat(generated).items() if path.endswith(("/b", "/up", "/up_bias"))}
    assert len(updates) == 6 + 4
    assert not any(np.any(leaf) for leaf in updates.values())
    # Of some thousand random numbers one may be 0.
    assert all(np.mean(leaf != 0) > 0.99 for path, leaf in flat(generated["lora"]).items() if path.endswith("/a"))


@pytest.mark.long
@FEW
@hypothesis.given(SEEDS)
def test_at_the_start_the_layers_behind_the_updates_learn_and_a_step_later_every_parameter_does(seed):
    # An update that is 0 for every instruction cannot depend on what lies before the layer that makes it 0.
    module, params = started(UPDATES, seed=seed)
    first = flat(gradient(module, params))
    alive = {path for path, leaf in first.items() if np.any(leaf)}
    makes_zero = {path for path in first if "/output/" in path and ("_b/" in path or "_up" in path)} | {"fusion/out"}
    assert len(makes_zero) == 2 * (3 + 4) + 1
    assert alive == makes_zero
    assert all(np.mean(first[path] != 0) > 0.99 for path in makes_zero)
    moved = jax.tree.map(
        lambda leaf, grad: leaf - 0.1 * grad, {k: params[k] for k in ("network", "fusion")}, gradient(module, params)
    )
    second = flat(gradient(module, params | moved))
    # gelu's derivative rounds to 0 for no input near these; every number of every leaf moves.
    assert {path for path, leaf in second.items() if np.mean(leaf != 0) < 0.99} == set()


@pytest.mark.long
def test_the_start_of_tagis_code_hardly_learns():
    module, params = started(tagi_code(outputs=(LORA,)), T5(T5_CONFIG))
    found = flat({name: leaf for name, leaf in gradient(module, params)["network"].items()})
    # Adam adds 1e-8 to the root of the second moment: what is below does not move.
    assert max(np.abs(leaf).max() for leaf in found.values()) < 1e-8
    assert max(np.abs(leaf).max() for leaf in flat(adapt(module, params, INSTRUCTIONS).generated).values()) < 1e-5


ROWS = st.lists(st.lists(st.integers(2, 39), min_size=1, max_size=6), min_size=3, max_size=3)


def padded(instructions, width):
    return np.array([row + [0] * (width - len(row)) for row in instructions], np.int32)


@pytest.mark.parametrize(
    "config",
    [
        HyperConfig(outputs=(LORA, PrefixOutput(length=2)), generator=GeneratorConfig(hidden=6)),
        HyperConfig(outputs=(LORA,), pooling=MeanPooling(), generator=GeneratorConfig(hidden=6, sharing="layer")),
        HyperConfig(outputs=(LORA,), pooling=DecoderPooling(num_layers=1), identity="query"),
    ],
    ids=lambda config: type(config.pooling).__name__,
)
@EXAMPLES
@hypothesis.given(ROWS)
def test_an_adapter_depends_on_its_own_instruction_alone(config, instructions):
    module, params = toy(config)
    together = adapt(module, params, padded(instructions, 6)).generated
    others = [[7], instructions[1], [8, 9, 10, 11]]
    elsewhere = adapt(module, params, padded(others, 11)).generated
    for path, leaf in flat(together).items():
        # Sums of a dozen terms of size 1 in another order.
        np.testing.assert_allclose(flat(elsewhere)[path][1], leaf[1], atol=2e-5, err_msg=path)


@pytest.mark.long
def test_instructions_are_read_once_and_each_row_uses_its_own():
    module, params = toy()
    found = logits(module, params, INPUTS, DECODER_INPUTS, INSTRUCTIONS, INDEX)
    for row, number in enumerate(INDEX):
        alone = logits(
            module, params, INPUTS[row : row + 1], DECODER_INPUTS[row : row + 1], INSTRUCTIONS[number : number + 1]
        )
        np.testing.assert_allclose(found[row], alone[0], atol=5e-5)
    other = logits(module, params, INPUTS, DECODER_INPUTS, INSTRUCTIONS, (INDEX + 1) % 3)
    assert np.abs(found - other).max() > 0.1
    encoded = jax.make_jaxpr(lambda p: logits(module, p, INPUTS, DECODER_INPUTS, INSTRUCTIONS, INDEX))(params)
    assert "i32[3,6]" in str(encoded)  # the instructions as they are, not one for each of the 4 rows
    assert "i32[4,6]" not in str(encoded)


@functools.partial(jax.jit, static_argnames="method")
def of_base(params, *arguments, method):
    return BASE.apply({"params": params}, *arguments, method=method)


# Texts of two lengths each: those of a row alone are as long as their words, and compiled for each length.
@EXAMPLES
@hypothesis.given(batches(input_lengths=st.sampled_from([2, 5]), instruction_lengths=st.sampled_from([3, 6])))
def test_a_memory_of_instruction_and_input_is_that_of_a_row_alone(batch):
    module, params = toy(HyperConfig(outputs=(), fusion="none"))
    found = logits(module, params, **batch)
    for row, number in enumerate(batch["index"]):
        both = [ids[ids != 0][None] for ids in (batch["instructions"][number], batch["inputs"][row])]
        memory = np.concatenate([of_base(params["base"], ids, method="encode") for ids in both], axis=1)
        seen = np.ones(memory.shape[:2], bool)
        alone = of_base(params["base"], batch["decoder_inputs"][row : row + 1], memory, seen, method="decode")
        # Sums of a dozen terms of size 1 in another order, through four layers.
        np.testing.assert_allclose(found[row], alone[0], atol=2e-5)


@functools.partial(jax.jit, static_argnums=0)
def stepwise(base, variables, inputs, targets):
    """Logits of targets, one position after the other, over a cache."""
    request = Request(
        module=base,
        variables=variables,
        inputs=inputs,
        input_mask=inputs != 0,
        max_tokens=3,
        num_tokens=None,
        rules=(),
        memory=base.apply(variables, inputs, inputs != 0, method="encode"),
    )
    _, cache = request.start()
    given = []
    for position in range(targets.shape[1]):
        step, cache = request.logits(targets[:, position], jax.numpy.asarray(position), cache)
        given.append(step)
    return jax.numpy.stack(given, axis=1)


@jax.jit
def of_rows(kept, index):
    return kept.collections(index)


BART_BASE = BART(BARTConfig(**SIZES, **LAYERS, **QUICK, max_positions=16, pad_id=0))
OPT_BASE = GPT(OPTConfig(**SIZES, **QUICK, num_layers=2, max_positions=24, pad_id=0))
OF_DECODERS = HyperConfig(
    outputs=(LORA, PrefixOutput(length=2), BottleneckOutput(width=4)),
    fusion="none",
    memory="input",
    generator=GeneratorConfig(hidden=6),
)


@pytest.mark.parametrize(
    "options",
    [
        (),
        pytest.param((HyperConfig(outputs=(LORA,), fusion="post_norm"), BART_BASE), marks=pytest.mark.long),
        pytest.param((OF_DECODERS, OPT_BASE), marks=pytest.mark.long),
    ],
    ids=["T5 with everything", "BART with fusion and memory", "OPT with prefixes"],
)
@EXAMPLES
@hypothesis.given(batches())
def test_what_is_kept_of_an_instruction_answers_as_if_read_again(options, batch):
    module, params = toy(*options)
    own, decoder_inputs = {"params": params["base"]}, batch["decoder_inputs"].copy()
    decoder_inputs[:, 0] = module.base.apply(own, batch["inputs"], method="first_tokens")
    whole = logits(module, params, **(batch | {"decoder_inputs": decoder_inputs}))
    kept = adapt(module, params, batch["instructions"])
    cached = stepwise(module.base, own | of_rows(kept, batch["index"]), batch["inputs"], decoder_inputs)
    # Norms divide by the spread of what they read, which some texts make small: roundings of 1e-7 grow to 3e-4.
    np.testing.assert_allclose(cached, whole, atol=1e-3)
    plain = plain_logits(module.base, params["base"], batch["inputs"], decoder_inputs)
    assert np.abs(plain - whole).max() > 0.1


@pytest.mark.long
def test_bfloat16_is_close_to_float32():
    import dataclasses

    narrow = T5(dataclasses.replace(T5_CONFIG, dtype="bfloat16"))
    module, params = started(tagi(outputs=(LORA,)))
    same = HyperModel(module.hyper, narrow)
    params = shaken(params, spread=0.05)
    wide = logits(module, params, INPUTS, DECODER_INPUTS, INSTRUCTIONS, INDEX)
    found = logits(same, params, INPUTS, DECODER_INPUTS, INSTRUCTIONS, INDEX)
    # bfloat16 has 8 bits: a few percent of the logits' spread after four layers.
    assert np.abs(found - wide).max() < 0.1 * np.abs(wide).max()


SMALL = {"outputs": (LORA,), "generator": GeneratorConfig(hidden=4)}
PRESETS_OF_TOYS = {
    "tagi": (tagi(**SMALL), None),
    "tagi_code": (tagi_code(outputs=(LORA,)), T5(T5_CONFIG)),
    "hint": (hint(outputs=(PrefixOutput(length=2), BottleneckOutput(width=2))), None),
    "hypertuning": (PRESETS["hypertuning"](outputs=(PrefixOutput(length=2),)), T5(T5_CONFIG)),
    "hypter": (PRESETS["hypter"](), T5(T5_CONFIG)),
    "text_to_lora": (text_to_lora(tasks=[*"abcde"], **SMALL), None),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long) for name in PRESETS])
def test_every_preset_adapts_a_model(name):
    config, reader = PRESETS_OF_TOYS[name]
    module, params = toy(config, BASE, reader)
    instructions = np.array([[1], [4], [0]]) if name == "text_to_lora" else INSTRUCTIONS
    found = logits(module, params, INPUTS, DECODER_INPUTS, instructions, INDEX)
    plain = plain_logits(BASE, params["base"], INPUTS, DECODER_INPUTS)
    assert np.abs(found - plain).max() > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("name", ["tagi_code", "hypertuning", "hypter"])
def test_only_what_a_preset_trains_learns(name):
    config, reader = PRESETS_OF_TOYS[name]
    module, params = toy(config, BASE, reader)
    grads = jax.jit(jax.grad(functools.partial(summed, module)))(params)
    moving = {path for path, leaf in flat(grads["base"]).items() if np.any(leaf)}
    if name == "hypter":
        assert len(moving) == len(flat(grads["base"]))
    elif name == "hypertuning":
        assert not moving
    else:
        assert moving and all("norm" in path or "token_embedding" in path for path in moving)
    assert np.any(grads["reader"]["token_embedding"]["embedding"]) == (name != "tagi_code")


def test_a_reader_of_another_width_cannot_stand_in_the_memory():
    import dataclasses

    wide = T5(dataclasses.replace(T5_CONFIG, embed_dim=16))
    with pytest.raises(InputError, match="states of width 16 cannot stand in a memory of width 12"):
        initial(HyperModel(HyperConfig(encoder="separate", outputs=(LORA,)), BASE, wide))
    other = HyperConfig(encoder="separate", outputs=(LORA,), memory="input", generator=GeneratorConfig(hidden=4))
    module, params = toy(other, BASE, wide)
    assert logits(module, params, INPUTS, DECODER_INPUTS, INSTRUCTIONS, INDEX).shape == (4, 3, 40)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: HyperConfig(fusion="pre"), "unknown fusion of a hypernetwork 'pre'"),
        (lambda: HyperConfig(pooling=MeanPooling(), identity="query"), "needs a pooling of slots"),
        (lambda: HyperConfig(outputs=(LORA, LORA)), "expected each kind once"),
        (lambda: HyperConfig(outputs=(), fusion="none", memory="input"), "it changes nothing"),
        (lambda: HyperConfig(encoder="learned"), "needs the names of its tasks"),
        (lambda: GeneratorConfig(sharing="layers"), "unknown sharing of a generator"),
        (lambda: initial(HyperModel(HyperConfig(encoder="frozen"), BASE)), "takes one as reader"),
        (lambda: initial(HyperModel(HyperConfig(outputs=(LORA,)), OPT_BASE)), "has no encoder beside its decoder"),
        (
            lambda: initial(HyperModel(tagi_code(outputs=(LORA,), memory="input"), OPT_BASE, OPT_BASE)),
            "TagiCodePooling reads an encoder's layers, which GPT has not",
        ),
        (
            lambda: layout_of(BASE, [PrefixOutput(targets="encodr")], GeneratorConfig()),
            "target of a prefix",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(wrong, message):
    with pytest.raises((InputError, UnknownNameError), match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_rows_of_a_collection_are_those_of_their_instruction():
    module, params = toy()
    kept = adapt(module, params, INSTRUCTIONS)
    given = kept.collections(INDEX)
    path = "encoder/attention/query/b"
    taken = rows.take(flat(kept.generated["lora"])[path], INDEX)
    np.testing.assert_allclose(flat(given["lora"])[path], np.moveaxis(taken, 0, 1) * 2.0, rtol=1e-6)


def test_tasks_that_are_learned_by_name_take_no_instructions():
    module = HyperModel(text_to_lora(tasks=[*"abcde"]), BASE)
    read = lambda params: module.apply({"params": params}, INSTRUCTIONS, method="adapt")
    with pytest.raises(InputError, match="reads one number for each; found rows of 6 ids"):
        jax.eval_shape(read, nn.unbox(abstract_params(module)))
