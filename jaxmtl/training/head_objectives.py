"""The loss of a model with heads on a batch of mixed tasks: each row by its own task's head, each example weight 1.

A row's `loss_mask` holds the weights of its labels, which add up to 1 (see `jaxmtl.feed.grouping.pad`): 1 for a class,
1/n for each of n tags, 1/2 for each end of a span. So sums over rows divided by summed weights are means over examples,
whatever their kinds. Letters in shapes: B batch, S input length, T target length, L labels.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.models.head_config import Head, stacks
from jaxmtl.models.packed_examples import packed_examples_of
from jaxmtl.tasks.answers import CLASS, SPAN, TAGS
from jaxmtl.training.objectives import Losses, cross_entropy

Scaling = Callable[[jax.Array], jax.Array]
"""Maps the number of classes that a row chooses among, float32 [B], to the factor of its objective, float32 [B]."""


def no_scaling(num_classes: jax.Array) -> jax.Array:
    """Gives every row the factor 1. Source: methods 5.3."""
    return jnp.ones_like(num_classes)


def log_scaling(num_classes: jax.Array) -> jax.Array:
    """Divides by the loss of a uniform guess, log n, so that all tasks start at about 1; a single class counts as two.

    Args:
      num_classes: float32 [B]: labels of the row's task; for spans the tokens of the row.

    Returns:
      float32 [B].

    Source: Muppet (Aghajanyan et al. 2021) as in methods 5.3.
    """
    return 1.0 / jnp.log(jnp.maximum(num_classes, 2.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsLoss:
    """The objective of a model with heads.

    Attributes:
      scaling: `no_scaling` or `log_scaling`; applies to what is minimised, not to the loss that is reported.
    """

    scaling: Scaling = no_scaling

    def __call__(
        self,
        module: nn.Module,
        variables: Mapping[str, Any],
        batch: Mapping[str, jax.Array],
        *,
        dropout_key: jax.Array | None = None,
    ) -> Losses:
        """Scores a batch.

        Args:
          module: a model with heads; the batch's task ids are places in its `config.heads`.
          variables: its parameters, {"params": tree}.
          batch: `inputs` int32 [B, S], `task_ids` int32 [B], `loss_mask` float32 [B, T] and `targets` int32 [B, T]: the
            class in column 0, a tag for each input token, or the places of a span's first and last token in columns 0
            and 1. Whatever has the weight 0 is not looked at. If packed, the inputs are [R, S], with the segments,
            positions and columns of their B examples.
          dropout_key: key of dropout; None drops nothing.

        Returns:
          The losses by row or packed example, [B, 1]: means over the row's labels in nats, times the weight of the row.

        Raises:
          InputError: if the batch has some of the fields of packed rows, but not all.
        """
        packed = packed_examples_of(batch)
        logits: Any = module.apply(
            variables,
            inputs=batch["inputs"],
            task_ids=batch["task_ids"],
            packed=packed,
            train=dropout_key is not None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
        )
        heads = module.config.heads
        is_real = batch["inputs"] != module.config.pad_id if packed is None else packed.real
        factor = self.scaling(num_classes(heads, batch["task_ids"], is_real))[:, None]
        losses = _sum(row_losses(heads, logits, batch))
        return Losses(objective=losses.objective * factor, loss=losses.loss, tokens=losses.tokens)


def row_losses(heads: tuple[Head, ...], logits: Any, batch: Mapping[str, jax.Array]) -> list[Losses]:
    """Computes the losses of each kind of head on the rows whose task has one.

    Args:
      heads: in the order of task ids.
      logits: `jaxmtl.models.heads.HeadLogits`.
      batch: as for `HeadsLoss`.

    Returns:
      For each kind of head the losses by row, [B, 1], 0 on rows of other kinds.
    """
    targets, weights, found = batch["targets"], batch["loss_mask"], []
    for kind, stack in stacks(heads).items():
        kind_logits = _in_order(kind, logits)
        length = kind_logits.shape[1]
        mine = jnp.asarray(stack.members)[batch["task_ids"]][:, None]
        by_label = cross_entropy(kind_logits, _fit(targets, length), _fit(weights, length) * mine)
        found.append(jax.tree.map(lambda values: jnp.sum(values, axis=1, keepdims=True), by_label))
    return found


def num_classes(heads: tuple[Head, ...], task_ids: jax.Array, is_real: jax.Array) -> jax.Array:
    """Counts what each row chooses among: the labels of its task, or its tokens if it looks for a span.

    Args:
      heads: in the order of task ids.
      task_ids: int32 [B].
      is_real: bool [B, S], False on padding.

    Returns:
      float32 [B].
    """
    labels = jnp.asarray([float(head.num_labels) for head in heads])[task_ids]
    is_span = jnp.asarray([head.kind == SPAN for head in heads])[task_ids]
    return jnp.where(is_span, jnp.sum(is_real, axis=1, dtype=jnp.float32), labels)


def _in_order(kind: str, logits: Any) -> jax.Array:
    """Returns logits [B, T, L] of what the targets hold in their T columns."""
    if kind == CLASS:
        return logits.classes[:, None]
    return logits.tags if kind == TAGS else jnp.swapaxes(logits.spans, 1, 2)


def _fit(values: jax.Array, length: int) -> jax.Array:
    """Cuts or fills up [B, T] to [B, length]: a batch's T is that of its longest targets, of whatever kind."""
    return jnp.pad(values[:, :length], ((0, 0), (0, max(0, length - values.shape[1]))))


def _sum(losses: list[Losses]) -> Losses:
    return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *losses)
