"""One optimiser step as a pure function: state and batch in, state and sums out.

Letters in shapes: B batch, T target length, M microbatches, N tasks.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxmtl.training.normalisers import Normaliser, batch_tokens
from jaxmtl.training.objectives import Losses, Objective, Term
from jaxmtl.training.state import Plan, TrainState
from jaxmtl.types import InputError


@flax.struct.dataclass
class LossSums:
    """Loss sums of some rows; they add up over microbatches, steps and hosts.

    Attributes:
      objective: float32 scalar, what is minimised.
      loss: float32 scalar, plain negative log-likelihood in nats.
      tokens: float32 scalar, number of target tokens.
      task_loss: float32 [N], `loss` per task.
      task_tokens: float32 [N], `tokens` per task.
      task_terms: each of the objective's terms, value and weight float32 [N] per task, by name.
    """

    objective: jax.Array
    loss: jax.Array
    tokens: jax.Array
    task_loss: jax.Array
    task_tokens: jax.Array
    task_terms: dict[str, Term] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class StepMetrics:
    """What a step tells about itself.

    Attributes:
      sums: loss sums of the global batch.
      grad_norm: float32 scalar, global norm before clipping.
      param_norm: float32 scalar, global norm after the update.
      learning_rate: float32 scalar.
      finite: bool scalar, False if the objective or any gradient is not finite.
    """

    sums: LossSums
    grad_norm: jax.Array
    param_norm: jax.Array
    learning_rate: jax.Array
    finite: jax.Array


def sum_rows(losses: Losses, task_ids: jax.Array, num_tasks: int) -> LossSums:
    """Adds the losses of a batch up, in all and per task.

    Args:
      losses: by token, [B, T].
      task_ids: int32 [B], tasks of the rows, or [B, T], tasks of the tokens of packed rows.
      num_tasks: N.

    Returns:
      The sums.
    """
    if task_ids.ndim == 1:
        losses = jax.tree.map(lambda values: jnp.sum(values, axis=-1), losses)
    per_task = lambda values: jax.ops.segment_sum(values.ravel(), task_ids.ravel(), num_tasks)
    return LossSums(
        objective=jnp.sum(losses.objective),
        loss=jnp.sum(losses.loss),
        tokens=jnp.sum(losses.tokens),
        task_loss=per_task(losses.loss),
        task_tokens=per_task(losses.tokens),
        task_terms=jax.tree.map(per_task, losses.terms),
    )


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    plan: Plan,
    objective: Objective,
    num_tasks: int,
    num_microbatches: int = 1,
    normaliser: Normaliser = batch_tokens,
) -> tuple[TrainState, StepMetrics]:
    """Makes one update with the gradient of the batch's summed objective, divided by what the normaliser says.

    Args:
      state: the state before.
      batch: fields with B rows; see `jaxmtl.types.Batch`.
      plan: model, optimiser and mesh.
      objective: scores a batch.
      num_tasks: N.
      num_microbatches: M, parts that the batch is cut into to need less memory; divides B / devices.
      normaliser: divides the sum; `batch_tokens` makes it the mean over all target tokens of the batch.

    Returns:
      The state after, and the metrics.
    """
    divisor = normaliser(batch)
    step_key = jax.random.fold_in(state.rng, state.step)

    def part_objective(params: Any, part: Mapping[str, jax.Array], index: jax.Array) -> tuple[jax.Array, LossSums]:
        losses = objective(plan.module, {"params": params}, part, dropout_key=jax.random.fold_in(step_key, index))
        sums = sum_rows(losses, part["task_ids"], num_tasks)
        # The divisor is known beforehand: dividing here saves a pass over all gradients.
        return sums.objective / divisor, sums

    gradient = jax.grad(part_objective, has_aux=True)
    if num_microbatches == 1:
        grads, sums = gradient(state.params, batch, jnp.zeros((), jnp.int32))
    else:
        parts = _split(batch, num_microbatches, plan)
        grads, sums = _accumulate(functools.partial(gradient, state.params), parts, plan)
    updates, opt_state = plan.transform.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    grad_norm = optax.tree.norm(grads)
    metrics = StepMetrics(
        sums=sums,
        grad_norm=grad_norm,
        param_norm=optax.tree.norm(params),
        learning_rate=jnp.asarray(plan.learning_rate(state.step), jnp.float32),
        finite=jnp.isfinite(sums.objective) & jnp.isfinite(grad_norm),
    )
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state, rng=state.rng), metrics


def _split(batch: Mapping[str, jax.Array], num_parts: int, plan: Plan) -> dict[str, jax.Array]:
    """Cuts [B, ...] into [M, B/M, ...]: part m takes every M-th row from m, so that no row changes its device.

    Fields with several rows for each row of the inputs, those of packed examples, follow the row they belong to.
    """
    rows, devices = batch["inputs"].shape[0], plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    if rows % (num_parts * devices):
        raise InputError(
            f"a batch of {rows} rows does not split into {num_parts} microbatches on {devices} data and fsdp devices;"
            " choose a batch size that their product divides"
        )
    if "support_inputs" in batch:
        raise InputError("queries that share supports cannot be cut into microbatches; use MICROBATCHES=1")
    if "instruction_index" in batch:
        raise InputError(
            "rows that share instructions cannot be cut into microbatches; give each row its own instruction "
            "(--gin.MAKE_STREAM=@stream.train_stream)"
        )
    sharding = NamedSharding(plan.mesh, PartitionSpec(None, ("data", "fsdp")))

    def split(field: jax.Array) -> jax.Array:
        turned = jnp.swapaxes(field.reshape(rows // num_parts, num_parts, -1, *field.shape[1:]), 0, 1)
        parts = turned.reshape(num_parts, field.shape[0] // num_parts, *field.shape[1:])
        return jax.lax.with_sharding_constraint(parts, sharding)

    return {name: split(field) for name, field in batch.items()}


def _accumulate(gradient: Any, parts: Mapping[str, jax.Array], plan: Plan) -> tuple[Any, LossSums]:
    """Adds gradients and sums of all parts, one part at a time, the gradients split as the parameters are."""

    def add(carry: Any, part: tuple[Mapping[str, jax.Array], jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, gradient(*part)), None

    indices = jnp.arange(next(iter(parts.values())).shape[0])
    one = jax.tree.map(lambda field: field[0], (parts, indices))
    grads, sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, *one))
    grads = jax.lax.with_sharding_constraint(grads, plan.shardings.params)
    (grads, sums), _ = jax.lax.scan(add, (grads, sums), (parts, indices))
    return grads, sums
