"""RoBERTa's and XLM-R's names and config in Hugging Face's form, both directions. Source: methods 6.2.

A model with one of Hugging Face's heads has its names (`classifier`, `qa_outputs`). Heads of several tasks have names
of our own (`heads.tags.0.weight`, padded to the most labels), beside an encoder that `transformers` loads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxmtl.models.head_config import Head, stacks
from jaxmtl.models.roberta import roberta
from jaxmtl.models.roberta_config import MODEL_TYPES, RobertaConfig
from jaxmtl.tasks.answers import CLASS, SPAN, TAGS
from jaxmtl.types import InputError
from jaxmtl.weights.config_json import check_choices, check_fields, check_ranges
from jaxmtl.weights.key_table import Key, Tensors, embedding_rows, with_prefix

MODULE = roberta
CONFIG = RobertaConfig
PREFIX = "roberta."
"""What the encoder's names begin with, but where the encoder was saved alone."""
EMBEDDING = f"{PREFIX}embeddings.word_embeddings.weight"
HEAD = "lm_head.decoder.weight"
IGNORED = {
    f"{PREFIX}embeddings.position_ids",  # a buffer of older versions
    f"{PREFIX}embeddings.token_type_ids",
    f"{PREFIX}pooler.dense.weight",
    f"{PREFIX}pooler.dense.bias",
    "lm_head.decoder.bias",
    "lm_head.bias",
    *(f"lm_head.{layer}.{part}" for layer in ("dense", "layer_norm") for part in ("weight", "bias")),
}
HEADS, CLASS_HEAD = "jaxmtl_heads", "jaxmtl_class_head"
"""Fields of `config.json` that tell the tasks, which Hugging Face has no fields for."""
TASK = "task"
"""Name of the one head of a model that Hugging Face wrote."""

