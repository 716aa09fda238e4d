"""What encoder-decoders of all families do alike: what stands before the first target, and room for decoding.

Letters in shapes: B inputs, R rows per input (choices, beams), S source length, T target length, D embed, H heads,
K head width. Rows of one input are neighbours: row b·R + r belongs to input b.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.models import decoding_cache
from jaxmtl.models.instruction import instruction_length, memory_mask_of
from jaxmtl.models.masks import Segments
from jaxmtl.models.parts import by_parts
from jaxmtl.models.stack import pieces, run_pieces, stacked, step_pieces

Cache = dict[str, Any]


class EncoderDecoder(nn.Module):
    """The part of the family contract that does not depend on the layers; subclasses have `config` and `decoder`.

    Attributes:
      decoder_layer: the class of the decoder's layers.
    """

    decoder_layer: ClassVar[type[nn.Module]]

    def real(self, inputs: jax.Array, input_mask: jax.Array | None) -> jax.Array:
        """Returns bool [B, S], True on what to see of int32 `inputs` [B, S]: `input_mask`, or all but padding."""
        return inputs != self.config.pad_id if input_mask is None else input_mask

    def first_tokens(
        self,
        inputs: jax.Array,
        input_mask: jax.Array | None = None,
        *,
        input_segments: Segments | None = None,
        target_segments: Segments | None = None,
    ) -> jax.Array:
        """Returns what precedes the first target: the decoder's start token, int32 [B], or [B, T] of packed rows."""
        shape = inputs.shape[:1] if target_segments is None else target_segments.ids.shape
        return jnp.full(shape, self.config.decoder_start_id, jnp.int32)

    def prompt_tokens(self, inputs: jax.Array, input_mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Returns int32 [B, 1] and bool [B, 1], what the decoder has read before the first target: its start token."""
        tokens = self.first_tokens(inputs, input_mask)[:, None]
        return tokens, jnp.ones(tokens.shape, bool)

    def start_cache(self, memory: jax.Array, max_length: int, rows_per_input: int = 1) -> Cache:
        """Prepares decoding: projects cross-attention keys and values once and makes room for the decoder's own.

        Args:
          memory: [B, S, D], what `encode` gave.
          max_length: number of positions T that can be decoded.
          rows_per_input: R, rows decoded for each input.

        Returns:
          "layers": variables of the decoder's layers; "memory": keys and values of the memory in them; "self": room for
          the decoder's own. Each is in `pieces`.
        """
        config = self.config
        variables = nn.unbox(self.decoder.variables)
        cross = self._project(pieces(variables, config), memory)
        sizes = (config.num_decoder_layers, memory.shape[0] * rows_per_input, max_length)
        heads = (config.num_heads, config.head_dim, jnp.dtype(config.dtype))
        layers = step_pieces(variables, config)
        return {"layers": layers, "memory": cross, "self": pieces(decoding_cache.empty(*sizes, *heads), config)}

    def step_layers(self, x: jax.Array, cache: Cache, *shared: Any) -> tuple[jax.Array, Cache]:
        """Decodes one position with a cache; x [B·R, 1, D] and what is shared as in the layer's `step`."""
        known = [*zip(cache["memory"], cache["self"], strict=True)]
        x, own = run_pieces(self.decoder_layer, self.config, "step", cache["layers"], x, known, *shared)
        return x, {**cache, "self": own}

    def cached_mask(self, cache: Mapping[str, Any], input_mask: jax.Array | None) -> jax.Array | None:
        """Returns bool [B, I + S], what to see of a cache's memory, given what to see of its inputs, bool [B, S]."""
        own_length = decoding_cache.capacity(cache["memory"]) - instruction_length(self)
        return memory_mask_of(self, input_mask, own_length)

    def memory_keys(self, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Projects states [U, I, D] to the keys and values [layers, U, I, H, K] that cross-attention sees of them."""
        found = self._project(pieces(nn.unbox(self.decoder.variables), self.config), states)
        return decoding_cache.opened(stacked(found, self.config))

    def _project(self, layers: tuple[Any, ...], memory: jax.Array) -> tuple[Any, ...]:
        known = [None] * len(layers)
        project = lambda rows: run_pieces(self.decoder_layer, self.config, "cross_cache", layers, None, known, rows)[1]
        # A piece of many layers does not begin with the rows, and what adapts layers belongs to the whole batch.
        apart = len(layers) > 1 and set(layers[0]) == {"params"}
        return by_parts(project, memory) if apart else project(memory)

    def states(self, inputs: jax.Array, input_mask: jax.Array | None = None) -> jax.Array:
        """Returns [B, S, D], what a hypernetwork reads of int32 `inputs` [B, S]: the encoder's last states."""
        return self.encode(inputs, input_mask)
