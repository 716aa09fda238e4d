"""Nested trees of parameters by path, "encoder/attention/query/kernel", and back."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util


def flat(tree: Any) -> dict[str, Any]:
    """Returns a nested tree's leaves by path, joined by "/".

    Args:
      tree: nested dictionaries.
    """
    return dict(traverse_util.flatten_dict(tree, sep="/"))


def nested(leaves: Mapping[str, Any]) -> Any:
    """Returns the nested tree of leaves by path.

    Args:
      leaves: path, joined by "/", to leaf.
    """
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def parent(path: str) -> str:
    """Returns the path without its last name."""
    return path.rpartition("/")[0]
