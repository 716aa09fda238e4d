"""Errors about stored parameters that cannot be used: damaged, or of other sizes than the model's."""

import pathlib
from typing import Any

import jax
import numpy as np

from jaxmtl.types import InputError

_MOST = 200
"""Characters of an error's text that are shown."""


def check_same_shapes(found: Any, wanted: Any, where: str, advice: str) -> None:
    """Refuses a tree that is not exactly the wanted one.

    Args:
      found: tree whose leaves have a shape.
      wanted: tree whose leaves have a shape.
      where: what `found` is, for the message.
      advice: what to do, for the message.

    Raises:
      InputError: naming the first leaf that is missing, not wanted, or of another shape.
    """
    ours, theirs = _shapes(wanted), _shapes(found)
    for path in sorted(ours.keys() | theirs.keys()):
        if ours.get(path) != theirs.get(path):
            have, need = (f"shape {shapes[path]}" if path in shapes else "nothing" for shapes in (theirs, ours))
            raise InputError(f"{where}: does not fit this model at {path}: found {have}, expected {need}; {advice}")


def damaged(path: pathlib.Path, error: Exception, advice: str) -> InputError:
    """Builds the error for a checkpoint that Orbax does not read, which it tells by errors of many types.

    Args:
      path: the checkpoint or a part of it.
      error: what Orbax raised.
      advice: what to do, for the message.

    Returns:
      The error, to be raised by the caller.
    """
    return InputError(f"{path}: this checkpoint cannot be read ({reason(error)}); {advice}")


def reason(error: Exception) -> str:
    """Returns an error's type and the first line of its text, of a long one the beginning and the end."""
    line = next(iter(str(error).splitlines()), "")
    shown = line if len(line) <= _MOST else f"{line[: _MOST // 2]} ... {line[-_MOST // 2 :]}"  # the cause comes last
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): tuple(np.shape(leaf) if not hasattr(leaf, "shape") else leaf.shape) for path, leaf in leaves}
