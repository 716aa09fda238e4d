"""A trained hypernetwork in use: instructions as text, or names of learned tasks in; adapters out, each read once."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxmtl.adapters.adaptation import Adaptation, Instructed, together
from jaxmtl.adapters.hyper_config import BottleneckOutput, HyperConfig, PrefixOutput
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.lora import Adapter
from jaxmtl.feed.tokenise import cut
from jaxmtl.models.lengths import check_room
from jaxmtl.models.low_rank import COLLECTION as LORA
from jaxmtl.types import InputError, unknown_name

MAX_INSTRUCTION_TOKENS = 1024
"""Longer instructions are cut. Source: methods 1.7."""
STEP = 32
"""Instructions are padded to multiples of it, so that few programs are compiled."""
BASE = "base"
"""Where the parameters of the model itself are among those of a `HyperModel`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hyper:
    """A trained hypernetwork, apart from the model that it adapts.

    Attributes:
      config: what it is made of.
      params: the parameters of a `HyperModel` but those of its base, and those of the base where it was trained too.
      reader: the model whose encoder reads instructions; None if it is the adapted model itself.
    """

    config: HyperConfig
    params: Any
    reader: nn.Module | None = None

    def variables(self, pretrained: Any) -> dict[str, Any]:
        """Returns what a `HyperModel` is applied to.

        Args:
          pretrained: the model that is adapted, a `jaxmtl.weights.Pretrained`.
        """
        return {"params": {BASE: pretrained.params} | self.params}


def read_instructions(hyper: Hyper, pretrained: Any, instructions: Sequence[str]) -> Adaptation:
    """Computes all that instructions do to a model; keep it, and it need not be computed again.

    Args:
      hyper: the hypernetwork.
      pretrained: the model, a `jaxmtl.weights.Pretrained` with a tokenizer.
      instructions: [U] texts, at least one; tokenised as inputs are and cut to `MAX_INSTRUCTION_TOKENS`.

    Returns:
      The adaptation, U instructions in their order.

    Raises:
      InputError: if there is no instruction, the model has no tokenizer, tasks are known by name, or the model has
        no room for an instruction.
    """
    if hyper.config.encoder == "learned":
        raise InputError("this hypernetwork knows its tasks by name and reads no instructions; give it a task's name")
    if isinstance(instructions, str) or not instructions:
        raise InputError(f"instructions are {instructions!r}; expected a list of at least one text")
    if pretrained.tokenizer is None:
        raise InputError("the model has no tokenizer to read instructions with; put its files into the model's folder")
    tokenizer = pretrained.tokenizer
    encoded = tokenizer.encode_batch(list(instructions))
    return read_ids(hyper, pretrained, [cut(row, MAX_INSTRUCTION_TOKENS, tokenizer.eos_token_id) for row in encoded])


def read_tasks(hyper: Hyper, pretrained: Any, names: Sequence[str]) -> Adaptation:
    """Computes what learned vectors of tasks do to a model.

    Args:
      hyper: a hypernetwork with a learned encoder.
      pretrained: the model, a `jaxmtl.weights.Pretrained`.
      names: [U], tasks that it was trained on, at least one.

    Returns:
      The adaptation, U tasks in their order.

    Raises:
      InputError: if there is no task, or the hypernetwork reads instructions.
      UnknownNameError: if it was not trained on a task.
    """
    if isinstance(names, str) or not names:
        raise InputError(f"tasks are {names!r}; expected a list of at least one name")
    return read_ids(hyper, pretrained, [task_ids(hyper, name) for name in names])


def task_ids(hyper: Hyper, name: str) -> list[int]:
    """Returns what a hypernetwork with a learned encoder reads of a task: one id.

    Args:
      hyper: the hypernetwork.
      name: the task.

    Raises:
      InputError: if the hypernetwork reads instructions.
      UnknownNameError: if it was not trained on the task.
    """
    tasks = hyper.config.tasks
    if hyper.config.encoder != "learned":
        raise InputError(f"this hypernetwork reads instructions and knows no task by name; found {name!r}")
    if name not in tasks:
        raise unknown_name("learned task of this hypernetwork", name, tasks)
    return [list(tasks).index(name)]


