"""Which parameters of a model with a hypernetwork are trained, at which rates, and a table that says so."""

import functools
from collections.abc import Sequence
from typing import Any

from jaxmtl.adapters.hyper_config import TRAINED, HyperConfig
from jaxmtl.models.trees import flat
from jaxmtl.training.optim import Group, Optimizer
from jaxmtl.types import InputError

BASE, READER = "base/", "reader/"
"""What paths below the model itself and below the reader of instructions begin with."""


def groups_of(
    hyper: HyperConfig, *, base_rate: float = 1.0, base_optimizer: Optimizer | None = None
) -> tuple[Group, ...]:
    """Sorts parameters into those that stay as they are, those of the model that are trained, and the hypernetwork's.

    Args:
      hyper: says what of the base model is trained, and whether the reader is.
      base_rate: factor on the learning rate for what is trained of the base model.
      base_optimizer: how that learns; None for as the hypernetwork does.

    Returns:
      Groups for `optim.adamw` or `optim.adafactor`; all that matches none learns at rate 1.

    Raises:
      InputError: if something is said of how the base model learns, and nothing of it does.
    """
    if hyper.base == "nothing" and (base_rate != 1.0 or base_optimizer is not None):
        raise InputError(
            "BASE_RATE and BASE_OPTIMIZER say how the model itself learns, but nothing of it does; leave them out, or "
            "give TRAINED"
        )
    frozen = functools.partial(_is_frozen, hyper)
    groups = [Group(name="frozen", matches=frozen, rate=0.0)] if _freezes(hyper) else []
    if hyper.base != "nothing" and (base_rate != 1.0 or base_optimizer is not None):
        of_base = lambda path: path.startswith(BASE)
        groups.append(Group(name="base", matches=of_base, rate=base_rate, optimizer=base_optimizer))
    return tuple(groups)


def parameter_table(params: Any, groups: Sequence[Group]) -> list[tuple[str, int, float]]:
    """Counts parameters by part and by what becomes of them.

    Args:
      params: parameter tree of arrays or shapes.
      groups: what `groups_of` gave.

    Returns:
      Part (the first name of a path), number of parameters, factor on the learning rate, 0 where they are frozen.
    """
    counts: dict[tuple[str, float], int] = {}
    for path, leaf in flat(params).items():
        rate = next((group.rate for group in groups if group.matches(path)), 1.0)
        key = (path.partition("/")[0], rate)
        counts[key] = counts.get(key, 0) + leaf.size
    return [(part, count, rate) for (part, rate), count in sorted(counts.items())]


def _freezes(hyper: HyperConfig) -> bool:
    return hyper.base != "all" or hyper.encoder == "frozen"


def _is_frozen(hyper: HyperConfig, path: str) -> bool:
    if path.startswith(READER):
        return hyper.encoder == "frozen"
    return path.startswith(BASE) and not TRAINED[hyper.base](path.removeprefix(BASE))
