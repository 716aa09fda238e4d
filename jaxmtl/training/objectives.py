"""From logits to losses: token cross entropy in float32, weighted and summed, never averaged here.

Sums add up exactly over rows, microbatches and hosts; who wants a mean divides the sums at the end.
Letters in shapes: B batch, T target length, V vocab, M segments.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.models.masks import segments_of
from jaxmtl.models.shifting import shift_right, shift_right_in_segments
from jaxmtl.types import InputError


class SoftTargets(NamedTuple):
    """A smoothed target distribution over V classes, and what the smoothed loss has subtracted.

    Attributes:
      on: probability of the target class.
      off: probability of each other class.
      floor: nats subtracted from the loss.
    """

    on: float
    off: float
    floor: float


Smoothing = Callable[[int], SoftTargets]
"""Maps the number of classes to smoothed targets."""


def no_smoothing(num_classes: int) -> SoftTargets:
    """Puts all probability on the target."""
    return SoftTargets(1.0, 0.0, 0.0)


def t5x_smoothing(num_classes: int, *, amount: float = 0.1) -> SoftTargets:
    """Spreads `amount` over the other classes and subtracts the entropy, so that the best possible loss is 0.

    Args:
      num_classes: V.
      amount: probability taken from the target.

    Returns:
      The smoothed targets.

    Source: T5X's convention, methods 6.3.
    """
    on, off = 1.0 - amount, amount / (num_classes - 1)
    parts = np.array([on, *[off] * (num_classes > 1)])
    counts = np.array([1.0, num_classes - 1.0][: len(parts)])
    entropy = -float(np.sum(counts * parts * np.log(np.maximum(parts, 1e-20))))
    return SoftTargets(on, off, entropy)


def hf_smoothing(num_classes: int, *, amount: float = 0.1) -> SoftTargets:
    """Spreads `amount` over all classes, the target included, and subtracts nothing.

    Args:
      num_classes: V.
      amount: probability spread.

    Returns:
      The smoothed targets.

    Source: Hugging Face's trainer, methods 6.3.
    """
    return SoftTargets(1.0 - amount + amount / num_classes, amount / num_classes, 0.0)


class Term(NamedTuple):
    """One of the terms that an objective adds up, for the log.

    Attributes:
      value: float32 [B, T], weighted by `weight` already, but not by the term's own factor in the objective.
      weight: float32 [B, T], the loss mask where the term applies, 0 elsewhere.
    """

    value: jax.Array
    weight: jax.Array


@flax.struct.dataclass
class Losses:
    """Losses of target tokens, each weighted by the loss mask, or sums of them by example.

    Attributes:
      objective: float32 [B, T], what is minimised, with z-loss and smoothing, in nats.
      loss: float32 [B, T], plain negative log-likelihood in nats.
      tokens: float32 [B, T], the loss mask.
      terms: what the objective is made of, by name; none if it is one term.
    """

    objective: jax.Array
    loss: jax.Array
    tokens: jax.Array
    terms: dict[str, Term] = flax.struct.field(default_factory=dict)


def sum_segments(losses: Losses, segments: jax.Array, num_segments: int) -> Losses:
    """Adds the tokens of each segment up: in a packed row a segment is an example.

    Args:
      losses: by token.
      segments: int32 [B, T], number of each token's segment, from 1; 0 is padding.
      num_segments: M, the largest number that counts; tokens of others are left out.

    Returns:
      Sums [B, M]; column m is segment m + 1, zero where a row has none.
    """
    one_row = lambda values, ids: jax.ops.segment_sum(values, ids, num_segments + 1)[1:]
    return jax.tree.map(lambda values: jax.vmap(one_row)(values, segments), losses)


class Objective(Protocol):
    """Scores a batch: (module, its variables, batch, dropout key or None) to losses by token."""

    def __call__(
        self,
        module: nn.Module,
        variables: Mapping[str, Any],
        batch: Mapping[str, jax.Array],
        *,
        dropout_key: jax.Array | None,
    ) -> Losses:
        """Returns the losses of a batch; without a key nothing is dropped."""
        ...


@jax.custom_vjp
def reduce_logits(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Reduces logits over V to the three numbers per token that every smoothed cross entropy is made of.

    The gradient is written by hand: it needs one pass over the logits, keeps no second [B, T, V] array from the forward
    pass, and compares with the target instead of scattering, which also splits over a sharded vocabulary.

    Args:
      logits: float32 [B, T, V].
      targets: int32 [B, T].

    Returns:
      float32 [B, T] each: log of the sum of exponentials, the target's logit, the sum of logits.
    """
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1), target_logit, jnp.sum(logits, axis=-1)


