"""From packed rows back to one row per example: an encoder reads packed rows, heads read examples.

Letters in shapes: R packed rows, S their length, B examples, as many of each row, L length of the longest, D width.
"""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp

from jaxmtl.models.masks import Segments, segments_of
from jaxmtl.types import InputError

COLUMNS = "example_columns"
"""The field of a batch that says where examples are."""


@flax.struct.dataclass
class PackedExamples:
    """Where the examples of packed rows are.

    Attributes:
      segments: the segments [R, S] of the rows.
      columns: int32 [B, L], columns of each example's tokens in its row, -1 behind its end; row r has the examples
        from r·B/R on.
    """

    segments: Segments
    columns: jax.Array

    @property
    def real(self) -> jax.Array:
        """Returns bool [B, L], True on tokens of examples."""
        return self.columns >= 0

    def unpack(self, states: jax.Array) -> jax.Array:
        """Gives each example a row of its own.

        Args:
          states: [R, S, D], states of the packed rows.

        Returns:
          [B, L, D]; behind the end of an example something finite that means nothing.
        """
        places = jnp.maximum(self.columns, 0).reshape(states.shape[0], -1, 1)
        found = jnp.take_along_axis(states, places, axis=1, mode="promise_in_bounds")
        return found.reshape(*self.columns.shape, states.shape[2])


def packed_examples_of(batch: Mapping[str, jax.Array]) -> PackedExamples | None:
    """Reads where the examples of a batch are.

    Args:
      batch: fields by name; see `jaxmtl.types.Batch`.

    Returns:
      The places, or None if the batch is not packed.

    Raises:
      InputError: if some of the fields are missing, as where examples have texts as targets.
    """
    segments = segments_of(batch, "input")
    if (segments is None) != (COLUMNS not in batch):
        found, missing = (COLUMNS, "input_segments") if segments is None else ("input_segments", COLUMNS)
        raise InputError(
            f"a model with heads cannot read a batch with {found!r} and without {missing!r}; pack rows with labels"
        )
    return None if segments is None else PackedExamples(segments, batch[COLUMNS])
