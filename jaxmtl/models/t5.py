"""T5: token ids in, float32 logits out; whole sequences for training and scoring, one position at a time for decoding.

Letters in shapes: B inputs, R rows per input (choices, beams), S source length, T target length, D embed, H heads,
K head width, V vocab. Rows of one input are neighbours: row b·R + r belongs to input b.
"""

import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxmtl.models.decoding_cache import capacity
from jaxmtl.models.encoder_decoder import Cache, EncoderDecoder
from jaxmtl.models.instruction import memory_mask_of
from jaxmtl.models.layers import Dense, Dropout, Embed, RelativeBias, RMSNorm, normal
from jaxmtl.models.masks import Mask, Segments, causal_bias, mask_between
from jaxmtl.models.stack import stack_layers
from jaxmtl.models.t5_config import T5Config
from jaxmtl.models.t5_layers import DecoderLayer, EncoderLayer


class T5(EncoderDecoder):
    """Encoder-decoder T5.

    Attributes:
      config: sizes and choices.
    """

    decoder_layer = DecoderLayer
    config: T5Config

    def setup(self) -> None:
        """Creates embedding, stacks, norms and, if the head is not tied, the output layer."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.token_embedding = Embed(config.vocab_size, config.embed_dim, normal(1.0), dtype)
        self.encoder_bias = self._relative_bias(bidirectional=True)
        self.decoder_bias = self._relative_bias(bidirectional=False)
        self.encoder = stack_layers(EncoderLayer, config, config.num_encoder_layers)
        self.decoder = stack_layers(DecoderLayer, config, config.num_decoder_layers)
        self.encoder_norm = RMSNorm(config.norm_epsilon, dtype)
        self.decoder_norm = RMSNorm(config.norm_epsilon, dtype)
        self.drop = Dropout(config.dropout_rate)
        if not config.tied_head:
            self.lm_head = Dense(config.vocab_size, ("embed", "vocab"), normal(config.embed_dim**-0.5), dtype)

    def _relative_bias(self, *, bidirectional: bool) -> RelativeBias:
        config = self.config
        init = normal(config.embed_dim**-0.5)
        buckets, distance = config.relative_buckets, config.relative_max_distance
        return RelativeBias(config.num_heads, buckets, distance, bidirectional, init)

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

        In packed rows tokens see only their own segment: in the encoder all of it, in the decoder what is not later,
        and of the encoder's states those of the segment with the same number. Attention depends on the distance of two
        positions alone, and a segment is a run: its distances in the row are its own.

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
        encoded = self.encode(inputs, mask, segments=input_segments, train=train)
        segments = dict(input_segments=input_segments, target_segments=target_segments)
        return self.decode(decoder_inputs, encoded, mask, **segments, train=train)

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
        positions = jnp.arange(inputs.shape[1])
        bias = self.encoder_bias(positions, positions)
        x = self.drop(self.token_embedding(inputs), train=train)
        x = with_logical_constraint(x, ("batch", "length", "embed"))
        x, _ = self.encoder(x, train, bias, mask)
        return self.drop(self.encoder_norm(x), train=train)

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
        positions = jnp.arange(decoder_inputs.shape[1])
        bias = self.decoder_bias(positions, positions) + causal_bias(positions, positions)
        self_mask = mask_between(target_segments, target_segments, None)
        input_mask = memory_mask_of(self, input_mask, memory.shape[1])
        cross_mask = mask_between(target_segments, input_segments, input_mask)
        x = self.drop(self.token_embedding(decoder_inputs), train=train)
        x, _ = self.decoder(x, train, memory, bias, self_mask, cross_mask)
        return self.logits(self.drop(self.decoder_norm(x), train=train))

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores tokens from the decoder's last states: [B, T, D] to float32 [B, T, V]."""
        head = self.token_embedding.attend if self.config.tied_head else self.lm_head
        logits = head(x * self.config.head_scale).astype(jnp.float32)
        return with_logical_constraint(logits, ("batch", "length", "vocab"))

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
        positions = jnp.arange(capacity(cache["self"]))
        bias = self.decoder_bias(position[None], positions) + causal_bias(position[None], positions)
        x = self.token_embedding(tokens[:, None])
        input_mask = self.cached_mask(cache, input_mask)
        mask = None if input_mask is None else Mask(keys=input_mask)
        x, cache = self.step_layers(x, cache, position, bias, mask)
        return self.logits(self.decoder_norm(x))[:, 0], cache
