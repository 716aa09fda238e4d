"""RoBERTa's blocks: positions, self-attention, one encoder layer; every linear layer has a bias.

Letters in shapes: B batch, S length, D embed, H heads, K head width, F mlp width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxmtl.models.attention import kept_keys
from jaxmtl.models.layers import Dense, LayerNorm, normal
from jaxmtl.models.masks import Mask, Segments
from jaxmtl.models.roberta_config import RobertaConfig

INIT = normal(0.02)
"""Initializer of every matrix; biases start at 0."""


def position_ids(real: jax.Array | Segments, pad_id: int) -> jax.Array:
    """Numbers the real tokens of each row, in packed rows of each segment, from `pad_id` + 1; padding has `pad_id`.

    Args:
      real: bool [B, S], True on tokens that are not padding, wherever padding is; or the segments of packed rows.
      pad_id: token id of padding.

    Returns:
      int32 [B, S], rows of the position embedding.

    Source: methods 6.2 (XLM-R).
    """
    if isinstance(real, Segments):
        return jnp.where(real.ids == 0, 0, real.positions + 1) + pad_id
    counted = real.astype(jnp.int32)
    return jnp.cumsum(counted, axis=1) * counted + pad_id


def dense(config: RobertaConfig, features: int, axes: tuple[str, str], name: str) -> Dense:
    """Returns a linear layer with bias as all of RoBERTa's are.

    Args:
      config: the model's config.
      features: output width.
      axes: logical names of the kernel's axes.
      name: its name in the layer that owns it.
    """
    return Dense(features, axes, INIT, jnp.dtype(config.dtype), nn.initializers.zeros, name=name)


def norm(config: RobertaConfig, name: str | None = None) -> LayerNorm:
    """Returns a norm as all of RoBERTa's are.

    Args:
      config: the model's config.
      name: its name in the layer that owns it; None in `setup`, where attributes name layers.
    """
    return LayerNorm(config.norm_epsilon, jnp.dtype(config.dtype), name=name)


class SelfAttention(nn.Module):
    """Projects to heads, attends with scores scaled by the root of K, projects back.

    Attributes:
      config: the model's config.
    """

    config: RobertaConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask, *, train: bool) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]."""
        config, width = self.config, self.config.embed_dim
        heads = lambda y: y.reshape(*y.shape[:-1], config.num_heads, config.head_dim)
        project = lambda name: heads(dense(config, width, ("embed", "heads"), name)(x))
        query = project("query") * config.head_dim**-0.5
        key, value = project("key"), project("value")
        keep = kept_keys(self, config.attention_dropout_rate if train else 0.0, *x.shape[:2])
        mixed = config.attention(query, key, value, None, mask, keep)
        return dense(config, width, ("heads", "embed"), "out")(mixed.reshape(x.shape))


class EncoderLayer(nn.Module):
    """One encoder block, post-norm: self-attention, feed-forward.

    Attributes:
      config: the model's config.
    """

    config: RobertaConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: Mask) -> tuple[jax.Array, None]:
        """Maps [B, S, D] to ([B, S, D], None), the form that `nn.scan` wants."""
        config = self.config
        drop = nn.Dropout(config.dropout_rate, deterministic=not train)
        attended = SelfAttention(config, name="attention")(x, mask, train=train)
        x = norm(config, "attention_norm")(x + drop(attended))
        hidden = nn.gelu(dense(config, config.mlp_dim, ("embed", "mlp"), "wi")(x), approximate=False)
        hidden = with_logical_constraint(hidden, ("batch", "length", "mlp"))
        hidden = dense(config, config.embed_dim, ("mlp", "embed"), "wo")(hidden)
        x = norm(config, "mlp_norm")(x + drop(hidden))
        return with_logical_constraint(x, ("batch", "length", "embed")), None