def _reduce_forward(logits: jax.Array, targets: jax.Array) -> tuple[Any, Any]:
    reduced = reduce_logits(logits, targets)
    return reduced, (logits, targets, reduced[0])


def _reduce_backward(saved: Any, cotangents: Any) -> tuple[jax.Array, None]:
    logits, targets, log_normaliser = saved
    of_normaliser, of_target, of_sum = (cotangent[..., None] for cotangent in cotangents)
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    probabilities = jnp.exp(logits - log_normaliser[..., None])
    return of_normaliser * probabilities + jnp.where(is_target, of_target, 0.0) + of_sum, None


reduce_logits.defvjp(_reduce_forward, _reduce_backward)


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    loss_mask: jax.Array,
    *,
    z_loss: float = 0.0,
    smoothing: Smoothing = no_smoothing,
) -> Losses:
    """Computes the cross entropy of target tokens.

    Args:
      logits: float32 [B, T, V].
      targets: int32 [B, T].
      loss_mask: float32 [B, T], weight of each target token, 0 on padding.
      z_loss: factor on the square of the log normaliser; T5X trains with 1e-4.
      smoothing: smooths the targets: `no_smoothing`, `t5x_smoothing` or `hf_smoothing`.

    Returns:
      The losses by token.

    Source: methods 6.3.
    """
    log_normaliser, target_logit, logit_sum = reduce_logits(logits.astype(jnp.float32), targets)
    on, off, floor = smoothing(logits.shape[-1])
    objective = log_normaliser - (on - off) * target_logit - floor
    if off:
        objective = objective - off * logit_sum
    if z_loss:
        objective = objective + z_loss * jnp.square(log_normaliser)
    loss = jax.lax.stop_gradient(log_normaliser - target_logit)
    return Losses(objective=objective * loss_mask, loss=loss * loss_mask, tokens=loss_mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderLoss:
    """The objective of text-to-text models: predict each target token from the inputs and the targets before it.

    Attributes:
      z_loss: see `cross_entropy`.
      smoothing: see `cross_entropy`.
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
          module: has `first_tokens` and gives logits from `inputs` and `decoder_inputs`, and of packed rows from
            `input_segments` and `target_segments` besides.
          variables: its parameters, {"params": tree}, and an adapter under "lora" if there is one.
          batch: `inputs` int32 [B, S], `targets` int32 [B, T], `loss_mask` float32 [B, T]; in packed batches also the
            segments and positions of both sides, int32 [B, S] and [B, T].
          dropout_key: key of dropout; None drops nothing.

        Returns:
          The losses by token.

        Raises:
          InputError: if the batch has some of the fields of packed rows, but not all.
        """
        first_tokens = functools.partial(module.apply, variables, batch["inputs"], method="first_tokens")
        logits: Any = module.apply(
            variables,
            inputs=batch["inputs"],
            **decoder_inputs(batch, first_tokens),
            train=dropout_key is not None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
        )
        return cross_entropy(logits, batch["targets"], batch["loss_mask"], z_loss=self.z_loss, smoothing=self.smoothing)


def decoder_inputs(batch: Mapping[str, jax.Array], first_tokens: Callable[..., Any]) -> dict[str, Any]:
    """Builds what a model is given besides the inputs: of packed rows also the segments.

    Args:
      batch: as for `EncoderDecoderLoss`.
      first_tokens: the model's method, its parameters and inputs bound.

    Returns:
      Keyword arguments of the model.

    Raises:
      InputError: if the batch has some of the fields of packed rows, but not all.
    """
    inputs, targets = segments_of(batch, "input"), segments_of(batch, "target")
    if targets is None and inputs is None:
        return {"decoder_inputs": shift_right(batch["targets"], first_tokens())}
    if targets is None or inputs is None:
        raise InputError("a batch has segments of its inputs or of its targets alone; a packed batch has both")
    segments = {"input_segments": inputs, "target_segments": targets}
    decoder_inputs = shift_right_in_segments(batch["targets"], targets.positions, first_tokens(**segments))
    return {"decoder_inputs": decoder_inputs, **segments}
