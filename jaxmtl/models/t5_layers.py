"""T5's blocks: self- and cross-attention, feed-forward, one encoder layer, one decoder layer.

Letters in shapes: B inputs, R rows per input, S source length, T target length, D embed, H heads, K head width, F mlp
width.
Attention scores are not scaled by the root of K (the factor is part of the initialisation), and no layer has a bias.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxmtl.models.absorbed import absorbs, attend_to_memory
from jaxmtl.models.attention import attend_to_kept, attend_to_written, kept_keys, share_keys
from jaxmtl.models.bottleneck import with_bottleneck
from jaxmtl.models.decoding_cache import KeysAndValues, kept, write_position
from jaxmtl.models.instruction import with_fusion, with_memory
from jaxmtl.models.layers import Dense, Dropout, RMSNorm, normal
from jaxmtl.models.masks import Mask
from jaxmtl.models.prefix import COLLECTION as PREFIX
from jaxmtl.models.prefix import with_kept_prefix, with_prefix
from jaxmtl.models.stack import OUTPUTS
from jaxmtl.models.t5_config import ACTIVATIONS, T5Config


class MultiHeadAttention(nn.Module):
    """Projects to heads, attends, projects back.

    Attributes:
      config: the model's config.
    """

    config: T5Config

    def setup(self) -> None:
        """Creates the four projections."""
        config, inner = self.config, self.config.num_heads * self.config.head_dim
        dtype, width = jnp.dtype(config.dtype), config.embed_dim
        self.query = Dense(inner, ("embed", "heads"), normal((width * config.head_dim) ** -0.5), dtype)
        self.key = Dense(inner, ("embed", "heads"), normal(width**-0.5), dtype)
        self.value = Dense(inner, ("embed", "heads"), normal(width**-0.5), dtype)
        self.out = Dense(width, ("heads", "embed"), normal(inner**-0.5), dtype)

    def heads(self, x: jax.Array) -> jax.Array:
        """Splits [B, L, H·K] into [B, L, H, K]."""
        return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)

    def keys_and_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Projects [B, S, D] to keys and values [B, S, H, K]."""
        return self.heads(self.key(x)), self.heads(self.value(x))

    def look_at(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values of all that queries look at: of each row's instruction, if any, and of `memory`."""
        return with_memory(self, *self.keys_and_values(memory))

    def __call__(
        self, x: jax.Array, memory: jax.Array, bias: jax.Array | None, mask: Mask | None, *, train: bool
    ) -> jax.Array:
        """Lets `x` [B·R, T, D] look at `memory` [B, S, D]; returns [B·R, T, D]."""
        keep = functools.partial(kept_keys, self, self.config.dropout_rate if train else 0.0)
        query, mask = share_keys(self.heads(self.query(x)), mask, memory.shape[0])
        if bias is None and absorbs(self, query.shape[1], memory):
            mixed = attend_to_memory(self, query, memory, mask, keep)
        else:
            key, value, bias, mask = with_prefix(self, *self.look_at(memory), bias, mask)
            mixed = self.config.attention(query, key, value, bias, mask, keep(*key.shape[:2]))
        return self.out(mixed.reshape(*x.shape[:-1], -1))

    def look_up(
        self, x: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, mask: Mask | None
    ) -> jax.Array:
        """Lets one position `x` [B·R, 1, D] look at keys [B, H, K, S] and values [B, H, S, K] that were kept."""
        key, value, bias, mask = with_kept_prefix(self, key, value, bias, mask)
        query, mask = share_keys(self.heads(self.query(x)), mask, key.shape[0])
        mixed = attend_to_kept(query, key, value, bias, mask)
        return self.out(mixed.reshape(*x.shape[:-1], -1))

    def look_back(
        self, x: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, position: jax.Array
    ) -> jax.Array:
        """Lets position `position`, `x` [N, 1, D], look at a cache that is written up to it, keys [N, H, K, T]."""
        if self.has_variable(PREFIX, "key"):
            return self.look_up(x, key, value, bias, None)
        mixed = attend_to_written(self.heads(self.query(x)), key, value, bias, position)
        return self.out(mixed.reshape(*x.shape[:-1], -1))


class FeedForward(nn.Module):
    """The feed-forward sub-layer; kernels are named `wi` if there is one activation, else `wi_0`, `wi_1`.

    Attributes:
      config: the model's config.
    """

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, L, D] to [B, L, D]."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        names = ["wi"] if len(config.mlp_activations) == 1 else ["wi_0", "wi_1"]
        hidden = jnp.ones((), dtype)
        for name, activation in zip(names, config.mlp_activations, strict=True):
            wide = Dense(config.mlp_dim, ("embed", "mlp"), normal(config.embed_dim**-0.5), dtype, name=name)
            hidden = hidden * ACTIVATIONS[activation](wide(x))
        hidden = with_logical_constraint(hidden, ("batch", "length", "mlp"))
        hidden = Dropout(config.dropout_rate)(hidden, train=train)
        y = Dense(config.embed_dim, ("mlp", "embed"), normal(config.mlp_dim**-0.5), dtype, name="wo")(hidden)
        return with_bottleneck(self, x, y)


