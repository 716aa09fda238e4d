"""BART: token ids in, float32 logits out; whole sequences for training and scoring, one position at a time to decode.

Letters in shapes: B inputs, R rows per input (choices, beams), S source length, T target length, D embed, H heads,
K head width, V vocab. Rows of one input are neighbours: row b·R + r belongs to input b.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxmtl.models.bart_config import POSITION_OFFSET, BARTConfig
from jaxmtl.models.bart_layers import DecoderLayer, EncoderLayer, layer_norm
from jaxmtl.models.decoding_cache import capacity
from jaxmtl.models.encoder_decoder import Cache, EncoderDecoder
from jaxmtl.models.instruction import memory_mask_of
from jaxmtl.models.layers import Embed, normal, parameter
from jaxmtl.models.masks import Mask, Segments, causal_bias, mask_between
from jaxmtl.models.stack import stack_layers


class BART(EncoderDecoder):
    """Encoder-decoder BART.

    Positions are those of a row, whether or not padding stands before a token: inputs are padded at their end.

    Attributes:
      config: sizes and choices.
    """

    decoder_layer = DecoderLayer
    config: BARTConfig

    def setup(self) -> None:
        """Creates embeddings, stacks and the bias of the logits."""
        config, dtype, init = self.config, jnp.dtype(self.config.dtype), normal(self.config.init_stddev)
        self.token_embedding = Embed(config.vocab_size, config.embed_dim, init, dtype)
        rows = config.max_positions + POSITION_OFFSET
        self.encoder_positions = Embed(rows, config.embed_dim, init, dtype, ("positions", "embed"))
        self.decoder_positions = Embed(rows, config.embed_dim, init, dtype, ("positions", "embed"))
        self.encoder_embedding_norm, self.decoder_embedding_norm = layer_norm(config), layer_norm(config)
        self.encoder = stack_layers(EncoderLayer, config, config.num_encoder_layers)
        self.decoder = stack_layers(DecoderLayer, config, config.num_decoder_layers)
        self.drop = nn.Dropout(config.dropout_rate)
        # One row for all positions: the shape that checkpoints have.
        self.final_logits_bias = parameter(
            self, "final_logits_bias", nn.initializers.zeros, ("length", "vocab"), (1, config.vocab_size)
        )

    def __call__(
        self,
        inputs: jax.Array,
        decoder_inputs: jax.Array,
        input_mask: jax.Array | None = None,
        *,
        input_segments: Segments | None = None,
        target_segments: Segments | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Scores every target position.

        In packed rows tokens see only their own segment, in which positions are counted: in the encoder all of it, in
        the decoder what is not later, and of the encoder's states those of the segment with the same number.

        Args:
          inputs: int32 [B, S]; padding is masked unless `input_mask` is given.
          decoder_inputs: int32 [B, T], targets shifted right; causal, nothing else is masked in plain rows.
          input_mask: bool [B, S], True on positions of `inputs` to see; for plain rows.
          input_segments: the segments [B, S] of packed rows.
          target_segments: the segments [B, T] of packed rows.
          train: applies dropout (needs the rng "dropout").

        Returns:
          float32 [B, T, V], logits.

        Raises:
          InputError: if only one of the two sides has segments.
        """
        mask = self.real(inputs, input_mask)
        memory = self.encode(inputs, mask, segments=input_segments, train=train)
        segments = dict(input_segments=input_segments, target_segments=target_segments)
        return self.decode(decoder_inputs, memory, mask, **segments, train=train)

    def encode(
        self,
        inputs: jax.Array,
        input_mask: jax.Array | None = None,
        *,
        segments: Segments | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Encodes int32 [B, S] to the memory of the decoder, [B, S, D]; arguments as in `__call__`."""
        mask = mask_between(segments, segments, self.real(inputs, input_mask))
        positions = self._positions(inputs.shape[1], segments)
        x = self.encoder_embedding_norm(self._embed(inputs) + self.encoder_positions(positions))
        x = with_logical_constraint(self.drop(x, deterministic=not train), ("batch", "length", "embed"))
        return self.encoder(x, train, mask)[0]

    def decode(
        self,
        decoder_inputs: jax.Array,
        memory: jax.Array,
        input_mask: jax.Array | None,
        *,
        input_segments: Segments | None = None,
        target_segments: Segments | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Scores int32 [B·R, T] given `memory` [B, S, D]; arguments and result as in `__call__`."""
        steps = jnp.arange(decoder_inputs.shape[1])
        positions = self._positions(decoder_inputs.shape[1], target_segments)
        self_mask = mask_between(target_segments, target_segments, None)
        input_mask = memory_mask_of(self, input_mask, memory.shape[1])
        cross_mask = mask_between(target_segments, input_segments, input_mask)
        x = self._embed_targets(decoder_inputs, positions)
        x = with_logical_constraint(self.drop(x, deterministic=not train), ("batch", "length", "embed"))
        x, _ = self.decoder(x, train, memory, causal_bias(steps, steps)[None], self_mask, cross_mask)
        return self.logits(x)

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores tokens from the decoder's last states: [B, T, D] to float32 [B, T, V]."""
        # The bias is part of a checkpoint, not of what is trained.
        bias = jax.lax.stop_gradient(self.final_logits_bias.astype(jnp.float32))
        return with_logical_constraint(self.token_embedding.attend(x, bias[0]), ("batch", "length", "vocab"))

    def decode_step(
        self, tokens: jax.Array, position: jax.Array, cache: Cache, input_mask: jax.Array | None
    ) -> tuple[jax.Array, Cache]:
        """Scores the token that follows `tokens`.

        Args:
          tokens: int32 [B·R], the decoder's input at `position`.
          position: int32 scalar, counted from 0.
          cache: what `start_cache` or the previous step returned.
          input_mask: bool [B, S] over the memory.

        Returns:
          float32 [B·R, V], logits, and the cache for the next step.
        """
        bias = causal_bias(position[None], jnp.arange(capacity(cache["self"])))[None]
        x = self._embed_targets(tokens[:, None], self._rows(position[None]))
        input_mask = self.cached_mask(cache, input_mask)
        mask = None if input_mask is None else Mask(keys=input_mask)
        x, cache = self.step_layers(x, cache, position, bias, mask)
        return self.logits(x)[:, 0], cache

    def _positions(self, length: int, segments: Segments | None) -> jax.Array:
        """Returns rows of a position table: int32 [length], or [B, length] of packed rows."""
        return self._rows(jnp.arange(length) if segments is None else segments.positions)

    def _rows(self, positions: jax.Array) -> jax.Array:
        # Only padding stands past the last position: `lengths.check_room` refuses longer texts before they come here.
        return jnp.minimum(positions, self.config.max_positions - 1) + POSITION_OFFSET

    def _embed(self, tokens: jax.Array) -> jax.Array:
        x = self.token_embedding(tokens)
        return x * self.config.embed_dim**0.5 if self.config.scale_embedding else x

    def _embed_targets(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        return self.decoder_embedding_norm(self._embed(tokens) + self.decoder_positions(positions))
