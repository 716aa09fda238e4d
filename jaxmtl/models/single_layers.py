"""The parameters of stacked layers as single arrays, for programs on CPUs that run over them again and again.

An unrolled stack reads one layer's parameters after the other, and from stacked arrays a CPU first copies each: a
twelfth of the time of fits of T5 v1.1 small, which compute 2,048 tokens at once. Of arrays that are put together inside
the program the compiler takes each as it is.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import LogicallyPartitioned

from jaxmtl.models.initial import abstract_params
from jaxmtl.models.trees import flat, nested


def taken_apart(module: nn.Module, params: Any) -> Any:
    """Cuts parameters into those of single layers where programs run on CPUs.

    Args:
      module: a model that `stack.unrolled_on_cpus` gave.
      params: its parameters; what a fit replaces, such as heads, may be missing or another's.

    Returns:
      The tree with a tuple of arrays [...] in place of each array [layers, ...], on CPUs.
    """
    if jax.default_backend() != "cpu":
        return params
    boxes = flat(abstract_params(module))
    is_stack = lambda box: isinstance(box, LogicallyPartitioned) and box.names[:1] == ("layers",)
    cut = lambda path, leaf: tuple(leaf) if is_stack(boxes.get(path)) else leaf
    return nested({path: cut(path, leaf) for path, leaf in flat(params).items()})


def put_together(params: Any) -> Any:
    """Undoes `taken_apart`, inside a jitted program.

    Args:
      params: what it gave.

    Returns:
      The model's parameters.
    """
    is_cut = lambda leaf: isinstance(leaf, tuple)
    return jax.tree.map(lambda leaf: jnp.stack(leaf) if is_cut(leaf) else leaf, params, is_leaf=is_cut)
