"""What `adapter_config.json` says of a LoRA, both directions. Source: methods 6.4; PEFT 0.21's `LoraConfig`."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import pyarrow

from jaxmtl.files import write_whole
from jaxmtl.types import InputError
from jaxmtl.weights.config_json import check_choices, check_fields, check_flags, check_ranges, given
from jaxmtl.weights.json_file import read_object

CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"
"""What PEFT calls every linear layer but those that give the output."""

Modules = str | tuple[str, ...]
"""A regular expression of whole module paths, or ends of module paths."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """What the function of a LoRA depends on, beside its factors.

    Attributes:
      rank: rank of layers that no pattern names.
      alpha: numerator of their scale.
      scaling: a key of `adapters.lora.SCALINGS`.
      targets: the modules that are changed.
      excluded: the modules among them that are not.
      layers: numbers of the layers that are changed; () if all are.
      ranks: other ranks, by regular expressions of ends of module paths; the first that matches counts.
      alphas: other numerators, likewise.
    """

    rank: int
    alpha: float
    scaling: str
    targets: Modules
    excluded: Modules = ()
    layers: tuple[int, ...] = ()
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alphas: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """Returns the rank of a module."""
        return _of_pattern(self.ranks, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """Returns the numerator of a module's scale."""
        return _of_pattern(self.alphas, module, self.alpha)

    def is_target(self, module: str) -> bool:
        """Returns whether a linear layer that gives no output is changed.

        PEFT's versions disagree on which number in a path is the layer's, so any that is listed will do.

        Args:
          module: path of the layer.
        """
        if _matches(self.excluded, module) or not (self.targets == ALL_LINEAR or _matches(self.targets, module)):
            return False
        numbers = {int(name) for name in module.split(".") if name.isdigit()}
        return not self.layers or bool(numbers & set(self.layers))


_READ = set(
    "peft_type r lora_alpha use_rslora target_modules exclude_modules layers_to_transform rank_pattern alpha_pattern"
    " bias init_lora_weights".split()
)
_LEFT_ASIDE = set(
    "task_type base_model_name_or_path revision auto_mapping peft_version inference_mode fan_in_fan_out lora_dropout"
    " layers_pattern megatron_core runtime_config loftq_config eva_config corda_config lora_ga_config velora_config"
    " qalora_group_size ensure_weight_tying".split()
)
"""Fields that say how an adapter came about, or nothing about what its factors do."""
_INITIAL = (True, False, "gaussian", "eva", "orthogonal")
"""How factors may have started; other ways change the base's weights as well."""
_SIZE, _NUMBER = (int, 1, 10**6), (int | float, 1e-30, 1e9)


def read_config(path: pathlib.Path) -> PeftConfig:
    """Reads the config of a plain LoRA.

    Args:
      path: `adapter_config.json`.

    Returns:
      The config.

    Raises:
      InputError: if the file is missing or damaged, a value makes no sense, or the adapter is more than a plain LoRA;
        also for a field of a newer PEFT that switches something on, for it may be that.
    """
    if not path.exists():
        raise InputError(f"{path.parent}: holds no {CONFIG}; expected an adapter's folder, as PEFT saves it")
    raw, file = read_object(path), str(path)
    check_fields(raw, ("peft_type", "target_modules"), file, "PEFT")
    _check_plain(raw, file)
    check_ranges(raw, {"r": _SIZE, "lora_alpha": _NUMBER}, file)
    check_flags(raw, ("use_rslora",), file)
    return PeftConfig(
        rank=given(raw, "r", 8),
        alpha=given(raw, "lora_alpha", 8),
        scaling="rank_stabilised" if raw.get("use_rslora") else "standard",
        targets=_modules(raw, "target_modules", file),
        excluded=_modules(raw, "exclude_modules", file),
        layers=_layers(raw, file),
        ranks=_patterns(raw, "rank_pattern", _SIZE, file),
        alphas=_patterns(raw, "alpha_pattern", _NUMBER, file),
    )


