"""What a batch's summed objective is divided by before its gradient is taken: how much each target token weighs."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jaxmtl.types import InputError

Normaliser = Callable[[Mapping[str, jax.Array]], jax.Array]
"""Maps a whole batch to a float32 scalar above 0."""


def batch_tokens(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Counts the batch's own target tokens: a step's gradient is the mean over them.

    Where batches hold rows of like length, tokens of short targets weigh more than those of long ones.

    Args:
      batch: has `loss_mask` float32 [B, T].

    Returns:
      float32 scalar, at least 1.
    """
    return jnp.maximum(jnp.sum(batch["loss_mask"]), 1.0)


def window_tokens(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Takes the mean over the batches drawn together: all target tokens of a window weigh the same in any layout.

    Args:
      batch: of a training stream, with `expected_tokens` float32 [B].

    Returns:
      float32 scalar, at least 1.

    Raises:
      InputError: if the batch is of another source.
    """
    if "expected_tokens" not in batch:
        raise InputError(
            f"window_tokens needs batches with expected_tokens, which jaxmtl.feed.stream gives; found {sorted(batch)}; "
            "give NORMALISER=@normalisers.batch_tokens"
        )
    return jnp.maximum(jnp.sum(batch["expected_tokens"]), 1.0)
