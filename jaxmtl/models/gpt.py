"""GPT-2 and OPT: token ids in, float32 logits out; targets are scored or generated behind a prompt that is read once.

Letters in shapes: B prompts, R rows per prompt (choices or beams), S prompt length, T target length, D embed, H heads,
K head width, V vocab.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxmtl.models import prompts
from jaxmtl.models.decoding_cache import KeysAndValues, capacity, empty, kept
from jaxmtl.models.gpt_config import GPTConfig
from jaxmtl.models.gpt_layers import Block, Seen
from jaxmtl.models.layers import Dense, Dropout, Embed, LayerNorm, normal
from jaxmtl.models.masks import Mask, Segments, causal_bias, mask_between
from jaxmtl.models.stack import pieces, run_pieces, stack_layers, step_pieces
from jaxmtl.types import InputError

Cache = dict[str, Any]


class GPT(nn.Module):
    """A decoder-only model with learned positions.

    Attributes:
      config: sizes and choices.
    """

    config: GPTConfig

    def setup(self) -> None:
        """Creates embeddings, blocks, the last norm, and what leads to another token width and to the output."""
        config, dtype, init = self.config, jnp.dtype(self.config.dtype), normal(self.config.init_stddev)
        self.token_embedding = Embed(config.vocab_size, config.token_dim, init, dtype)
        positions = config.max_positions + config.position_offset
        self.position_embedding = Embed(positions, config.embed_dim, init, dtype, ("positions", "embed"))
        self.layers = stack_layers(Block, config, config.num_layers, (nn.broadcast, 0, nn.broadcast))
        self.drop = Dropout(config.dropout_rate)
        if config.norm == "pre":
            self.final_norm = LayerNorm(config.norm_epsilon, dtype)
        if config.token_dim != config.embed_dim:
            self.project_in = Dense(config.embed_dim, ("token_embed", "embed"), init, dtype)
            self.project_out = Dense(config.token_dim, ("embed", "token_embed"), init, dtype)
        if not config.tied_head:
            self.lm_head = Dense(config.vocab_size, ("embed", "vocab"), init, dtype)

    def __call__(
        self,
        inputs: jax.Array,
        decoder_inputs: jax.Array | None = None,
        input_mask: jax.Array | None = None,
        *,
        input_segments: Segments | None = None,
        target_segments: Segments | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Scores every position of targets behind their prompts, or of the inputs themselves.

        Logits are those that the prompt and its target give as one sequence. In packed rows tokens see only what is
        not later in their own segment; a target's tokens also see the prompt of the same number.

        Args:
          inputs: int32 [B, S], the prompts; padding, at either end of a row, is masked unless `input_mask` is given.
          decoder_inputs: int32 [B, T], `first_tokens` and then the targets but their last; None scores `inputs`.
          input_mask: bool [B, S], True on positions of `inputs` to see; for plain rows.
          input_segments: the segments [B, S] of packed rows.
          target_segments: the segments [B, T] of packed rows.
          train: applies dropout (needs the rng "dropout").

        Returns:
          float32 [B, T, V], logits; [B, S, V] without `decoder_inputs`.

        Raises:
          InputError: if only one of the two sides has segments.
        """
        mask = self.real(inputs, input_mask)
        x, memory = self._read(inputs, mask, input_segments, train=train)
        if decoder_inputs is None:
            return self.logits(x)
        segments = dict(input_segments=input_segments, target_segments=target_segments)
        return self.decode(decoder_inputs, memory, mask, **segments, train=train)

    def real(self, inputs: jax.Array, input_mask: jax.Array | None) -> jax.Array:
        """Returns bool [B, S], True on what to see of int32 `inputs` [B, S]: `input_mask`, or all but padding."""
        return prompts.not_padding(inputs, self.config.pad_id) if input_mask is None else input_mask

    def first_tokens(
        self,
        inputs: jax.Array,
        input_mask: jax.Array | None = None,
        *,
        input_segments: Segments | None = None,
        target_segments: Segments | None = None,
    ) -> jax.Array:
        """Gives what precedes the first target: the last token of the prompt, the end-of-text token if it is empty.

        Args:
          inputs: int32 [B, S].
          input_mask: bool [B, S]; as in `__call__`.
          input_segments: the segments [B, S] of packed rows.
          target_segments: the segments [B, T] of packed rows.

        Returns:
          int32 [B]; of packed rows [B, T], the token for the segment of each target position.
        """
        if input_segments is not None and target_segments is not None:
            return prompts.last_tokens_of_segments(inputs, input_segments, target_segments, self.config.eos_id)
        return prompts.last_tokens(inputs, self.real(inputs, input_mask), self.config.eos_id)

    def prompt_tokens(self, inputs: jax.Array, input_mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Returns int32 [B, S] and bool [B, S], what the model has read before the first target: its prompt."""
        return inputs, self.real(inputs, input_mask)

    def encode(
        self,
        inputs: jax.Array,
        input_mask: jax.Array | None = None,
        *,
        segments: Segments | None = None,
        train: bool = False,
    ) -> KeysAndValues:
        """Reads prompts int32 [B, S]; arguments as in `__call__`.

        Returns:
          Keys and values [layers, B, S, H, K].
        """
        return self._read(inputs, self.real(inputs, input_mask), segments, train=train)[1]

    def decode(
        self,
        decoder_inputs: jax.Array,
        memory: KeysAndValues,
        input_mask: jax.Array | None,
        *,
        input_segments: Segments | None = None,
        target_segments: Segments | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Scores targets behind prompts that were read.

        Args:
          decoder_inputs: int32 [B·R, T]; `first_tokens` of each row's prompt, then the target but its last token.
          memory: what `encode` returned for B prompts.
          input_mask: bool [B, S], True on the prompts' tokens; None if all are.
          input_segments: as in `__call__`.
          target_segments: as in `__call__`.
          train: as in `__call__`.

        Returns:
          float32 [B·R, T, V], logits.

        Raises:
          InputError: if only one of the two sides has segments, or rows that share a prompt are packed or trained on.
        """
        (rows, length), (_, batch, source, *_) = decoder_inputs.shape, memory[0].shape
        steps = jnp.arange(length)
        bias = causal_bias(steps, steps)
        real = jnp.ones((batch, source), bool) if input_mask is None else input_mask
        if rows != batch:
            if train or input_segments is not None or target_segments is not None:
                raise InputError(f"{rows} rows share {batch} prompts; only one row per prompt can be trained or packed")
            positions = jnp.repeat(prompts.target_positions(real, length), rows // batch, axis=0)
            seen = Seen(bias, prompt=prompts.without_last(real))
        elif input_segments is None or target_segments is None:
            mask_between(target_segments, input_segments, real)  # refuses segments of one side alone
            positions = prompts.target_positions(real, length)
            keys = jnp.concatenate([prompts.without_last(real), jnp.ones((batch, length), bool)], axis=1)
            seen = Seen(bias, Mask(keys=keys))
        else:
            positions = prompts.target_positions_in_segments(input_segments, target_segments)
            prompt = prompts.without_last_in_segments(input_segments).ids
            keys = jnp.concatenate([prompt, target_segments.ids], axis=1)
            seen = Seen(bias, Mask(keys=keys, queries=target_segments.ids))
        x = self._embed(decoder_inputs, positions, train=train)
        return self.logits(self.layers(x, train, memory, seen)[0])

    def states(self, inputs: jax.Array, input_mask: jax.Array | None = None) -> jax.Array:
        """Returns [B, S, D], what a hypernetwork reads of int32 `inputs` [B, S]: the last states, normalised."""
        return self._last(self._read(inputs, self.real(inputs, input_mask), None, train=False)[0])

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores tokens from the last block's states: [B, T, D] to float32 [B, T, V]."""
        config = self.config
        x = self._last(x)
        x = self.project_out(x) if config.token_dim != config.embed_dim else x
        head = self.token_embedding.attend if config.tied_head else self.lm_head
        return with_logical_constraint(head(x).astype(jnp.float32), ("batch", "length", "vocab"))

    def start_cache(self, memory: KeysAndValues, max_length: int, rows_per_input: int = 1) -> Cache:
        """Prepares decoding: makes room for the keys and values of what will be generated.

        Args:
          memory: what `encode` returned for B prompts.
          max_length: number of tokens T that can be generated.
          rows_per_input: R.

        Returns:
          "layers": variables of the blocks; "memory": the prompts' keys and values as steps read them; "self": room for
          what will be generated. Each is in `pieces`.
        """
        layers, batch, _, heads, width = memory[0].shape
        own = empty(layers, batch * rows_per_input, max_length, heads, width, memory[0].dtype)
        found = {name: pieces(tree, self.config) for name, tree in {"memory": kept(memory), "self": own}.items()}
        return {"layers": step_pieces(nn.unbox(self.layers.variables), self.config), **found}

    def decode_step(
        self, tokens: jax.Array, position: jax.Array, cache: Mapping[str, Any], input_mask: jax.Array | None
    ) -> tuple[jax.Array, Cache]:
        """Scores the token that follows `tokens`.

        Args:
          tokens: int32 [B·R], `first_tokens` or what was generated last.
          position: int32 scalar, number of tokens generated so far.
          cache: what `start_cache` or the previous step returned.
          input_mask: bool [B, S], True on the prompts' tokens; None if all are.

        Returns:
          float32 [B·R, V], logits, and the cache for the next step.
        """
        memory, rows = cache["memory"], tokens.shape[0]
        real = jnp.ones((memory[0][0].shape[-4], capacity(memory)), bool) if input_mask is None else input_mask
        before = prompts.target_positions(real, 1)
        x = self._embed(tokens[:, None], jnp.repeat(before, rows // real.shape[0], axis=0) + position, train=False)
        bias = causal_bias(position[None], jnp.arange(capacity(cache["self"])))
        known = [*zip(memory, cache["self"], strict=True)]
        shared = (position, prompts.without_last(real), bias)
        x, own = run_pieces(Block, self.config, "step", cache["layers"], x, known, *shared)
        return self.logits(x)[:, 0], {**cache, "self": own}

    def _last(self, x: jax.Array) -> jax.Array:
        return self.final_norm(x) if self.config.norm == "pre" else x

    def _read(
        self, inputs: jax.Array, real: jax.Array, segments: Segments | None, *, train: bool
    ) -> tuple[jax.Array, KeysAndValues]:
        """Returns the last block's states [B, S, D], and all blocks' keys and values [layers, B, S, H, K]."""
        steps = jnp.arange(inputs.shape[1])
        seen = Seen(causal_bias(steps, steps), mask_between(segments, segments, real))
        positions = prompts.positions_of(real) if segments is None else segments.positions
        return self.layers(self._embed(inputs, positions, train=train), train, None, seen)

    def _embed(self, tokens: jax.Array, positions: jax.Array, *, train: bool) -> jax.Array:
        config = self.config
        x = self.token_embedding(tokens)
        x = self.project_in(x) if config.token_dim != config.embed_dim else x
        # Only padding behind a target stands past the last position; longer texts are refused before they come here.
        positions = jnp.minimum(positions, config.max_positions - 1) + config.position_offset
        x = self.drop(x + self.position_embedding(positions), train=train)
        return with_logical_constraint(x, ("batch", "length", "embed"))
