"""What a model keeps of inputs that it has read, for all that is asked of them."""

from typing import Any

import flax.linen as nn
import jax

from jaxmtl.models.encoder_decoder import EncoderDecoder
from jaxmtl.models.parts import by_parts


def read_memory(module: nn.Module, variables: Any, inputs: jax.Array, mask: jax.Array) -> Any:
    """Reads inputs, encoders on one CPU a few rows at a time.

    Args:
      module: a model with `encode`.
      variables: its parameters, "params", and what adapts it to the rows.
      inputs: int32 [B, S].
      mask: bool [B, S], True on real tokens.

    Returns:
      What `encode` gives.
    """
    read = lambda rows: module.apply(variables, *rows, method="encode")
    # What is kept of prompts does not begin with the rows, and adapters belong to the rows of the whole batch.
    apart = isinstance(module, EncoderDecoder) and set(variables) == {"params"}
    return by_parts(read, (inputs, mask)) if apart else read((inputs, mask))
