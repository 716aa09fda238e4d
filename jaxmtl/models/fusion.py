"""Fusion in the decoder: texts that are encoded apart stand side by side in the memory that a decoder looks at.

The memory tells neither which text a state belongs to nor where that text stood.
Letters in shapes: B inputs, L shared states, S states of an input, D embed.
"""

import jax
import jax.numpy as jnp


def fuse(shared: jax.Array, shared_mask: jax.Array, own: jax.Array, own_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Puts states that all inputs share before each input's own.

    Args:
      shared: [L, D], states of the texts that every input sees; L may be 0.
      shared_mask: bool [L], True on real ones.
      own: [B, S, D], states of each input.
      own_mask: bool [B, S], True on real ones.

    Returns:
      The memory [B, L + S, D], in the dtype of `own`, and its mask bool [B, L + S].

    Source: FiD-ICL, memory = [Enc(demonstration 1); ...; Enc(query)]; methods 3.6.
    """
    rows = own.shape[0]
    states = jnp.broadcast_to(shared.astype(own.dtype), (rows, *shared.shape))
    mask = jnp.broadcast_to(shared_mask, (rows, *shared_mask.shape))
    return jnp.concatenate([states, own], axis=1), jnp.concatenate([mask, own_mask], axis=1)
