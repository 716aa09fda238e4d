"""The cross-attention from every encoder layer to the instruction: its parameters, and the keys and values once made.

Letters in shapes: L encoder layers, U instructions, I instruction length, D embed, E width of the states, H heads, K
head width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.models.layers import Initializer, normal, parameter


class InstructionFusion(nn.Module):
    """Parameters of all layers' fusion, stacked; every layer has its own.

    Attributes:
      num_layers: L.
      embed_dim: D.
      num_heads: H.
      head_dim: K.
      style: "pre_norm" or "post_norm", see `hyper_config.FUSIONS`.

    Source: TAGI, Eq. 1; methods 1.12.
    """

    num_layers: int
    embed_dim: int
    num_heads: int
    head_dim: int
    style: str

    @nn.compact
    def __call__(self, states: jax.Array, mask: jax.Array) -> dict[str, Any]:
        """Projects instructions to keys and values.

        Args:
          states: [U, I, E].
          mask: bool [U, I], True on real tokens.

        Returns:
          What `instruction.with_fusion` reads, but the index: `key` and `value` [L, U, I, H, K], `mask` bool [L, U, I],
          `query` [L, D, H·K], `out` [L, H·K, D], and `pre_scale` or `post_scale` [L, D].
        """
        width, inner = self.embed_dim, self.num_heads * self.head_dim
        kernels = {name: self._kernel(name, states.shape[-1]) for name in ("key", "value")}
        heads = (self.num_heads, self.head_dim)
        project = lambda kernel: jnp.einsum("uie,leo->luio", states, kernel.astype(states.dtype))
        made = {name: project(kernel).reshape(self.num_layers, *mask.shape, *heads) for name, kernel in kernels.items()}
        is_identity = self.style == "pre_norm"
        out_init = nn.initializers.zeros if is_identity else normal(inner**-0.5)
        scale = parameter(self, "scale", nn.initializers.ones, ("layers", "embed"), (self.num_layers, width))
        return made | {
            "mask": jnp.broadcast_to(mask, (self.num_layers, *mask.shape)),
            "query": self._kernel("query", width, (width * self.head_dim) ** -0.5),
            "out": parameter(self, "out", out_init, ("layers", "heads", "embed"), (self.num_layers, inner, width)),
            "pre_scale" if is_identity else "post_scale": scale,
        }

    def _kernel(self, name: str, inputs: int, stddev: float | None = None) -> jax.Array:
        init: Initializer = normal(inputs**-0.5 if stddev is None else stddev)
        shape = (self.num_layers, inputs, self.num_heads * self.head_dim)
        return parameter(self, name, init, ("layers", "embed", "heads"), shape)
