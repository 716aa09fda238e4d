"""One head per task on one encoder, each row scored by its own task's head, whatever mix of tasks a batch is.

Heads of one kind are padded to the most labels of any and stacked, so that shapes do not depend on the batch; labels
that a row's task does not have get the logit `HIDDEN`, whose share of a softmax and whose gradient are exactly 0.

What it costs, for B rows of S tokens, N heads of width D and L labels. A row's last matrix is gathered, [B, D, L]: few
labels make that small (B 128, D 768, L 40: 16 MB), while all heads on all rows would give [B, S, N, L] (S 384, N 15:
118 MB). For the dense layer of classification it is the other way round: gathered matrices would be [B, D, D] (302 MB,
and as much for their gradient), all heads on the one token `<s>` of all rows give [B, N, D] (N 8: 3 MB) for 2·B·N·D²
operations, less than a thousandth of what the encoder of the base size needs for these rows.
Letters in shapes: B batch, S length, D embed, N heads of a kind, L labels.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxmtl.models.head_config import Stack, stacks
from jaxmtl.models.layers import normal, parameter
from jaxmtl.models.masks import HIDDEN
from jaxmtl.tasks.answers import CLASS, SPAN, TAGS

INIT = normal(0.02)


@flax.struct.dataclass
class HeadLogits:
    """Logits by kind of head; None where the model has no such head. Only the kind of a row's task means something.

    Attributes:
      classes: float32 [B, L], labels of texts.
      tags: float32 [B, S, L], labels of tokens.
      spans: float32 [B, S, 2], tokens as the first and as the last of an answer; `HIDDEN` on padding.
    """

    classes: jax.Array | None = None
    tags: jax.Array | None = None
    spans: jax.Array | None = None


class Heads(nn.Module):
    """All heads of a model.

    Attributes:
      config: has `heads`, `class_head`, `embed_dim`, `head_dropout_rate` and `dtype`.
    """

    config: Any

    @nn.compact
    def __call__(self, states: jax.Array, task_ids: jax.Array, real: jax.Array, *, train: bool) -> HeadLogits:
        """Scores rows.

        Args:
          states: [B, S, D], the encoder's states; the first token is `<s>`.
          task_ids: int32 [B], places in `config.heads`.
          real: bool [B, S], False on padding.
          train: applies dropout.

        Returns:
          The logits.
        """
        found = stacks(self.config.heads)
        classes = tags = spans = None
        if CLASS in found:
            classes = ClassHeads(self.config, found[CLASS], name=CLASS)(states[:, 0], task_ids, train=train)
        if TAGS in found:
            drop = nn.Dropout(self.config.head_dropout_rate, deterministic=not train)
            tags = OutputLayers(self.config, found[TAGS], name=TAGS)(drop(states), task_ids)
        if SPAN in found:
            spans = OutputLayers(self.config, found[SPAN], name=SPAN)(states, task_ids)
            # Padding takes no part of the softmax, or the loss would depend on how far a batch is padded.
            spans = jnp.where(real[..., None], spans, HIDDEN)
        return HeadLogits(classes=classes, tags=tags, spans=spans)


class ClassHeads(nn.Module):
    """A stack of classification heads: dropout, dense, tanh, dropout, linear; or dropout and linear.

    Attributes:
      config: the model's config.
      stack: the heads.

    Source: methods 5.2.
    """

    config: Any
    stack: Stack

    @nn.compact
    def __call__(self, x: jax.Array, task_ids: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, D] to float32 logits [B, L]."""
        drop = nn.Dropout(self.config.head_dropout_rate, deterministic=not train)
        x = drop(x)
        if self.config.class_head == "dense_tanh":
            x = drop(jnp.tanh(DenseLayers(self.config, self.stack, name="dense")(x, task_ids)))
        return OutputLayers(self.config, self.stack, name="out")(x[:, None], task_ids)[:, 0]


class DenseLayers(nn.Module):
    """A stack of square linear layers, all of which see all rows.

    Attributes:
      config: the model's config.
      stack: the heads.
    """

    config: Any
    stack: Stack

    @nn.compact
    def __call__(self, x: jax.Array, task_ids: jax.Array) -> jax.Array:
        """Maps [B, D] to [B, D]."""
        num_heads, width, dtype = len(self.stack.sizes), x.shape[-1], jnp.dtype(self.config.dtype)
        kernel = parameter(self, "kernel", INIT, ("head_stack", "embed", "mlp"), (num_heads, width, width))
        bias = parameter(self, "bias", nn.initializers.zeros, ("head_stack", "mlp"), (num_heads, width))
        every = jnp.einsum("bd,nde->bne", x.astype(dtype), kernel.astype(dtype)) + bias.astype(dtype)
        slots = jnp.asarray(self.stack.slots)[task_ids]
        return jnp.take_along_axis(every, slots[:, None, None], axis=1)[:, 0]


class OutputLayers(nn.Module):
    """A stack of linear layers from states to logits; each row's own is gathered.

    Attributes:
      config: the model's config.
      stack: the heads.
    """

    config: Any
    stack: Stack

    @nn.compact
    def __call__(self, x: jax.Array, task_ids: jax.Array) -> jax.Array:
        """Maps [B, S, D] to float32 logits [B, S, L]."""
        sizes, dtype = self.stack.sizes, jnp.dtype(self.config.dtype)
        shape = (len(sizes), x.shape[-1], self.stack.num_labels)
        kernel = parameter(self, "kernel", INIT, ("head_stack", "embed", "labels"), shape)
        bias = parameter(self, "bias", nn.initializers.zeros, ("head_stack", "labels"), (shape[0], shape[2]))
        slots = jnp.asarray(self.stack.slots)[task_ids]
        own = jnp.take(kernel.astype(dtype), slots, axis=0)
        logits = jnp.einsum("bsd,bdl->bsl", x.astype(dtype), own, preferred_element_type=jnp.float32)
        is_label = jnp.arange(shape[2]) < jnp.asarray(sizes)[slots][:, None]
        return jnp.where(is_label[:, None], logits + bias[slots][:, None], HIDDEN)
