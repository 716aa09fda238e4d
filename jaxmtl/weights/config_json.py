"""What the families' readers of `config.json` have in common."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxmtl.types import InputError

Range = tuple[Any, float, float]
"""Type, least and most of a field."""


def check_fields(raw: Mapping[str, Any], required: Iterable[str], where: str, kind: str) -> None:
    """Refuses a config without a field that the model needs.

    Args:
      raw: the parsed `config.json`.
      required: names of the fields.
      where: the file, for the message.
      kind: what kind of config it should be, for the message.

    Raises:
      InputError: naming the first missing field.
    """
    missing = [name for name in required if raw.get(name) is None]
    if missing:
        raise InputError(f"{where}: field {missing[0]!r} is missing; expected a {kind} config")


def check_ranges(raw: Mapping[str, Any], ranges: Mapping[str, Range], where: str) -> None:
    """Refuses values of a wrong type or out of range; absent ones pass.

    Args:
      raw: the parsed `config.json`.
      ranges: what each field may say.
      where: the file, for the message.

    Raises:
      InputError: naming the first field that is wrong.
    """
    for name, (kind, least, most) in ranges.items():
        value: Any = raw.get(name)
        fits = isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most
        if value is not None and not fits:
            what = "an integer" if kind is int else "a number"
            raise InputError(f"{where}: {name} is {str(value)[:40]!r}, expected {what} from {least:g} to {most:g}")


def check_choices(raw: Mapping[str, Any], choices: Mapping[str, tuple[Any, ...]], where: str) -> None:
    """Refuses values other than those that the model has; absent ones pass.

    Args:
      raw: the parsed `config.json`.
      choices: what each field may say.
      where: the file, for the message.

    Raises:
      InputError: naming the first field that is wrong.
    """
    for name, possible in choices.items():
        value = raw.get(name)
        if value is not None and value not in possible:
            expected = " or ".join(repr(one) for one in possible)
            raise InputError(f"{where}: {name} is {str(value)[:40]!r}; expected {expected}")


def check_flags(raw: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Refuses values other than true and false; absent ones pass.

    Args:
      raw: the parsed `config.json`.
      names: names of the fields.
      where: the file, for the message.

    Raises:
      InputError: naming the first field that is wrong.
    """
    for name in names:
        if not isinstance(raw.get(name), bool | None):
            raise InputError(f"{where}: {name} is {str(raw[name])[:40]!r}, expected true or false")


def check_token_ids(raw: Mapping[str, Any], names: Iterable[str], rows: int, where: str) -> None:
    """Refuses token ids that have no row in the embedding; absent ones pass.

    Args:
      raw: the parsed `config.json`.
      names: names of the fields.
      rows: number of rows.
      where: the file, for the message.

    Raises:
      InputError: naming the first field that is wrong.
    """
    for name in names:
        if (raw.get(name) or 0) >= rows:
            raise InputError(f"{where}: {name} is {raw[name]}, expected less than vocab_size, {rows}")


def given(raw: Mapping[str, Any], name: str, default: Any) -> Any:
    """Returns a field's value, or a default where it is absent or null.

    Args:
      raw: the parsed `config.json`.
      name: name of the field.
      default: what its absence means.
    """
    return default if raw.get(name) is None else raw[name]