_FIELDS = {
    "vocab_size": "vocab_size",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_positions": "max_position_embeddings",
    "num_types": "type_vocab_size",
    "dropout_rate": "hidden_dropout_prob",
    "attention_dropout_rate": "attention_probs_dropout_prob",
    "head_dropout_rate": "classifier_dropout",
    "norm_epsilon": "layer_norm_eps",
    "bos_id": "bos_token_id",
    "pad_id": "pad_token_id",
    "eos_id": "eos_token_id",
}
_REQUIRED = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
_SIZE, _ID, _RATE = (int, 1, 10**7), (int, 0, 10**7), (int | float, 0, 0.999)
_RANGES = {
    **dict.fromkeys((*_REQUIRED, "vocab_size", "type_vocab_size"), _SIZE),
    **dict.fromkeys(("bos_token_id", "pad_token_id", "eos_token_id"), _ID),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), _RATE),
    "layer_norm_eps": (int | float, 1e-30, 1),
}
"""What a config.json may say: type, least and most."""
_CHOICES = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "problem_type": ("single_label_classification",),
    "model_type": MODEL_TYPES,
}
_ARCHITECTURES = {CLASS: "ForSequenceClassification", TAGS: "ForTokenClassification", SPAN: "ForQuestionAnswering"}
_CLASSES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "wi": "intermediate.dense",
    "wo": "output.dense",
}
_LAYER_NORMS = {"attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}
_TABLES = {"token": "word_embeddings", "position": "position_embeddings", "type": "token_type_embeddings"}
_HF_HEADS = {
    CLASS: {"class/dense": "classifier.dense", "class/out": "classifier.out_proj"},
    TAGS: {"tags": "classifier"},
    SPAN: {"span": "qa_outputs"},
}


def key_table(config: RobertaConfig) -> list[Key]:
    """Lists every parameter of a RoBERTa under both names."""
    keys = [
        Key(f"{ours}_embedding/embedding", f"{PREFIX}embeddings.{theirs}.weight") for ours, theirs in _TABLES.items()
    ]
    keys += _norm("embedding_norm", f"{PREFIX}embeddings.LayerNorm", 0)
    for ours, theirs in _LAYER.items():
        keys += _linear(f"layers/{ours}", f"{PREFIX}encoder.layer.{{l}}.{theirs}", config.num_layers)
    for ours, theirs in _LAYER_NORMS.items():
        keys += _norm(f"layers/{ours}", f"{PREFIX}encoder.layer.{{l}}.{theirs}", config.num_layers)
    for kind, stack in stacks(config.heads).items():
        for ours, theirs in _head_names(config, kind).items():
            keys += _linear(f"heads/{ours}", theirs, len(stack.sizes))
    return keys


def _linear(ours: str, theirs: str, num_layers: int) -> list[Key]:
    kernel = Key(f"{ours}/kernel", f"{theirs}.weight", True, num_layers)
    return [kernel, Key(f"{ours}/bias", f"{theirs}.bias", False, num_layers)]


def _norm(ours: str, theirs: str, num_layers: int) -> list[Key]:
    scale = Key(f"{ours}/scale", f"{theirs}.weight", False, num_layers)
    return [scale, Key(f"{ours}/bias", f"{theirs}.bias", False, num_layers)]


def _is_theirs(config: RobertaConfig) -> bool:
    """Tells whether the heads are one head that Hugging Face has, too."""
    return len(config.heads) == 1 and (config.heads[0].kind != CLASS or config.class_head == "dense_tanh")


def _head_names(config: RobertaConfig, kind: str) -> dict[str, str]:
    if _is_theirs(config):
        return _HF_HEADS[kind]
    if kind != CLASS:
        return {kind: f"heads.{kind}.{{l}}"}
    layers = {"dense": "dense", "out": "out_proj"} if config.class_head == "dense_tanh" else {"out": "out_proj"}
    return {f"class/{ours}": f"heads.class.{{l}}.{theirs}" for ours, theirs in layers.items()}


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> RobertaConfig:
    """Reads a RoBERTa's sizes and heads from a raw `config.json`.

    Args:
      raw: the parsed `config.json`.
      where: the folder, for messages.
      dtype: dtype of activations.

    Returns:
      The config as the file states it; `fit_to_tensors` corrects what only the weights tell.

    Raises:
      InputError: for a missing field, or a value that makes no sense or that this model does not have.
    """
    file = f"{where}/config.json"
    check_fields(raw, _REQUIRED, file, "RoBERTa")
    check_ranges(raw, _RANGES, file)
    check_choices(raw, _CHOICES, file)
    given = {ours: raw[theirs] for ours, theirs in _FIELDS.items() if raw.get(theirs) is not None}
    given.setdefault("head_dropout_rate", given.get("dropout_rate", 0.1))
    heads = _heads(raw, file)
    model_type, class_head = raw.get("model_type", MODEL_TYPES[0]), raw.get(CLASS_HEAD, "dense_tanh")
    try:
        return RobertaConfig(**given, model_type=model_type, heads=heads, class_head=class_head, dtype=dtype)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _heads(raw: Mapping[str, Any], file: str) -> tuple[Head, ...]:
    if raw.get(HEADS) is not None:
        try:
            return tuple(Head(**head) for head in raw[HEADS])
        except TypeError as error:
            raise InputError(f"{file}: {HEADS} is {str(raw[HEADS])[:60]!r}; expected name, kind and labels") from error
    architectures = raw.get("architectures") or [""]
    found = [kind for kind, name in _ARCHITECTURES.items() if str(architectures[0]).endswith(name)]
    return tuple(Head(name=TASK, kind=kind, labels=() if kind == SPAN else _labels(raw, file)) for kind in found)


def _labels(raw: Mapping[str, Any], file: str) -> tuple[str, ...]:
    named = raw.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(named, dict) or set(named) != {str(place) for place in range(len(named))}:
        raise InputError(f"{file}: id2label is {str(named)[:60]!r}; expected a name for each label id from 0")
    return tuple(str(named[str(place)]) for place in range(len(named)))


def view(tensors: Tensors) -> Tensors:
    """Gives tensors the names of a whole model, from which an encoder that was saved alone differs by a prefix."""
    return with_prefix(tensors, PREFIX)


def fit_to_tensors(config: RobertaConfig, tensors: Tensors, where: str) -> RobertaConfig:
    """Takes the number of embedding rows from the weights.

    Args:
      config: the config that the file states.
      tensors: the folder's tensors, under names that begin with `PREFIX`.
      where: the folder, for messages.

    Returns:
      The corrected config.

    Raises:
      InputError: if the embedding is missing, of another width, or has no row for one of the config's token ids.
    """
    ids = (config.bos_id, config.pad_id, config.eos_id)
    rows = embedding_rows(tensors, EMBEDDING, config.embed_dim, ids, where)
    return dataclasses.replace(config, vocab_size=rows)


def config_to_hf(config: RobertaConfig) -> dict[str, Any]:
    """Writes a config as the fields of `config.json`."""
    head = config.heads[0] if _is_theirs(config) else None
    architecture = _CLASSES[config.model_type] + ("Model" if head is None else _ARCHITECTURES[head.kind])
    fields = {
        "architectures": [architecture],
        "model_type": config.model_type,
        "hidden_act": "gelu",
        "is_decoder": False,
        "tie_word_embeddings": True,
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
    }
    if config.heads:
        fields |= {HEADS: [dataclasses.asdict(one) for one in config.heads], CLASS_HEAD: config.class_head}
    if head is not None and head.labels:
        fields["id2label"] = {str(place): label for place, label in enumerate(head.labels)}
        fields["label2id"] = {label: place for place, label in enumerate(head.labels)}
    return fields
