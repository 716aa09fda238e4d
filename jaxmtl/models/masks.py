"""What a query may see: padding, the examples of packed rows, causality; apart from how attention is computed.

A packed row holds several examples one behind the other. Each is a segment: a run of positions with one number, counted
from 1 in each row; 0 is padding. An encoder-decoder numbers the inputs and the targets of an example alike.
Letters in shapes: B batch, L length, T query length, S key length.
"""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.types import InputError

HIDDEN = np.float32(np.finfo(np.float32).min / 2)
"""Added to the score of a key that must not be seen: finite, also where two masks hide the same key."""


@flax.struct.dataclass
class Segments:
    """Which example of its row each position belongs to.

    Attributes:
      ids: int32 [B, L], number of the segment; 0 on padding.
      positions: int32 [B, L], counted from 0 in each segment.
    """

    ids: jax.Array
    positions: jax.Array


@flax.struct.dataclass
class Mask:
    """Which keys each query may see, held as what it follows from: nothing as large as the scores.

    Attributes:
      keys: int32 or bool [B, S], segment of each key; nobody sees those of segment 0 (False).
      queries: int32 [B, T], segment of each query, which sees the keys of the same segment; None sees all segments.
    """

    keys: jax.Array
    queries: jax.Array | None = None


def segments_of(batch: Mapping[str, jax.Array], side: str) -> Segments | None:
    """Reads the segments of one side of a batch.

    Args:
      batch: fields by name; see `jaxmtl.types.Batch`.
      side: "input" or "target".

    Returns:
      The segments, or None if the batch is not packed.

    Raises:
      InputError: if only one of the two fields is there.
    """
    names = (f"{side}_segments", f"{side}_positions")
    found = [name for name in names if name in batch]
    if not found:
        return None
    if len(found) == 1:
        raise InputError(f"a batch has {found[0]!r} alone; a packed batch has {names[0]!r} and {names[1]!r}")
    return Segments(*(batch[name] for name in names))


def mask_between(queries: Segments | None, keys: Segments | None, real: jax.Array | None) -> Mask | None:
    """Lets queries see the keys of their own segment, or in plain rows all real keys.

    Args:
      queries: segments of the queries; None in plain rows.
      keys: segments of the keys; the same object in self-attention; None in plain rows.
      real: bool [B, S], True on keys that plain rows see; None is all of them. Packed rows do not look at it.

    Returns:
      The mask; None if every key is seen.

    Raises:
      InputError: if only one of the two sides is packed.
    """
    if queries is None and keys is None:
        return None if real is None else Mask(keys=real)
    if queries is None or keys is None:
        raise InputError("one of inputs and targets has segments, the other has none; pack both or neither")
    return Mask(keys=keys.ids, queries=queries.ids)


def visible(mask: Mask) -> jax.Array:
    """Spells a mask out, for a whole batch or, without the axis B, for one row of it.

    Args:
      mask: the mask.

    Returns:
      bool [B, T, S], or [B, 1, S] if all queries see the same; True on keys to see.
    """
    keys = mask.keys[..., None, :]
    if mask.queries is None:
        return keys != 0
    return (mask.queries[..., :, None] == keys) & (keys != 0)


def mask_to_bias(visible: jax.Array) -> jax.Array:
    """Turns a boolean mask into float32 to add to scores: 0 where True, `HIDDEN` where False."""
    return jnp.where(visible, 0.0, HIDDEN)


def causal_bias(query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
    """Hides later positions from earlier ones.

    In packed rows these may be positions in the row: inside a segment they come in the same order.

    Args:
      query_positions: int32 [T].
      key_positions: int32 [S].

    Returns:
      float32 [T, S], to add to scores.
    """
    return mask_to_bias(query_positions[:, None] >= key_positions[None, :])
