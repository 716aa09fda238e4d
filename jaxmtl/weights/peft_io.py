"""Adapters in PEFT's form, both directions: a folder with `adapter_config.json` and `adapter_model.safetensors`.

Source: methods 6.4.
"""

import json
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.adapters.lora import Adapter, check_adapter
from jaxmtl.files import explained
from jaxmtl.models.trees import flat
from jaxmtl.types import InputError
from jaxmtl.weights.peft_config import CONFIG, PeftConfig, read_config, write_config
from jaxmtl.weights.peft_factors import Factors, Groups, Stacks, adapter_of, alpha_of_groups, groups_of, joined, parted
from jaxmtl.weights.peft_modules import Linear, linears, missing_prefix, model_type, target_modules, task_type
from jaxmtl.weights.pretrained import Pretrained, family_of
from jaxmtl.weights.safetensors_io import read_file, write_file

MODEL = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What names of tensors begin with."""
PICKLE = "adapter_model.bin"
FAMILY, BASE, ROUNDED_BASE, GROUPS = "model_type", "base_hash", "base_hash_bfloat16", "groups"
"""Notes beside the tensors: kind of model, hashes of its weights as they are and in bfloat16, and in JSON which of the
layers that lie side by side share an `a`. Files of PEFT have none."""


def load_adapter(folder: str | os.PathLike, pretrained: Pretrained) -> Adapter:
    """Loads a LoRA that PEFT or `save_adapter` saved.

    Ranks and scales that differ between layers, and layers that are left out, become one rank and one scale by zeros
    and by factors in `b`, which changes nothing but rounding.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`; nothing outside it is read.
      pretrained: the model that it was made for.

    Returns:
      The adapter, float32.

    Raises:
      InputError: if a file is missing or damaged, the adapter is more than a plain LoRA or another model's, or its
        tensors are not those that its config tells of.

    Source: methods 6.4.
    """
    folder = pathlib.Path(folder)
    config = read_config(folder / CONFIG)
    tensors, notes = _tensors(folder)
    where = str(folder / MODEL)
    _check_base(notes, pretrained, where)
    modules = _modules_of(tensors, where)
    layers = linears(pretrained, missing_prefix(pretrained, modules))
    _check_modules(config, layers, modules, where)
    stacks: Stacks = {}
    for linear in layers:
        factors = [_factors(tensors, linear, module, config, where) for module in linear.modules]
        if any(factors):
            stacks |= parted(linear, factors, _groups(notes, linear), config.scaling)
    adapter = adapter_of(stacks, {path: linear for linear in layers for path in linear.paths}, config.scaling)
    check_adapter(adapter, pretrained.module)
    return adapter


def save_adapter(folder: str | os.PathLike, adapter: Adapter, pretrained: Pretrained) -> None:
    """Writes a folder that PEFT and `load_adapter` load.

    Where layers of ours lie side by side in one of theirs (GPT-2's query, key and value) and are not all changed by one
    `a`, theirs gets a higher rank, with the same function.

    Args:
      folder: where to write; made if missing. An adapter that is there is replaced; until the new one is complete, the
        folder holds none that loads.
      adapter: the adapter.
      pretrained: the model that it was made for.

    Raises:
      InputError: if the adapter does not fit the model, or a file cannot be written.

    Source: methods 6.4.
    """
    check_adapter(adapter, pretrained.module)
    folder, leaves = pathlib.Path(folder), flat(adapter.tree)
    task = task_type(pretrained)
    prefix = family_of(pretrained.config).PREFIX if task == "FEATURE_EXTRACTION" else ""
    groups = {linear: groups_of(linear, leaves) for linear in linears(pretrained, prefix)}
    groups = {linear: of_linear for linear, of_linear in groups.items() if of_linear}
    tensors = {}
    for linear, of_linear in groups.items():
        for module, factors in zip(linear.modules, joined(linear, leaves, of_linear), strict=True):
            tensors |= dict(zip(_names(module), factors, strict=True))
    with explained(folder / CONFIG):
        (folder / CONFIG).unlink(missing_ok=True)
    write_file(folder / MODEL, tensors, _notes(pretrained, groups))
    config = _config(adapter, groups, target_modules(list(groups), pretrained, prefix))
    write_config(folder / CONFIG, config, task, any(linear.is_transposed for linear in groups))


def _names(module: str) -> tuple[str, str]:
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _config(adapter: Adapter, groups: Mapping[Linear, Groups], targets: Any) -> PeftConfig:
    """Gives layers of a higher rank a pattern of their own, unless all layers have it."""
    alpha = lambda count: alpha_of_groups(adapter.alpha, count, adapter.scaling)
    counts = {linear.ending: len(of_linear) for linear, of_linear in groups.items()}
    common = min(counts.values())
    higher = {ending: count for ending, count in counts.items() if count != common}
    return PeftConfig(
        rank=adapter.rank * common,
        alpha=alpha(common),
        scaling=adapter.scaling,
        targets=targets,
        ranks={ending: adapter.rank * count for ending, count in higher.items()},
        alphas={ending: alpha(count) for ending, count in higher.items()},
    )


def _notes(pretrained: Pretrained, groups: Mapping[Linear, Groups]) -> dict[str, str]:
    notes = {FAMILY: model_type(pretrained), BASE: pretrained.hash, ROUNDED_BASE: pretrained.rounded_hash}
    side_by_side = [group for linear, of_linear in groups.items() if len(linear.paths) > 1 for group in of_linear]
    return {**notes, GROUPS: json.dumps(side_by_side)} if side_by_side else notes


def _groups(notes: Mapping[str, str], linear: Linear) -> Groups:
    """Returns the noted groups of a layer; none if nothing that makes sense is noted."""
    try:
        noted = json.loads(notes.get(GROUPS, "[]"))
        return [group for group in noted if group and set(group) <= set(linear.paths)]
    except (ValueError, TypeError, RecursionError):
        return []


def _tensors(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if (folder / MODEL).exists():
        return read_file(folder / MODEL)
    advice = "fetch or save the adapter again"
    if (folder / PICKLE).exists():
        advice = f"{PICKLE} is a pickle and is not opened: load it with PEFT and save it again, as safetensors"
    raise InputError(f"{folder}: holds no {MODEL}; {advice}")


def _check_base(notes: Mapping[str, str], pretrained: Pretrained, where: str) -> None:
    """Refuses an adapter of another model, as far as is noted; in bfloat16 a model is the same model."""
    found = model_type(pretrained)
    if notes.get(FAMILY, found) != found:
        raise InputError(f"{where}: is an adapter of a model of type {notes[FAMILY][:40]!r}; this one is {found!r}")
    if BASE not in notes:
        return
    stored, rounded = notes[BASE], notes.get(ROUNDED_BASE, notes[BASE])
    is_rounded = stored == rounded or any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(pretrained.params))
    wanted, hashed = (rounded, pretrained.rounded_hash) if is_rounded else (stored, pretrained.hash)
    if hashed != wanted:
        raise InputError(
            f"{where}: is an adapter of weights with hash {wanted[:16]!r}, this model's is {hashed!r};"
            " load the model that it was trained on"
        )


def _modules_of(names: Collection[str], where: str) -> set[str]:
    """Returns the modules that tensors are of."""
    modules = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in names}
    strays = set(names) - {name for module in modules for name in _names(module)}
    if strays or not modules:
        found = f"holds {_few(strays)}" if strays else "holds no tensors"
        raise InputError(f"{where}: {found}; a plain LoRA has {' and '.join(_names('MODULE'))} alone")
    return modules


def _check_modules(config: PeftConfig, layers: list[Linear], found: set[str], where: str) -> None:
    """Refuses modules that are not exactly those that the model has and the config names."""
    known = {module for linear in layers for module in linear.modules}
    targets = {module for module in known if config.is_target(module)}
    if found - known:
        raise InputError(f"{where}: this model has no linear layer {_few(found - known)}; is it another's adapter?")
    if found - targets:
        raise InputError(f"{where}: holds {_few(found - targets)}, which {CONFIG} does not name in target_modules")
    if targets - found and not config.layers:
        raise InputError(f"{where}: lacks {_few(targets - found)}, which {CONFIG} names in target_modules")


def _few(names: Collection[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(" ".join(name.split())[:120] for name in sorted(names)[:3]) + rest


def _factors(
    tensors: Mapping[str, np.ndarray], linear: Linear, module: str, config: PeftConfig, where: str
) -> Factors | None:
    """Returns the factors of one layer in our orientation; None if it has none."""
    present = [name for name in _names(module) if name in tensors]
    if not present:
        return None
    missing = [name for name in _names(module) if name not in tensors]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing, {present[0]} is there; expected both")
    rank = config.rank_of(module)
    shapes = (rank, linear.kernel.inputs), (linear.outputs, rank)
    for name, shape in zip(present, shapes, strict=True):
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            raise InputError(f"{where}: {name} holds {tensors[name].dtype}, expected floating-point numbers")
        if tensors[name].shape != shape:
            raise InputError(
                f"{where}: {name} has shape {tensors[name].shape}; this model and {CONFIG} ask for {shape}"
            )
    a, b = (tensors[name].astype(np.float32).T for name in present)
    return Factors(a, b, config.alpha_of(module))
