import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxmtl.evals import generation, requests
from jaxmtl.evals.decoding import Decoding
from jaxmtl.models.decoding import greedy
from jaxmtl.models.initial import abstract_params
from jaxmtl.partitioning import make_mesh, shardings_for
from jaxmtl.types import InputError, UnknownNameError

INPUTS = ["the cat sat", "", "a dog ran over the green hill to find a ball", "is water wet?"]
MAX_TOKENS = 6
_apply = jax.jit(
    lambda module, params, inputs, texts: module.apply({"params": params}, inputs, texts), static_argnums=0
)


def greedy_loop(pretrained, ids):
    """Takes the likeliest real token again and again, with whole forward passes and no cache."""
    config, texts = pretrained.config, np.zeros((1, MAX_TOKENS + 1), np.int32)
    texts[0, 0] = config.decoder_start_id
    for position in range(MAX_TOKENS):
        logits = _apply(pretrained.module, pretrained.params, np.array([ids], np.int32), texts)[0, position]
        texts[0, position + 1] = int(np.argmax(logits[: pretrained.tokenizer.vocab_size]))
    row = texts[0, 1:].tolist()
    return row[: row.index(config.eos_id)] if config.eos_id in row else row


@pytest.fixture(scope="module")
def expected(pretrained):
    return [greedy_loop(pretrained, pretrained.tokenizer.encode(text)) for text in INPUTS]


def test_generated_ids_equal_a_loop_without_cache(pretrained, expected):
    ids = [pretrained.tokenizer.encode(text) for text in INPUTS]
    result = generation.generate_ids(pretrained, ids, max_tokens=MAX_TOKENS)
    assert [row.tolist() for row in result] == expected


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(4)), batch_size=st.sampled_from([1, 3, 32]))
def test_texts_depend_on_neither_order_nor_batch_size(pretrained, expected, order, batch_size):
    texts = generation.generate(pretrained, [INPUTS[i] for i in order], max_tokens=MAX_TOKENS, batch_size=batch_size)
    assert texts == [pretrained.tokenizer.decode(expected[i]) for i in order]


def test_padding_rows_are_never_generated_even_where_the_model_prefers_them(pretrained):
    limit = pretrained.tokenizer.vocab_size
    head = np.array(pretrained.params["lm_head"]["kernel"])
    head[:, limit:] = head[:, 5:6] * 100  # a padding row now beats token 5 wherever that is liked at all
    head[:, limit + 1 :] *= -1
    params = {**pretrained.params, "lm_head": {"kernel": head}}
    ids = [pretrained.tokenizer.encode(text) for text in INPUTS]
    spoilt = dataclasses.replace(pretrained, params=params)
    padded = requests.pad(ids, 4, 0)
    free = greedy(spoilt.module, {"params": params}, padded, padded != 0, max_tokens=MAX_TOKENS)
    assert np.asarray(free).max() >= limit
    result = generation.generate_ids(spoilt, ids, max_tokens=MAX_TOKENS)
    assert all(row.max(initial=0) < limit for row in result)


@pytest.mark.parametrize(
    "decoding",
    [Decoding(method="beam", num_beams=3, no_repeat_ngram=2), Decoding(method="sample", seed=4, top_k=30)],
    ids=lambda decoding: decoding.method,
)
def test_ids_of_every_method_are_the_same_one_by_one_and_together(pretrained, decoding):
    ids = [[7, 5, 1], [9, 9, 9, 1], [30, 1, 12], [8, 44, 21, 1]]
    options = dict(max_tokens=MAX_TOKENS, decoding=decoding, streams=[3, 1, 4, 9])
    together = [row.tolist() for row in generation.generate_ids(pretrained, ids, **options)]
    assert together == [row.tolist() for row in generation.generate_ids(pretrained, ids, batch_size=1, **options)]
    assert len({tuple(row) for row in together}) > 1


def test_a_drawn_text_belongs_to_its_stream(pretrained):
    options = dict(max_tokens=MAX_TOKENS, decoding=Decoding(method="sample", temperature=2.0))
    drawn = generation.generate_ids(pretrained, [[7, 5, 1]] * 4, streams=[0, 1, 1, 2], **options)
    assert drawn[1].tolist() == drawn[2].tolist() and len({tuple(row.tolist()) for row in drawn}) > 1


def test_progress_counts_every_input_once(pretrained):
    counts = []
    generation.generate_ids(pretrained, [[5, 1]] * 5, max_tokens=2, batch_size=2, on_batch=counts.append)
    assert counts == [2, 2, 1]


def test_no_input_gives_no_text(pretrained):
    assert generation.generate(pretrained, [], max_tokens=4) == []


def test_wrong_options_are_named(pretrained):
    with pytest.raises(UnknownNameError, match="unknown decoding method 'greedi'; closest: greedy"):
        generation.generate(pretrained, ["a"], max_tokens=4, method="greedi")
    with pytest.raises(UnknownNameError, match="unknown option of decoding 'beams'; closest: num_beams"):
        generation.generate(pretrained, ["a"], max_tokens=4, beams=4)
    with pytest.raises(InputError, match="forced token 0 holds token id"):
        generation.generate(pretrained, ["a"], max_tokens=4, forced_first_id=pretrained.tokenizer.vocab_size)
    with pytest.raises(InputError, match="max_tokens is 0"):
        generation.generate(pretrained, ["a"], max_tokens=0)
    with pytest.raises(InputError, match="no tokenizer"):
        generation.decode_texts(dataclasses.replace(pretrained, tokenizer=None), [[5]])


def test_texts_are_the_same_on_a_mesh(pretrained, expected):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = jax.device_put(pretrained.params, shardings_for(abstract_params(pretrained.module), mesh))
    ids = [pretrained.tokenizer.encode(text) for text in INPUTS[:3]]
    result = generation.generate_ids(dataclasses.replace(pretrained, params=placed), ids, max_tokens=MAX_TOKENS)
    assert [row.tolist() for row in result] == expected[:3]
