"""BART's blocks: self- and cross-attention, feed-forward, one encoder layer, one decoder layer.

Letters in shapes: B inputs, R rows per input, S source length, T target length, D embed, H heads, K head width, F mlp
width. What a sub-layer gives is added to what it read, and the sum is normalised; every kernel has a bias; queries are
scaled by the root of K.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxmtl.models.absorbed import absorbs, attend_to_memory
from jaxmtl.models.attention import attend_to_kept, attend_to_written, kept_keys, share_keys
from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.models.bottleneck import with_bottleneck
from jaxmtl.models.decoding_cache import KeysAndValues, kept, write_position
from jaxmtl.models.instruction import with_fusion, with_memory
from jaxmtl.models.layers import Dense, LayerNorm, normal
from jaxmtl.models.masks import Mask
from jaxmtl.models.prefix import COLLECTION as PREFIX
from jaxmtl.models.prefix import with_kept_prefix, with_prefix
from jaxmtl.models.stack import OUTPUTS

gelu = functools.partial(nn.gelu, approximate=False)


def dense(config: BARTConfig, features: int, axes: tuple[str, str]) -> Dense:
    """Makes a linear layer with bias, initialised as BART's are."""
    return Dense(features, axes, normal(config.init_stddev), jnp.dtype(config.dtype), nn.initializers.zeros)


def layer_norm(config: BARTConfig) -> LayerNorm:
    """Makes a norm that returns the config's dtype."""
    return LayerNorm(config.norm_epsilon, jnp.dtype(config.dtype))


class MultiHeadAttention(nn.Module):
    """Projects to heads, attends, projects back.

    Attributes:
      config: the model's config.
    """

    config: BARTConfig

    def setup(self) -> None:
        """Creates the four projections."""
        config, width = self.config, self.config.embed_dim
        self.query = dense(config, width, ("embed", "heads"))
        self.key = dense(config, width, ("embed", "heads"))
        self.value = dense(config, width, ("embed", "heads"))
        self.out = dense(config, width, ("heads", "embed"))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)

    def keys_and_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Projects [B, S, D] to keys and values [B, S, H, K]."""
        return self._heads(self.key(x)), self._heads(self.value(x))

    def look_at(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values of all that queries look at: of each row's instruction, if any, and of `memory`."""
        return with_memory(self, *self.keys_and_values(memory))

    def __call__(
        self, x: jax.Array, memory: jax.Array, bias: jax.Array | None, mask: Mask | None, *, train: bool
    ) -> jax.Array:
        """Lets `x` [B·R, T, D] look at `memory` [B, S, D]; returns [B·R, T, D]."""
        keep = functools.partial(kept_keys, self, self.config.attention_dropout_rate if train else 0.0)
        query, mask = share_keys(self._queries(x), mask, memory.shape[0])
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
        query, mask = share_keys(self._queries(x), mask, key.shape[0])
        mixed = attend_to_kept(query, key, value, bias, mask)
        return self.out(mixed.reshape(*x.shape[:-1], -1))

    def look_back(
        self, x: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, position: jax.Array
    ) -> jax.Array:
        """Lets position `position`, `x` [N, 1, D], look at a cache that is written up to it, keys [N, H, K, T]."""
        if self.has_variable(PREFIX, "key"):
            return self.look_up(x, key, value, bias, None)
        mixed = attend_to_written(self._queries(x), key, value, bias, position)
        return self.out(mixed.reshape(*x.shape[:-1], -1))

    def _queries(self, x: jax.Array) -> jax.Array:
        return self._heads(self.query(x)) * self.config.head_dim**-0.5


class FeedForward(nn.Module):
    """The feed-forward sub-layer.

    Attributes:
      config: the model's config.
    """

    config: BARTConfig

    def setup(self) -> None:
        """Creates the two kernels."""
        config = self.config
        self.wi = dense(config, config.mlp_dim, ("embed", "mlp"))
        self.wo = dense(config, config.embed_dim, ("mlp", "embed"))
        self.drop = nn.Dropout(config.activation_dropout_rate)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, L, D] to [B, L, D]."""
        hidden = with_logical_constraint(gelu(self.wi(x)), ("batch", "length", "mlp"))
        return with_bottleneck(self, x, self.wo(self.drop(hidden, deterministic=not train)))


class EncoderLayer(nn.Module):
    """One encoder block: self-attention, feed-forward.

    Attributes:
      config: the model's config.
    """

    config: BARTConfig

    def setup(self) -> None:
        """Creates the two sub-layers and their norms."""
        config = self.config
        self.attention, self.attention_norm = MultiHeadAttention(config), layer_norm(config)
        self.mlp, self.mlp_norm = FeedForward(config), layer_norm(config)
        self.drop = nn.Dropout(config.dropout_rate)

    def __call__(self, x: jax.Array, train: bool, mask: Mask | None) -> tuple[jax.Array, None]:
        """Maps [B, S, D] to ([B, S, D], None), the form that `nn.scan` wants."""
        drop = functools.partial(self.drop, deterministic=not train)
        x = self.attention_norm(x + drop(self.attention(x, x, None, mask, train=train)))
        x = with_fusion(self, self.config.attention, x, drop)
        x = self.mlp_norm(x + drop(self.mlp(x, train=train)))
        self.sow(OUTPUTS, "states", x)
        return with_logical_constraint(x, ("batch", "length", "embed")), None


class DecoderLayer(nn.Module):
    """One decoder block: causal self-attention, cross-attention, feed-forward.

    Attributes:
      config: the model's config.
    """

    config: BARTConfig

    def setup(self) -> None:
        """Creates the three sub-layers and their norms."""
        config = self.config
        self.self_attention, self.self_attention_norm = MultiHeadAttention(config), layer_norm(config)
        self.cross_attention, self.cross_attention_norm = MultiHeadAttention(config), layer_norm(config)
        self.mlp, self.mlp_norm = FeedForward(config), layer_norm(config)
        self.drop = nn.Dropout(config.dropout_rate)

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
        drop = functools.partial(self.drop, deterministic=not train)
        x = self.self_attention_norm(x + drop(self.self_attention(x, x, bias, self_mask, train=train)))
        x = self.cross_attention_norm(x + drop(self.cross_attention(x, memory, None, cross_mask, train=train)))
        x = self.mlp_norm(x + drop(self.mlp(x, train=train)))
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
          bias: float32 [1, 1, T], with later positions masked.
          mask: which of the memory to see.

        Returns:
          What the next layer gets, and the self-attention cache.
        """
        cross, cache = known
        cache = write_position(cache, self.self_attention.keys_and_values(x), position)
        x = self.self_attention_norm(x + self.self_attention.look_back(x, *cache, bias, position))
        x = self.cross_attention_norm(x + self.cross_attention.look_up(x, *cross, None, mask))
        x = self.mlp_norm(x + self.mlp(x, train=False))
        return x, cache
