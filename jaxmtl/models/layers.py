"""Layers that all families share: dense, embedding, norms, relative position bias, dropout shared along length.

Letters in shapes: B batch, T query length, S key length, D embed, H heads, K head width, F mlp width, V vocab.
"""

import math
from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.models.low_rank import low_rank_update, update_of

Initializer = Callable[..., jax.Array]

TURNED = "turned"
"""Name of the variable collection in which linear layers find their kernels turned on their side."""


def parameter(
    module: nn.Module, name: str, init: Initializer, axes: tuple[str, ...], shape: tuple[int, ...]
) -> jax.Array:
    """Declares a parameter whose axes have logical names.

    Args:
      module: the layer that owns it.
      name: its name in the layer.
      init: initializer.
      axes: logical name of each axis.
      shape: its shape.

    Returns:
      float32 array of that shape.
    """
    return cast(jax.Array, module.param(name, nn.with_logical_partitioning(init, axes), shape))


def normal(stddev: float) -> Initializer:
    """Returns an initializer N(0, stddev²) that is not truncated, as T5's own code uses."""
    return nn.initializers.normal(stddev)


class Dense(nn.Module):
    """A linear layer, `y = x W` or `y = x W + b`, plus the low-rank update that the collection "lora" holds for it.

    Where the collection "turned" holds its kernel as [out, in], that one is used.

    Attributes:
      features: output width.
      axes: logical names of the kernel's input and output axis.
      init: kernel initializer.
      dtype: dtype of the product; the kernel itself is kept in float32.
      bias_init: initializer of the bias; None for a layer without bias.
    """

    features: int
    axes: tuple[str, str]
    init: Initializer
    dtype: jnp.dtype = jnp.float32
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., features]."""
        x = x.astype(self.dtype)
        if self.has_variable(TURNED, "kernel"):
            y = multiply_rows(x, self.get_variable(TURNED, "kernel").astype(self.dtype)).astype(self.dtype)
        else:
            kernel = parameter(self, "kernel", self.init, self.axes, (x.shape[-1], self.features))
            y = project(x, kernel.astype(self.dtype))
        if self.bias_init is not None:
            y = y + parameter(self, "bias", self.bias_init, self.axes[1:], (self.features,)).astype(self.dtype)
        update = update_of(self)
        return y if update is None else y + low_rank_update(x, update)


@jax.custom_vjp
def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies by a kernel, with a gradient that moves less memory on CPUs.

    A CPU turns one factor of the kernel's gradient on its side. Here this is always the narrower factor, and nothing is
    fused into the turning, which would take twice the time: in all that saves a fifth of a step of T5 v1.1 small.

    Args:
      x: [..., in].
      kernel: [in, out], of the same dtype.

    Returns:
      [..., out].
    """
    return jnp.dot(x, kernel)


def _project_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.dot(x, kernel), (x, kernel)


def _project_backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    kernel_grad = jax.lax.platform_dependent(x, grad, cpu=_turning_little, default=_over_others)
    return jnp.dot(grad, kernel.T), kernel_grad


def _over_others(x: jax.Array, grad: jax.Array) -> jax.Array:
    """Multiplies [..., in] and [..., out] over all axes but the last: [in, out]."""
    others = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, grad, ((others, others), ((), ())))


def _turning_little(x: jax.Array, grad: jax.Array) -> jax.Array:
    """Does the same without turning the wider factor, or anything that is not yet in memory, on its side."""
    # One barrier for each: where the kernel is frozen, what is behind x is not computed.
    x, grad = jax.lax.optimization_barrier(x), jax.lax.optimization_barrier(grad)
    if x.shape[-1] <= grad.shape[-1]:
        return _over_others(x, grad)
    # Without this one the compiler swaps the two factors.
    return jax.lax.optimization_barrier(_over_others(grad, x)).T


project.defvjp(_project_forward, _project_backward)


