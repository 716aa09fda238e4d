"""T5's sizes and choices: v1.0 and v1.1 (also LM-adapted T5, T0, Tk-Instruct), small to xxl."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn

from jaxmtl.models.attention import Attention, attend
from jaxmtl.models.config_checks import Rule, check_computation, check_rules, integer_rules
from jaxmtl.types import unknown_name

ACTIVATIONS = {"linear": lambda x: x, "relu": nn.relu, "gelu": functools.partial(nn.gelu, approximate=True)}
MLP_KINDS = (("relu",), ("gelu", "linear"))
"""Activations of v1.0 and of v1.1."""

_SIZES = "vocab_size embed_dim num_heads head_dim mlp_dim num_encoder_layers num_decoder_layers relative_max_distance"
_COUNTED_FROM_ZERO = "pad_id eos_id decoder_start_id scan_unroll"
_LEAST = {**dict.fromkeys(_SIZES.split(), 1), **dict.fromkeys(_COUNTED_FROM_ZERO.split(), 0), "relative_buckets": 4}
"""Least value of each integer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes and choices of a T5.

    Attributes:
      vocab_size: rows V of the embedding; may exceed the tokenizer's (padding rows).
      embed_dim: D.
      num_heads: H.
      head_dim: K; H·K may differ from D.
      mlp_dim: F.
      num_encoder_layers: encoder blocks.
      num_decoder_layers: decoder blocks.
      mlp_activations: one activation per feed-forward input kernel, multiplied together: ("gelu", "linear") is v1.1's
        gated gelu (in its tanh form), ("relu",) is v1.0's.
      tied_head: True if the output layer is the embedding (v1.0), False for a layer of its own (v1.1).
      head_scale: factor on the decoder's last states before the output layer: D^-1/2 in v1.0, 1 in v1.1.
      dropout_rate: rate of every dropout, used only when training.
      relative_buckets: number of relative-position buckets.
      relative_max_distance: distance of the last bucket, in tokens.
      norm_epsilon: added to the mean square in RMSNorm.
      pad_id: token id of padding.
      eos_id: token id that ends a text.
      decoder_start_id: token id that the decoder starts from.
      dtype: dtype of activations, "float32" or "bfloat16"; parameters are float32.
      remat: which activations are recomputed in the backward pass: a name in `remat.REMAT_POLICIES`.
      scan_unroll: layers per step of the layer scan; 0 unrolls all, which compiles slower.
      attention: how attention to keys and values is computed, see `attention.py`; few queries need none, see
        `absorbed.py`.
    """

    vocab_size: int = 32128
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    tied_head: bool = False
    head_scale: float = 1.0
    dropout_rate: float = 0.1
    relative_buckets: int = 32
    relative_max_distance: int = 128
    norm_epsilon: float = 1e-6
    pad_id: int = 0
    eos_id: int = 1
    decoder_start_id: int = 0
    dtype: str = "float32"
    remat: str = "products"
    scan_unroll: int = 1
    attention: Attention = attend

    def __post_init__(self) -> None:
        """Refuses what no T5 can be, and what `config.json` could not say.

        Raises:
          InputError: with the field, the value seen and what is possible.
        """
        if isinstance(self.mlp_activations, list):  # as JSON and gin files may have it
            object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        check_computation(self, "T5", "its feed-forward activations overflow float16")
        check_rules(self, "T5", _rules(self))


def _rules(config: T5Config) -> Iterator[Rule]:
    yield from integer_rules(config, _LEAST)
    for name in ("dropout_rate", "norm_epsilon", "head_scale"):
        yield name, type(getattr(config, name)) in (int, float), "a number"
    yield "dropout_rate", 0 <= config.dropout_rate < 1, "at least 0 and below 1"
    yield "norm_epsilon", 0 < config.norm_epsilon < math.inf, "a finite number above 0"
    scale = config.embed_dim**-0.5
    yield "head_scale", config.head_scale in (1, scale), f"1, or embed_dim to the power of -1/2, {scale}"
    yield "mlp_activations", config.mlp_activations in MLP_KINDS, f"one of {', '.join(map(str, MLP_KINDS))}"
    for name in ("pad_id", "eos_id", "decoder_start_id"):
        yield name, getattr(config, name) < config.vocab_size, f"less than vocab_size, {config.vocab_size}"
    half = config.relative_buckets // 2
    yield "relative_max_distance", config.relative_max_distance > half, f"more than half of relative_buckets, {half}"


def _v1_1(embed_dim: int, num_heads: int, num_layers: int, mlp_dim: int) -> dict[str, Any]:
    layers = dict(num_encoder_layers=num_layers, num_decoder_layers=num_layers)
    return dict(embed_dim=embed_dim, num_heads=num_heads, head_dim=64, mlp_dim=mlp_dim, **layers)


def _v1_0(embed_dim: int, num_heads: int, num_layers: int, mlp_dim: int, head_dim: int) -> dict[str, Any]:
    style = dict(mlp_activations=("relu",), tied_head=True, head_scale=embed_dim**-0.5, head_dim=head_dim)
    return _v1_1(embed_dim, num_heads, num_layers, mlp_dim) | style


SIZES: dict[str, dict[str, Any]] = {
    "t5-small": _v1_0(512, 8, 6, 2048, 64),
    "t5-base": _v1_0(768, 12, 12, 3072, 64),
    "t5-large": _v1_0(1024, 16, 24, 4096, 64),
    "t5-3b": _v1_0(1024, 32, 24, 16384, 128),
    "t5-11b": _v1_0(1024, 128, 24, 65536, 128),
    "t5-v1.1-small": _v1_1(512, 6, 8, 1024),
    "t5-v1.1-base": _v1_1(768, 12, 12, 2048),
    "t5-v1.1-large": _v1_1(1024, 16, 24, 2816),
    "t5-v1.1-xl": _v1_1(2048, 32, 24, 5120),
    "t5-v1.1-xxl": _v1_1(4096, 64, 24, 10240),
}
"""Sizes by name. Source: Raffel et al. 2020 §3.7 for v1.0; methods 6.1 for v1.1."""


def named_config(name: str, **overrides: Any) -> T5Config:
    """Builds the config of a published size.

    Args:
      name: a key of `SIZES`.
      **overrides: fields of `T5Config` to set otherwise.

    Returns:
      The config.

    Raises:
      UnknownNameError: if there is no such size.
    """
    if name not in SIZES:
        raise unknown_name("T5 size", name, SIZES)
    return T5Config(**(SIZES[name] | overrides))