def read_ids(hyper: Hyper, pretrained: Any, ids: Sequence[Sequence[int]]) -> Adaptation:
    """Computes what tokenised instructions do to a model.

    Args:
      hyper: the hypernetwork.
      pretrained: the model, a `jaxmtl.weights.Pretrained`.
      ids: token ids of each of U instructions, at least one; of learned tasks what `task_ids` gives.

    Returns:
      The adaptation, U instructions in their order.

    Raises:
      InputError: if the model has no room for an instruction.
    """
    check_room(pretrained.config, map(len, ids), [0] * len(ids), "instructions")
    step = 1 if hyper.config.encoder == "learned" else STEP
    length = -(-max(map(len, ids)) // step) * step
    padded = np.full((len(ids), length), pretrained.config.pad_id, np.int32)
    mask = np.zeros(padded.shape, bool)
    for number, row in enumerate(ids):
        padded[number, : len(row)], mask[number, : len(row)] = row, True
    module = HyperModel(hyper.config, pretrained.module, hyper.reader)
    return _read(module, hyper.variables(pretrained), padded, mask)


@functools.partial(jax.jit, static_argnums=0)
def _read(module: HyperModel, variables: Any, instructions: jax.Array, mask: jax.Array) -> Any:
    return module.apply(variables, instructions, mask, method="adapt")


def generate_adapter(hyper: Hyper, pretrained: Any, instruction: str) -> Adapter:
    """Makes the low-rank adapter of an instruction: what `save_adapter` writes, and PEFT loads.

    Args:
      hyper: the hypernetwork; what it does besides is left out, see `left_out`.
      pretrained: the model, a `jaxmtl.weights.Pretrained` with a tokenizer.
      instruction: the instruction, as the hypernetwork was trained to read them.

    Returns:
      The adapter, with the scale of the hypernetwork.

    Raises:
      InputError: if the hypernetwork makes no low-rank updates, or as in `read_instructions`.
    """
    adaptation = read_instructions(hyper, pretrained, [instruction])
    return adapters_of(hyper.config, adaptation)[0]


def adapters_of(config: HyperConfig, adaptation: Adaptation) -> list[Adapter]:
    """Takes the low-rank adapters out of an adaptation.

    Args:
      config: of the hypernetwork that made it.
      adaptation: of U instructions.

    Returns:
      U adapters.

    Raises:
      InputError: if there are no low-rank updates.
    """
    lora = config.lora
    if lora is None:
        made = ", ".join(type(output).__name__ for output in config.outputs) or "nothing"
        raise InputError(f"this hypernetwork makes no low-rank updates but {made}; an adapter file holds those alone")
    tree = adaptation.generated[LORA]
    one = lambda number: jax.tree.map(lambda leaf: leaf[number], tree)
    make = functools.partial(Adapter, rank=lora.rank, alpha=lora.alpha, scaling=lora.scaling)
    return [make(tree=one(number)) for number in range(adaptation.mask.shape[0])]


class InstructionCache:
    """Instructions that were read, by their text: each is encoded once, whatever is asked of it later."""

    def __init__(self, hyper: Hyper, pretrained: Any) -> None:
        """Starts empty.

        Args:
          hyper: the hypernetwork.
          pretrained: the model, a `jaxmtl.weights.Pretrained` with a tokenizer.
        """
        self._hyper, self._pretrained = hyper, pretrained
        self._read: dict[str, Adaptation] = {}

    def __len__(self) -> int:
        """Returns how many instructions were read."""
        return len(self._read)

    def __contains__(self, instruction: str) -> bool:
        """Returns whether an instruction was read."""
        return instruction in self._read

    def of(self, instructions: Sequence[str]) -> Instructed:
        """Gives requests what their instructions became.

        Args:
          instructions: [n] texts, at least one, the instruction of each request.

        Returns:
          What scoring and generation take as adapter; instructions that come more than once are held once.

        Raises:
          InputError: as in `read_instructions`.
        """
        texts = list(dict.fromkeys(instructions))
        for text in texts:
            if text not in self._read:
                self._read[text] = read_instructions(self._hyper, self._pretrained, [text])
        adaptation = together([self._read[text] for text in texts])
        return Instructed(adaptation=adaptation, index=np.array([texts.index(text) for text in instructions], np.int32))


def left_out(config: HyperConfig) -> list[str]:
    """Says in words what a plain adapter of a hypernetwork leaves out; empty if it is all there is.

    Args:
      config: of the hypernetwork.
    """
    parts = {
        "prefixes of attention layers": any(isinstance(output, PrefixOutput) for output in config.outputs),
        "bottleneck adapters": any(isinstance(output, BottleneckOutput) for output in config.outputs),
        "the encoder's look at the instruction": config.fusion != "none",
        "the instruction in the decoder's memory": config.memory == "concat",
        "what was trained of the model itself": config.base != "nothing",
    }
    return [part for part, is_there in parts.items() if is_there]
