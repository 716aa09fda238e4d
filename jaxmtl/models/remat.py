"""Rematerialisation: which activations the backward pass finds in memory, by name."""

import jax

from jaxmtl.models import low_rank, row_attention

_POLICIES = jax.checkpoint_policies
REMAT_POLICIES = {
    "none": None,
    "full": _POLICIES.nothing_saveable,
    "products": _POLICIES.save_from_both_policies(
        _POLICIES.checkpoint_dots_with_no_batch_dims,
        _POLICIES.save_only_these_names(row_attention.SAVED_NAME, low_rank.SAVED_NAME),
    ),
}
"""What the backward pass finds in memory: everything, each layer's input only, or what products and attention gave."""
