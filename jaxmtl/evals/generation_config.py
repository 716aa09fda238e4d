"""Reads what a Hugging Face folder or hub id says about decoding, in terms of this project's options.

`transformers` applies these settings silently wherever its `generate` is called. Here they are read on request, so that
a run can state them; what they say and cannot be stated is an error, never left out.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxmtl.evals.decoding import Decoding
from jaxmtl.types import InputError
from jaxmtl.weights import home_of
from jaxmtl.weights.json_file import read_object

FILE = "generation_config.json"
MAPPED = frozenset(
    "max_length max_new_tokens min_length min_new_tokens do_sample num_beams early_stopping length_penalty temperature"
    " top_k top_p repetition_penalty no_repeat_ngram_size forced_bos_token_id forced_eos_token_id eos_token_id"
    " decoder_start_token_id".split()
)
"""Fields that have a counterpart here."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beam_groups", "num_return_sequences"), (1,)),
    **dict.fromkeys(("diversity_penalty", "epsilon_cutoff", "eta_cutoff", "min_p"), (0,)),
    **dict.fromkeys(("typical_p", "encoder_repetition_penalty", "guidance_scale"), (1,)),
    "encoder_no_repeat_ngram_size": (0,),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "suppress_tokens", "begin_suppress_tokens"), ([],)),
    **dict.fromkeys(("sequence_bias", "constraints", "forced_decoder_ids", "watermarking_config"), ([], {})),
    **dict.fromkeys(("exponential_decay_length_penalty", "stop_strings", "max_time", "dola_layers", "top_h"), ()),
    **dict.fromkeys(("penalty_alpha", "prompt_lookup_num_tokens", "token_healing", "remove_invalid_values"), (0,)),
    "renormalize_logits": (False,),
}
"""Fields without a counterpart that change what is generated, with the values, besides null, at which they do not."""
WITHOUT_EFFECT = frozenset(
    "_from_model_config transformers_version use_cache cache_implementation cache_config max_cache_len low_memory"
    " output_attentions output_hidden_states output_scores output_logits return_dict_in_generate return_legacy_cache"
    " pad_token_id bos_token_id is_assistant num_assistant_tokens num_assistant_tokens_schedule"
    " assistant_confidence_threshold assistant_early_exit assistant_lookbehind target_lookbehind"
    " assistant_ensemble_weight speculation_type max_matching_ngram_size disable_compile compile_config".split()
)
"""Fields that do not change the generated tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderDecoding:
    """What a folder says about decoding.

    Attributes:
      decoding: the options.
      max_tokens: most generated tokens; None if the folder does not say, or counts a decoder-only model's prompt too.
      file: where it was read.
    """

    decoding: Decoding
    max_tokens: int | None
    file: pathlib.Path


def read_decoding(path: str | os.PathLike, config: Any) -> FolderDecoding:
    """Reads `generation_config.json`, or where there is none the fields of `config.json` that are about decoding.

    Args:
      path: as in `load_pretrained`; the file is looked for beside the model's `config.json`.
      config: the model's config.

    Returns:
      The options with which `generate` here gives what `transformers` gives by default.

    Raises:
      InputError: if nothing is found at `path`, there is neither file, or a field cannot be expressed; names file and
        field.
    """
    raw, file = _fields(home_of(path))
    raw = {name: value for name, value in raw.items() if value is not None}
    _check_types(raw, file)
    _check_neutral(raw, file)
    _check_ids(raw, config, file)
    max_tokens, min_tokens = _lengths(raw, hasattr(config, "decoder_start_id"), file)
    return FolderDecoding(decoding=_options(raw, min_tokens, file), max_tokens=max_tokens, file=file)


def _fields(home: pathlib.Path) -> tuple[dict[str, Any], pathlib.Path]:
    """Returns what the file for decoding says, else the model's config, and which file it was."""
    file = home / FILE
    if not file.exists():
        return read_object(home / "config.json"), home / "config.json"
    raw = read_object(file)
    strange = sorted(raw.keys() - MAPPED - WITHOUT_EFFECT - NEUTRAL.keys())
    if strange:
        raise InputError(f"{file}: field {strange[0]!r} is not known; remove it if it does not concern decoding")
    return raw, file


def _check_types(raw: Mapping[str, Any], path: pathlib.Path) -> None:
    """Refuses what cannot be compared; ranges are checked with the options."""
    for name in ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams"):
        if name in raw and type(raw[name]) is not int:
            raise InputError(f"{path}: {name} is {raw[name]!r}; expected an integer")


def _check_neutral(raw: Mapping[str, Any], path: pathlib.Path) -> None:
    for name, values in NEUTRAL.items():
        if name in raw and raw[name] not in values:
            raise InputError(f"{path}: {name} is {raw[name]!r}, which is not supported; state another way of decoding")


def _check_ids(raw: Mapping[str, Any], config: Any, path: pathlib.Path) -> None:
    """Refuses an end or start token that is not the model's."""
    for name, ours in (("eos_token_id", "eos_id"), ("decoder_start_token_id", "decoder_start_id")):
        expected = getattr(config, ours, None)
        if name in raw and expected is not None and raw[name] not in (expected, [expected]):
            raise InputError(f"{path}: {name} is {raw[name]!r}, but the model's config has {expected}; correct one")


def _lengths(raw: Mapping[str, Any], has_decoder_start: bool, path: pathlib.Path) -> tuple[int | None, int]:
    """Returns most and least generated tokens; `max_length` and `min_length` count the decoder's start token too."""
    most, least = raw.get("max_new_tokens"), raw.get("min_new_tokens", 0)
    if has_decoder_start:
        most = raw["max_length"] - 1 if most is None and "max_length" in raw else most
        return most, max(least, raw.get("min_length", 0) - 1)
    if raw.get("min_length"):
        raise InputError(f"{path}: min_length is {raw['min_length']}, which counts the prompt; state min_new_tokens")
    return most, least


def _options(raw: Mapping[str, Any], min_tokens: int, path: pathlib.Path) -> Decoding:
    forced = {name: _only(raw.get(f"forced_{name}_token_id"), path) for name in ("bos", "eos")}
    options: dict[str, Any] = dict(
        min_tokens=min_tokens,
        no_repeat_ngram=raw.get("no_repeat_ngram_size", 0),
        repetition_penalty=raw.get("repetition_penalty", 1.0),
        forced_first_id=forced["bos"],
        forced_last_id=forced["eos"],
    )
    num_beams, sampled = raw.get("num_beams", 1), raw.get("do_sample", False)
    if sampled and num_beams > 1:
        raise InputError(f"{path}: do_sample with num_beams {num_beams} is not supported; state one of both")
    try:
        if sampled:
            # 50 is what `transformers` takes where the file says nothing.
            limits = dict(temperature=raw.get("temperature", 1.0), top_p=raw.get("top_p", 1.0))
            return Decoding(method="sample", top_k=raw.get("top_k", 50), **limits, **options)
        if num_beams > 1:
            rules = dict(length_penalty=raw.get("length_penalty", 1.0), early_stopping=raw.get("early_stopping", False))
            return Decoding(method="beam", num_beams=num_beams, **rules, **options)
        return Decoding(**options)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _only(token: Any, path: pathlib.Path) -> Any:
    """Returns the one token id of a list of one."""
    if not isinstance(token, list):
        return token
    if len(token) != 1:
        raise InputError(f"{path}: one token cannot be forced to be any of {token}; state one")
    return token[0]
