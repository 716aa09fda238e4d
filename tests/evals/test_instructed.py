"""A trained hypernetwork in use: each instruction is read once, and answers are those of reading it again."""

import dataclasses

import jax
import numpy as np
import pytest
from hyper_toy import EVERYTHING, LORA, random_like

from jaxmtl.adapters import hypernet
from jaxmtl.adapters.hyper_config import GeneratorConfig, HyperConfig, MeanPooling, PrefixOutput
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.hypernet import Hyper, InstructionCache, adapters_of, generate_adapter, left_out, read_instructions
from jaxmtl.adapters.lora import merge
from jaxmtl.evals import instructed
from jaxmtl.evals.generation import generate
from jaxmtl.evals.scoring import loss, score_choices
from jaxmtl.models.shifting import shift_right
from jaxmtl.types import InputError, UnknownNameError
from jaxmtl.weights import load_adapter, save_adapter

PLAIN = HyperConfig(outputs=(LORA,), fusion="none", memory="input", generator=GeneratorConfig(hidden=6))
INSTRUCTIONS = ["say the opposite", "count the words of the text that is given", "say the opposite", "spell it"]
INPUTS = ["a good day", "one two three", "it is cold and late", "tree"]
BEAM = dict(max_tokens=5, method="beam", num_beams=2)
TARGETS = ["bad", "three", "warm", "t r e e"]


def hyper_of(pretrained, config):
    params = random_like(HyperModel(config, pretrained.module), seed=2, spread=0.2)
    return Hyper(config=config, params={name: tree for name, tree in params.items() if name != "base"})


@pytest.fixture(scope="module")
def full(pretrained):
    return hyper_of(pretrained, EVERYTHING)


@pytest.fixture(scope="module")
def cache(full, pretrained):
    return InstructionCache(full, pretrained)


@pytest.mark.long
def test_scores_with_kept_instructions_are_those_of_reading_everything_anew(full, pretrained, cache):
    found = loss(pretrained, INPUTS, TARGETS, adapter=cache.of(INSTRUCTIONS), batch_size=4)
    assert np.abs(found - loss(pretrained, INPUTS, TARGETS, batch_size=4)).max() > 0.01
    module = HyperModel(full.config, pretrained.module)
    encode = lambda text: np.array([pretrained.tokenizer.encode(text)], np.int32)
    target = encode(TARGETS[1])
    read = (encode(INPUTS[1]), shift_right(target, 0), encode(INSTRUCTIONS[1]))
    logits = jax.jit(module.apply)(full.variables(pretrained), *read)
    logp = jax.nn.log_softmax(logits)[0, np.arange(target.shape[1]), target[0]]
    np.testing.assert_allclose(found[1], -np.mean(logp), rtol=1e-4)


@pytest.mark.long
def test_requests_of_different_tasks_share_a_batch(pretrained, cache):
    together = loss(pretrained, INPUTS, TARGETS, adapter=cache.of(INSTRUCTIONS))
    texts = generate(pretrained, INPUTS, adapter=cache.of(INSTRUCTIONS), **BEAM)
    for row in (0, 1):
        own = cache.of(INSTRUCTIONS[row : row + 1])
        alone = loss(pretrained, INPUTS[row : row + 1], TARGETS[row : row + 1], adapter=own)
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-4)
        assert texts[row] == generate(pretrained, INPUTS[row : row + 1], adapter=own, **BEAM)[0]
    choices = score_choices(pretrained, INPUTS[:2], [["bad", "good"], ["three"]], adapter=cache.of(INSTRUCTIONS[:2]))
    np.testing.assert_allclose(choices[1][0], -together[1] * len(pretrained.tokenizer.encode("three")), rtol=1e-4)


def test_an_instruction_is_read_once(full, pretrained, monkeypatch):
    read, counted = hypernet.read_instructions, []
    monkeypatch.setattr(hypernet, "read_instructions", lambda *given: counted.append(given[2]) or read(*given))
    own = InstructionCache(full, pretrained)
    first = own.of(INSTRUCTIONS)
    own.of(INSTRUCTIONS[::-1])
    assert counted == [["say the opposite"], ["count the words of the text that is given"], ["spell it"]]
    assert len(own) == 3 and list(first.index) == [0, 1, 0, 2]
    assert first.adaptation.mask.shape[0] == 3


