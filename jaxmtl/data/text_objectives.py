"""Unsupervised objectives: span corruption, prefix-LM, LM, and segmentations for a hypernetwork.

Each is a frozen dataclass whose fields decide the result; `jaxmtl.data.text_pipeline` applies it to documents.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxmtl.data.text_pipeline import Room
from jaxmtl.feed import corruption, segments
from jaxmtl.types import InputError, unknown_name

MIN_CHUNK = 2
"""Fewest tokens of a chunk: one to read and one to say."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """T5's denoising: spans of noise are replaced by sentinels, the targets say what was there.

    Attributes:
      noise_density: share of tokens that are noise.
      mean_span_length: mean tokens of a span of noise.
      seed: seed that a store is made with.

    Raises:
      InputError: if density or span length make no sense.

    Source: Raffel et al. 2020, §3.1.4: density 0.15, mean span length 3.
    """

    noise_density: float = 0.15
    mean_span_length: float = 3.0
    seed: int = 0
    features = ("inputs", "targets")
    num_seeds = 2

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1 or not self.mean_span_length >= 1:
            raise InputError(
                f"span corruption: noise density {self.noise_density}, mean span length {self.mean_span_length}; "
                "expected a density between 0 and 1 and a length of 1 or more"
            )

    def chunk_lengths(self, room: Room) -> tuple[int, int]:
        """Returns 2 and the most tokens of a chunk whose inputs fit, as T5 computes it.

        Args:
          room: limits and sentinels.

        Returns:
          Fewest and most tokens.

        Raises:
          InputError: if the targets of such a chunk do not fit, or there are too few sentinels.
        """
        shape = (self.noise_density, self.mean_span_length)
        most = corruption.chunk_length(room.tokens["inputs"], *shape)
        targets, spans = corruption.corrupted_lengths(most, *shape)[1], corruption.span_counts(most, *shape).spans
        if targets > room.tokens["targets"]:
            added = targets - room.tokens["targets"]
            raise InputError(
                f"span corruption of {most} tokens makes targets that are {added} tokens longer than the limit; allow "
                "longer targets or shorter inputs"
            )
        if spans > room.num_sentinels:
            raise InputError(
                f"span corruption of {most} tokens needs {spans} sentinels, the vocabulary has {room.num_sentinels}; "
                "allow shorter inputs or use prefix_lm"
            )
        return MIN_CHUNK, most

    def make(self, tokens: np.ndarray, bits: np.ndarray, room: Room) -> corruption.Pair:
        """Makes one example; see `Objective.make`."""
        shape = {"density": self.noise_density, "mean_span": self.mean_span_length}
        return corruption.span_corruption(tokens, bits, **shape, last_sentinel=room.last_id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM:
    """Cuts each chunk at a random place; the model reads the first part and continues it.

    Attributes:
      max_tokens: most tokens of a chunk; None for as many as inputs may have, which is T5's choice. Where targets may
        not be that long, places that would make them longer are not drawn.
      seed: seed that a store is made with.

    Source: Raffel et al. 2020, §3.2.1; T5's `prefix_lm`.
    """

    max_tokens: int | None = None
    seed: int = 0
    features = ("inputs", "targets")
    num_seeds = 1

    def chunk_lengths(self, room: Room) -> tuple[int, int]:
        """Returns 2 and the most tokens of a chunk; raises InputError if `max_tokens` does not fit."""
        most = room.tokens["inputs"] + room.tokens["targets"]
        default = min(room.tokens["inputs"], most)
        return MIN_CHUNK, _checked_most(self.max_tokens, default, most, MIN_CHUNK)

    def make(self, tokens: np.ndarray, bits: np.ndarray, room: Room) -> corruption.Pair:
        """Makes one example; see `Objective.make`."""
        limits = {"max_inputs": room.tokens["inputs"], "max_targets": room.tokens["targets"]}
        return corruption.prefix_lm(tokens, bits[0, 0], **limits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """The decoder says the whole chunk; what the encoder reads is empty but for the end-of-text id.

    Attributes:
      max_tokens: most tokens of a chunk; None for as many as targets may have.
      seed: nothing is random here; kept so that all objectives have one.
    """

    max_tokens: int | None = None
    seed: int = 0
    features = ("inputs", "targets")
    num_seeds = 1

    def chunk_lengths(self, room: Room) -> tuple[int, int]:
        """Returns 1 and the most tokens of a chunk; raises InputError if `max_tokens` does not fit."""
        return 1, _checked_most(self.max_tokens, room.tokens["targets"], room.tokens["targets"], 1)

    def make(self, tokens: np.ndarray, bits: np.ndarray, room: Room) -> corruption.Pair:
        """Makes one example; see `Objective.make`."""
        unframed = not room.start and "inputs" not in room.ended
        return corruption.Pair(np.array([room.end] if unframed else [], np.int32), tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Cuts each chunk into what a hypernetwork reads, what the model reads and what it shall say.

    Makes a third feature, `instructions`. Every part of a text is followed by the end-of-text id.

    Attributes:
      layout: "three_way", "four_way" or "six_way".
      rule: "independent" or "hint": how cuts are drawn, see `jaxmtl.feed.segments`.
      max_tokens: most tokens of a chunk; None for as many as always fit the three limits.
      seed: seed that a store is made with.

    Raises:
      UnknownNameError: if there is no such layout or rule.
    """

    layout: str = "three_way"
    rule: str = "independent"
    max_tokens: int | None = None
    seed: int = 0
    features = ("instructions", "inputs", "targets")

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("segmentation", self.layout, segments.LAYOUTS),
            ("rule for cuts", self.rule, segments.RULES),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)

    @property
    def num_seeds(self) -> int:
        """Returns the number of cuts."""
        return segments.LAYOUTS[self.layout].num_cuts

    def chunk_lengths(self, room: Room) -> tuple[int, int]:
        """Returns the fewest and most tokens of a chunk; raises InputError if none fits."""
        layout = segments.LAYOUTS[self.layout]
        least = segments.RULES[self.rule].shortest(layout)
        fits = layout.max_tokens(**{name: room.tokens[name] + 1 for name in self.features})
        return least, _checked_most(self.max_tokens, fits, fits, least)

    def make(self, tokens: np.ndarray, bits: np.ndarray, room: Room) -> Sequence[np.ndarray]:
        """Makes one example; see `Objective.make`."""
        layout = segments.LAYOUTS[self.layout]
        cuts = segments.RULES[self.rule].draw(len(tokens), bits[:, 0], layout)
        return [part[:-1] for part in segments.segment(tokens, cuts, layout, room.end)]


def _checked_most(asked: int | None, default: int, fits: int, least: int) -> int:
    most = default if asked is None else asked
    if not least <= most <= fits:
        raise InputError(
            f"chunks of at most {most} tokens; expected {least} to {fits} with these limits of inputs and targets"
        )
    return most
