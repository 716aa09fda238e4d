"""A chunk of text cut into what a hypernetwork reads, what the model reads, and what it shall say. Numpy only.

Three ways: a | b | c; HyperTuning's four parts, the hypernetwork reading the first and the last; and six parts, taken
in turns. Cuts are made from random bits by a rule of `RULES`: all alike, or as HINT's code draws them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxmtl.feed.corruption import uniform
from jaxmtl.types import InputError


class Segments(NamedTuple):
    """One example for a hypernetwork's pretraining, each part ending with the end-of-text id.

    Attributes:
      instructions: int32 [i], what the hypernetwork reads.
      inputs: int32 [s], what the model reads.
      targets: int32 [t], what it shall say.
    """

    instructions: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Which parts of a chunk go where.

    Attributes:
      instructions: numbers of the parts that the hypernetwork reads, in order.
      inputs: those that the model reads.
      targets: those that it shall say.
      least: fewest tokens of each part under `independent_cuts`.
      tail: under HINT's cuts, the tokens that must be left after the last cut.
    """

    instructions: tuple[int, ...]
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    least: tuple[int, ...]
    tail: int = 3

    @property
    def num_cuts(self) -> int:
        """Returns how many cuts make the parts."""
        return len(self.least) - 1

    def max_tokens(self, instructions: int, inputs: int, targets: int) -> int:
        """Computes how long a chunk may be so that every cut fits.

        Args:
          instructions: most tokens of the instructions, end-of-text ids counted.
          inputs: most tokens of the inputs, likewise.
          targets: most tokens of the targets, likewise.

        Returns:
          Tokens; each part may turn out to be nearly the whole chunk.
        """
        limits = ((instructions, self.instructions), (inputs, self.inputs), (targets, self.targets))
        return min(limit - len(parts) for limit, parts in limits)


LAYOUTS = {
    "three_way": Layout(instructions=(0,), inputs=(1,), targets=(2,), least=(1, 1, 3)),
    "four_way": Layout(instructions=(0, 3), inputs=(1,), targets=(2,), least=(1, 1, 3, 1)),
    "six_way": Layout(instructions=(0, 2, 5), inputs=(1, 3), targets=(4,), least=(1, 1, 1, 1, 3, 1)),
}
"""Layout by name. Source: HINT (Ivison et al. 2023) and HyperTuning (Phang et al. 2023)."""

Draw = Callable[[int, np.ndarray, Layout], np.ndarray]
"""Tokens T, bits uint32 [C] and the layout -> int64 [C] cuts, not falling."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """How cuts are drawn.

    Attributes:
      draw: makes the cuts.
      shortest: layout -> fewest tokens of a chunk that `draw` can cut.
    """

    draw: Draw
    shortest: Callable[[Layout], int]


def independent_cuts(length: int, bits: np.ndarray, layout: Layout) -> np.ndarray:
    """Draws all cuts alike and sorts them; each part keeps its fewest tokens.

    Args:
      length: tokens T of the chunk.
      bits: uint32 [C], random bits.
      layout: what the parts are.

    Returns:
      int64 [C].

    Raises:
      InputError: if the chunk is too short.
    """
    spare = _checked(length, sum(layout.least))
    places = np.sort([uniform(one, 0, spare + 1) for one in bits.tolist()])
    return places + np.cumsum(layout.least[:-1])


def hint_cuts(length: int, bits: np.ndarray, layout: Layout) -> np.ndarray:
    """Draws each cut between the one before it and a bound near the end, as HINT's code does.

    Inner parts may be empty. With three parts the same bits feed both draws, so the cuts are not independent; with
    more, each draw has its own.

    Args:
      length: tokens T of the chunk.
      bits: uint32 [C], random bits.
      layout: what the parts are.

    Returns:
      int64 [C].

    Raises:
      InputError: if the chunk is too short.

    Source: HINT's `c4` registries: cut k of C is below T - tail + 1 - (C - k); with three parts both are below
    T - tail + 1.
    """
    _checked(length, _shortest_for_hint(layout))
    number, cuts = layout.num_cuts, [1]
    for k in range(number):
        own, before_last = (0, 0) if number == 2 else (k, number - 1 - k)
        cuts.append(uniform(bits[own], cuts[-1], length - layout.tail + 1 - before_last))
    return np.array(cuts[1:], np.int64)


def _shortest_for_hint(layout: Layout) -> int:
    return layout.tail + (1 if layout.num_cuts == 2 else layout.num_cuts)


RULES = {
    "independent": Rule(independent_cuts, lambda layout: sum(layout.least)),
    "hint": Rule(hint_cuts, _shortest_for_hint),
}
"""Rule by name."""


def segment(tokens: np.ndarray, cuts: Sequence[int] | np.ndarray, layout: Layout, end: int) -> Segments:
    """Cuts a chunk and puts the parts where they belong; an end-of-text id follows every part.

    Args:
      tokens: int32 [T], the chunk.
      cuts: C places, not falling, 0 ... T.
      layout: which parts go where.
      end: end-of-text id.

    Returns:
      The three sequences.

    Raises:
      InputError: if there are not as many cuts as the layout needs.
    """
    if len(cuts) != layout.num_cuts:
        raise InputError(f"{len(cuts)} cuts for {layout.num_cuts + 1} parts; expected one fewer than parts")
    parts = np.split(tokens, cuts)

    def joined(numbers: tuple[int, ...]) -> np.ndarray:
        return np.concatenate([np.append(parts[number], end) for number in numbers]).astype(np.int32)

    return Segments(joined(layout.instructions), joined(layout.inputs), joined(layout.targets))


def _checked(length: int, least: int) -> int:
    """Returns how many tokens a chunk has beyond the fewest that are needed."""
    if length < least:
        raise InputError(f"a chunk of {length} tokens is too short to be cut; expected {least} or more")
    return length - least
