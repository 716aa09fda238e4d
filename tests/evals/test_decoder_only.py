"""Scoring and generation of a decoder-only model whose vocabulary pads with the end of a text and frames nothing."""

import numpy as np
import pytest

from jaxmtl.evals import generation, requests, scoring
from jaxmtl.feed.parts import Part
from jaxmtl.feed.writer import Rows, StoreWriter
from jaxmtl.types import InputError
from jaxmtl.weights import check_reads

INPUTS = ["the cat sat", "a", "is water wet", "the cat sat on a mat"]
CHOICES = [["yes", "no"], ["a cat", "", "mat"], ["yes"], ["no", "yes", "a mat", "the"]]
END = 0


@pytest.fixture(scope="module")
def pretrained(decoder_only):
    return decoder_only


def one_by_one(pretrained, prompt, target):
    """Scores a prompt and its target as one sequence, softmax by hand in float64."""
    tokens = np.array([[*prompt, *target]], np.int32)
    mask = np.ones(tokens.shape, bool)
    logits = pretrained.module.apply({"params": pretrained.params}, tokens, input_mask=mask)[0]
    weights = np.exp(np.asarray(logits, np.float64))
    rows = zip(range(len(prompt) - 1, len(prompt) + len(target) - 1), target, strict=True)
    return sum(np.log(weights[row, token] / weights[row].sum()) for row, token in rows)


def test_prompts_get_no_special_token_and_targets_an_end(pretrained):
    assert requests.encode_inputs(pretrained, ["ab"]) == [[1, 2]]
    assert requests.encode_inputs(pretrained, ["abcd"], 3) == [[1, 2, 3]]
    assert requests.encode_targets(pretrained, ["ab", ""]) == [[1, 2, END], [END]]


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [1, 16])
def test_choices_score_as_behind_their_prompt_in_one_sequence(pretrained, batch_size):
    scores = scoring.score_choices(pretrained, INPUTS, CHOICES, batch_size=batch_size)
    encode = pretrained.tokenizer.encode
    for text, choices, found in zip(INPUTS, CHOICES, scores, strict=True):
        expected = [one_by_one(pretrained, encode(text), [*encode(choice), END]) for choice in choices]
        # Float32 sums of a few dozen terms of size 1 in another order.
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.long
def test_generation_takes_the_likeliest_token_of_the_whole_sequence(pretrained):
    ids = requests.encode_inputs(pretrained, INPUTS)
    generated = generation.generate_ids(pretrained, ids, max_tokens=6)
    alone = [generation.generate_ids(pretrained, [row], max_tokens=6)[0] for row in ids]
    for prompt, row, same in zip(ids, generated, alone, strict=True):
        np.testing.assert_array_equal(row, same)
        tokens = np.array([[*prompt, *row]], np.int32)
        mask = np.ones(tokens.shape, bool)
        logits = pretrained.module.apply({"params": pretrained.params}, tokens, input_mask=mask)[0, len(prompt) - 1 :]
        # Rows of the embedding past the tokenizer's 28 are never taken.
        following = logits[:, :28].argmax(-1)[: len(row) + (len(row) < 6)]
        np.testing.assert_array_equal(following, [*row, END][: len(following)])
    assert len(generation.generate(pretrained, INPUTS, max_tokens=6)) == len(INPUTS)


def test_texts_that_are_too_long_for_the_positions_are_refused(pretrained, tmp_path):
    tokenizer = pretrained.tokenizer
    with pytest.raises(InputError, match="row 1 has 31 input and 3 target tokens, the model has room for 33"):
        generation.generate(pretrained, ["a", "b" * 31], max_tokens=3)
    with pytest.raises(InputError, match="row 0 has 31 input and 3 target tokens"):
        scoring.loss(pretrained, ["b" * 31], ["no"])
    rows = Rows(ids=["x"], inputs=[[1] * 30], targets=[[2, 3, 4, END]], references=[["abc"]])
    with StoreWriter(tmp_path / "store", tokenizer, {}) as writer:
        writer.add(Part(task="task", split="train", category="c", metric="rouge_l", origin="x"), rows)
        store = writer.finish()
    with pytest.raises(InputError, match="split 'train': row 0 has 30 input and 4 target tokens"):
        check_reads(pretrained.config, tokenizer, store)
