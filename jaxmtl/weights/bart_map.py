"""BART's names and config in Hugging Face's form, both directions. Source: methods 6.2."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmtl.models.bart import BART
from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.types import InputError
from jaxmtl.weights.config_json import check_choices, check_fields, check_flags, check_ranges, check_token_ids, given
from jaxmtl.weights.key_table import Key, Tensors, embedding_rows, with_prefix
from jaxmtl.weights.layer_keys import dense_keys, norm_keys
from jaxmtl.weights.zeros import TensorsWithZeros

MODULE = BART
CONFIG = BARTConfig
MODEL_TYPE = "bart"
PREFIX = "model."
"""What names begin with, but where the model was saved without its output layer."""
SHARED, HEAD, LOGITS_BIAS = f"{PREFIX}shared.weight", "lm_head.weight", "final_logits_bias"
IGNORED = {HEAD, *(f"{PREFIX}{side}.embed_tokens.weight" for side in ("encoder", "decoder"))}
"""Other names of the embedding."""

_FIELDS = {
    "embed_dim": "d_model",
    "num_heads": "encoder_attention_heads",
    "mlp_dim": "encoder_ffn_dim",
    "num_encoder_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "scale_embedding": "scale_embedding",
    "dropout_rate": "dropout",
    "attention_dropout_rate": "attention_dropout",
    "activation_dropout_rate": "activation_dropout",
    "init_stddev": "init_std",
    "pad_id": "pad_token_id",
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "decoder_start_id": "decoder_start_token_id",
}
_SAME_IN_DECODER = {
    "encoder_attention_heads": "decoder_attention_heads",
    "encoder_ffn_dim": "decoder_ffn_dim",
}
_REQUIRED = ("d_model", "encoder_attention_heads", "encoder_ffn_dim", "encoder_layers", "decoder_layers")
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
_SIZE, _LAYERS, _ID, _RATE = (int, 1, 10**7), (int, 1, 10**4), (int, 0, 10**7), (int | float, 0, 0.999)
_RANGES = {
    **dict.fromkeys((*_REQUIRED[:3], *_SAME_IN_DECODER.values(), "vocab_size", "max_position_embeddings"), _SIZE),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), _LAYERS),
    **dict.fromkeys(_IDS, _ID),
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), _RATE),
    "init_std": (int | float, 1e-30, 10),
}
"""What a config.json may say: type, least and most."""
_CHOICES = {
    "activation_function": ("gelu",),
    "tie_word_embeddings": (True,),
    # Fields of old files; the other values are those of models with other layers.
    "normalize_before": (False,),
    "add_final_layer_norm": (False,),
    "normalize_embedding": (True,),
    "static_position_embeddings": (False,),
}
_ROWS = BARTConfig.vocab_size


def _stack(config: BARTConfig, side: str) -> list[Key]:
    encoder = side == "encoder"
    num_layers = config.num_encoder_layers if encoder else config.num_decoder_layers
    attentions = {"attention": "self_attn"}
    if not encoder:
        attentions = {"self_attention": "self_attn", "cross_attention": "encoder_attn"}
    layer, parts = f"{PREFIX}{side}.layers.{{l}}", {"query": "q", "key": "k", "value": "v", "out": "out"}
    keys = [Key(f"{side}_positions/embedding", f"{PREFIX}{side}.embed_positions.weight")]
    keys += norm_keys(f"{side}_embedding_norm", f"{PREFIX}{side}.layernorm_embedding")
    for ours, theirs in attentions.items():
        for part, name in parts.items():
            keys += dense_keys(f"{side}/{ours}/{part}", f"{layer}.{theirs}.{name}_proj", True, num_layers)
        keys += norm_keys(f"{side}/{ours}_norm", f"{layer}.{theirs}_layer_norm", num_layers)
    keys += dense_keys(f"{side}/mlp/wi", f"{layer}.fc1", True, num_layers)
    keys += dense_keys(f"{side}/mlp/wo", f"{layer}.fc2", True, num_layers)
    return keys + norm_keys(f"{side}/mlp_norm", f"{layer}.final_layer_norm", num_layers)


def key_table(config: BARTConfig) -> list[Key]:
    """Lists every parameter of a BART under both names."""
    first = [Key("token_embedding/embedding", SHARED), Key("final_logits_bias", LOGITS_BIAS)]
    return [*first, *_stack(config, "encoder"), *_stack(config, "decoder")]


def view(tensors: Tensors) -> Tensors:
    """Gives a stored model's tensors the names of a whole one, whose logits have a bias: zero if it was not saved."""
    tensors = with_prefix(tensors, PREFIX)
    rows = tensors.shape(SHARED)[:1] if SHARED in tensors.names() else ()
    return TensorsWithZeros(tensors, {LOGITS_BIAS: (1, *rows)})


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> BARTConfig:
    """Reads BART's sizes from a raw `config.json`; what it says about generation is left aside.

    Args:
      raw: the parsed `config.json`.
      where: the folder, for messages.
      dtype: dtype of activations.

    Returns:
      The config as the file states it; `fit_to_tensors` corrects what only the weights tell.

    Raises:
      InputError: for a missing field, a value that makes no sense, or a kind of model that BART is not.
    """
    file = f"{where}/config.json"
    check_fields(raw, _REQUIRED, file, "BART")
    check_ranges(raw, _RANGES, file)
    check_flags(raw, ("scale_embedding",), file)
    check_choices(raw, _CHOICES, file)
    check_token_ids(raw, _IDS, given(raw, "vocab_size", _ROWS), file)
    for encoder, decoder in _SAME_IN_DECODER.items():
        if given(raw, decoder, raw[encoder]) != raw[encoder]:
            raise InputError(f"{file}: {decoder} is {raw[decoder]}, expected that of {encoder}, {raw[encoder]}")
    width, heads = raw["d_model"], raw["encoder_attention_heads"]
    if width % heads:
        raise InputError(f"{file}: encoder_attention_heads is {heads}, expected a divisor of d_model, {width}")
    return BARTConfig(
        dtype=dtype,
        **{ours: raw[theirs] for ours, theirs in _FIELDS.items() if raw.get(theirs) is not None},
    )


def fit_to_tensors(config: BARTConfig, tensors: Tensors, where: str) -> BARTConfig:
    """Takes from the weights what `config.json` does not say reliably: the embedding's rows.

    Args:
      config: the config that the file states.
      tensors: the model's tensors.
      where: the folder, for messages.

    Returns:
      The corrected config.

    Raises:
      InputError: as `key_table.embedding_rows`; and if encoder, decoder or output layer have a table of their own.
    """
    ids = (config.pad_id, config.bos_id, config.eos_id, config.decoder_start_id)
    rows = embedding_rows(tensors, SHARED, config.embed_dim, ids, where)
    for name in sorted(IGNORED & tensors.names()):
        if not np.array_equal(tensors.read(name), tensors.read(SHARED)):
            raise InputError(f"{where}: {name} differs from {SHARED}; in a BART both are one table")
    return dataclasses.replace(config, vocab_size=rows)


def config_to_hf(config: BARTConfig) -> dict[str, Any]:
    """Writes a config as the fields of `config.json`."""
    fields = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    return {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "is_encoder_decoder": True,
        "use_cache": True,
        "activation_function": "gelu",
        "num_hidden_layers": config.num_encoder_layers,
        "tie_word_embeddings": True,
        "forced_eos_token_id": None,  # transformers forces one where the field is absent
        **fields,
        **{decoder: fields[encoder] for encoder, decoder in _SAME_IN_DECODER.items()},
    }
