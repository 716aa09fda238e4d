"""The blocks of decoder-only models: causal self-attention and feed-forward, normalised before or behind.

Letters in shapes: B prompts, R rows per prompt, S prompt length, T target length, L either, D embed, H heads, K head
width, F mlp width. Scores are scaled by the root of K, which the query is divided by.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxmtl.models.attention import kept_keys
from jaxmtl.models.bottleneck import with_bottleneck
from jaxmtl.models.decoding_cache import KeysAndValues, kept, write_position
from jaxmtl.models.gpt_config import ACTIVATIONS, GPTConfig
from jaxmtl.models.layers import Dense, Dropout, LayerNorm, normal
from jaxmtl.models.masks import Mask
from jaxmtl.models.prefix import with_kept_prefix, with_prefix
from jaxmtl.models.prompt_attention import attend_to_prompt


class Seen(NamedTuple):
    """What the queries of a pass may see, the same in all layers.

    Attributes:
      bias: float32 [T, own keys], hides later positions.
      mask: over all keys, those of the prompt first; None if all are seen. Not used where a prompt has many rows.
      prompt: bool [B, S], True on keys of the prompt to see, where a prompt has many rows; None otherwise.
    """

    bias: jax.Array
    mask: Mask | None = None
    prompt: jax.Array | None = None


def _dense(config: GPTConfig, features: int, axes: tuple[str, str], *, to_residual: bool = False) -> Dense:
    stddev = config.init_stddev * ((2 * config.num_layers) ** -0.5 if to_residual else 1)
    return Dense(features, axes, normal(stddev), jnp.dtype(config.dtype), nn.initializers.zeros)


class SelfAttention(nn.Module):
    """Projects to heads, attends, projects back.

    Attributes:
      config: the model's config.
    """

    config: GPTConfig

    def setup(self) -> None:
        """Creates the four projections."""
        config, width = self.config, self.config.embed_dim
        self.query = _dense(config, width, ("embed", "heads"))
        self.key = _dense(config, width, ("embed", "heads"))
        self.value = _dense(config, width, ("embed", "heads"))
        self.out = _dense(config, width, ("heads", "embed"), to_residual=True)

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)

    def queries(self, x: jax.Array) -> jax.Array:
        """Projects [B, L, D] to scaled queries [B, L, H, K]."""
        return self._heads(self.query(x)) * self.config.head_dim**-0.5

    def keys_and_values(self, x: jax.Array) -> KeysAndValues:
        """Projects [B, L, D] to keys and values [B, L, H, K]."""
        return self._heads(self.key(x)), self._heads(self.value(x))

    def __call__(
        self, x: jax.Array, prompt: KeysAndValues | None, seen: Seen, *, train: bool
    ) -> tuple[jax.Array, KeysAndValues]:
        """Lets `x` [B·R, L, D] look at the prompt's keys and values [B, S, H, K], if any, and at itself.

        Returns:
          [B·R, L, D], and keys and values of `x`.
        """
        query, own = self.queries(x), self.keys_and_values(x)
        if seen.prompt is not None and prompt is not None:
            return self._out(self._attend(query, kept(prompt), kept(own), seen.prompt, seen.bias)), own
        (key, value), bias = own, seen.bias
        if prompt is not None:
            key, value = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), prompt, own)
            bias = jnp.pad(bias, ((0, 0), (prompt[0].shape[1], 0)))
        key, value, bias, mask = with_prefix(self, key, value, bias[None], seen.mask)
        keep = kept_keys(self, self._dropout_rate if train else 0.0, *key.shape[:2])
        return self._out(self.config.attention(query, key, value, bias, mask, keep)), own

    def look_up(
        self, x: jax.Array, prompt: KeysAndValues, own: KeysAndValues, prompt_seen: jax.Array, own_bias: jax.Array
    ) -> jax.Array:
        """Lets one position `x` [B·R, 1, D] look at keys and values that were kept."""
        return self._out(self._attend(self.queries(x), prompt, own, prompt_seen, own_bias))

    def _attend(
        self, query: jax.Array, prompt: KeysAndValues, own: KeysAndValues, prompt_seen: jax.Array, own_bias: jax.Array
    ) -> jax.Array:
        """Attends to a prompt, with what the layer's prefix puts before it, and to each row's own keys, all kept."""
        key, value, _, mask = with_kept_prefix(self, *prompt, None, Mask(keys=prompt_seen))
        seen = prompt_seen if mask is None else mask.keys
        return attend_to_prompt(query, (key, value), own, seen, own_bias)

    @property
    def _dropout_rate(self) -> float:
        own = self.config.attention_dropout_rate
        return self.config.dropout_rate if own is None else own

    def _out(self, mixed: jax.Array) -> jax.Array:
        return self.out(mixed.reshape(*mixed.shape[:-2], -1))


class FeedForward(nn.Module):
    """The feed-forward sub-layer.

    Attributes:
      config: the model's config.
    """

    config: GPTConfig

    def setup(self) -> None:
        """Creates the two projections."""
        self.wi = _dense(self.config, self.config.mlp_dim, ("embed", "mlp"))
        self.wo = _dense(self.config, self.config.embed_dim, ("mlp", "embed"), to_residual=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, L, D] to [B, L, D]."""
        hidden = ACTIVATIONS[self.config.activation](self.wi(x))
        return with_bottleneck(self, x, self.wo(with_logical_constraint(hidden, ("batch", "length", "mlp"))))


