"""RoBERTa's sizes and choices, also XLM-R's: base and large, with or without heads."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from jaxmtl.models.attention import Attention, attend
from jaxmtl.models.config_checks import Rule, check_computation, check_rules, integer_rules
from jaxmtl.models.head_config import CLASS_HEADS, Head, checked_heads
from jaxmtl.types import unknown_name

MODEL_TYPES = ("roberta", "xlm-roberta")
"""What Hugging Face calls the two."""

_LEAST = {
    **dict.fromkeys("vocab_size embed_dim num_heads mlp_dim num_layers num_types".split(), 1),
    **dict.fromkeys("bos_id pad_id eos_id scan_unroll".split(), 0),
    "num_positions": 2,
}
"""Least value of each integer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobertaConfig:
    """Sizes and choices of a RoBERTa or XLM-R.

    Attributes:
      vocab_size: rows V of the token embedding; may exceed the tokenizer's (padding rows).
      embed_dim: D; a multiple of `num_heads`.
      num_heads: H.
      mlp_dim: F.
      num_layers: encoder blocks.
      num_positions: rows of the position embedding; the first `pad_id` + 1 are no positions of tokens.
      num_types: rows of the token type embedding, of which only the first is used.
      dropout_rate: rate of dropout on embeddings and after each sub-layer, used only when training.
      attention_dropout_rate: rate of dropout on attention weights; a key is dropped for all queries of a row.
      head_dropout_rate: rate of dropout in heads.
      norm_epsilon: added to the variance in LayerNorm.
      bos_id: token id that a text starts with, `<s>`.
      pad_id: token id of padding.
      eos_id: token id that ends a text, `</s>`.
      heads: one per task, in the order of task ids; none for an encoder alone.
      model_type: "roberta" or "xlm-roberta", which differ in vocabulary only.
      class_head: what a classification head is, see `CLASS_HEADS`.
      dtype: dtype of activations, "float32" or "bfloat16"; parameters are float32.
      remat: which activations are recomputed in the backward pass: a name in `REMAT_POLICIES`.
      scan_unroll: layers per step of the layer scan; 0 unrolls all, which compiles slower.
      attention: how attention is computed, see `attention.py`.
    """

    vocab_size: int = 50265
    embed_dim: int
    num_heads: int
    mlp_dim: int
    num_layers: int
    num_positions: int = 514
    num_types: int = 1
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    head_dropout_rate: float = 0.1
    norm_epsilon: float = 1e-5
    bos_id: int = 0
    pad_id: int = 1
    eos_id: int = 2
    heads: tuple[Head, ...] = ()
    model_type: str = "roberta"
    class_head: str = "dense_tanh"
    dtype: str = "float32"
    remat: str = "products"
    scan_unroll: int = 1
    attention: Attention = attend

    def __post_init__(self) -> None:
        """Refuses what no RoBERTa can be, and what `config.json` could not say.

        Raises:
          InputError: with the field, the value seen and what is possible.
        """
        object.__setattr__(self, "heads", checked_heads(self.heads))
        check_computation(
            self, "RoBERTa", "its masked scores and the gradients of its small heads leave float16's range"
        )
        check_rules(self, "RoBERTa", _rules(self))

    @property
    def tied_head(self) -> bool:
        """Returns True: RoBERTa's language model head, which heads of tasks replace, has no rows of its own."""
        return True

    @property
    def head_dim(self) -> int:
        """Returns the width K of an attention head."""
        return self.embed_dim // self.num_heads

    @property
    def max_tokens(self) -> int:
        """Returns how many tokens a text may have: those with a row in the position embedding."""
        return self.num_positions - self.pad_id - 1


def _rules(config: RobertaConfig) -> Iterator[Rule]:
    yield from integer_rules(config, _LEAST)
    rates = ("dropout_rate", "attention_dropout_rate", "head_dropout_rate")
    for name in (*rates, "norm_epsilon"):
        yield name, type(getattr(config, name)) in (int, float), "a number"
    for name in rates:
        yield name, 0 <= getattr(config, name) < 1, "at least 0 and below 1"
    yield "norm_epsilon", 0 < config.norm_epsilon < math.inf, "a finite number above 0"
    yield "embed_dim", config.embed_dim % config.num_heads == 0, f"a multiple of num_heads, {config.num_heads}"
    for name in ("bos_id", "pad_id", "eos_id"):
        yield name, getattr(config, name) < config.vocab_size, f"less than vocab_size, {config.vocab_size}"
    yield "num_positions", config.max_tokens >= 1, f"more than pad_id + 1, {config.pad_id + 1}"
    yield "model_type", config.model_type in MODEL_TYPES, f"one of {', '.join(MODEL_TYPES)}"
    yield "class_head", config.class_head in CLASS_HEADS, f"one of {', '.join(CLASS_HEADS)}"


_BASE = dict(embed_dim=768, num_heads=12, mlp_dim=3072, num_layers=12)
_LARGE = dict(embed_dim=1024, num_heads=16, mlp_dim=4096, num_layers=24)
_ROBERTA, _XLM_R = dict(vocab_size=50265), dict(vocab_size=250002, model_type="xlm-roberta")

SIZES: dict[str, dict[str, Any]] = {
    "roberta-base": _ROBERTA | _BASE,
    "roberta-large": _ROBERTA | _LARGE,
    "xlm-roberta-base": _XLM_R | _BASE,
    "xlm-roberta-large": _XLM_R | _LARGE,
}
"""Sizes by name. Source: Liu et al. 2019 and Conneau et al. 2020; methods 6.2."""


def named_config(name: str, **overrides: Any) -> RobertaConfig:
    """Builds the config of a published size.

    Args:
      name: a key of `SIZES`.
      **overrides: fields of `RobertaConfig` to set otherwise.

    Returns:
      The config.

    Raises:
      UnknownNameError: if there is no such size.
    """
    if name not in SIZES:
        raise unknown_name("RoBERTa size", name, SIZES)
    return RobertaConfig(**(SIZES[name] | overrides))
