"""GPT-2's names and config in Hugging Face's form, both directions.

Its matrices lie as ours do, and those of query, key and value side by side in one.
Source: the names in the released `model.safetensors`, the fields in the released `config.json`.
"""

from collections.abc import Mapping
from typing import Any

from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import ACTIVATIONS, GPT2Config
from jaxmtl.types import InputError
from jaxmtl.weights.config_json import check_choices, check_fields, check_flags, check_ranges, check_token_ids, given
from jaxmtl.weights.gpt_keys import fit
from jaxmtl.weights.key_table import Key, Tensors, with_prefix
from jaxmtl.weights.layer_keys import dense_keys, norm_keys

MODULE = GPT
CONFIG = GPT2Config
MODEL_TYPE = "gpt2"
PREFIX = "transformer."
"""What names begin with, but where the model was saved without its output layer."""
EMBEDDING, HEAD = f"{PREFIX}wte.weight", "lm_head.weight"
IGNORED = {f"{PREFIX}h.{{l}}.attn.{buffer}" for buffer in ("bias", "masked_bias")}
"""The causal mask and what it hides keys with, which older versions saved."""

_FIELDS = {
    "embed_dim": "n_embd",
    "num_heads": "n_head",
    "num_layers": "n_layer",
    "vocab_size": "vocab_size",
    "max_positions": "n_positions",
    "activation": "activation_function",
    "norm_epsilon": "layer_norm_epsilon",
    "init_stddev": "initializer_range",
    "dropout_rate": "resid_pdrop",
    "eos_id": "eos_token_id",
}
_REQUIRED = ("n_embd", "n_head", "n_layer")
_SIZE, _ID, _RATE = (int, 1, 10**7), (int, 0, 10**7), (int | float, 0, 0.999)
_RANGES = {
    **dict.fromkeys((*_REQUIRED, "vocab_size", "n_positions", "n_inner"), _SIZE),
    **dict.fromkeys(("pad_token_id", "eos_token_id"), _ID),
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), _RATE),
    **dict.fromkeys(("layer_norm_epsilon", "initializer_range"), (int | float, 1e-30, 10)),
}
"""What a config.json may say: type, least and most."""
_CHOICES = {
    "activation_function": tuple(ACTIVATIONS),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_ROWS = 50257


def key_table(config: GPT2Config) -> list[Key]:
    """Lists every parameter of a GPT-2 under both names."""
    layers, ours, theirs = config.num_layers, "layers", f"{PREFIX}h.{{l}}"
    head = [] if config.tied_head else [Key("lm_head/kernel", HEAD, True)]
    return [
        Key("token_embedding/embedding", EMBEDDING),
        Key("position_embedding/embedding", f"{PREFIX}wpe.weight"),
        *norm_keys(f"{ours}/attention_norm", f"{theirs}.ln_1", layers),
        *dense_keys(
            f"{ours}/attention/{{part}}", f"{theirs}.attn.c_attn", False, layers, parts=("query", "key", "value")
        ),
        *dense_keys(f"{ours}/attention/out", f"{theirs}.attn.c_proj", False, layers),
        *norm_keys(f"{ours}/mlp_norm", f"{theirs}.ln_2", layers),
        *dense_keys(f"{ours}/mlp/wi", f"{theirs}.mlp.c_fc", False, layers),
        *dense_keys(f"{ours}/mlp/wo", f"{theirs}.mlp.c_proj", False, layers),
        *norm_keys("final_norm", f"{PREFIX}ln_f"),
        *head,
    ]


def view(tensors: Tensors) -> Tensors:
    """Gives a stored model's tensors the names of a whole one."""
    return with_prefix(tensors, PREFIX)


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> GPT2Config:
    """Reads GPT-2's sizes from a raw `config.json`.

    Args:
      raw: the parsed `config.json`.
      where: the folder, for messages.
      dtype: dtype of activations.

    Returns:
      The config as the file states it; `fit_to_tensors` corrects what only the weights tell. Without an id of padding
      it is that of the end of a text.

    Raises:
      InputError: for a missing field, a value that makes no sense, or a kind of model that GPT-2 is not.
    """
    file = f"{where}/config.json"
    check_fields(raw, _REQUIRED, file, "GPT-2")
    check_ranges(raw, _RANGES, file)
    check_flags(raw, ("tie_word_embeddings",), file)
    check_choices(raw, _CHOICES, file)
    check_token_ids(raw, ("pad_token_id", "eos_token_id"), given(raw, "vocab_size", _ROWS), file)
    if raw["n_embd"] % raw["n_head"]:
        raise InputError(f"{file}: n_head is {raw['n_head']}, expected a divisor of n_embd, {raw['n_embd']}")
    dropout, attention_dropout = (given(raw, f"{name}_pdrop", 0.1) for name in ("resid", "attn"))
    if given(raw, "embd_pdrop", 0.1) != dropout:
        raise InputError(
            f"{file}: embd_pdrop is {given(raw, 'embd_pdrop', 0.1)}, expected that of resid_pdrop, {dropout}"
        )
    stated = {ours: raw[theirs] for ours, theirs in _FIELDS.items() if raw.get(theirs) is not None}
    return GPT2Config(
        mlp_dim=given(raw, "n_inner", 4 * raw["n_embd"]),
        attention_dropout_rate=None if attention_dropout == dropout else attention_dropout,
        tied_head=given(raw, "tie_word_embeddings", True),
        pad_id=given(raw, "pad_token_id", given(raw, "eos_token_id", GPT2Config.eos_id)),
        dtype=dtype,
        **stated,
    )


def fit_to_tensors(config: GPT2Config, tensors: Tensors, where: str) -> GPT2Config:
    """Takes from the weights what `config.json` does not say reliably, see `gpt_keys.fit`."""
    return fit(config, tensors, where, EMBEDDING, HEAD)


def config_to_hf(config: GPT2Config) -> dict[str, Any]:
    """Writes a config as the fields of `config.json`."""
    attention_dropout = config.attention_dropout_rate
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": MODEL_TYPE,
        "use_cache": True,
        "n_inner": config.mlp_dim,
        "embd_pdrop": config.dropout_rate,
        "attn_pdrop": config.dropout_rate if attention_dropout is None else attention_dropout,
        "bos_token_id": config.eos_id,
        "pad_token_id": config.pad_id,
        "tie_word_embeddings": config.tied_head,
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
    }
