"""What a module is called with when only its parameters are wanted, and their shapes."""

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def initial_arguments(module: nn.Module) -> dict[str, Any]:
    """Gives a module one token for each of the arguments that it cannot do without.

    Args:
      module: one whose required arguments are all token ids: `inputs`, and `decoder_inputs` of an encoder-decoder.

    Returns:
      int32 [1, 1] by argument name, for `module.init`.
    """
    parameters = inspect.signature(module.__call__).parameters.values()
    return {one.name: jnp.zeros((1, 1), jnp.int32) for one in parameters if one.default is one.empty}


def abstract_params(module: nn.Module) -> Any:
    """Returns the module's parameter tree as shapes boxed with their logical axes; nothing is allocated."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), **initial_arguments(module)))["params"]
