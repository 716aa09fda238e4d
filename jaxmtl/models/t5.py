"""T5: token ids in, float32 logits out; whole sequences for training and scoring, one position at a time for decoding.

Letters in shapes: B inputs, R rows per input (choices, beams), S source length, T target length, D embed, H heads,
K head width, V vocab. Rows of one input are neighbours: row b·R + r belongs to input b.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxmtl.models.layers import Dense, Dropout, Embed, RelativeBias, RMSNorm, normal
from jaxmtl.models.masks import Mask, Segments, causal_bias, mask_between
from jaxmtl.models.stack import stack_layers
from jaxmtl.models.t5_config import T5Config
from jaxmtl.models.t5_layers import DecoderLayer, EncoderLayer

Cache = dict[str, Any]


class T5(nn.Module):
    """Encoder-decoder T5.

    Attributes:
      config: sizes and choices.
    """

    config: T5Config

    def setup(self) -> None:
        """Creates embedding, stacks, norms and, if the head is not tied, the output layer."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.token_embedding = Embed(config.vocab_size, config.embed_dim, normal(1.0), dtype)
        self.encoder_bias = self._relative_bias(bidirectional=True)
        self.decoder_bias = self._relative_bias(bidirectional=False)
        self.encoder = stack_layers(EncoderLayer, config, config.num_encoder_layers)
        step_axes = (0, nn.broadcast, nn.broadcast, nn.broadcast)
        methods = {"cross_cache": nn.broadcast, "step": step_axes}
        self.decoder = stack_layers(DecoderLayer, config, config.num_decoder_layers, methods)
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
        mask = inputs != self.config.pad_id if input_mask is None else input_mask
        encoded = self.encode(inputs, mask, segments=input_segments, train=train)
        segments = dict(input_segments=input_segments, target_segments=target_segments)
        return self.decode(decoder_inputs, encoded, mask, **segments, train=train)

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

    def encode(
        self,
        inputs: jax.Array,
        input_mask: jax.Array | None = None,
        *,
        segments: Segments | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Encodes int32 [B, S] to the memory of the decoder, [B, S, D]; arguments as in `__call__`."""
        real = inputs != self.config.pad_id if input_mask is None else input_mask
        mask = mask_between(segments, segments, real)
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
        cross_mask = mask_between(target_segments, input_segments, input_mask)
        x = self.drop(self.token_embedding(decoder_inputs), train=train)
        x, _ = self.decoder(x, train, memory, bias, self_mask, cross_mask)
        return self.logits(self.drop(self.decoder_norm(x), train=train))

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores tokens from the decoder's last states: [B, T, D] to float32 [B, T, V]."""
        head = self.token_embedding.attend if self.config.tied_head else self.lm_head
        logits = head(x * self.config.head_scale).astype(jnp.float32)
        return with_logical_constraint(logits, ("batch", "length", "vocab"))

    def start_cache(self, memory: jax.Array, max_length: int, rows_per_input: int = 1) -> Cache:
        """Prepares decoding: projects cross-attention keys and values once and makes room for the decoder's own.

        Args:
          memory: [B, S, D], what `encode` gave.
          max_length: number of positions T that can be decoded.
          rows_per_input: R, rows decoded for each input.

        Returns:
          "memory": keys and values [layers, B, S, H, K]; "self": zeros [layers, B·R, T, H, K].
        """
        config = self.config
        _, cross = self.decoder.cross_cache(None, memory)
        rows = memory.shape[0] * rows_per_input
        shape = (config.num_decoder_layers, rows, max_length, config.num_heads, config.head_dim)
        zeros = jnp.zeros(shape, jnp.dtype(config.dtype))
        return {"memory": cross, "self": (zeros, zeros)}

    def decode_step(
        self, tokens: jax.Array, position: jax.Array, cache: Mapping[str, Any], input_mask: jax.Array | None
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
        max_length = cache["self"][0].shape[2]
        positions = jnp.arange(max_length)
        bias = self.decoder_bias(position[None], positions) + causal_bias(position[None], positions)
        x = self.token_embedding(tokens[:, None])
        carry = (x, cache["self"], jnp.zeros((), jnp.int32))
        mask = None if input_mask is None else Mask(keys=input_mask)
        (x, self_cache, _), _ = self.decoder.step(carry, cache["memory"], position, bias, mask)
        return self.logits(self.decoder_norm(x))[:, 0], {**cache, "self": self_cache}
