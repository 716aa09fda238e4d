"""Meta-training of FiD-ICL: queries of a task learn to use the states of its supports.

A batch is of one task: K supports (demonstrations, written as in evaluation) and M queries that all see the same ones.
Gradients flow through the encoder of both.
Letters in shapes: K supports, M queries, S tokens of either side, T target length.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxmtl.models.fusion import fuse
from jaxmtl.models.shifting import shift_right
from jaxmtl.training.objectives import Losses, Smoothing, cross_entropy, no_smoothing
from jaxmtl.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusionLoss:
    """The objective of FiD-ICL: predict each query's target from the supports' states and the query's own.

    The supports belong to the whole batch: it cannot be cut into microbatches, which `step.train_step` refuses.

    Attributes:
      z_loss: see `objectives.cross_entropy`.
      smoothing: see `objectives.cross_entropy`.

    Source: FiD-ICL's meta-training, methods 3.6.
    """

    z_loss: float = 0.0
    smoothing: Smoothing = no_smoothing

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
          module: an encoder-decoder.
          variables: its parameters, {"params": tree}, and an adapter under "lora" if there is one.
          batch: `support_inputs` int32 [K, S], where K may be 0 and rows may be padding alone; `inputs` int32 [M, S],
            `targets` int32 [M, T], `loss_mask` float32 [M, T].
          dropout_key: key of dropout; None drops nothing.

        Returns:
          The losses of the queries' target tokens, [M, T].

        Raises:
          InputError: if the batch has no supports field, or is packed.
        """
        logits = fused_logits(module, variables, batch, dropout_key=dropout_key)
        return cross_entropy(logits, batch["targets"], batch["loss_mask"], z_loss=self.z_loss, smoothing=self.smoothing)


def fused_logits(
    module: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    *,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Scores the targets of queries that see supports.

    Args:
      module: as for `FusionLoss`.
      variables: as for `FusionLoss`.
      batch: as for `FusionLoss`.
      dropout_key: key of dropout; None drops nothing.

    Returns:
      float32 [M, T, V], logits.

    Raises:
      InputError: if the batch has no supports field, or is packed.
    """
    _check(batch)
    logits: Any = module.apply(
        variables,
        *(batch[name] for name in ("support_inputs", "inputs", "targets")),
        train=dropout_key is not None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        method=_logits,
    )
    return logits


def _check(batch: Mapping[str, jax.Array]) -> None:
    if "support_inputs" not in batch:
        raise InputError(f"a batch has the fields {sorted(batch)}; fusing supports needs 'support_inputs' as well")
    packed = [name for name in batch if name.endswith(("_segments", "_positions"))]
    if packed:
        raise InputError(f"a batch is packed ({packed[0]!r}); queries that see supports have a row each")


def _logits(module: Any, support_inputs: jax.Array, inputs: jax.Array, targets: jax.Array, *, train: bool) -> jax.Array:
    """Returns float32 [M, T, V]."""
    mask = module.real(inputs, None)
    memory, seen = module.encode(inputs, mask, train=train), mask
    if support_inputs.size:
        support_mask = module.real(support_inputs, None)
        supports = module.encode(support_inputs, support_mask, train=train)
        memory, seen = fuse(supports.reshape(-1, supports.shape[-1]), support_mask.reshape(-1), memory, mask)
    decoder_inputs = shift_right(targets, module.first_tokens(inputs, mask))
    return module.decode(decoder_inputs, memory, seen, train=train)
