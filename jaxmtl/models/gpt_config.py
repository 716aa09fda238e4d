"""Sizes and choices of decoder-only models: GPT-2 (124M to 1.5B) and OPT (125M to 13B)."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn

from jaxmtl.models.attention import Attention, attend
from jaxmtl.models.config_checks import Rule, check_computation, check_rules, integer_rules
from jaxmtl.types import unknown_name

ACTIVATIONS = {
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "gelu": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
}
"""Activations by the names that `config.json` has: gelu by tanh, by the error function, and relu."""

NORMS = ("pre", "post")
"""Where layers normalise: what they read, or what they have added up."""

_SIZES = "vocab_size embed_dim token_dim num_heads num_layers mlp_dim max_positions"
_LEAST = {
    **dict.fromkeys(_SIZES.split(), 1),
    **dict.fromkeys("position_offset pad_id eos_id scan_unroll".split(), 0),
}
"""Least value of each integer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes and choices of a decoder-only model with learned positions; use `GPT2Config` or `OPTConfig`.

    Attributes:
      vocab_size: rows V of the embedding; may exceed the tokenizer's (padding rows).
      embed_dim: D.
      num_heads: H, which divides D.
      num_layers: blocks.
      mlp_dim: F.
      max_positions: most tokens of a prompt and its target together.
      position_offset: rows of the position table before that of the first token.
      token_dim: width of the token embeddings; 0 stands for D. Where it is not D, two kernels lead to D and back.
      activation: a name in `ACTIVATIONS`.
      norm: a name in `NORMS`; with "pre" there is a norm before the output layer too.
      tied_head: True if the output layer is the embedding, False for a layer of its own.
      dropout_rate: rate of every dropout, used only when training.
      attention_dropout_rate: rate of the dropout of attention weights; None is `dropout_rate`.
      norm_epsilon: added to the variance in LayerNorm.
      init_stddev: standard deviation of random weights; kernels whose result is added to the residual stream get it
        divided by the root of the number of such kernels.
      pad_id: token id of padding; may be a token's too, because only the runs of it at the ends of a row are padding.
      eos_id: token id that ends a text, and that stands before a target without a prompt.
      dtype: dtype of activations, "float32" or "bfloat16"; parameters are float32.
      remat: which activations are recomputed in the backward pass: a name in `remat.REMAT_POLICIES`.
      scan_unroll: layers per step of the layer scan; 0 unrolls all, which compiles slower.
      attention: how attention is computed, see `attention.py`.

    Source: Radford et al. 2019, section 2.3, for the norms and the initialisation; Zhang et al. 2022, section 2.
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    num_layers: int
    mlp_dim: int
    max_positions: int
    position_offset: int = 0
    token_dim: int = 0
    activation: str = "gelu_new"
    norm: str = "pre"
    tied_head: bool = True
    dropout_rate: float = 0.1
    attention_dropout_rate: float | None = None
    norm_epsilon: float = 1e-5
    init_stddev: float = 0.02
    pad_id: int
    eos_id: int
    dtype: str = "float32"
    remat: str = "products"
    scan_unroll: int = 1
    attention: Attention = attend

    @property
    def head_dim(self) -> int:
        """K, the width of a head."""
        return self.embed_dim // self.num_heads

    def __post_init__(self) -> None:
        """Refuses what no model of the family can be, and what `config.json` could not say.

        Raises:
          InputError: with the field, the value seen and what is possible.
        """
        if self.token_dim == 0:
            object.__setattr__(self, "token_dim", self.embed_dim)
        family = type(self).__name__.removesuffix("Config")
        check_computation(self, family, "its activations grow past the range of float16")
        check_rules(self, family, self._rules())

    def _rules(self) -> Iterator[Rule]:
        yield from integer_rules(self, _LEAST)
        yield "num_heads", self.embed_dim % self.num_heads == 0, f"a divisor of embed_dim, {self.embed_dim}"
        yield "activation", self.activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"
        yield "norm", self.norm in NORMS, f"one of {', '.join(NORMS)}"
        for name in ("dropout_rate", "norm_epsilon", "init_stddev"):
            yield name, type(getattr(self, name)) in (int, float), "a number"
        attention_dropout = self.attention_dropout_rate
        yield "attention_dropout_rate", type(attention_dropout) in (int, float, type(None)), "a number or None"
        yield "dropout_rate", 0 <= self.dropout_rate < 1, "at least 0 and below 1"
        yield "attention_dropout_rate", 0 <= (attention_dropout or 0) < 1, "at least 0 and below 1"
        for name in ("norm_epsilon", "init_stddev"):
            yield name, 0 < getattr(self, name) < math.inf, "a finite number above 0"
        for name in ("pad_id", "eos_id"):
            yield name, getattr(self, name) < self.vocab_size, f"less than vocab_size, {self.vocab_size}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config(GPTConfig):
    """GPT-2: norms before layers, gelu by tanh; its vocabulary has no padding, so the end of a text pads too."""

    vocab_size: int = 50257
    max_positions: int = 1024
    pad_id: int = 50256
    eos_id: int = 50256

    def _rules(self) -> Iterator[Rule]:
        yield from GPTConfig._rules(self)
        yield "norm", self.norm == "pre", "'pre'"
        yield "token_dim", self.token_dim == self.embed_dim, f"embed_dim, {self.embed_dim}"
        yield "position_offset", self.position_offset == 0, "0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OPTConfig(GPTConfig):
    """OPT: relu, and two rows of the position table that no token uses; 350m normalises behind its layers."""

    vocab_size: int = 50272
    max_positions: int = 2048
    position_offset: int = 2
    activation: str = "relu"
    attention_dropout_rate: float | None = 0.0
    pad_id: int = 1
    eos_id: int = 2

    def _rules(self) -> Iterator[Rule]:
        yield from GPTConfig._rules(self)
        yield "position_offset", self.position_offset == 2, "2"
        yield "norm_epsilon", self.norm_epsilon == 1e-5, "1e-05"


