"""BART's sizes and choices: base and large (also BART0, BART0++, which are of the size of large)."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from jaxmtl.models.attention import Attention, attend
from jaxmtl.models.config_checks import Rule, check_computation, check_rules, integer_rules
from jaxmtl.types import unknown_name

POSITION_OFFSET = 2
"""Rows of the position tables before that of the first token; nobody uses them."""

_SIZES = "vocab_size embed_dim num_heads mlp_dim num_encoder_layers num_decoder_layers max_positions"
_COUNTED_FROM_ZERO = "pad_id bos_id eos_id decoder_start_id scan_unroll"
_LEAST = {**dict.fromkeys(_SIZES.split(), 1), **dict.fromkeys(_COUNTED_FROM_ZERO.split(), 0)}
"""Least value of each integer."""
_RATES = ("dropout_rate", "attention_dropout_rate", "activation_dropout_rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BARTConfig:
    """Sizes and choices of a BART.

    Attributes:
      vocab_size: rows V of the embedding; may exceed the tokenizer's (padding rows).
      embed_dim: D.
      num_heads: H, which divides D.
      mlp_dim: F.
      num_encoder_layers: encoder blocks.
      num_decoder_layers: decoder blocks.
      max_positions: most tokens of an input, and of a target.
      scale_embedding: True if token embeddings are multiplied by the root of D.
      dropout_rate: rate of dropout on embeddings and on what a sub-layer adds; used only when training, as all rates.
      attention_dropout_rate: rate of dropout of attention weights, drawn per key.
      activation_dropout_rate: rate of dropout inside the feed-forward layers.
      norm_epsilon: added to the variance in LayerNorm.
      init_stddev: standard deviation of random weights.
      pad_id: token id of padding.
      bos_id: token id that starts a text.
      eos_id: token id that ends a text.
      decoder_start_id: token id that the decoder starts from: the one that ends a text.
      dtype: dtype of activations, "float32" or "bfloat16"; parameters are float32.
      remat: which activations are recomputed in the backward pass: a name in `remat.REMAT_POLICIES`.
      scan_unroll: layers per step of the layer scan; 0 unrolls all, which compiles slower.
      attention: how attention to keys and values is computed, see `attention.py`; few queries need none, see
        `absorbed.py`.

    Source: Lewis et al. 2020, section 2.1; methods 6.2.
    """

    vocab_size: int = 50265
    embed_dim: int
    num_heads: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    max_positions: int = 1024
    scale_embedding: bool = False
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.0
    activation_dropout_rate: float = 0.0
    norm_epsilon: float = 1e-5
    init_stddev: float = 0.02
    pad_id: int = 1
    bos_id: int = 0
    eos_id: int = 2
    decoder_start_id: int = 2
    dtype: str = "float32"
    remat: str = "products"
    scan_unroll: int = 1
    attention: Attention = attend

    @property
    def tied_head(self) -> bool:
        """Always True: the output layer is the embedding."""
        return True

    @property
    def head_dim(self) -> int:
        """K, the width of a head."""
        return self.embed_dim // self.num_heads

    def __post_init__(self) -> None:
        """Refuses what no BART can be, and what `config.json` could not say.

        Raises:
          InputError: with the field, the value seen and what is possible.
        """
        check_computation(self, "BART", "its activations grow past the range of float16")
        check_rules(self, "BART", _rules(self))


def _rules(config: BARTConfig) -> Iterator[Rule]:
    yield from integer_rules(config, _LEAST)
    yield "num_heads", config.embed_dim % config.num_heads == 0, f"a divisor of embed_dim, {config.embed_dim}"
    yield "scale_embedding", isinstance(config.scale_embedding, bool), "True or False"
    for name in (*_RATES, "norm_epsilon", "init_stddev"):
        yield name, type(getattr(config, name)) in (int, float), "a number"
    for name in _RATES:
        yield name, 0 <= getattr(config, name) < 1, "at least 0 and below 1"
    yield "norm_epsilon", config.norm_epsilon == 1e-5, "1e-05, which config.json cannot say otherwise"
    yield "init_stddev", 0 < config.init_stddev < math.inf, "a finite number above 0"
    for name in ("pad_id", "bos_id", "eos_id", "decoder_start_id"):
        yield name, getattr(config, name) < config.vocab_size, f"less than vocab_size, {config.vocab_size}"


def _sizes(embed_dim: int, num_heads: int, num_layers: int, **others: Any) -> dict[str, Any]:
    layers = dict(num_encoder_layers=num_layers, num_decoder_layers=num_layers)
    return dict(embed_dim=embed_dim, num_heads=num_heads, mlp_dim=4 * embed_dim, **layers, **others)


SIZES: dict[str, dict[str, Any]] = {
    "bart-base": _sizes(768, 12, 6, attention_dropout_rate=0.1, activation_dropout_rate=0.1),
    "bart-large": _sizes(1024, 16, 12),
}
"""Sizes by name. Source: methods 6.2; dropout rates from the released config files."""


def named_config(name: str, **overrides: Any) -> BARTConfig:
    """Builds the config of a published size.

    Args:
      name: a key of `SIZES`.
      **overrides: fields of `BARTConfig` to set otherwise.

    Returns:
      The config.

    Raises:
      UnknownNameError: if there is no such size.
    """
    if name not in SIZES:
        raise unknown_name("BART size", name, SIZES)
    return BARTConfig(**(SIZES[name] | overrides))
