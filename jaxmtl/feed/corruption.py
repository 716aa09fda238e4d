"""A chunk of text as ids -> (inputs, targets) for T5's unsupervised objectives, given random bits. Numpy only.

Randomness comes in as numbers, so that a result depends on its arguments only. Special tokens that end or frame a text
are not added here.
"""

from typing import NamedTuple

import numpy as np

from jaxmtl.types import InputError


class Pair(NamedTuple):
    """What the model reads and what it shall say.

    Attributes:
      inputs: int32 [s].
      targets: int32 [t].
    """

    inputs: np.ndarray
    targets: np.ndarray


class SpanCounts(NamedTuple):
    """How much of a chunk is noise.

    Attributes:
      tokens: number of noise tokens.
      spans: number of noise spans, and of the spans between them.
    """

    tokens: int
    spans: int


def span_counts(length: int, density: float, mean_span: float) -> SpanCounts:
    """Counts the noise tokens and spans of a chunk.

    Args:
      length: tokens of the chunk, 2 or more.
      density: share of tokens that are noise, above 0 and below 1.
      mean_span: mean tokens of a noise span, 1 or more.

    Returns:
      The counts; at least one token and span are noise, and each span between has a token too.

    Raises:
      InputError: if the chunk is too short.

    Source: Raffel et al. 2020, §3.1.4 and appendix; rounding as in T5's `random_spans_noise_mask`.
    """
    if length < 2:
        raise InputError(f"a chunk of {length} tokens cannot be corrupted; expected 2 or more")
    tokens = min(max(round(length * density), 1), length - 1)
    return SpanCounts(tokens, max(1, min(round(tokens / mean_span), length - tokens)))


def corrupted_lengths(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Computes how long a corrupted chunk is, which does not depend on where its spans are.

    Args:
      length: as in `span_counts`.
      density: as in `span_counts`.
      mean_span: as in `span_counts`.

    Returns:
      Tokens of the inputs and of the targets, sentinels counted, end-of-text not.
    """
    tokens, spans = span_counts(length, density, mean_span)
    return length - tokens + spans, tokens + spans


def chunk_length(max_inputs: int, density: float, mean_span: float) -> int:
    """Finds the longest chunk whose corrupted inputs fit.

    Args:
      max_inputs: most tokens of the inputs, end-of-text not counted.
      density: as in `span_counts`.
      mean_span: as in `span_counts`.

    Returns:
      Tokens of the chunk.

    Raises:
      InputError: if not even a chunk of 2 tokens fits.

    Source: T5's `random_spans_helper`.
    """
    length = max_inputs
    while length >= 2 and corrupted_lengths(length, density, mean_span)[0] > max_inputs:
        length -= 1
    if length < 2:
        raise InputError(f"inputs of {max_inputs} tokens are too short for span corruption; allow more")
    while corrupted_lengths(length + 1, density, mean_span)[0] <= max_inputs:
        length += 1
    return length


def span_corruption(
    tokens: np.ndarray, bits: np.ndarray, *, density: float, mean_span: float, last_sentinel: int
) -> Pair:
    """Replaces each noise span by a sentinel of its own in the inputs, and each span between in the targets.

    Spans between and noise spans alternate, the first one is between; all ways to lay them out are equally likely.
    The k-th sentinel is `last_sentinel - k` on both sides.

    Args:
      tokens: int32 [T], the chunk, 2 tokens or more.
      bits: uint32 [2, T], random bits.
      density: share of tokens that are noise.
      mean_span: mean tokens of a noise span.
      last_sentinel: the first sentinel's id, the highest.

    Returns:
      Inputs and targets; their lengths are those of `corrupted_lengths`.

    Raises:
      InputError: if the chunk is too short.

    Source: Raffel et al. 2020, figure 2 and §3.1.4; T5's `span_corruption`.
    """
    num_noise, num_spans = span_counts(len(tokens), density, mean_span)
    between = _random_partition(len(tokens) - num_noise, num_spans, bits[0])
    noise = _random_partition(num_noise, num_spans, bits[1])
    lengths = np.stack([between, noise], axis=1).reshape(-1)
    is_noise = np.repeat(np.arange(2 * num_spans) % 2 == 1, lengths)
    return Pair(mark_spans(tokens, is_noise, last_sentinel), mark_spans(tokens, ~is_noise, last_sentinel))


def mark_spans(tokens: np.ndarray, replaced: np.ndarray, last_sentinel: int) -> np.ndarray:
    """Puts a sentinel of its own in the place of each run of replaced tokens.

    Args:
      tokens: int32 [T].
      replaced: bool [T], which tokens go.
      last_sentinel: the first run's sentinel; each further one is one lower.

    Returns:
      int32, the tokens that stay and the sentinels.

    Source: T5's `noise_span_to_unique_sentinel`.
    """
    starts = replaced & ~np.concatenate([[False], replaced[:-1]])
    sentinels = last_sentinel + 1 - np.cumsum(starts)
    return np.where(starts, sentinels, tokens)[starts | ~replaced].astype(np.int32)


def prefix_lm(tokens: np.ndarray, bits: np.uint32, *, max_inputs: int, max_targets: int) -> Pair:
    """Cuts a chunk in two at a random place: the model reads the first part and continues it.

    Args:
      tokens: int32 [T], the chunk, 2 ... max_inputs + max_targets tokens.
      bits: uint32, random bits.
      max_inputs: most tokens of the inputs.
      max_targets: most tokens of the targets.

    Returns:
      Inputs and targets of 1 token or more, all lengths that fit equally likely.

    Raises:
      InputError: if no place fits.

    Source: Raffel et al. 2020, §3.2.1; T5's `prefix_lm`, whose places are all those inside the chunk.
    """
    first, last = max(1, len(tokens) - max_targets), min(len(tokens) - 1, max_inputs)
    if first > last:
        raise InputError(
            f"a chunk of {len(tokens)} tokens has no cut with at most {max_inputs} and {max_targets} tokens"
        )
    place = uniform(bits, first, last + 1)
    return Pair(tokens[:place], tokens[place:])


def uniform(bits: np.uint32 | int, low: int, high: int) -> int:
    """Turns random bits into a whole number, as TensorFlow's stateless draws do.

    Args:
      bits: uint32.
      low: least number.
      high: one more than the highest number, above `low`.

    Returns:
      low ... high - 1.
    """
    return low + int(bits) % (high - low)


def _random_partition(total: int, parts: int, bits: np.ndarray) -> np.ndarray:
    """Returns int64 [parts], whole numbers of 1 or more with the sum `total`; all such are equally likely."""
    cuts = np.sort(np.argsort(bits[: total - 1], kind="stable")[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
