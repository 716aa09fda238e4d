"""Low-rank updates merged into the kernels that they change, for requests that all use the same ones.

Applied on their own, updates of rank R take 2 R (in + out) operations for each token that goes through a layer; merging
them takes 2 R in out once, and nothing for each token. Which is less depends on the number of tokens, not on the rank.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmtl.adapters.lora import changed, with_updates
from jaxmtl.models.trees import flat, nested
from jaxmtl.weights import Pretrained

USUAL_TOKENS = 100
"""Tokens of a request, as far as one can know before it is read: the inputs of Super-NaturalInstructions have 111."""


def worth_merging(pretrained: Pretrained, paths: Sequence[str], num_requests: int) -> bool:
    """Decides whether low-rank updates are merged.

    They are where that takes less arithmetic than to apply them to the requests at hand (T5 base: from 4 requests on),
    and nothing of them is lost: in float32. In bfloat16 a kernel has no room for updates below 1/256 of its numbers,
    whether it is kept so or made so for a model that computes in bfloat16; applied on their own they count in full.

    Args:
      pretrained: the model.
      paths: of the layers that the updates change.
      num_requests: requests that use them.

    Returns:
      True to merge; False also if there are no updates.
    """
    params = flat(pretrained.params)
    kernels = [params[f"{path}/kernel"] for path in paths]
    if not all(jnp.dtype(dtype) == jnp.float32 for dtype in (pretrained.config.dtype, *(k.dtype for k in kernels))):
        return False
    once = sum(kernel.size for kernel in kernels)
    each_token = sum(kernel.size * (1 / kernel.shape[-2] + 1 / kernel.shape[-1]) for kernel in kernels)
    return once < num_requests * USUAL_TOKENS * each_token


def merged(params: Any, tree: Any) -> Any:
    """Adds low-rank updates to kernels on the devices that hold them.

    Args:
      params: the model's parameters.
      tree: the updates as a model reads them, see `lora.with_updates`.

    Returns:
      New parameters; what is changed keeps its dtype and sharding, the other parameters are the same arrays.
    """
    leaves = flat(params)
    kernels = nested({f"{path}/kernel": leaves[f"{path}/kernel"] for path in changed(tree)})
    shardings = jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), kernels)
    return nested(leaves | flat(jax.jit(with_updates, out_shardings=shardings)(kernels, tree)))


class Merged:
    """The parameters that an adapter is merged into: made when they are first needed, one copy of what is changed."""

    def __init__(self) -> None:
        """Starts empty."""
        self._base: Any = None
        self._params: Any = None

    def params(self, params: Any, updates: Callable[[], Any]) -> Any:
        """Gives the parameters with the updates of the adapter.

        Args:
          params: the model's own.
          updates: gives the low-rank updates as a model reads them; called if they are not merged into these yet.

        Returns:
          The parameters, the same for each batch.
        """
        if self._base is not params:
            self._base, self._params = params, merged(params, updates())
        return self._params
