"""Where a prompt's tokens stand, and how a target continues it: the same for padding on the left, right or nowhere.

A target's first input is the prompt's last token, at that token's own position; what the prompt left behind there is
hidden, so that nothing is counted twice. Without a prompt a start token takes its place, at the first position.
Letters in shapes: B batch, S prompt length, T target length.
"""

import jax
import jax.numpy as jnp

from jaxmtl.models.masks import Segments


def not_padding(tokens: jax.Array, pad_id: int) -> jax.Array:
    """Finds the tokens between the runs of padding at both ends; inside a text the pad id is a token.

    Args:
      tokens: int32 [B, S].
      pad_id: id of padding.

    Returns:
      bool [B, S], True on tokens.
    """
    others = (tokens != pad_id).astype(jnp.int32)
    has_begun = jax.lax.cumsum(others, axis=1) > 0
    goes_on = jax.lax.cumsum(others, axis=1, reverse=True) > 0
    return has_begun & goes_on


def positions_of(real: jax.Array) -> jax.Array:
    """Counts positions over tokens.

    Args:
      real: bool [B, S], True on tokens.

    Returns:
      int32 [B, S], from 0; padding has a position of the row too.
    """
    return jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0)


def without_last(real: jax.Array) -> jax.Array:
    """Hides the last token of each row.

    Args:
      real: bool [B, S], True on tokens.

    Returns:
      bool [B, S].
    """
    return real & (jax.lax.cumsum(real.astype(jnp.int32), axis=1, reverse=True) > 1)


def last_tokens(tokens: jax.Array, real: jax.Array, start_id: int) -> jax.Array:
    """Picks the last token of each row.

    Args:
      tokens: int32 [B, S].
      real: bool [B, S], True on tokens.
      start_id: taken for rows without a token.

    Returns:
      int32 [B].
    """
    last = real & ~without_last(real)
    return jnp.where(last.any(1), jnp.sum(jnp.where(last, tokens, 0), axis=1), start_id)


def target_positions(real: jax.Array, length: int) -> jax.Array:
    """Counts positions on from those of the prompts, whose last token is the targets' first input.

    Args:
      real: bool [B, S], True on the prompts' tokens.
      length: T.

    Returns:
      int32 [B, T].
    """
    before = jnp.maximum(jnp.sum(real, axis=1, dtype=jnp.int32) - 1, 0)
    return before[:, None] + jnp.arange(length)


def without_last_in_segments(segments: Segments) -> Segments:
    """Hides the last token of each segment: `without_last` for packed rows."""
    ids = segments.ids
    following = jnp.pad(ids[:, 1:], ((0, 0), (0, 1)))
    return Segments(jnp.where(ids == following, ids, 0), segments.positions)


def last_tokens_of_segments(tokens: jax.Array, inputs: Segments, targets: Segments, start_id: int) -> jax.Array:
    """Picks the last token of each target's prompt: `last_tokens` for packed rows.

    Args:
      tokens: int32 [B, S].
      inputs: segments [B, S] of the prompts.
      targets: segments [B, T] of the targets.
      start_id: taken for targets whose prompt has no token.

    Returns:
      int32 [B, T].
    """
    is_last = (inputs.ids != 0) & (without_last_in_segments(inputs).ids == 0)
    own = (targets.ids[:, :, None] == inputs.ids[:, None, :]) & is_last[:, None, :]
    return jnp.where(own.any(2), jnp.sum(jnp.where(own, tokens[:, None, :], 0), axis=2), start_id)


def target_positions_in_segments(inputs: Segments, targets: Segments) -> jax.Array:
    """Counts positions on from those of each target's own prompt: `target_positions` for packed rows.

    Args:
      inputs: segments [B, S] of the prompts.
      targets: segments [B, T] of the targets.

    Returns:
      int32 [B, T].
    """
    lengths = jnp.sum(targets.ids[:, :, None] == inputs.ids[:, None, :], axis=2, dtype=jnp.int32)
    return jnp.where(targets.ids != 0, jnp.maximum(lengths - 1, 0) + targets.positions, 0)