@pytest.mark.long
def test_a_plain_adapter_is_all_that_a_plain_hypernetwork_does(pretrained, tmp_path):
    hyper = hyper_of(pretrained, PLAIN)
    adapter = generate_adapter(hyper, pretrained, INSTRUCTIONS[0])
    expected = loss(pretrained, INPUTS, TARGETS, adapter=InstructionCache(hyper, pretrained).of(INSTRUCTIONS[:1] * 4))
    found = loss(pretrained, INPUTS, TARGETS, adapter=adapter)
    assert np.abs(found - loss(pretrained, INPUTS, TARGETS)).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    merged = dataclasses.replace(pretrained, params=merge(pretrained.params, adapter))
    np.testing.assert_allclose(loss(merged, INPUTS, TARGETS), expected, rtol=1e-4)
    save_adapter(tmp_path, adapter, pretrained)
    np.testing.assert_allclose(
        loss(pretrained, INPUTS, TARGETS, adapter=load_adapter(tmp_path, pretrained)), expected, rtol=1e-5
    )
    assert (adapter.rank, adapter.alpha) == (3, 6.0)
    assert not left_out(PLAIN)


def test_a_plain_adapter_says_what_it_leaves_out():
    assert left_out(EVERYTHING) == [
        "prefixes of attention layers",
        "bottleneck adapters",
        "the encoder's look at the instruction",
        "the instruction in the decoder's memory",
    ]


def test_instructions_that_are_too_long_keep_their_end_token(full, pretrained, monkeypatch):
    monkeypatch.setattr(hypernet, "MAX_INSTRUCTION_TOKENS", 6)
    found = read_instructions(full, pretrained, ["one two three four five six seven eight nine ten"])
    assert int(found.mask.sum()) == 6 and found.mask.shape == (1, 32)


@pytest.mark.parametrize(
    ("change", "instructions", "message"),
    [
        (lambda hyper, model: (hyper, model), [], "expected a list of at least one text"),
        (lambda hyper, model: (hyper, model), "say it", "expected a list of at least one text"),
        (lambda hyper, model: (hyper, dataclasses.replace(model, tokenizer=None)), ["say it"], "has no tokenizer"),
    ],
)
def test_what_cannot_be_read_is_refused(full, pretrained, change, instructions, message):
    with pytest.raises(InputError, match=message):
        read_instructions(*change(full, pretrained), instructions)


def test_an_adapter_without_updates_and_the_wrong_number_of_instructions_are_refused(full, pretrained, cache):
    config = HyperConfig(outputs=(PrefixOutput(length=2),))
    kept = cache.of(INSTRUCTIONS[:1])
    with pytest.raises(InputError, match="makes no low-rank updates but PrefixOutput"):
        adapters_of(config, kept.adaptation)
    with pytest.raises(InputError, match="1 instructions for 4 inputs"):
        loss(pretrained, INPUTS, TARGETS, adapter=kept)


def test_learned_tasks_are_scored_by_name_without_instructions(pretrained):
    learned = dataclasses.replace(PLAIN, encoder="learned", pooling=MeanPooling(), tasks=("first", "second"))
    hyper = hyper_of(pretrained, learned)
    given = [instructed.instructions_of(None, "test", name, 2, hyper) for name in ("second", "first")]
    found = instructed.instructed(pretrained, given)
    assert found.index.tolist() == [0, 0, 1, 1]
    losses = loss(pretrained, INPUTS, TARGETS, adapter=found)
    for row, name in enumerate(("second", "second", "first", "first")):
        (adapter,) = adapters_of(learned, hypernet.read_tasks(hyper, pretrained, [name]))
        alone = loss(pretrained, [INPUTS[row]], [TARGETS[row]], adapter=adapter)
        np.testing.assert_allclose(losses[row], alone[0], rtol=1e-5)
    with pytest.raises(UnknownNameError, match="closest: first"):
        instructed.instructions_of(None, "test", "frst", 2, hyper)
