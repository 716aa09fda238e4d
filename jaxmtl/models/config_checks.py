"""What the configs of all families refuse alike: dtypes, remat policies, and fields that break a rule."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxmtl.models.remat import REMAT_POLICIES
from jaxmtl.types import InputError, unknown_name

Rule = tuple[str, bool, str]
"""A field, whether its value is right, and what is right."""


def check_computation(config: Any, family: str, why_not_float16: str) -> None:
    """Refuses dtypes and remat policies that do not exist.

    Args:
      config: has `dtype` and `remat`.
      family: its name, for the message.
      why_not_float16: what goes wrong in float16, for the message.

    Raises:
      InputError: with the value seen and what is possible.
    """
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(
            f"dtype {config.dtype!r} is not possible for {family}: {why_not_float16}; use 'bfloat16' or 'float32'"
        )
    if config.remat not in REMAT_POLICIES:
        raise unknown_name("remat policy", config.remat, REMAT_POLICIES)


def check_rules(config: Any, family: str, rules: Iterable[Rule]) -> None:
    """Refuses the first field that breaks a rule.

    Args:
      config: the config.
      family: its name, for the message.
      rules: in an order in which later ones may rely on earlier ones.

    Raises:
      InputError: with the field, the value seen and what is possible.
    """
    for name, is_kept, expected in rules:
        if not is_kept:
            raise InputError(f"{family}: {name} is {getattr(config, name)!r}; expected {expected}")


def integer_rules(config: Any, least: Mapping[str, int]) -> Iterator[Rule]:
    """Yields the rules of fields that hold integers.

    Args:
      config: the config.
      least: least value by field.

    Yields:
      One rule per field.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        yield name, type(value) is int and value >= bound, f"an integer, at least {bound}"
