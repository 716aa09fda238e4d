"""Tokenised documents -> chunks -> examples of an unsupervised objective: a SeqIO preprocessor.

It stands between tokenising and appending the end-of-text id; a document's text comes in as `targets`. Random bits are
drawn by TensorFlow from SeqIO's seeds; what is made of them is computed by numpy, see `jaxmtl.data.text_objectives`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import seqio
import tensorflow as tf


class Room(NamedTuple):
    """What an objective must know of features and limits.

    Attributes:
      tokens: feature name to the tokens that it may have, those that end or frame a text not counted.
      start: ids that begin every text of the vocabulary; none for T5.
      end: end-of-text id.
      ended: features that get the end-of-text id later on.
      last_id: highest id of the vocabulary.
      num_sentinels: how many of the highest ids are sentinels.
    """

    tokens: Mapping[str, int]
    start: list[int]
    end: int
    ended: frozenset[str]
    last_id: int
    num_sentinels: int


class Objective(Protocol):
    """Makes examples of chunks; a frozen dataclass, its fields are what decides the result."""

    @property
    def features(self) -> tuple[str, ...]:
        """Returns the names of what it makes."""
        ...

    @property
    def seed(self) -> int:
        """Returns the seed that a store is made with."""
        ...

    @property
    def num_seeds(self) -> int:
        """Returns how many independent rows of random bits it needs."""
        ...

    def chunk_lengths(self, room: Room) -> tuple[int, int]:
        """Returns the fewest and the most tokens of a chunk; raises InputError if nothing fits."""
        ...

    def make(self, tokens: np.ndarray, bits: np.ndarray, room: Room) -> Sequence[np.ndarray]:
        """Returns one int32 array per feature, of tokens int32 [T] and bits uint32 [num_seeds, T]."""
        ...


def describe(objective: Objective) -> dict[str, Any]:
    """Describes an objective by name and options, so that two that differ are told apart.

    Args:
      objective: a frozen dataclass.

    Returns:
      JSON values.
    """
    return {"name": type(objective).__name__, "arguments": dataclasses.asdict(objective)}  # type: ignore[call-overload]  (a dataclass, says its docstring)


def room_of(sequence_length: Mapping[str, int], output_features: Mapping[str, Any]) -> Room:
    """Finds out what an objective must know.

    Args:
      sequence_length: feature name to its most tokens.
      output_features: the features.

    Returns:
      The room.
    """
    vocabulary = output_features["targets"].vocabulary
    start = list(vocabulary.encode(""))
    ended = frozenset(name for name, feature in output_features.items() if feature.add_eos)
    return Room(
        tokens={name: sequence_length[name] - len(start) - (name in ended) for name in output_features},
        start=start,
        end=vocabulary.eos_id,
        ended=ended,
        last_id=vocabulary.vocab_size - 1,
        num_sentinels=vocabulary.extra_ids,
    )


def preprocess(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, Any],
    *,
    objective: Objective,
) -> tf.data.Dataset:
    """Cuts documents into chunks and makes one example of each.

    Chunks follow one another; only the last one of a document may be shorter, and it is left out if it is too short
    for the objective. `num_chunks` counts it, so that who reads the result knows how many are missing.

    Args:
      dataset: `id` (text) and `targets` (int32 [n], the document's ids without end-of-text); the rest is dropped.
      sequence_length: feature name to its most tokens.
      output_features: the features.
      objective: what to make.

    Returns:
      `id` (the document's, "#" and the chunk's number), the objective's features (int32, without the last end-of-text
      id), and `num_chunks` (int32: those of the document).

    Raises:
      InputError: if nothing fits the lengths.
    """
    room = room_of(sequence_length, output_features)
    least, most = objective.chunk_lengths(room)
    frame = tf.constant(room.start, tf.int32)

    def compute(tokens: np.ndarray, bits: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(part, np.int32) for part in objective.make(tokens, bits, room)]

    def make(row: Mapping[str, tf.Tensor], **drawn: Any) -> dict[str, tf.Tensor]:
        seeds = drawn["seeds"] if "seeds" in drawn else [drawn["seed"]]
        shape = [tf.size(row["targets"])]
        rows = [_bits(shape, seed) for seed in seeds]
        types = [tf.int32] * len(objective.features)
        parts = tf.numpy_function(compute, [row["targets"], tf.stack(rows)], types, stateful=False)
        framed = [tf.ensure_shape(tf.concat([frame, part], 0), [None]) for part in parts]
        return {"id": row["id"], "num_chunks": row["num_chunks"], **dict(zip(objective.features, framed, strict=True))}

    chunked = dataset.flat_map(functools.partial(_chunks, size=most, skip=len(room.start)))
    make_all: Any = seqio.map_over_dataset(make, num_seeds=objective.num_seeds)
    return make_all(chunked.filter(lambda row: tf.size(row["targets"]) >= least))


def _bits(shape: Any, seed: Any) -> tf.Tensor:
    everything: Any = None  # bounds of a draw that takes all values of its type
    return tf.random.stateless_uniform(shape, seed, everything, everything, tf.uint32)


def _chunks(row: Mapping[str, tf.Tensor], size: int, skip: int) -> tf.data.Dataset:
    tokens = row["targets"][skip:]
    count = -(-tf.size(tokens) // size)

    def one(number: tf.Tensor) -> dict[str, tf.Tensor]:
        start = tf.cast(number, tf.int32) * size
        name = tf.strings.join([row["id"], "#", tf.strings.as_string(number)])
        return {"id": name, "targets": tokens[start : start + size], "num_chunks": count}

    return tf.data.Dataset.range(tf.cast(count, tf.int64)).map(one)
