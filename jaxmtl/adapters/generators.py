"""The networks that turn slots' vectors into the numbers of adapters.

Letters in shapes: U instructions, G copies of a network (1 where one serves all), M slots of each copy, E width of what
was pooled, F hidden width, W numbers that a slot's vector becomes.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.adapters.hyper_config import GeneratorConfig
from jaxmtl.models.layers import Initializer, normal, parameter

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"gelu": nn.gelu, "relu": nn.relu, "silu": nn.silu}


class Copied(nn.Module):
    """A linear layer, or one for each copy of its network.

    Attributes:
      features: output width.
      copies: G; 0 for one that serves all.
      axes: logical names of the kernel's input and output axis.
      init: kernel initializer, given the axes that count copies.
      bias_init: initializer of the bias; None for none.
    """

    features: int
    copies: int
    axes: tuple[str, str]
    init: Callable[[tuple[int, ...]], Initializer]
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [U, G, M, in] to [U, G, M, features]."""
        stack, names = ((self.copies,), ("layers",)) if self.copies else ((), ())
        init = self.init(tuple(range(len(stack))))
        kernel = parameter(self, "kernel", init, (*names, *self.axes), (*stack, x.shape[-1], self.features))
        y = jnp.einsum("ugmi,gio->ugmo" if stack else "ugmi,io->ugmo", x, kernel.astype(x.dtype))
        if self.bias_init is not None:
            bias = parameter(self, "bias", self.bias_init, (*names, self.axes[1]), (*stack, self.features))
            y = y + (bias[:, None] if stack else bias).astype(x.dtype)
        return y


def fan_in(batch_axis: tuple[int, ...]) -> Initializer:
    """Keeps the spread of what goes through: a truncated normal with variance 1 by the input width."""
    return nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=batch_axis)


def _any(init: Initializer) -> Callable[[tuple[int, ...]], Initializer]:
    return lambda batch_axis: init


class Generator(nn.Module):
    """Norm, hidden layer, residual blocks, output.

    Attributes:
      config: what it is made of.
      width: W.
      fan: numbers in each row of what is generated: 1 by its root is LoRA's first spread.
      hidden_copies: G of all layers but the output; 0 for one network.
      output_copies: G of the output.
      is_update: True if the model is unchanged while the result is 0.
    """

    config: GeneratorConfig
    width: int
    fan: int
    hidden_copies: int
    output_copies: int
    is_update: bool

    @nn.compact
    def __call__(self, pooled: jax.Array, identity: jax.Array | None, *, train: bool) -> jax.Array:
        """Generates.

        Args:
          pooled: [U, G, M, E].
          identity: [G, M, E], added; None adds nothing.
          train: applies dropout (needs the rng "dropout").

        Returns:
          [U, G, M, W], before division.
        """
        config, start = self.config, _STARTS[self.config.start](self.fan, self.is_update)
        hidden = config.hidden or pooled.shape[-1]
        act = _ACTIVATIONS[config.activation]
        if config.norm == "layer_norm":
            pooled = nn.LayerNorm(dtype=pooled.dtype, name="norm")(pooled)
        x = pooled if identity is None else pooled + identity.astype(pooled.dtype)
        inner = lambda features, name: Copied(
            features, self.hidden_copies, ("embed", "hyper_hidden"), start["hidden"], start["hidden_bias"], name=name
        )
        x = act(inner(hidden, "hidden")(x))
        for block in range(config.blocks):
            normed = nn.LayerNorm(dtype=x.dtype, name=f"block_norm_{block}")(x)
            wide = act(inner(4 * hidden, f"block_in_{block}")(normed))
            x = x + inner(hidden, f"block_out_{block}")(wide)
        x = nn.Dropout(config.dropout, deterministic=not train)(x)
        axes, bias = ("hyper_hidden", "generated"), start["output_bias"]
        return Copied(self.width, self.output_copies, axes, start["output"](x.shape[-1]), bias, name="output")(x)


def _zero_update(fan: int, is_update: bool) -> dict[str, Any]:
    """Updates are 0; first factors begin as LoRA's, in which the instruction has as large a part as the bias."""
    zeros, bound = nn.initializers.zeros, fan**-0.5
    uniform = lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)
    kernel = lambda width: _any(zeros if is_update else normal((width * fan) ** -0.5))
    return dict(hidden=fan_in, hidden_bias=zeros, output=kernel, output_bias=zeros if is_update else uniform)


def _fan_in(fan: int, is_update: bool) -> dict[str, Any]:
    return dict(hidden=fan_in, hidden_bias=None, output=lambda width: fan_in, output_bias=None)


def _tiny(fan: int, is_update: bool) -> dict[str, Any]:
    tiny, zeros = _any(normal(1e-7)), nn.initializers.zeros
    return dict(hidden=tiny, hidden_bias=zeros, output=lambda width: tiny, output_bias=zeros)


_STARTS = {"zero_update": _zero_update, "fan_in": _fan_in, "tiny": _tiny}