def write_config(path: pathlib.Path, config: PeftConfig, task_type: str | None, is_transposed: bool) -> None:
    """Writes the fields that every version of PEFT knows.

    Args:
      path: `adapter_config.json`.
      config: the config.
      task_type: PEFT's name for what the model does; None for none.
      is_transposed: True if the model's matrices are [in, out] (GPT-2's).

    Raises:
      InputError: if the file cannot be written.
    """
    fields = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": None,
        "r": config.rank,
        "lora_alpha": _shortest(config.alpha),
        "lora_dropout": 0.0,
        "target_modules": config.targets,
        "bias": "none",
        "fan_in_fan_out": is_transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": dict(config.ranks),
        "alpha_pattern": {name: _shortest(alpha) for name, alpha in config.alphas.items()},
        "use_rslora": config.scaling == "rank_stabilised",
        "use_dora": False,
        "revision": None,
        "auto_mapping": None,
    }
    write_whole(path, json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _check_plain(raw: Mapping[str, Any], file: str) -> None:
    """Refuses what is more than low-rank products beside linear layers, or what nobody can tell from it."""
    check_choices(raw, {"peft_type": ("LORA",), "bias": ("none",)}, file)
    if given(raw, "init_lora_weights", True) not in _INITIAL:
        raise InputError(
            f"{file}: init_lora_weights is {str(raw['init_lora_weights'])[:40]!r}, which changes the base's weights;"
            " expected true: let PEFT save it as a plain LoRA (`path_initial_model_for_weight_conversion`)"
        )
    for name in sorted(raw.keys() - _READ - _LEFT_ASIDE):
        value = raw[name]
        if value is True or (isinstance(value, list | dict) and value):
            raise InputError(
                f"{file}: {name[:40]!r} is {json.dumps(value)[:40]}; expected a plain LoRA, where it is off (null)"
            )


def _modules(raw: Mapping[str, Any], name: str, file: str) -> Modules:
    value = raw.get(name) or ()
    if isinstance(value, str):
        _check_pattern(value, name, file)
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(module, str) and module for module in value):
        raise InputError(f"{file}: {name} is {str(value)[:40]!r}, expected names of modules or a regular expression")
    return tuple(value)


def _layers(raw: Mapping[str, Any], file: str) -> tuple[int, ...]:
    value = raw.get("layers_to_transform")
    layers = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(layer) is int for layer in layers):
        raise InputError(f"{file}: layers_to_transform is {str(value)[:40]!r}, expected numbers of layers")
    return tuple(layers)


def _patterns(raw: Mapping[str, Any], name: str, allowed: tuple[Any, float, float], file: str) -> dict[str, Any]:
    found = given(raw, name, {})
    if not isinstance(found, dict):
        raise InputError(f"{file}: {name} is {str(found)[:40]!r}, expected numbers by module")
    for pattern in found:
        _check_pattern(_end(pattern), name, file)
    check_ranges(found, dict.fromkeys(found, allowed), f"{file}: {name}")
    return {pattern: value for pattern, value in found.items() if value is not None}


def _check_pattern(pattern: str, name: str, file: str) -> None:
    try:
        _is_match(pattern, "")
    except pyarrow.ArrowInvalid as error:
        raise InputError(
            f"{file}: {name} {pattern[:60]!r} is no regular expression, or has look-around or a reference back, which"
            f" are not read ({str(error).partition(': ')[2][:80]}); list the modules' names instead"
        ) from error


def _matches(modules: Modules, module: str) -> bool:
    if isinstance(modules, str):
        return _is_match(modules, module)
    return any(f".{module}".endswith(f".{name}") for name in modules)


def _of_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((value for pattern, value in patterns.items() if _is_match(_end(pattern), module)), default)


def _is_match(pattern: str, module: str) -> bool:
    """Returns whether a whole path matches, in time linear in its length: the pattern may be anybody's.

    Python's own matcher may take exponential time. This one is RE2, which is quick because it remembers no groups.
    """
    import pyarrow.compute  # takes a sixth of a second, and few programs read adapters

    options = pyarrow.compute.MatchSubstringOptions(f"^(?:{pattern})$")
    return pyarrow.compute.call_function("match_substring_regex", [pyarrow.scalar(module)], options).as_py()


def _end(pattern: str) -> str:
    return rf"(.*\.)?({pattern})"


def _shortest(number: float) -> float:
    return int(number) if number == int(number) else number
