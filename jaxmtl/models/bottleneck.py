"""Bottleneck adapters beside a feed-forward sub-layer, read from the collection "bottleneck".

Letters in shapes: A adapters, B rows, L length, D embed, N bottleneck width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

COLLECTION = "bottleneck"
"""Name of the variable collection that feed-forward sub-layers read."""


def with_bottleneck(module: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Adds a layer's bottleneck adapter, if it has one: `y + gelu(x W_down + b_down) W_up + b_up`.

    Args:
      module: the feed-forward sub-layer; its collection holds `down` [A, D, N], `down_bias` [A, 1, N], `up` [A, N, D]
        and `up_bias` [A, 1, D]: row n of B uses adapter n // (B / A); without the axis A all rows use the same.
      x: [B, L, D], what the sub-layer reads.
      y: [B, L, D], what it gives.

    Returns:
      [B, L, D]; `y` itself if the layer has no adapter.

    Source: methods 1.3; Houlsby et al. 2019 for the form, He et al. 2022 for its place beside the sub-layer.
    """
    if not module.has_variable(COLLECTION, "down"):
        return y
    leaf = lambda name: module.get_variable(COLLECTION, name).astype(x.dtype)
    down, up = leaf("down"), leaf("up")
    rows = x if down.ndim == 2 else x.reshape(down.shape[0], -1, x.shape[-1])
    hidden = nn.gelu(jnp.matmul(rows, down) + leaf("down_bias"))
    return y + (jnp.matmul(hidden, up) + leaf("up_bias")).reshape(y.shape)
