"""Which task is scored with which adapter, and the hashes that keep their results apart."""

import dataclasses
from collections.abc import Mapping, Sequence

import flax.linen as nn
import numpy as np

from jaxmtl.adapters.lora import Adapter, check_adapter
from jaxmtl.evals import files
from jaxmtl.evals.instructed import ByInstruction, hyper_hash
from jaxmtl.types import InputError, unknown_name
from jaxmtl.weights import Pretrained
from jaxmtl.weights.fingerprint import weights_hash

ADAPTED = "+"
"""Stands in a weights hash between that of the model and that of an adapter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """What a task is scored with besides the model.

    Attributes:
      adapter: the task's adapter, or None.
      weights_hash: hash of the model's parameters, followed by "+" and that of the adapter if there is one.
    """

    adapter: Adapter | None
    weights_hash: str


Given = Mapping[str, Adapter] | Adapter | ByInstruction | None
"""What tasks are scored with besides the model: an adapter by task, or one for all; or a hypernetwork; or nothing."""


def of_tasks(pretrained: Pretrained, adapters: Given, names: Sequence[str]) -> dict[str, Adapted]:
    """Chooses the adapter of each task.

    Args:
      pretrained: the model that they have to fit.
      adapters: see `Given`.
      names: the tasks.

    Returns:
      Task name to what it is scored with.

    Raises:
      InputError: if an adapter does not fit the model; names the task.
      UnknownNameError: if a task has no adapter.
    """
    weights = pretrained.hash
    if isinstance(adapters, ByInstruction):
        both = f"{weights}{ADAPTED}{hyper_hash(adapters.hyper)}"
        return {name: Adapted(adapter=None, weights_hash=both) for name in names}
    chosen = _chosen(adapters, names)
    slots: dict[int, list[str]] = {}
    for name, adapter in chosen.items():
        slots.setdefault(id(adapter), []).append(name)
    hashes = dict.fromkeys(names, weights)
    for tasks in slots.values():
        adapter = chosen[tasks[0]]
        _check(adapter, pretrained.module, tasks[0])
        hashes |= dict.fromkeys(tasks, f"{weights}{ADAPTED}{adapter_hash(adapter)}")
    return {name: Adapted(adapter=chosen.get(name), weights_hash=hashes[name]) for name in names}


def stated_hashes(adapters: Given, adapted: Mapping[str, Adapted]) -> dict[str, str | dict[str, str]]:
    """Says in the settings of an evaluation what was scored: a model with one adapter for all is another model.

    Args:
      adapters: see `Given`.
      adapted: what `of_tasks` gave, for at least one task.

    Returns:
      "weights_hash", and where each task has its own adapter "weights_hashes" by task.
    """
    some = next(iter(adapted.values())).weights_hash
    if adapters is None:
        return dict(weights_hash=some)
    if isinstance(adapters, Adapter | ByInstruction):
        whose = dict(instruction_of=adapters.choose.__name__) if isinstance(adapters, ByInstruction) else {}
        return dict(weights_hash=files.key_of(dict(weights_hash=some)), **whose)
    by_task = {name: one.weights_hash for name, one in adapted.items()}
    return dict(weights_hash=some.partition(ADAPTED)[0], weights_hashes=by_task)


def adapter_hash(adapter: Adapter) -> str:
    """Hashes an adapter's factors and its scale.

    Args:
      adapter: the adapter.

    Returns:
      16 hexadecimal digits.
    """
    return weights_hash(dict(tree=adapter.tree, scale=np.float32(adapter.scale)))


def _chosen(adapters: Mapping[str, Adapter] | Adapter | None, names: Sequence[str]) -> dict[str, Adapter]:
    """Returns task name to adapter; nothing without adapters."""
    if adapters is None:
        return {}
    if isinstance(adapters, Adapter):
        return dict.fromkeys(names, adapters)
    for name in names:
        if name not in adapters:
            raise unknown_name("adapter of task", name, adapters)
    return {name: adapters[name] for name in names}


def _check(adapter: Adapter, module: nn.Module, task: str) -> None:
    try:
        check_adapter(adapter, module)
    except InputError as error:
        raise type(error)(f"task {task}: {error}") from error
