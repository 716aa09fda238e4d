"""Kernels of linear layers turned on their side, for steps of few rows on CPUs.

A product of few rows is bound by how fast its kernel is read; a turned one is read in two thirds of the time. The rows
that are decoded in some ten steps make up for the turning.
"""

from typing import Any

import jax

from jaxmtl.models.layers import TURNED
from jaxmtl.models.trees import flat, nested


def with_turned_kernels(variables: Any, below: str = "") -> Any:
    """Turns kernels that are [in, out] to [out, in] where the program runs on CPUs.

    Args:
      variables: "params", and other collections, of layers that are not stacked.
      below: how the paths of the kernels begin; all kernels by default.

    Returns:
      The variables, with the kernels in the collection "turned" instead of "params".
    """
    if jax.default_backend() != "cpu":
        return variables
    is_kernel = lambda path: path.startswith(below) and path.rpartition("/")[2] == "kernel"
    params = flat(variables["params"])
    kernels = {path: leaf.T for path, leaf in params.items() if is_kernel(path)}
    others = {path: leaf for path, leaf in params.items() if path not in kernels}
    return {**variables, "params": nested(others), TURNED: nested(kernels)}