class Embed(nn.Module):
    """A table of token embeddings that can also score tokens (a tied output layer).

    Attributes:
      vocab_size: rows V.
      features: width D.
      init: table initializer.
      dtype: dtype of what is returned.
      axes: logical names of the table's axes; others for a table of positions.
    """

    vocab_size: int
    features: int
    init: Initializer
    dtype: jnp.dtype = jnp.float32
    axes: tuple[str, str] = ("vocab", "embed")

    def setup(self) -> None:
        """Creates the table [V, D]."""
        shape = (self.vocab_size, self.features)
        self.embedding = parameter(self, "embedding", self.init, self.axes, shape)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps int32 [B, T] to [B, T, D]."""
        return jnp.take(self.embedding.astype(self.dtype), tokens, axis=0)

    def attend(self, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """Scores every token: [B, T, D] to float32 logits [B, T, V], with a bias float32 [V] if there is one."""
        return multiply_rows(x.astype(self.dtype), self.embedding.astype(self.dtype), bias)


FEW_ROWS = 128
"""Rows, such as those of one step of decoding, that are few beside those of a vocabulary."""


def multiply_rows(x: jax.Array, table: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Multiplies by each row of a table, in the way that suits the number of positions and the platform.

    Args:
      x: [..., D].
      table: [V, D], of the same dtype.
      bias: float32 [V], added to the products.

    Returns:
      float32 [..., V].
    """
    if math.prod(x.shape[:-1]) > FEW_ROWS:
        return _table_last(x, table, bias)
    return jax.lax.platform_dependent(x, table, bias, cpu=_table_first, default=_table_last)


def _table_last(x: jax.Array, table: jax.Array, bias: jax.Array | None) -> jax.Array:
    product = jnp.dot(x, table.T, preferred_element_type=jnp.float32)
    return product if bias is None else product + bias


def _table_first(x: jax.Array, table: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Multiplies from the other side: a CPU then streams the table once, in two thirds of the time if x is small."""
    rows = x.reshape(-1, x.shape[-1])
    product = jnp.dot(table, rows.T, preferred_element_type=jnp.float32)
    # Without the barrier the compiler swaps the two factors back.
    product = jax.lax.optimization_barrier(product)
    if bias is not None:  # added before the turning, or both would be turned
        product = product + bias[:, None]
    return product.T.reshape(*x.shape[:-1], table.shape[0])


class RMSNorm(nn.Module):
    """Divides by the root mean square, in float32: no mean is subtracted and there is no bias.

    Attributes:
      epsilon: added to the mean square.
      dtype: dtype of what is returned.
    """

    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis of [..., D]."""
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), (x.shape[-1],))
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """Subtracts the mean and divides by the standard deviation, in float32, then scales and shifts.

    Attributes:
      epsilon: added to the variance.
      dtype: dtype of what is returned.
    """

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis of [..., D]."""
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), (x.shape[-1],))
        bias = parameter(self, "bias", nn.initializers.zeros, ("embed",), (x.shape[-1],))
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


class Dropout(nn.Module):
    """Drops whole columns of a sequence: one mask for all positions along the length axis (-2), as T5 was trained.

    Attributes:
      rate: share of columns set to zero.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Drops from [..., length, width] if `train`, else returns it as it is."""
        return nn.Dropout(self.rate, broadcast_dims=(-2,), deterministic=not train)(x)


def relative_buckets(
    query_positions: jax.Array, key_positions: jax.Array, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> jax.Array:
    """Sorts relative positions into T5's buckets: exact when near, logarithmic when far.

    Args:
      query_positions: int32 [T].
      key_positions: int32 [S].
      bidirectional: True in an encoder (half of the buckets look ahead), False in a causal decoder.
      num_buckets: number of buckets in all.
      max_distance: distance from which on all positions share the last bucket, in tokens.

    Returns:
      int32 [T, S], bucket of key position minus query position.

    Source: methods 6.1 (relative bucket).
    """
    relative = key_positions[None, :] - query_positions[:, None]
    offset = jnp.zeros_like(relative)
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(relative > 0, num_buckets, 0)
        distance = jnp.abs(relative)
    else:
        distance = jnp.maximum(-relative, 0)
    exact = num_buckets // 2
    # The bound of 1 keeps log(0) out; those entries take the exact branch anyway.
    steps = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = exact + (steps * (num_buckets - exact)).astype(jnp.int32)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(far, num_buckets - 1))


class RelativeBias(nn.Module):
    """A learned attention bias per relative-position bucket and head, shared by all layers of a stack.

    Attributes:
      num_heads: heads H.
      num_buckets: number of buckets.
      max_distance: see `relative_buckets`.
      bidirectional: True in an encoder.
      init: initializer of the table [num_buckets, H].
    """

    num_heads: int
    num_buckets: int
    max_distance: int
    bidirectional: bool
    init: Initializer

    @nn.compact
    def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
        """Returns float32 [H, T, S] for int32 positions [T] and [S]."""
        shape = (self.num_buckets, self.num_heads)
        table = parameter(self, "embedding", self.init, ("relative_buckets", "heads"), shape)
        buckets = relative_buckets(
            query_positions,
            key_positions,
            bidirectional=self.bidirectional,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
        )
        return jnp.take(table.T, buckets, axis=1)
