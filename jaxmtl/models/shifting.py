"""Targets shifted right by one position: what a decoder reads while it predicts them.

Letters in shapes: B batch, T target length.
"""

import jax
import jax.numpy as jnp


def shift_right(targets: jax.Array, first_tokens: jax.Array | int) -> jax.Array:
    """Builds decoder inputs: the first token, then all targets but the last.

    Args:
      targets: int32 [B, T].
      first_tokens: int32 [B], token id put before each row; or one for all rows.

    Returns:
      int32 [B, T].
    """
    first = jnp.broadcast_to(jnp.asarray(first_tokens, targets.dtype), targets.shape[:1])
    return jnp.concatenate([first[:, None], targets[:, :-1]], axis=1)


def shift_right_in_segments(targets: jax.Array, positions: jax.Array, first_tokens: jax.Array | int) -> jax.Array:
    """Builds decoder inputs of packed rows: in each segment the first token, then all its targets but the last.

    Args:
      targets: int32 [B, T].
      positions: int32 [B, T], counted from 0 in each segment.
      first_tokens: int32 [B, T], token id put before the segment of each position; or one for all.

    Returns:
      int32 [B, T].
    """
    return jnp.where(positions == 0, first_tokens, shift_right(targets, 0))
