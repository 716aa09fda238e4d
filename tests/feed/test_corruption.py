import itertools
from collections import Counter

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxmtl.feed import corruption
from jaxmtl.feed.corruption import chunk_length, corrupted_lengths, span_corruption, span_counts
from jaxmtl.types import InputError

TOP = 999  # sentinels are 999, 998, ...; tokens below are 0 ... 399
CHUNKS = st.integers(2, 400)
DENSITIES = st.sampled_from([0.15, 0.5, 0.3, 0.05, 0.9])
MEANS = st.sampled_from([3.0, 1.0, 10.0, 2.5])


def random_bits(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32)


def corrupt(length: int, seed: int, density: float, mean: float) -> tuple[list[int], list[int]]:
    tokens = np.arange(length, dtype=np.int32)
    found = span_corruption(tokens, random_bits(seed, 2, length), density=density, mean_span=mean, last_sentinel=TOP)
    assert found.inputs.dtype == found.targets.dtype == np.int32
    return found.inputs.tolist(), found.targets.tolist()


def spans_of(targets: list[int]) -> list[list[int]]:
    """The noise spans that targets say: what follows each sentinel."""
    spans: list[list[int]] = []
    for token in targets:
        if token == TOP - len(spans):
            spans.append([])
        else:
            spans[-1].append(token)
    return spans


def reference(tokens: list[int], spans: list[list[int]]) -> tuple[list[int], list[int]]:
    """The paper's description in plain Python: each span is replaced by a sentinel, and said after it."""
    inputs, targets, noise = [], [], {span[0]: span for span in spans}
    position, number = 0, 0
    while position < len(tokens):
        if tokens[position] in noise:
            span = noise[tokens[position]]
            inputs += [TOP - number]
            targets += [TOP - number, *span]
            number, position = number + 1, position + len(span)
        else:
            inputs.append(tokens[position])
            position += 1
    return inputs, targets


def test_the_papers_example() -> None:
    text = "Thank you for inviting me to your party last week".split()
    ids = {word: number for number, word in enumerate(text)} | {"X": TOP, "Y": TOP - 1, "Z": TOP - 2}
    noise = np.array([word in ("for", "inviting", "last") for word in text])
    tokens = np.arange(len(text), dtype=np.int32)
    inputs, targets = (corruption.mark_spans(tokens, mask, TOP).tolist() for mask in (noise, ~noise))
    assert inputs == [ids[word] for word in "Thank you X me to your party Y week".split()]
    assert targets == [ids[word] for word in "X for inviting Y last Z".split()]


@hypothesis.given(CHUNKS, st.integers(0, 99), DENSITIES, MEANS)
def test_inputs_and_targets_are_those_of_the_papers_description(
    length: int, seed: int, density: float, mean: float
) -> None:
    inputs, targets = corrupt(length, seed, density, mean)
    spans = spans_of(targets)
    assert (inputs, targets) == reference(list(range(length)), spans)


@hypothesis.given(CHUNKS, st.integers(0, 99), DENSITIES, MEANS)
def test_every_token_is_on_one_side_and_sentinels_match(length: int, seed: int, density: float, mean: float) -> None:
    inputs, targets = corrupt(length, seed, density, mean)
    spans = spans_of(targets)
    assert sorted(token for token in inputs + targets if token < length) == list(range(length))
    sentinels = [TOP - number for number in range(len(spans))]
    for side in (inputs, targets):
        assert [token for token in side if token >= length] == sentinels
    restored = itertools.chain(*(spans[TOP - token] if token >= length else [token] for token in inputs))
    assert list(restored) == list(range(length))


@hypothesis.given(CHUNKS, st.integers(0, 99), st.sampled_from([0.15, 0.5, 0.3]), MEANS)
def test_there_are_as_many_noise_tokens_and_spans_as_asked_for(
    length: int, seed: int, density: float, mean: float
) -> None:
    inputs, targets = corrupt(length, seed, density, mean)
    spans = spans_of(targets)
    noise = max(1, round(length * density))
    assert sum(map(len, spans)) == noise
    assert len(spans) == max(1, min(round(noise / mean), length - noise))  # a token of text is between any two
    assert (len(inputs), len(targets)) == corrupted_lengths(length, density, mean)
    assert inputs[0] == 0 and targets[-1] == length - 1  # begins with text, ends with noise


