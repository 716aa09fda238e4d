"""Scores and texts of inputs that an encoder reads once: what both give that read them for themselves."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxmtl.evals import generation, reading, requests, scoring
from jaxmtl.evals.decoding import Decoding
from jaxmtl.evals.request_adapters import request_adapters
from jaxmtl.evals.scored_texts import score_and_generate
from jaxmtl.models.decoding import generate
from jaxmtl.models.initial import abstract_params
from jaxmtl.partitioning import make_mesh, shardings_for
from jaxmtl.types import InputError

INPUTS = ["the cat sat", "a", "is water wet or not so", "say yes or no", "a dog"]
TARGETS = ["mat", "yes", "a ball", "no", "ran over it"]
MAX_TOKENS = 5


@pytest.fixture(scope="module", params=["pretrained", pytest.param("decoder_only", marks=pytest.mark.long)])
def model(request):
    return request.getfixturevalue(request.param)


def encoded(model):
    return requests.encode_inputs(model, INPUTS), requests.encode_targets(model, TARGETS)


def check(model, decoding=generation.GREEDY, batch_size=2, **options):
    inputs, targets = encoded(model)
    how = dict(options, max_tokens=MAX_TOKENS, decoding=decoding)
    found = score_and_generate(model, inputs, targets, batch_size=batch_size, **how)
    for (losses, _), expected in zip(found, scoring.token_losses(model, inputs, targets, **options), strict=True):
        # Other batches, so sums of float32 in another order.
        np.testing.assert_allclose(losses, expected, atol=1e-5)
    expected = generation.generate_ids(model, inputs, **how)
    assert [text.tolist() for _, text in found] == [text.tolist() for text in expected]
    assert any(len(text) for text in expected)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(),
        Decoding(method="beam", num_beams=3),
        Decoding(method="sample", seed=4),
        Decoding(no_repeat_ngram=2, repetition_penalty=1.5),
    ],
    ids=["greedy", "beam", "sample", "rules"],
)
def test_they_are_those_of_scoring_and_generation_alone(model, decoding):
    check(model, decoding)


def test_so_are_those_of_requests_with_adapters_of_their_own(model, make_adapter):
    own = [make_adapter(model, seed, 2, "q,v") for seed in (1, 2)]
    check(model, adapters=request_adapters(model, [own[number] for number in (0, 1, 1, 0, 1)], 5))


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(method="beam", num_beams=2)], ids=["greedy", "beam"])
def test_so_are_those_on_a_mesh(model, decoding):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = jax.device_put(model.params, shardings_for(abstract_params(model.module), mesh))
    check(dataclasses.replace(model, params=placed), decoding)


def test_each_input_is_read_once(pretrained, monkeypatch):
    reads, memories, counts = [], [], []
    encode, generate = reading.encode, generation.generate_tokens
    monkeypatch.setattr(reading, "encode", lambda *given: reads.append(encode(*given)) or reads[-1])
    told = lambda *given, **more: memories.append(more["memory"]) or generate(*given, **more)
    monkeypatch.setattr(generation, "generate_tokens", told)
    score_and_generate(pretrained, *encoded(pretrained), max_tokens=2, batch_size=2, on_batch=counts.append)
    assert counts == [2, 2, 1] and all(read.memory is memory for read, memory in zip(reads, memories, strict=True))


def test_generation_goes_on_from_the_memory_that_it_is_given(pretrained):
    inputs = np.array([encoded(pretrained)[0][0]], np.int32)
    given = (pretrained.module, {"params": pretrained.params}, inputs, inputs > 0, np.zeros(1, np.uint32))
    how = Decoding().generation(MAX_TOKENS)
    memory = reading.encode(*given[:4]).memory
    texts = [generate(*given, how=how, memory=one).tolist() for one in (None, memory, np.zeros_like(memory))]
    assert texts[0] == texts[1] != texts[2]


def test_wrong_requests_are_refused_before_anything_is_read(pretrained, monkeypatch):
    monkeypatch.setattr(reading, "encode", lambda *given: pytest.fail("was read"))
    inputs, targets = encoded(pretrained)
    with pytest.raises(InputError, match="5 inputs but 4 targets"):
        score_and_generate(pretrained, inputs, targets[:4], max_tokens=2)
    with pytest.raises(InputError, match="max_tokens is 0"):
        score_and_generate(pretrained, inputs, targets, max_tokens=0)
