"""T5's names and config in Hugging Face's form, both directions. Source: methods 6.1 and 6.2."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.types import InputError
from jaxmtl.weights.config_json import check_fields, check_flags, check_ranges, check_token_ids, given
from jaxmtl.weights.key_table import Key, Tensors, embedding_rows

MODULE = T5
CONFIG = T5Config
MODEL_TYPE = "t5"
PREFIX = ""
"""What names begin with; T5's are the same however it was saved."""
SHARED, HEAD = "shared.weight", "lm_head.weight"
IGNORED = {
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    # Some old checkpoints carry this table; T5's cross-attention has no position bias.
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
}

_FIELDS = {
    "embed_dim": "d_model",
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "mlp_dim": "d_ff",
    "num_encoder_layers": "num_layers",
    "dropout_rate": "dropout_rate",
    "relative_buckets": "relative_attention_num_buckets",
    "relative_max_distance": "relative_attention_max_distance",
    "norm_epsilon": "layer_norm_epsilon",
    "pad_id": "pad_token_id",
    "eos_id": "eos_token_id",
    "decoder_start_id": "decoder_start_token_id",
}
_SIZE, _LAYERS, _ID = (int, 1, 10**7), (int, 1, 10**4), (int, 0, 10**7)
_RANGES = {
    **dict.fromkeys(("d_model", "num_heads", "d_kv", "d_ff", "vocab_size"), _SIZE),
    **dict.fromkeys(("num_layers", "num_decoder_layers"), _LAYERS),
    **dict.fromkeys(("pad_token_id", "eos_token_id", "decoder_start_token_id"), _ID),
    "dropout_rate": (int | float, 0, 0.999),
    "layer_norm_epsilon": (int | float, 1e-30, 1),
    "relative_attention_num_buckets": (int, 4, 10**5),
    "relative_attention_max_distance": (int, 3, 10**7),
}
"""What a config.json may say: type, least and most."""
_ACTIVATIONS = {"relu": ("relu",), "gated-gelu": ("gelu", "linear")}
_OPTIONAL = {
    "relative_buckets",
    "relative_max_distance",
    "dropout_rate",
    "norm_epsilon",
    "pad_id",
    "eos_id",
    "decoder_start_id",  # 0 in every T5
}


def _attention(ours: str, theirs: str, num_layers: int) -> list[Key]:
    names = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return [Key(f"{ours}/{a}/kernel", f"{theirs}.{b}.weight", True, num_layers) for a, b in names.items()]


def _stack(config: T5Config, side: str) -> list[Key]:
    encoder = side == "encoder"
    num_layers = config.num_encoder_layers if encoder else config.num_decoder_layers
    block = f"{side}.block.{{l}}.layer"
    sublayers = ["attention"] if encoder else ["self_attention", "cross_attention"]
    keys = []
    for number, (ours, theirs) in enumerate(zip(sublayers, ("SelfAttention", "EncDecAttention"), strict=False)):
        keys += _attention(f"{side}/{ours}", f"{block}.{number}.{theirs}", num_layers)
        keys.append(Key(f"{side}/{ours}_norm/scale", f"{block}.{number}.layer_norm.weight", False, num_layers))
    last = len(sublayers)
    kernels = ("wi_0", "wi_1", "wo") if len(config.mlp_activations) == 2 else ("wi", "wo")
    for kernel in kernels:
        keys.append(
            Key(f"{side}/mlp/{kernel}/kernel", f"{block}.{last}.DenseReluDense.{kernel}.weight", True, num_layers)
        )
    keys.append(Key(f"{side}/mlp_norm/scale", f"{block}.{last}.layer_norm.weight", False, num_layers))
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    keys.append(Key(f"{side}_bias/embedding", bias))
    keys.append(Key(f"{side}_norm/scale", f"{side}.final_layer_norm.weight"))
    return keys


