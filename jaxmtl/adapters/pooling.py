"""From the states of an instruction to the vectors that its adapters are generated from.

Letters in shapes: U instructions, I instruction length, N slots, D width of the states, H heads, K head width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.models.attention import attend
from jaxmtl.models.layers import Dense, RMSNorm, normal
from jaxmtl.models.masks import Mask


class CrossAttention(nn.Module):
    """Lets queries look at an instruction: projects, attends to real tokens, projects back; no biases, as in T5.

    Attributes:
      num_heads: H.
      head_dim: K.
      width: D.
    """

    num_heads: int
    head_dim: int
    width: int

    @nn.compact
    def __call__(self, queries: jax.Array, states: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps queries [N, D] or [U, N, D], states [U, I, D] and their mask bool [U, I] to [U, N, D]."""
        inner, dtype = self.num_heads * self.head_dim, states.dtype
        project = lambda name, stddev: Dense(inner, ("embed", "heads"), normal(stddev), dtype, name=name)
        heads = lambda x: x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        query = heads(project("query", (self.width * self.head_dim) ** -0.5)(queries))
        query = jnp.broadcast_to(query, (states.shape[0], *query.shape[-3:]))
        key, value = (heads(project(name, self.width**-0.5)(states)) for name in ("key", "value"))
        mixed = attend(query, key, value, None, Mask(keys=mask), None)
        out = Dense(self.width, ("heads", "embed"), normal(inner**-0.5), dtype, name="out")
        return out(mixed.reshape(*mixed.shape[:2], inner))


class PoolingDecoder(nn.Module):
    """Layers of cross-attention and feed-forward, pre-norm, over the slots' vectors; slots do not see each other.

    Attributes:
      num_layers: how many.
      num_heads: H.
      head_dim: K.
      width: D.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    width: int

    @nn.compact
    def __call__(self, queries: jax.Array, states: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps queries [N, D], states [U, I, D] and their mask bool [U, I] to [U, N, D]."""
        dtype = states.dtype
        x = jnp.broadcast_to(queries, (states.shape[0], *queries.shape)).astype(dtype)
        for layer in range(self.num_layers):
            name = lambda part, layer=layer: f"{part}_{layer}"
            normed = RMSNorm(dtype=dtype, name=name("attention_norm"))(x)
            look = CrossAttention(self.num_heads, self.head_dim, self.width, name=name("attention"))
            x = x + look(normed, states, mask)
            normed = RMSNorm(dtype=dtype, name=name("mlp_norm"))(x)
            wide = Dense(4 * self.width, ("embed", "mlp"), normal(self.width**-0.5), dtype, name=name("wi"))
            back = Dense(self.width, ("mlp", "embed"), normal((4 * self.width) ** -0.5), dtype, name=name("wo"))
            x = x + back(nn.gelu(wide(normed)))
        return RMSNorm(dtype=dtype, name="norm")(x)


def masked_mean(states: jax.Array, mask: jax.Array) -> jax.Array:
    """Averages the states of real tokens, in float32.

    Args:
      states: [U, I, D].
      mask: bool [U, I]; a row without any gives 0.

    Returns:
      [U, D].
    """
    weights = mask.astype(jnp.float32)
    total = jnp.einsum("uid,ui->ud", states.astype(jnp.float32), weights)
    return (total / jnp.maximum(weights.sum(1, keepdims=True), 1.0)).astype(states.dtype)


class TagiCodePool(nn.Module):
    """The pooling of TAGI's released code, padding and all.

    Attributes:
      width: of what it gives.

    Source: methods 1.2.
    """

    width: int

    @nn.compact
    def __call__(self, last: jax.Array, first: jax.Array) -> jax.Array:
        """Maps the last states and those of the first layer, [U, I, D] each, to [U, width]."""
        mean = jnp.mean(last + first, axis=1)
        init = nn.initializers.lecun_normal()
        pooler = Dense(self.width, ("embed", "hyper_hidden"), init, last.dtype, nn.initializers.zeros, name="pooler")
        return jnp.tanh(pooler(mean))