@pytest.mark.parametrize(
    ("length", "expected"), [(100, (15, 5)), (20, (3, 1)), (512, (77, 26)), (568, (85, 28)), (2, (1, 1)), (30, (4, 1))]
)
def test_counts_by_hand(length: int, expected: tuple[int, int]) -> None:
    assert span_counts(length, 0.15, 3.0) == expected


@pytest.mark.parametrize(("inputs", "tokens", "targets"), [(512, 568, 114), (256, 284, 58), (1024, 1137, 229)])
def test_lengths_are_those_of_t5(inputs: int, tokens: int, targets: int) -> None:
    # T5 counts one end-of-text token on each side; 568 and 114 are its numbers for inputs of 512.
    assert chunk_length(inputs - 1, 0.15, 3.0) == tokens
    assert corrupted_lengths(tokens, 0.15, 3.0)[1] + 1 == targets


@hypothesis.given(st.integers(2, 600), DENSITIES, MEANS)
def test_the_longest_chunk_fits_and_one_token_more_does_not(most: int, density: float, mean: float) -> None:
    length = chunk_length(most, density, mean)
    assert corrupted_lengths(length, density, mean)[0] <= most < corrupted_lengths(length + 1, density, mean)[0]


def test_all_layouts_are_equally_likely() -> None:
    found = Counter(tuple(corrupt(8, seed, 0.5, 2.0)[1]) for seed in range(4500))
    assert len(found) == 9  # 4 noise tokens in 2 spans: 3 ways; 4 between them: 3 ways
    chi_square = sum((count - 500) ** 2 / 500 for count in found.values())
    assert chi_square < 26.1  # 8 degrees of freedom, p = 0.001


@hypothesis.given(st.integers(2, 300), st.integers(1, 150), st.integers(1, 150), st.integers(0, 2**32 - 1))
def test_prefixes_fit_and_restore_the_text(length: int, max_inputs: int, max_targets: int, bits: int) -> None:
    hypothesis.assume(length <= max_inputs + max_targets)
    tokens = np.arange(length, dtype=np.int32)
    inputs, targets = corruption.prefix_lm(tokens, np.uint32(bits), max_inputs=max_inputs, max_targets=max_targets)
    assert np.concatenate([inputs, targets]).tolist() == tokens.tolist()
    assert 1 <= len(inputs) <= max_inputs and 1 <= len(targets) <= max_targets


def test_prefixes_end_at_every_place_that_fits() -> None:
    tokens = np.arange(10, dtype=np.int32)

    def places(**limits: int) -> set[int]:
        return {len(corruption.prefix_lm(tokens, np.uint32(bits), **limits).inputs) for bits in range(50)}

    assert places(max_inputs=10, max_targets=10) == set(range(1, 10))
    assert places(max_inputs=7, max_targets=5) == {5, 6, 7}


def test_bad_requests_are_input_errors() -> None:
    one = np.zeros(1, np.int32)
    calls = {
        "a chunk of 1 tokens cannot be corrupted": lambda: corrupt(1, 0, 0.15, 3.0),
        "inputs of 1 tokens are too short": lambda: chunk_length(1, 0.15, 3.0),
        "a chunk of 1 tokens has no cut": lambda: corruption.prefix_lm(one, np.uint32(0), max_inputs=5, max_targets=5),
        "a chunk of 9 tokens has no cut with at most 4 and 4": lambda: corruption.prefix_lm(
            np.zeros(9, np.int32), np.uint32(0), max_inputs=4, max_targets=4
        ),
    }
    for message, call in calls.items():
        with pytest.raises(InputError, match=message):
            call()
