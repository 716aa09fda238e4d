"""How long a text a model can take; a longer one is refused where its length is known, before it reaches the model."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.models.gpt_config import GPTConfig
from jaxmtl.models.roberta_config import RobertaConfig
from jaxmtl.types import InputError


class Room(NamedTuple):
    """The most tokens of an input, of its target, and of both together; None is no limit."""

    inputs: int | None = None
    targets: int | None = None
    together: int | None = None


@functools.singledispatch
def room(config: Any) -> Room:
    """Tells how many tokens a model takes.

    Args:
      config: a model's config.

    Returns:
      The limits.
    """
    return Room()


@room.register
def _(config: GPTConfig) -> Room:
    return Room(together=config.max_positions + 1)  # nobody reads a target's last token


@room.register
def _(config: BARTConfig) -> Room:
    return Room(inputs=config.max_positions, targets=config.max_positions)


@room.register
def _(config: RobertaConfig) -> Room:
    return Room(inputs=config.max_tokens)


def check_room(config: Any, inputs: Iterable[int], targets: Iterable[int], where: str) -> None:
    """Refuses inputs and targets that are too long for a model.

    Args:
      config: a model's config.
      inputs: [n] numbers of tokens of the inputs.
      targets: [n] numbers of tokens of the targets, or the most that may be generated.
      where: what they are, for the message.

    Raises:
      InputError: naming the longest.
    """
    pairs = np.array([*zip(inputs, targets, strict=True)], np.int64).reshape(-1, 2)
    if not len(pairs):
        return
    counts = {"of input": pairs[:, 0], "of target": pairs[:, 1], "in all": pairs.sum(1)}
    for (what, found), limit in zip(counts.items(), room(config), strict=True):
        longest = int(found.argmax())
        if limit is not None and found[longest] > limit:
            source, target = pairs[longest].tolist()
            raise InputError(
                f"{where}: row {longest} has {source} input and {target} target tokens, the model has room for {limit} "
                f"{what}; shorten the inputs (MAX_INPUT_TOKENS, max_input_tokens), the targets (MAX_TARGET_TOKENS) or "
                "generate fewer tokens"
            )
