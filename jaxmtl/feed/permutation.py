"""Numbered random bits and permutations that are computed element by element, so that none is ever stored.

Everything is integer arithmetic on uint64 with wrap-around: the same bits on every machine and numpy version.
"""

import hashlib

import numpy as np

_ROUNDS = 8
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_LAST = np.uint64(31)
_HALF = np.uint64(32)
# Every round of every half reads bits of its own.
_ROUND_STEPS = [np.uint64(number * 0xD1342543DE82EF95 % 2**64) for number in range(1, 2 * _ROUNDS + 1)]


def stream_key(seed: int, purpose: str) -> np.uint64:
    """Derives the key of one independent stream of random bits.

    Args:
      seed: the run's data seed.
      purpose: what the stream is for; two purposes give unrelated streams.

    Returns:
      The key.
    """
    return np.uint64(int.from_bytes(hashlib.sha256(f"{purpose}/{seed}".encode()).digest()[:8], "big"))


def random_bits(key: np.uint64 | np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns the bits at numbered places of a stream.

    Args:
      key: uint64, or uint64 of the shape of `index`: the stream, one for each element.
      index: int64 or uint64 of any shape, places in the stream.

    Returns:
      uint64 of the same shape.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), applied to key + (index + 1) * step.
    """
    bits = index.astype(np.uint64)
    bits += np.uint64(1)
    bits *= _STEP
    bits += key
    for shift, factor in _MIX:
        bits ^= bits >> shift
        bits *= factor
    bits ^= bits >> _LAST
    return bits


def random_units(key: np.uint64, index: np.ndarray) -> np.ndarray:
    """Returns the evenly spread fractions at numbered places of a stream.

    Args:
      key: uint64, the stream.
      index: int64 of any shape, places in the stream.

    Returns:
      float64 of the same shape, in [0, 1), 53 bits each.
    """
    return (random_bits(key, index) >> np.uint64(11)) * 2.0**-53


def permute(position: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Looks up positions in pseudo-random permutations; each element may belong to another permutation.

    Args:
      position: int64 [M], places, 0 <= position < size.
      size: int64 [M], number of items of the permutation, 1 ... 2^62.
      key: uint64 [M], which permutation.

    Returns:
      int64 [M], the items at these places; over all positions of one (size, key) each item appears once.

    Source: a Feistel network on a grid of a x b >= size cells whose halves are added modulo a and b, with cycle
    walking (Black and Rogaway 2002): a place that falls outside is looked up again until it falls inside.
    """
    size = size.astype(np.uint64)
    width = np.ceil(np.sqrt(size)).astype(np.uint64)
    height = (size + width - np.uint64(1)) // width
    place = _scramble(position.astype(np.uint64), width, height, key)
    while (outside := np.flatnonzero(place >= size)).size:
        place[outside] = _scramble(place[outside], width[outside], height[outside], key[outside])
    return place.astype(np.int64)


def _scramble(place: np.ndarray, width: np.ndarray, height: np.ndarray, key: np.ndarray) -> np.ndarray:
    low, high = place % width, place // width
    for number in range(_ROUNDS):
        low = _shift(low, high, width, key + _ROUND_STEPS[2 * number])
        high = _shift(high, low, height, key + _ROUND_STEPS[2 * number + 1])
    return high * width + low


def _shift(half: np.ndarray, other: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    # The top 32 bits times the size, without its low 32 bits: a number below the size, without a slow division.
    moved = half + ((random_bits(key, other) >> _HALF) * size >> _HALF)
    return np.where(moved >= size, moved - size, moved)
