"""RoBERTa and XLM-R: token ids in; states of the encoder out, or the logits of each row's own head.

Letters in shapes: B batch, S length, D embed.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxmtl.models.heads import HeadLogits, Heads
from jaxmtl.models.layers import Embed
from jaxmtl.models.masks import mask_between
from jaxmtl.models.packed_examples import PackedExamples
from jaxmtl.models.roberta_config import RobertaConfig
from jaxmtl.models.roberta_layers import INIT, EncoderLayer, norm, position_ids
from jaxmtl.models.stack import stack_layers
from jaxmtl.types import InputError


class Roberta(nn.Module):
    """The encoder.

    Attributes:
      config: sizes and choices.
    """

    config: RobertaConfig

    def setup(self) -> None:
        """Creates embeddings and layers."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.token_embedding = Embed(config.vocab_size, config.embed_dim, INIT, dtype)
        axes = ("positions", "embed")
        self.position_embedding = Embed(config.num_positions, config.embed_dim, INIT, dtype, axes)
        self.type_embedding = Embed(config.num_types, config.embed_dim, INIT, dtype, axes)
        self.embedding_norm = norm(config)
        self.drop = nn.Dropout(config.dropout_rate)
        self.layers = stack_layers(EncoderLayer, config, config.num_layers)

    def __call__(
        self,
        inputs: jax.Array,
        input_mask: jax.Array | None = None,
        *,
        packed: PackedExamples | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Encodes texts.

        In packed rows tokens see only their own example, whose positions are those that it has alone.

        Args:
          inputs: int32 [B, S]; padding is masked unless `input_mask` is given.
          input_mask: bool [B, S], True on tokens to see; positions count these; for plain rows.
          packed: where the examples of packed rows are.
          train: applies dropout (needs the rng "dropout").

        Returns:
          [B, S, D], the last layer's states.

        Raises:
          InputError: if there are more tokens than the model has positions.
        """
        config = self.config
        self._check_length(inputs.shape[1] if packed is None else packed.columns.shape[1])
        segments = None if packed is None else packed.segments
        real = inputs != config.pad_id if input_mask is None else input_mask
        positions = position_ids(real if segments is None else segments, config.pad_id)
        x = self.token_embedding(inputs) + self.position_embedding(positions)
        x = self.embedding_norm(x + self.type_embedding(jnp.zeros_like(inputs)))
        x = with_logical_constraint(self.drop(x, deterministic=not train), ("batch", "length", "embed"))
        x, _ = self.layers(x, train, mask_between(segments, segments, real))
        return x

    def _check_length(self, length: int) -> None:
        """Refuses texts of more tokens than there are positions: the length of packed rows does not matter."""
        if length > self.config.max_tokens:
            raise InputError(
                f"texts are padded to {length} tokens, this model has positions for {self.config.max_tokens}; "
                "cache with a lower limit of input tokens"
            )


class RobertaWithHeads(nn.Module):
    """The encoder and one head per task; the encoder's parameters have the same paths as without heads.

    Attributes:
      config: sizes and choices, at least one head among them.
    """

    config: RobertaConfig

    def setup(self) -> None:
        """Creates encoder and heads."""
        self.encoder = Roberta(self.config)
        nn.share_scope(self, self.encoder)
        self.heads = Heads(self.config)

    def __call__(
        self,
        inputs: jax.Array,
        task_ids: jax.Array | None = None,
        input_mask: jax.Array | None = None,
        *,
        packed: PackedExamples | None = None,
        train: bool = False,
    ) -> HeadLogits:
        """Scores each row, or each example of packed rows, with the head of its task.

        Args:
          inputs: int32 [B, S]; padding is masked unless `input_mask` is given; packed rows [R, S].
          task_ids: int32 [B], places in `config.heads`; None if all rows are of the first.
          input_mask: bool [B, S], True on tokens to see; positions count these; for plain rows.
          packed: where the B examples of packed rows are; the logits are theirs, as from rows of L tokens.
          train: applies dropout (needs the rng "dropout").

        Returns:
          The logits of each kind of head, all in float32.
        """
        real = inputs != self.config.pad_id if input_mask is None else input_mask
        states = self.encoder(inputs, real, packed=packed, train=train)
        if packed is not None:
            states = with_logical_constraint(packed.unpack(states), ("batch", "length", "embed"))
            real = packed.real
        task_ids = jnp.zeros(states.shape[0], jnp.int32) if task_ids is None else task_ids
        return self.heads(states, task_ids, real, train=train)


def roberta(config: RobertaConfig) -> nn.Module:
    """Returns the module that a config describes: the encoder alone, or with its heads.

    Args:
      config: sizes and choices.
    """
    return RobertaWithHeads(config) if config.heads else Roberta(config)
