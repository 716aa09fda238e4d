"""OPT's names and config in Hugging Face's form, both directions.

Source: the names in the released weights, the fields in the released `config.json`.
"""

from collections.abc import Mapping
from typing import Any

from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import ACTIVATIONS, OPTConfig
from jaxmtl.types import InputError
from jaxmtl.weights.config_json import check_choices, check_fields, check_flags, check_ranges, check_token_ids, given
from jaxmtl.weights.gpt_keys import fit
from jaxmtl.weights.key_table import Key, Tensors, with_prefix
from jaxmtl.weights.layer_keys import dense_keys, norm_keys

MODULE = GPT
CONFIG = OPTConfig
MODEL_TYPE = "opt"
PREFIX = "model."
"""What names begin with, but where the model was saved without its output layer."""
_DECODER = f"{PREFIX}decoder"
EMBEDDING, HEAD = f"{_DECODER}.embed_tokens.weight", "lm_head.weight"
IGNORED: set[str] = set()

_FIELDS = {
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "mlp_dim": "ffn_dim",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "token_dim": "word_embed_proj_dim",
    "activation": "activation_function",
    "init_stddev": "init_std",
    "dropout_rate": "dropout",
    "pad_id": "pad_token_id",
    "eos_id": "eos_token_id",
}
_REQUIRED = ("hidden_size", "num_attention_heads", "num_hidden_layers", "ffn_dim")
_SIZE, _ID, _RATE = (int, 1, 10**7), (int, 0, 10**7), (int | float, 0, 0.999)
_RANGES = {
    **dict.fromkeys((*_REQUIRED, "vocab_size", "max_position_embeddings", "word_embed_proj_dim"), _SIZE),
    **dict.fromkeys(("pad_token_id", "eos_token_id"), _ID),
    **dict.fromkeys(("dropout", "attention_dropout"), _RATE),
    "init_std": (int | float, 1e-30, 10),
}
"""What a config.json may say: type, least and most."""
_CHOICES = {
    "activation_function": tuple(ACTIVATIONS),
    "enable_bias": (True,),
    "layer_norm_elementwise_affine": (True,),
    "_remove_final_layer_norm": (False,),
    "layerdrop": (0,),
}
_ROWS = 50272


def key_table(config: OPTConfig) -> list[Key]:
    """Lists every parameter of an OPT under both names."""
    layers, ours, theirs = config.num_layers, "layers", f"{_DECODER}.layers.{{l}}"
    attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    keys = [
        Key("token_embedding/embedding", EMBEDDING),
        Key("position_embedding/embedding", f"{_DECODER}.embed_positions.weight"),
        *norm_keys(f"{ours}/attention_norm", f"{theirs}.self_attn_layer_norm", layers),
        *norm_keys(f"{ours}/mlp_norm", f"{theirs}.final_layer_norm", layers),
        *dense_keys(f"{ours}/mlp/wi", f"{theirs}.fc1", True, layers),
        *dense_keys(f"{ours}/mlp/wo", f"{theirs}.fc2", True, layers),
    ]
    for part, name in attention.items():
        keys += dense_keys(f"{ours}/attention/{part}", f"{theirs}.self_attn.{name}", True, layers)
    if config.norm == "pre":
        keys += norm_keys("final_norm", f"{_DECODER}.final_layer_norm")
    if config.token_dim != config.embed_dim:
        keys += [Key(f"{name}/kernel", f"{_DECODER}.{name}.weight", True) for name in ("project_in", "project_out")]
    if not config.tied_head:
        keys.append(Key("lm_head/kernel", HEAD, True))
    return keys


def view(tensors: Tensors) -> Tensors:
    """Gives a stored model's tensors the names of a whole one."""
    return with_prefix(tensors, PREFIX)


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> OPTConfig:
    """Reads OPT's sizes from a raw `config.json`.

    Args:
      raw: the parsed `config.json`.
      where: the folder, for messages.
      dtype: dtype of activations.

    Returns:
      The config as the file states it; `fit_to_tensors` corrects what only the weights tell.

    Raises:
      InputError: for a missing field, a value that makes no sense, or a kind of model that OPT is not.
    """
    file = f"{where}/config.json"
    check_fields(raw, _REQUIRED, file, "Hugging Face OPT")
    check_ranges(raw, _RANGES, file)
    check_flags(raw, ("tie_word_embeddings", "do_layer_norm_before"), file)
    check_choices(raw, _CHOICES, file)
    check_token_ids(raw, ("pad_token_id", "eos_token_id"), given(raw, "vocab_size", _ROWS), file)
    width, heads = raw["hidden_size"], raw["num_attention_heads"]
    if width % heads:
        raise InputError(f"{file}: num_attention_heads is {heads}, expected a divisor of hidden_size, {width}")
    return OPTConfig(
        norm="pre" if given(raw, "do_layer_norm_before", True) else "post",
        attention_dropout_rate=given(raw, "attention_dropout", 0.0),
        tied_head=given(raw, "tie_word_embeddings", True),
        dtype=dtype,
        **{ours: raw[theirs] for ours, theirs in _FIELDS.items() if raw.get(theirs) is not None},
    )


def fit_to_tensors(config: OPTConfig, tensors: Tensors, where: str) -> OPTConfig:
    """Takes from the weights what `config.json` does not say reliably, see `gpt_keys.fit`."""
    return fit(config, tensors, where, EMBEDDING, HEAD)


def config_to_hf(config: OPTConfig) -> dict[str, Any]:
    """Writes a config as the fields of `config.json`."""
    attention_dropout = config.attention_dropout_rate
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": MODEL_TYPE,
        "use_cache": True,
        "do_layer_norm_before": config.norm == "pre",
        "attention_dropout": config.dropout_rate if attention_dropout is None else attention_dropout,
        "bos_token_id": config.eos_id,
        "tie_word_embeddings": config.tied_head,
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
    }
