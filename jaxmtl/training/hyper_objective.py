"""What a hypernetwork is trained on: targets, a teacher's predictions of them, and teachers' own updates.

Letters in shapes: B rows, U instructions, I instruction length, S source length, T target length, V vocab.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.adapters.distill import DISTANCES, Distance, divergence
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.models.low_rank import COLLECTION as LORA
from jaxmtl.models.shifting import shift_right
from jaxmtl.training.objectives import Losses, Smoothing, Term, cross_entropy, no_smoothing
from jaxmtl.training.teachers import TaskAdapters, Teacher
from jaxmtl.types import InputError, unknown_name


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class InstructedLoss:
    """L = c L_pred + λ1 L_kl + λ2 L_ins; the first alone without teachers, which is also what pretraining minimises.

    Rows of tasks without a teacher count in L_pred alone. Terms are averaged over target tokens, as all objectives.

    Attributes:
      z_loss: see `objectives.cross_entropy`.
      smoothing: see `objectives.cross_entropy`.
      target_weight: c.
      teacher: predicts; None for no L_kl.
      teacher_weight: λ1.
      temperature: τ of L_kl.
      divergence: L_kl of teacher's and student's logits: `distill.divergence` or `distill.standardised_divergence`.
      updates: the tasks' own adapters; None for no L_ins.
      update_weight: λ2.
      distance: of updates, a key of `DISTANCES` or a function.

    Raises:
      UnknownNameError: if there is no such distance.

    Source: TAGI, Eqs. 3-8; choices 9 and 10 of methods 8.
    """

    z_loss: float = 0.0
    smoothing: Smoothing = no_smoothing
    target_weight: float = 1.0
    teacher: Teacher | None = None
    teacher_weight: float = 5.0
    temperature: float = 3.0
    divergence: Callable[[jax.Array, jax.Array, float], jax.Array] = divergence
    updates: TaskAdapters | None = None
    update_weight: float = 1000.0
    distance: str | Distance = "factors"

    def __post_init__(self) -> None:
        if isinstance(self.distance, str) and self.distance not in DISTANCES:
            raise unknown_name("distance of updates", self.distance, DISTANCES)
        if not self.temperature > 0:
            raise InputError(f"temperature of a teacher is {self.temperature}; expected above 0")

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
          module: a `HyperModel`.
          variables: its parameters, {"params": tree}.
          batch: `inputs` int32 [B, S], `targets` int32 [B, T], `loss_mask` float32 [B, T], `instructions` int32 [U, I];
            `instruction_index` int32 [B] unless each row has its own; with teachers `task_ids` int32 [B], and where
            such a text is there already, `teacher_inputs` int32 [B, S'].
          dropout_key: key of dropout; None drops nothing.

        Returns:
          The losses by token, with the terms "target", "teacher" and "update" before they are weighted.

        Raises:
          InputError: if the batch has no instructions or is packed, or updates are compared that are not generated.
        """
        _check(batch)
        logits, generated = module.apply(
            variables,
            batch,
            train=dropout_key is not None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            method=_answered,
        )
        mask = batch["loss_mask"]
        losses = cross_entropy(logits, batch["targets"], mask, z_loss=self.z_loss, smoothing=self.smoothing)
        objective, terms = self.target_weight * losses.objective, {"target": Term(losses.objective, mask)}
        if self.teacher is not None:
            taught = self.teacher(cast(HyperModel, module), variables, batch)
            weight = mask * taught.covered[:, None]
            terms["teacher"] = Term(self.divergence(taught.logits, logits, self.temperature) * weight, weight)
            objective = objective + self.teacher_weight * terms["teacher"].value
        if self.updates is not None:
            terms["update"] = self._update_term(generated, self.updates, batch["task_ids"], mask)
            objective = objective + self.update_weight * terms["update"].value
        return Losses(objective=objective, loss=losses.loss, tokens=losses.tokens, terms=terms)

    def _update_term(self, generated: Any, updates: TaskAdapters, task_ids: jax.Array, mask: jax.Array) -> Term:
        """Spreads each row's distance over its target tokens, so that all rows of a batch weigh the same.

        Of a batch that is cut into microbatches, those of one microbatch do.
        """
        if generated is None:
            raise InputError(
                "the hypernetwork generates no low-rank updates to compare with teachers'; set updates to None"
            )
        taught, covered = updates.of_rows(task_ids)
        distance = DISTANCES[self.distance] if isinstance(self.distance, str) else self.distance
        weight = _evenly(mask) * covered[:, None]
        return Term(distance(generated, taught)[:, None] * weight, weight)


def _evenly(mask: jax.Array) -> jax.Array:
    """Turns a loss mask float32 [B, T] into weights of the same sum, which is the same in each row that has tokens."""
    own = mask.sum(axis=1, keepdims=True)
    return mask / jnp.maximum(own, 1) * mask.sum() / jnp.maximum((own > 0).sum(), 1)


def _check(batch: Mapping[str, jax.Array]) -> None:
    if "instructions" not in batch:
        raise InputError(f"a batch has the fields {sorted(batch)}; a hypernetwork needs 'instructions' as well")
    packed = [name for name in batch if name.endswith(("_segments", "_positions"))]
    if packed:
        raise InputError(f"a batch is packed ({packed[0]!r}); rows with an instruction hold one example each")


def _answered(module: Any, batch: Mapping[str, jax.Array], *, train: bool) -> tuple[jax.Array, Any]:
    """Returns logits float32 [B, T, V] and the low-rank updates of the rows, if any are generated."""
    inputs = batch["inputs"]
    index = batch.get("instruction_index", jnp.arange(inputs.shape[0]))
    collections = module.adapt(batch["instructions"], train=train).collections(index)
    decoder_inputs = shift_right(batch["targets"], module.first_tokens(inputs))
    return module.answer(collections, inputs, decoder_inputs, train=train), collections.get(LORA)
