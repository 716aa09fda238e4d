"""How much arithmetic a model needs, counted from its sizes: what batches are shaped by and speeds are compared with.

A multiplication and an addition count as two operations; only matrix products count, which are nearly all. What is
counted is the model as it is defined: where a program finds a shorter way (`absorbed`), it does less.
Letters in shapes: B batch, S source length, T target length.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.models.gpt_config import GPTConfig
from jaxmtl.models.roberta_config import RobertaConfig
from jaxmtl.models.t5_config import T5Config
from jaxmtl.types import InputError


@functools.singledispatch
def forward(config: Any, source: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Counts the forward pass of one example, padded to given lengths.

    Args:
      config: the model's sizes.
      source: S, tokens of the padded input; any shape.
      target: T, tokens of the padded target; a shape that broadcasts with `source`.

    Returns:
      float64, operations; a training step needs three times as many.

    Raises:
      InputError: if nobody has said how to count for this kind of config.
    """
    raise InputError(f"the operations of a {type(config).__name__} cannot be counted; register it in models/flops.py")


def without_output(config: Any, source: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Counts as `forward`, but for the output layer: where logits are made for real tokens alone, padding has none.

    Args:
      config: sizes of a model that writes texts.
      source: S, tokens of the padded input; any shape.
      target: T, tokens of the padded target; a shape that broadcasts with `source`.

    Returns:
      float64, operations.
    """
    return forward(config, source, target) - _output(config, np.asarray(target, np.float64))


def _output(config: Any, target: np.ndarray) -> np.ndarray:
    width = config.token_dim if isinstance(config, GPTConfig) else config.embed_dim
    return target * 2 * width * config.vocab_size


@functools.singledispatch
def encode(config: Any, source: ArrayLike) -> np.ndarray:
    """Counts the reading of one text: an encoder's pass, or of a decoder-only model all but the output.

    Args:
      config: the model's sizes.
      source: S, tokens of the padded text; any shape.

    Returns:
      float64, operations.

    Raises:
      InputError: if nobody has said how to count for this kind of config.
    """
    raise InputError(f"the reading of a {type(config).__name__} cannot be counted; register it in models/flops.py")


@encode.register
def _(config: GPTConfig, source: ArrayLike) -> np.ndarray:
    return forward(config, source, 0)


@encode.register
def _(config: T5Config, source: ArrayLike) -> np.ndarray:
    return _encoder(config, _Sizes(config, len(config.mlp_activations) + 1), np.asarray(source, np.float64))


@encode.register
def _(config: BARTConfig, source: ArrayLike) -> np.ndarray:
    return _encoder(config, _Sizes(config, 2), np.asarray(source, np.float64))


@forward.register
def _(config: RobertaConfig, source: ArrayLike, target: ArrayLike) -> np.ndarray:
    # Heads need next to nothing: what a row costs does not depend on its labels.
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    width = config.embed_dim
    per_token = 2 * width * (4 * width + 2 * config.mlp_dim)
    return config.num_layers * (source * per_token + 4 * width * source * source) + 0.0 * target


@forward.register
def _(config: GPTConfig, source: ArrayLike, target: ArrayLike) -> np.ndarray:
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    width, tokens = config.embed_dim, source + target
    per_token = 2 * width * (4 * width + 2 * config.mlp_dim)
    attention = 4 * width * (source * source + target * (source + target))
    # Where tokens have another width, one kernel leads to the model's and one, for the output, back.
    projected = 2 * width * config.token_dim * (tokens + target) if config.token_dim != width else 0
    return config.num_layers * (tokens * per_token + attention) + projected + _output(config, target)


@forward.register
def _(config: T5Config, source: ArrayLike, target: ArrayLike) -> np.ndarray:
    return _encoder_decoder(config, len(config.mlp_activations) + 1, source, target)


@forward.register
def _(config: BARTConfig, source: ArrayLike, target: ArrayLike) -> np.ndarray:
    return _encoder_decoder(config, 2, source, target)


def _encoder_decoder(
    config: T5Config | BARTConfig, mlp_kernels: int, source: ArrayLike, target: ArrayLike
) -> np.ndarray:
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    sizes = _Sizes(config, mlp_kernels)
    encoder = _encoder(config, sizes, source)
    decoder = config.num_decoder_layers * (
        target * (6 * sizes.projection + sizes.feed_forward)
        + source * 2 * sizes.projection
        + sizes.attention(target, target)
        + sizes.attention(target, source)
    )
    return encoder + decoder + _output(config, target)


def _encoder(config: T5Config | BARTConfig, sizes: "_Sizes", source: np.ndarray) -> np.ndarray:
    per_token = 4 * sizes.projection + sizes.feed_forward
    return config.num_encoder_layers * (source * per_token + sizes.attention(source, source))


class _Sizes:
    """Operations of parts: of one projection and one feed-forward layer per token, of attention per pair of tokens."""

    def __init__(self, config: T5Config | BARTConfig, mlp_kernels: int) -> None:
        self._inner = config.num_heads * config.head_dim
        self.projection = 2 * config.embed_dim * self._inner
        self.feed_forward = 2 * config.embed_dim * config.mlp_dim * mlp_kernels

    def attention(self, queries: Any, keys: Any) -> Any:
        return 4 * queries * keys * self._inner
