"""How long a text a model can take; a longer one is refused where its length is known, before it reaches the model."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxmtl.models.gpt_config import GPTConfig
from jaxmtl.types import InputError


@functools.singledispatch
def most_tokens(config: Any) -> int | None:
    """Tells how many tokens an input and its target may have together.

    Args:
      config: a model's config.

    Returns:
      The number; None if there is no limit.
    """
    return None


@most_tokens.register
def _(config: GPTConfig) -> int:
    return config.max_positions + 1  # nobody reads a target's last token


def check_room(config: Any, inputs: Iterable[int], targets: Iterable[int], where: str) -> None:
    """Refuses inputs and targets that are too long together.

    Args:
      config: a model's config.
      inputs: [n] numbers of tokens of the inputs.
      targets: [n] numbers of tokens of the targets, or the most that may be generated.
      where: what they are, for the message.

    Raises:
      InputError: naming the longest.
    """
    limit, pairs = most_tokens(config), np.array([*zip(inputs, targets, strict=True)], np.int64).reshape(-1, 2)
    if limit is None or not len(pairs):
        return
    longest = int(pairs.sum(1).argmax())
    source, target = pairs[longest].tolist()
    if source + target > limit:
        raise InputError(
            f"{where}: row {longest} has {source} input and {target} target tokens, the model has room for {limit} in "
            "all; shorten the inputs (MAX_INPUT_TOKENS, max_input_tokens) or generate fewer tokens"
        )