class Block(nn.Module):
    """One block: self-attention, feed-forward.

    Attributes:
      config: the model's config.
    """

    config: GPTConfig

    def setup(self) -> None:
        """Creates the sub-layers and their norms."""
        norm = lambda: LayerNorm(self.config.norm_epsilon, jnp.dtype(self.config.dtype))
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention, self.mlp = SelfAttention(self.config), FeedForward(self.config)
        self.drop = Dropout(self.config.dropout_rate)

    def _before(self, norm: nn.Module, x: jax.Array) -> jax.Array:
        return norm(x) if self.config.norm == "pre" else x

    def _behind(self, norm: nn.Module, x: jax.Array) -> jax.Array:
        return norm(x) if self.config.norm == "post" else x

    def __call__(
        self, x: jax.Array, train: bool, prompt: KeysAndValues | None, seen: Seen
    ) -> tuple[jax.Array, KeysAndValues]:
        """Maps [B·R, L, D] to the same and this block's keys and values of it, the form that `nn.scan` wants."""
        mixed, own = self.attention(self._before(self.attention_norm, x), prompt, seen, train=train)
        return self._add(x, self.drop(mixed, train=train), train=train), own

    def _add(self, x: jax.Array, mixed: jax.Array, *, train: bool) -> jax.Array:
        """Adds what attention gave, and then what the feed-forward sub-layer makes of the sum."""
        x = self._behind(self.attention_norm, x + mixed)
        wide = self.mlp(self._before(self.mlp_norm, x))
        x = self._behind(self.mlp_norm, x + self.drop(wide, train=train))
        return with_logical_constraint(x, ("batch", "length", "embed"))

    def step(
        self,
        x: jax.Array,
        known: tuple[KeysAndValues, KeysAndValues],
        position: jax.Array,
        prompt_seen: jax.Array,
        own_bias: jax.Array,
    ) -> tuple[jax.Array, KeysAndValues]:
        """Decodes one position.

        Args:
          x: [B·R, 1, D].
          known: this layer's keys [B, H, K, S] and values [B, H, S, K] of the prompt, and its cache of what was
            generated as in `write_position`.
          position: int32 scalar, where the token stands among the generated ones.
          prompt_seen: bool [B, S], True on keys of the prompt to see.
          own_bias: float32 [1, T], hides what comes later.

        Returns:
          What the next layer gets, and the cache of what was generated.
        """
        prompt, cache = known
        normed = self._before(self.attention_norm, x)
        cache = write_position(cache, self.attention.keys_and_values(normed), position)
        return self._add(x, self.attention.look_up(normed, prompt, cache, prompt_seen, own_bias), train=False), cache