class EncoderLayer(nn.Module):
    """One encoder block, pre-norm: self-attention, feed-forward.

    Attributes:
      config: the model's config.
    """

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, bias: jax.Array, mask: Mask | None) -> tuple[jax.Array, None]:
        """Maps [B, S, D] to ([B, S, D], None), the form that `nn.scan` wants."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        drop = Dropout(config.dropout_rate)
        normed = RMSNorm(config.norm_epsilon, dtype, name="attention_norm")(x)
        attended = MultiHeadAttention(config, name="attention")(normed, normed, bias, mask, train=train)
        x = x + drop(attended, train=train)
        x = with_fusion(self, config.attention, x, functools.partial(drop, train=train))
        normed = RMSNorm(config.norm_epsilon, dtype, name="mlp_norm")(x)
        x = x + drop(FeedForward(config, name="mlp")(normed, train=train), train=train)
        self.sow(OUTPUTS, "states", x)
        return with_logical_constraint(x, ("batch", "length", "embed")), None


class DecoderLayer(nn.Module):
    """One decoder block, pre-norm: causal self-attention, cross-attention, feed-forward.

    Attributes:
      config: the model's config.
    """

    config: T5Config

    def setup(self) -> None:
        """Creates the three sub-layers and their norms."""
        norm = lambda: RMSNorm(self.config.norm_epsilon, jnp.dtype(self.config.dtype))
        self.self_attention_norm, self.cross_attention_norm, self.mlp_norm = norm(), norm(), norm()
        self.self_attention = MultiHeadAttention(self.config)
        self.cross_attention = MultiHeadAttention(self.config)
        self.mlp = FeedForward(self.config)
        self.drop = Dropout(self.config.dropout_rate)

    def __call__(
        self,
        x: jax.Array,
        train: bool,
        memory: jax.Array,
        bias: jax.Array,
        self_mask: Mask | None,
        cross_mask: Mask | None,
    ) -> tuple[jax.Array, None]:
        """Maps [B·R, T, D] with `memory` [B, S, D] to ([B·R, T, D], None), the form that `nn.scan` wants."""
        normed = self.self_attention_norm(x)
        x = x + self.drop(self.self_attention(normed, normed, bias, self_mask, train=train), train=train)
        normed = self.cross_attention_norm(x)
        x = x + self.drop(self.cross_attention(normed, memory, None, cross_mask, train=train), train=train)
        x = x + self.drop(self.mlp(self.mlp_norm(x), train=train), train=train)
        return with_logical_constraint(x, ("batch", "length", "embed")), None

    def cross_cache(self, _: None, __: None, memory: jax.Array) -> tuple[None, KeysAndValues]:
        """Projects `memory` [B, S, D] once to this layer's keys [B, H, K, S] and values [B, H, S, K] of it.

        Those of instructions stand before them.
        """
        return None, kept(self.cross_attention.look_at(memory))

    def step(
        self,
        x: jax.Array,
        known: tuple[KeysAndValues, KeysAndValues],
        position: jax.Array,
        bias: jax.Array,
        mask: Mask | None,
    ) -> tuple[jax.Array, KeysAndValues]:
        """Decodes one position.

        Args:
          x: [B·R, 1, D].
          known: what `cross_cache` gave for this layer, and its self-attention cache as in `write_position`.
          position: int32 scalar, the position that is decoded.
          bias: float32 [H, 1, T], with later positions masked.
          mask: which of the memory to see.

        Returns:
          What the next layer gets, and the self-attention cache.
        """
        cross, cache = known
        normed = self.self_attention_norm(x)
        cache = write_position(cache, self.self_attention.keys_and_values(normed), position)
        x = x + self.self_attention.look_back(normed, *cache, bias, position)
        x = x + self.cross_attention.look_up(self.cross_attention_norm(x), *cross, None, mask)
        x = x + self.mlp(self.mlp_norm(x), train=False)
        return x, cache
