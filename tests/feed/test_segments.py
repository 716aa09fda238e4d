import itertools
from collections import Counter

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxmtl.feed.segments import LAYOUTS, RULES, Segments, segment
from jaxmtl.types import InputError

END = 1
NAMES = st.sampled_from(sorted(LAYOUTS))


def draw(rule: str, name: str, length: int, seed: int) -> list[int]:
    layout = LAYOUTS[name]
    bits = np.random.default_rng(seed).integers(0, 2**32, layout.num_cuts, np.uint32)
    return RULES[rule].draw(length, bits, layout).tolist()


def made(rule: str, name: str, length: int, seed: int) -> tuple[list[int], Segments]:
    cuts = draw(rule, name, length, seed)
    return cuts, segment(np.arange(2, length + 2, dtype=np.int32), cuts, LAYOUTS[name], END)


def pieces(part: np.ndarray) -> list[list[int]]:
    """What stands before each end-of-text id."""
    assert part.dtype == np.int32 and part[-1] == END
    ends = np.flatnonzero(part == END)
    return [piece[piece != END].tolist() for piece in np.split(part, ends + 1)[:-1]]


# Which piece of which feature comes when in the text: written out from the papers, not taken from the code.
ORDER = {
    "three_way": [("instructions", 0), ("inputs", 0), ("targets", 0)],
    "four_way": [("instructions", 0), ("inputs", 0), ("targets", 0), ("instructions", 1)],
    "six_way": [
        ("instructions", 0),
        ("inputs", 0),
        ("instructions", 1),
        ("inputs", 1),
        ("targets", 0),
        ("instructions", 2),
    ],
}


@hypothesis.given(NAMES, st.sampled_from(sorted(RULES)), st.integers(8, 200), st.integers(0, 999))
def test_the_parts_in_order_are_the_text(name: str, rule: str, length: int, seed: int) -> None:
    found = {field: pieces(part) for field, part in made(rule, name, length, seed)[1]._asdict().items()}
    parts = [found[field][number] for field, number in ORDER[name]]
    assert sum(parts, []) == list(range(2, length + 2))
    assert sum(map(len, found.values())) == len(parts)


@hypothesis.given(NAMES, st.integers(8, 200), st.integers(0, 999))
def test_independent_cuts_leave_no_part_too_short(name: str, length: int, seed: int) -> None:
    found = {field: pieces(part) for field, part in made("independent", name, length, seed)[1]._asdict().items()}
    lengths = {key: len(found[key[0]][key[1]]) for key in ORDER[name]}
    assert all(size >= (3 if field == "targets" else 1) for (field, _), size in lengths.items())


@hypothesis.given(st.integers(4, 200), st.integers(0, 999))
def test_hints_three_way_cuts_are_in_its_bounds(length: int, seed: int) -> None:
    first, second = draw("hint", "three_way", length, seed)
    assert 1 <= first <= second <= length - 3


@hypothesis.given(st.sampled_from(["four_way", "six_way"]), st.integers(8, 200), st.integers(0, 999))
def test_hints_other_cuts_are_in_their_bounds(name: str, length: int, seed: int) -> None:
    cuts = draw("hint", name, length, seed)
    highs = {"four_way": [4, 3, 2], "six_way": [6, 5, 4, 3, 2]}[name]
    lows = [1, *cuts[:-1]]
    assert all(low <= cut < length - high for low, cut, high in zip(lows, cuts, highs, strict=True))


def test_hints_three_way_cuts_come_from_the_same_bits() -> None:
    cuts = {tuple(RULES["hint"].draw(10, np.array([bits, 77], np.uint32), LAYOUTS["three_way"])) for bits in range(500)}
    # With the first cut s = 1 + bits % 7 known, s + bits % (8 - s) follows from the same number.
    assert cuts == {(1 + bits % 7, 1 + bits % 7 + bits % (7 - bits % 7)) for bits in range(500)}
    independent = {tuple(draw("independent", "three_way", 10, seed)) for seed in range(2000)}
    assert independent == {(s, t) for s in range(1, 8) for t in range(s + 1, 8)}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_independent_cuts_are_a_sorted_uniform_sample(name: str) -> None:
    layout = LAYOUTS[name]
    spare, number = 2, layout.num_cuts
    length = sum(layout.least) + spare
    offsets = np.cumsum(layout.least[:-1])
    found = Counter(
        tuple((np.array(draw("independent", name, length, seed)) - offsets).tolist()) for seed in range(6000)
    )
    ways = Counter(tuple(sorted(one)) for one in itertools.product(range(spare + 1), repeat=number))
    expected = {cuts: 6000 * count / (spare + 1) ** number for cuts, count in ways.items()}
    chi_square = sum((found[cuts] - count) ** 2 / count for cuts, count in expected.items())
    assert (
        set(found) <= set(expected) and chi_square < 1.2 * len(expected) + 26
    )  # far above p = 0.001 for 6 ... 21 cells


def test_by_hand() -> None:
    tokens = np.arange(10, 20, dtype=np.int32)
    three, four, six = (
        [part.tolist() for part in segment(tokens, cuts, LAYOUTS[name], END)]
        for name, cuts in (("three_way", [2, 5]), ("four_way", [2, 5, 7]), ("six_way", [1, 3, 4, 6, 9]))
    )
    assert three == [[10, 11, 1], [12, 13, 14, 1], [15, 16, 17, 18, 19, 1]]
    assert four == [[10, 11, 1, 17, 18, 19, 1], [12, 13, 14, 1], [15, 16, 1]]
    assert six == [[10, 1, 13, 1, 19, 1], [11, 12, 1, 14, 15, 1], [16, 17, 18, 1]]


@pytest.mark.parametrize(("rule", "name", "least"), [
    ("hint", "three_way", 4), ("hint", "four_way", 6), ("hint", "six_way", 8),
    ("independent", "three_way", 5), ("independent", "four_way", 6), ("independent", "six_way", 8),
])  # fmt: skip
def test_too_short_chunks_are_refused_with_the_number_needed(rule: str, name: str, least: int) -> None:
    assert RULES[rule].shortest(LAYOUTS[name]) == least
    draw(rule, name, least, 0)
    with pytest.raises(InputError, match=f"a chunk of {least - 1} tokens is too short to be cut; expected {least}"):
        draw(rule, name, least - 1, 0)
    with pytest.raises(InputError, match="1 cuts for"):
        segment(np.arange(9), [3], LAYOUTS[name], END)


@hypothesis.given(NAMES, st.sampled_from(sorted(RULES)), st.tuples(*[st.integers(20, 60)] * 3), st.integers(0, 99))
def test_chunks_of_the_longest_length_fit_all_limits(
    name: str, rule: str, limits: tuple[int, int, int], seed: int
) -> None:
    length = LAYOUTS[name].max_tokens(*limits)
    found = made(rule, name, length, seed)[1]
    assert all(len(part) <= limit for part, limit in zip(found, limits, strict=True))
