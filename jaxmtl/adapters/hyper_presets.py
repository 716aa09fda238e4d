"""The published methods as configs of one hypernetwork."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxmtl.adapters.hyper_config import (
    BottleneckOutput,
    DecoderPooling,
    GeneratorConfig,
    HyperConfig,
    MeanPooling,
    PrefixOutput,
    TagiCodePooling,
)
from jaxmtl.adapters.lora import LoRA


def tagi(**overrides: Any) -> HyperConfig:
    """TAGI as the paper defines it; what it leaves open as in methods 1.12.

    Args:
      **overrides: fields of `HyperConfig` to set otherwise.

    Source: methods 1.1.
    """
    return _preset(overrides, generator=GeneratorConfig(sharing="layer"))


def tagi_code(**overrides: Any) -> HyperConfig:
    """TAGI's released code, with its start that hardly learns; `overrides` as in `tagi`.

    Source: methods 1.2.
    """
    generator = GeneratorConfig(hidden=8, activation="relu", norm="none", divisor="rank", start="tiny")
    choices: dict[str, Any] = dict(encoder="frozen", pooling=TagiCodePooling(), identity="index", fusion="none")
    return _preset(overrides, generator=generator, base="norms and embeddings", **choices)


def hint(**overrides: Any) -> HyperConfig:
    """HINT's published base model; `overrides` as in `tagi`.

    Source: methods 1.3.
    """
    generator = GeneratorConfig(
        sharing="component", emits="rows", hidden=0, norm="none", dropout=0.1, divisor="input", start="fan_in"
    )
    outputs = (PrefixOutput(length=30), BottleneckOutput(width=64))
    choices: dict[str, Any] = dict(identity="query", slot_stddev=None, fusion="none", base="all")
    return _preset(overrides, generator=generator, outputs=outputs, **choices)


def hypertuning(**overrides: Any) -> HyperConfig:
    """HyperTuning: prefixes from an encoder of its own and a small decoder that pools; `overrides` as in `tagi`.

    The decoder is HINT's: learned queries, cross-attention and feed-forward layers that begin at random.

    Source: methods 1.0 and 1.4.
    """
    generator = GeneratorConfig(
        sharing="component", emits="rows", hidden=0, dropout=0.1, divisor="input", start="fan_in"
    )
    choices: dict[str, Any] = dict(
        encoder="separate",
        pooling=DecoderPooling(),
        identity="query",
        slot_stddev=None,
        fusion="none",
        memory="input",
    )
    return _preset(overrides, generator=generator, outputs=(PrefixOutput(length=30),), **choices)


def hypter(**overrides: Any) -> HyperConfig:
    """Hypter as HINT replicates it: one network emits the adapters of all layers; `overrides` as in `tagi`.

    Source: methods 1.4.
    """
    generator = GeneratorConfig(sharing="trunk", hidden=0, norm="none", dropout=0.1, divisor="input", start="fan_in")
    choices: dict[str, Any] = dict(
        encoder="separate", pooling=MeanPooling(), identity="none", fusion="none", memory="input"
    )
    outputs = (BottleneckOutput(width=8),)
    return _preset(overrides, generator=generator, outputs=outputs, base="all", **choices)


def text_to_lora(*, tasks: Sequence[str], **overrides: Any) -> HyperConfig:
    """Text-to-LoRA's hypernetwork with a learned vector for each task, for decoder-only models.

    Slots' vectors are added where the original concatenates embeddings of depth and type, and each type of output has a
    trunk of its own.

    Args:
      tasks: their names.
      **overrides: as in `tagi`.

    Source: methods 1.11.
    """
    generator = GeneratorConfig(sharing="component", hidden=512, blocks=2, activation="silu", dropout=0.05)
    choices: dict[str, Any] = dict(encoder="learned", pooling=MeanPooling(), fusion="none", memory="input", tasks=tasks)
    outputs = (LoRA(rank=8, alpha=16.0),)
    return _preset(overrides, generator=generator, outputs=outputs, **choices)


PRESETS: Mapping[str, Callable[..., HyperConfig]] = {
    preset.__name__: preset for preset in (tagi, tagi_code, hint, hypertuning, hypter, text_to_lora)
}
"""Configs by name."""


def _preset(overrides: Mapping[str, Any], **choices: Any) -> HyperConfig:
    return HyperConfig(**{**choices, **overrides})
