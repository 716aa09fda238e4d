"""The loss of a model whose output layer is not trained: logits are made for real target tokens only, a few at a time.

A vocabulary is wide: the logits of a padded batch take as long as several layers and more memory than all of them, and
most targets are short. Here tokens that count come first, blocks of them are scored one after the other, and the
gradient of their states is computed with them, so no logits are kept and none are made for padding.
Letters in shapes: B rows, T target length, D embed, M = B·T tokens, C tokens of a block, V vocab.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.adapters.lora import LoRA
from jaxmtl.adapters.targets import matching
from jaxmtl.training.objectives import EncoderDecoderLoss, Losses, Objective, decoder_inputs, reduce_logits

BLOCK_ON_CPU, BLOCK = 128, 1024
"""Tokens that are scored at once: few where their logits should stay in a CPU's cache."""
BEHIND_LAST_STATES = "project_out"
"""The one layer of any family that adapters can change and that reads the last states."""
Score = Callable[[jax.Array], jax.Array]
"""Maps states [C, D] to logits float32 [C, V]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenHeadLoss:
    """The objective of text-to-text models whose output layer stays as it is; equals `EncoderDecoderLoss`.

    Attributes:
      block: tokens that are scored at once; no result depends on it. What suits the device if None.
    """

    block: int | None = None

    def __call__(
        self,
        module: nn.Module,
        variables: Mapping[str, Any],
        batch: Mapping[str, jax.Array],
        *,
        dropout_key: jax.Array | None = None,
    ) -> Losses:
        """Scores a batch; gradients flow to adapters, not to the parameters of the output layer.

        Args:
          module: as for `EncoderDecoderLoss`; its method `logits` scores its last states.
          variables: its parameters, {"params": tree}, and adapters of layers before the output under "lora".
          batch: as for `EncoderDecoderLoss`.
          dropout_key: key of dropout; None drops nothing.

        Returns:
          The losses by token.
        """
        states = _states(module, variables, batch, dropout_key)
        params = {"params": jax.lax.stop_gradient(variables["params"])}
        score = lambda x: jnp.asarray(module.apply(params, x[None], method="logits"))[0]
        block = self.block or (BLOCK_ON_CPU if jax.default_backend() == "cpu" else BLOCK)
        mask = batch["loss_mask"]
        flat = states.reshape(-1, states.shape[-1]), batch["targets"].reshape(-1), mask.reshape(-1)
        losses = jnp.reshape(token_losses(score, min(block, mask.size), *flat), mask.shape)
        return Losses(objective=losses * mask, loss=jax.lax.stop_gradient(losses) * mask, tokens=mask)


def objective_of(module: nn.Module, lora: LoRA) -> Objective:
    """Returns the objective of adapters: the cheaper one where they leave alone what lies behind the last states.

    Args:
      module: the model.
      lora: what the adapters are made of.

    Raises:
      UnknownNameError: if a target matches no layer.
    """
    return EncoderDecoderLoss() if BEHIND_LAST_STATES in matching(module, lora.targets) else FrozenHeadLoss()


def _states(
    module: nn.Module, variables: Mapping[str, Any], batch: Mapping[str, jax.Array], dropout_key: jax.Array | None
) -> jax.Array:
    """Returns [B, T, D], what the output layer reads."""
    first_tokens = functools.partial(module.apply, variables, batch["inputs"], method="first_tokens")
    without_logits = lambda go_on, args, kwargs, context: (
        args[0] if context.method_name == "logits" else go_on(*args, **kwargs)
    )
    with nn.intercept_methods(without_logits):
        states: Any = module.apply(
            variables,
            inputs=batch["inputs"],
            **decoder_inputs(batch, first_tokens),
            train=dropout_key is not None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
        )
    return states


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def token_losses(score: Score, block: int, states: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Computes the negative log-likelihood of target tokens.

    Args:
      score: gives their logits; what it closes over gets no gradient.
      block: C.
      states: [M, D].
      targets: int32 [M].
      weights: float32 [M]; tokens of weight 0 are not scored.

    Returns:
      float32 [M], nats, not weighted; 0 where the weight is 0.
    """
    losses = lambda x, ids: (_losses(score, x, ids), ())
    return _by_blocks(losses, (), block, states, targets, weights)[0]


def _forward(
    score: Score, block: int, states: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def losses(x: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        found, pull = jax.vjp(lambda own: _losses(score, own, ids), x)
        return found, pull(jnp.ones_like(found))[0]

    return _by_blocks(losses, jnp.zeros_like(states), block, states, targets, weights)


def _backward(score: Score, block: int, grads: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    return (grads * cotangent[:, None]).astype(grads.dtype), None, None


token_losses.defvjp(_forward, _backward)


def _losses(score: Score, states: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns float32 [C]."""
    log_normaliser, target_logit, _ = reduce_logits(score(states), targets)
    return log_normaliser - target_logit


def _by_blocks(
    losses: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]],
    zeros: Any,
    block: int,
    states: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, Any]:
    """Scores blocks of tokens that count; `zeros` is [M, D] for the second thing that `losses` gives, or empty."""
    order = jnp.argsort(weights == 0)  # stable: tokens that count first
    count = jnp.sum(weights != 0)
    # The last block may reach back into the one before it: its tokens come out the same again.
    start = lambda number: jnp.minimum(number * block, len(targets) - block)

    def add(number: jax.Array, found: Any) -> Any:
        places = jax.lax.dynamic_slice_in_dim(order, start(number), block)
        counts = (weights[places] != 0).astype(jnp.float32)
        value, grads = losses(states[places], targets[places])
        total, all_grads = found
        write = lambda whole, part: whole.at[places].set((part * counts[:, None]).astype(whole.dtype))
        return total.at[places].set(value * counts), jax.tree.map(write, all_grads, grads)

    return jax.lax.fori_loop(0, -(-count // block), add, (jnp.zeros(targets.shape, jnp.float32), zeros))
