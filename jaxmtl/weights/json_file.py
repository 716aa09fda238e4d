"""Reads the JSON files that lie beside weights."""

import json
import pathlib
from typing import Any

from jaxmtl.types import InputError


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
      path: the file.

    Returns:
      The object.

    Raises:
      InputError: if the file cannot be read or holds something else.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # also wrong UTF-8, and numbers of thousands of digits
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as JSON ({reason}); fetch or write it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected one JSON object, found {type(found).__name__}; fetch or write it again")
    return found
