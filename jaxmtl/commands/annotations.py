"""Tells from a function's annotations whether a literal of a config can be meant for a parameter."""

import collections.abc
import dataclasses
import inspect
import os
import pathlib
import re
import types
from collections.abc import Callable
from typing import Any, Union, cast, get_args, get_origin

LITERALS = (str, int, float, bool, type(None))
"""Types of the values that are checked."""


def kinds_of(function: Callable) -> dict[str, Any]:
    """Returns the annotations of a function's parameters; what `**` takes, from the dataclass that it returns.

    Args:
      function: a function or class.
    """
    signature = inspect.signature(function)
    kinds = {name: one.annotation for name, one in signature.parameters.items()}
    if dataclasses.is_dataclass(signature.return_annotation):
        kinds = kinds_of(cast(Callable, signature.return_annotation)) | kinds
    return kinds


def fits(value: Any, kind: Any) -> bool:
    """Returns whether a literal is what an annotation asks for; True where the annotation does not tell.

    Args:
      value: a literal.
      kind: an annotation.
    """
    if isinstance(kind, str):  # a name that only type checkers import
        return not isinstance(value, str) or "str" in kind
    if isinstance(kind, types.UnionType) or get_origin(kind) is Union:
        return any(fits(value, one) for one in get_args(kind))
    kind = type(None) if kind is None else get_origin(kind) or kind
    if not isinstance(kind, type) or kind in (Any, inspect.Parameter.empty, object):
        return True
    if getattr(kind, "_is_protocol", False):
        return False  # an object with methods: no literal is one
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (pathlib.Path, os.PathLike):
        return isinstance(value, str)
    return isinstance(value, kind) and (kind is not collections.abc.Sequence or not isinstance(value, str))


def kind_name(kind: Any) -> str:
    """Returns an annotation as one would write it."""
    return kind.__name__ if isinstance(kind, type) else re.sub(r"\b(collections\.abc|typing)\.", "", str(kind))
