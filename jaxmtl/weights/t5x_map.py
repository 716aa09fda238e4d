"""T5's names in T5X's checkpoints, both directions, and what their weights tell of the model. Source: methods 6.3."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jaxmtl.models.t5_config import T5Config
from jaxmtl.types import InputError
from jaxmtl.weights import t5_map
from jaxmtl.weights.key_table import Key, Tensors, embedding_rows
from jaxmtl.weights.t5x_layers import POSITIONS

MODULE, CONFIG, MODEL_TYPE = t5_map.MODULE, t5_map.CONFIG, t5_map.MODEL_TYPE
EMBEDDING, HEAD = "token_embedder/embedding", "decoder/logits_dense/kernel"
IGNORED: set[str] = set()
config_to_hf = t5_map.config_to_hf


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> T5Config:
    """Reads T5's sizes from a raw `config.json`; args and result as `t5_map.config_from_hf`.

    Raises:
      InputError: also if the file names another kind of model.
    """
    found = raw.get("model_type", MODEL_TYPE)
    if found != MODEL_TYPE:
        raise InputError(f"{where}/config.json: model_type is {str(found)[:40]!r}; T5X checkpoints hold {MODEL_TYPE!r}")
    return t5_map.config_from_hf(raw, where, dtype)


def _stack(config: T5Config, side: str) -> list[Key]:
    encoder = side == "encoder"
    num_layers = config.num_encoder_layers if encoder else config.num_decoder_layers
    attentions = {"attention": "attention"}
    if not encoder:
        attentions = {"self_attention": "self_attention", "cross_attention": "encoder_decoder_attention"}
    layer = f"{side}/layers_{{l}}"
    keys = []
    for ours, theirs in attentions.items():
        names = [f"{part}/kernel" for part in ("query", "key", "value", "out")]
        keys += [Key(f"{side}/{ours}/{name}", f"{layer}/{theirs}/{name}", False, num_layers) for name in names]
    for kernel in ("wi_0", "wi_1", "wo") if len(config.mlp_activations) == 2 else ("wi", "wo"):
        name = f"mlp/{kernel}/kernel"
        keys.append(Key(f"{side}/{name}", f"{layer}/{name}", False, num_layers))
    for ours in (*attentions, "mlp"):
        norm = f"{layer}/pre_{ours}_layer_norm/scale"
        keys.append(Key(f"{side}/{ours}_norm/scale", norm, False, num_layers))
    keys.append(Key(f"{side}_bias/embedding", f"{side}/{POSITIONS}", True))
    keys.append(Key(f"{side}_norm/scale", f"{side}/{side}_norm/scale"))
    return keys


def key_table(config: T5Config) -> list[Key]:
    """Lists every parameter of a T5 under both names, T5X's with one name per layer."""
    head = [] if config.tied_head else [Key("lm_head/kernel", HEAD)]
    return [Key("token_embedding/embedding", EMBEDDING), *_stack(config, "encoder"), *_stack(config, "decoder"), *head]


def fit_to_tensors(config: T5Config, tensors: Tensors, where: str) -> T5Config:
    """Takes from the weights what T5X decides by them: embedding rows, and whether the head is tied, hence scaled.

    Args:
      config: the config that the file states.
      tensors: the checkpoint's arrays.
      where: the checkpoint, for messages.

    Returns:
      The corrected config.

    Raises:
      InputError: as `key_table.embedding_rows`.
    """
    ids = (config.pad_id, config.eos_id, config.decoder_start_id)
    rows = embedding_rows(tensors, EMBEDDING, config.embed_dim, ids, where)
    tied = HEAD not in tensors.names()
    scale = config.embed_dim**-0.5 if tied else 1.0
    return dataclasses.replace(config, vocab_size=rows, tied_head=tied, head_scale=scale)


def suggested_config(tensors: Tensors) -> str:
    """Builds the `config.json` that fits a checkpoint's sizes.

    Its feed-forward kind is what T5 has with that many kernels; the weights alone do not tell an activation.

    Args:
      tensors: the checkpoint's arrays.

    Returns:
      JSON in one line; empty if the arrays are not a T5's.
    """
    names = tensors.names()
    depth = lambda side: len({name.split("/")[1] for name in names if name.startswith(f"{side}/layers_")})
    gated = "encoder/layers_0/mlp/wi_0/kernel" in names
    wi = f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel"
    try:
        rows, width = tensors.shape(EMBEDDING)
        heads, buckets = tensors.shape(f"encoder/{POSITIONS}")
        inner = tensors.shape("encoder/layers_0/attention/query/kernel")[1]
        mlp = tensors.shape(wi)[1]
    except (KeyError, ValueError, IndexError):
        return ""
    sizes = {"model_type": MODEL_TYPE, "vocab_size": rows, "d_model": width, "d_ff": mlp, "num_heads": heads}
    sizes |= {"d_kv": inner // max(heads, 1), "num_layers": depth("encoder"), "num_decoder_layers": depth("decoder")}
    kind = {"feed_forward_proj": "gated-gelu" if gated else "relu", "tie_word_embeddings": HEAD not in names}
    return json.dumps(sizes | {"relative_attention_num_buckets": buckets} | kind)