def _sizes(embed_dim: int, num_heads: int, num_layers: int, **others: Any) -> dict[str, Any]:
    return dict(embed_dim=embed_dim, num_heads=num_heads, num_layers=num_layers, mlp_dim=4 * embed_dim, **others)


SIZES: dict[str, tuple[type[GPTConfig], dict[str, Any]]] = {
    "gpt2-124m": (GPT2Config, _sizes(768, 12, 12)),
    "gpt2-355m": (GPT2Config, _sizes(1024, 16, 24)),
    "gpt2-774m": (GPT2Config, _sizes(1280, 20, 36)),
    "gpt2-1.5b": (GPT2Config, _sizes(1600, 25, 48)),
    "opt-125m": (OPTConfig, _sizes(768, 12, 12)),
    "opt-350m": (OPTConfig, _sizes(1024, 16, 24, token_dim=512, norm="post")),
    "opt-1.3b": (OPTConfig, _sizes(2048, 32, 24)),
    "opt-2.7b": (OPTConfig, _sizes(2560, 32, 32)),
    "opt-6.7b": (OPTConfig, _sizes(4096, 32, 32)),
    "opt-13b": (OPTConfig, _sizes(5120, 40, 40)),
}
"""Sizes by name. Source: Radford et al. 2019, table 2; Zhang et al. 2022, table 1; the released config files."""


def named_config(name: str, **overrides: Any) -> GPTConfig:
    """Builds the config of a published size.

    Args:
      name: a key of `SIZES`.
      **overrides: fields of the config to set otherwise.

    Returns:
      The config.

    Raises:
      UnknownNameError: if there is no such size.
    """
    if name not in SIZES:
        raise unknown_name("GPT-2 or OPT size", name, SIZES)
    make, sizes = SIZES[name]
    return make(**(sizes | overrides))