def key_table(config: T5Config) -> list[Key]:
    """Lists every parameter of a T5 under both names."""
    head = [] if config.tied_head else [Key("lm_head/kernel", HEAD, True)]
    return [Key("token_embedding/embedding", SHARED), *_stack(config, "encoder"), *_stack(config, "decoder"), *head]


def view(tensors: Tensors) -> Tensors:
    """Gives a stored model's tensors the names of a whole one."""
    return tensors


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> T5Config:
    """Reads T5's sizes from a raw `config.json`.

    Args:
      raw: the parsed `config.json`.
      where: the folder, for messages.
      dtype: dtype of activations.

    Returns:
      The config as the file states it; `fit_to_tensors` corrects what only the weights tell.

    Raises:
      InputError: for a missing field, a value that makes no sense, or a feed-forward kind that T5 does not have.
    """
    required = [theirs for ours, theirs in _FIELDS.items() if ours not in _OPTIONAL]
    check_fields(raw, required, f"{where}/config.json", "T5")
    _check_values(raw, f"{where}/config.json")
    kind = raw.get("feed_forward_proj", "relu")
    if not isinstance(kind, str) or kind not in _ACTIVATIONS:
        raise InputError(f"{where}/config.json: feed_forward_proj is {kind!r}, expected one of {sorted(_ACTIVATIONS)}")
    tied = given(raw, "tie_word_embeddings", True)
    return T5Config(
        vocab_size=given(raw, "vocab_size", 32128),
        num_decoder_layers=given(raw, "num_decoder_layers", raw["num_layers"]),
        mlp_activations=_ACTIVATIONS[kind],
        tied_head=tied,
        head_scale=raw["d_model"] ** -0.5 if given(raw, "scale_decoder_outputs", tied) else 1.0,
        dtype=dtype,
        **{ours: raw[theirs] for ours, theirs in _FIELDS.items() if raw.get(theirs) is not None},
    )


def fit_to_tensors(config: T5Config, tensors: Tensors, where: str) -> T5Config:
    """Takes from the weights what `config.json` does not say reliably: embedding rows, and whether the head is tied.

    transformers 5 writes `tie_word_embeddings: true` for every T5, so a head of its own tells only in the weights; a
    copy of the embedding under the head's name is what some exporters write for a tied head.

    Args:
      config: the config that the file states.
      tensors: the model's tensors.
      where: the folder, for messages.

    Returns:
      The corrected config.

    Raises:
      InputError: if the embedding is missing, of another width, or has no row for one of the config's token ids.
    """
    ids = (config.pad_id, config.eos_id, config.decoder_start_id)
    rows = embedding_rows(tensors, SHARED, config.embed_dim, ids, where)
    tied = HEAD not in tensors.names() or np.array_equal(tensors.read(HEAD), tensors.read(SHARED))
    return dataclasses.replace(config, vocab_size=rows, tied_head=tied)


def _check_values(raw: Mapping[str, Any], where: str) -> None:
    """Refuses values of a wrong type or out of range."""
    check_ranges(raw, _RANGES, where)
    check_flags(raw, ("tie_word_embeddings", "scale_decoder_outputs"), where)
    ids = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    check_token_ids(raw, ids, given(raw, "vocab_size", 32128), where)
    buckets, distance = (raw.get(_FIELDS[name]) for name in ("relative_buckets", "relative_max_distance"))
    if (distance or 128) <= (buckets or 32) // 2:
        raise InputError(
            f"{where}: {_FIELDS['relative_max_distance']} is {distance or 128}, expected more than half of the buckets"
        )


def config_to_hf(config: T5Config) -> dict[str, Any]:
    """Writes a config as the fields of `config.json`."""
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "is_encoder_decoder": True,
        "use_cache": True,
        "vocab_size": config.vocab_size,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": activations[config.mlp_activations],
        "tie_word_embeddings": config.tied_head,
        "scale_decoder_outputs": config.head_scale != 1.0,
        "initializer_factor": 1.0,
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
    }
