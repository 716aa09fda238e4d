"""Many fits trained at once: one program, one state whose leaves have a fit along axis 0.

A step of all fits is many batches of rows: rows of any fits share a batch, each uses what is its fit's own (see
`tuning`), and the gradients of a fit's rows add up in its own place. What a fit becomes depends on its own rows, rate
and seed alone.
Letters in shapes: N fits, B rows.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxmtl.models.initial import abstract_params
from jaxmtl.models.single_layers import put_together
from jaxmtl.tasks.fewshot import stable_hash
from jaxmtl.training.fit_rows import Fit
from jaxmtl.training.objectives import Losses, Objective
from jaxmtl.training.optim import adafactor, adamw
from jaxmtl.training.tuning import Tuning

_SHARED = PartitionSpec()
_BY_FIT = PartitionSpec(("data", "fsdp"))


@flax.struct.dataclass
class FitState:
    """Fits in training.

    Attributes:
      tree: what they train; float32 leaves [N, ...].
      moments: the optimizer's state of each, leaves [N, ...].
      keys: random keys [N], for dropout.
    """

    tree: Any
    moments: Any
    keys: jax.Array


@flax.struct.dataclass
class FitSums:
    """What the batches of a step add up to.

    Attributes:
      grads: gradients of each fit, leaves [N, ...].
      loss: float32 [N], mean negative log-likelihood of each fit's target tokens, in nats.
    """

    grads: Any
    loss: jax.Array


_SUBTRACTED = optax.scale(-1.0)
"""A fit subtracts its updates, scaled by its own learning rate."""


def _unit_rate(step: jax.Array) -> jax.Array:
    return jnp.ones(())


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW without its learning rate, which belongs to a fit; see `optim.adamw`, whose defaults it has.

    Attributes:
      b1: decay of the first moment.
      b2: decay of the second moment.
      epsilon: added to the root of the second moment.
      weight_decay: decay per unit of learning rate, on matrices only.
      max_norm: a fit's gradient of a larger global norm is scaled down to it; None never clips.

    Source: Loshchilov & Hutter 2019, algorithm 2.
    """

    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_norm: float | None = 1.0

    def transform(self, stacked: Any) -> optax.GradientTransformation:
        """Builds what turns a fit's gradients into updates; `stacked` is True on leaves that stack layers."""
        return optax.chain(adamw(_unit_rate, stacked, **dataclasses.asdict(self)), _SUBTRACTED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor:
    """Adafactor without its learning rate, which belongs to a fit; see `optim.adafactor`, whose defaults it has.

    Attributes:
      max_norm: a fit's gradient of a larger global norm is scaled down to it; None never clips.

    Source: Shazeer & Stern 2018, algorithm 4; the optimizer of methods 3.6's Simple FT.
    """

    max_norm: float | None = None

    def transform(self, stacked: Any) -> optax.GradientTransformation:
        """Builds what turns a fit's gradients into updates; `stacked` is True on leaves that stack layers."""
        return optax.chain(adafactor(_unit_rate, stacked, max_norm=self.max_norm), _SUBTRACTED)


Optimizer = AdamW | Adafactor


@dataclasses.dataclass(frozen=True)
class FitProgram:
    """All that decides how fits are computed, but for their data; equal ones share their compiled functions.

    Attributes:
      module: the model.
      tuning: what a fit trains.
      optimizer: turns gradients into updates.
      mesh: devices that share the fits; the default device if None.
    """

    module: nn.Module
    tuning: Tuning
    optimizer: Optimizer = AdamW()
    mesh: Mesh | None = None

    def start(self, params: Any, fits: Sequence[Fit]) -> FitState:
        """Makes the state before the first step.

        Args:
          params: the model's parameters, as `single_layers.taken_apart` gave them.
          fits: N of them, as many on each device.

        Returns:
          The state; a fit's start depends on its seed and its name alone.
        """
        return jax.device_put(_start(self, params, jnp.stack([fit_key(fit) for fit in fits])), self.place)

    def shapes(self, count: int) -> FitState:
        """Returns the shapes of a state of `count` fits; nothing is allocated."""
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
        return jax.eval_shape(functools.partial(_start, self), nn.unbox(abstract_params(self.module)), keys)

    @functools.cached_property
    def objective(self) -> Objective:
        """Scores a batch."""
        return self.tuning.objective(self.module)

    def zeros(self, state: FitState) -> FitSums:
        """Makes the sums before the first batch of a step."""
        return _zeros(self, state)

    def add(self, params: Any, state: FitState, sums: FitSums, step: int, batch: Mapping[str, np.ndarray]) -> FitSums:
        """Adds a batch to the sums of a step.

        Args:
          params: as in `start`.
          state: the fits.
          sums: what the step's batches before this one gave; its memory is taken over.
          step: the step, from 0.
          batch: what `RowBatches.cut` gave.

        Returns:
          The new sums.
        """
        return _add(self, params, state, sums, jnp.int32(step), jax.device_put(dict(batch), self.place))

    def update(self, state: FitState, sums: FitSums, rates: jax.Array, active: np.ndarray) -> FitState:
        """Ends a step.

        Args:
          state: the fits; its memory is taken over.
          sums: of all batches of the step.
          rates: float32 [N], learning rates.
          active: bool [N], False for fits that stay as they are.

        Returns:
          The fits after the step.
        """
        return _update(self, state, sums, rates, active)

    def score(self, params: Any, state: FitState, losses: jax.Array, batch: Mapping[str, np.ndarray]) -> jax.Array:
        """Adds the losses of a batch of rows that are not learnt; nothing is dropped.

        Args:
          params: as in `start`.
          state: the fits.
          losses: float32 [N], what the batches before this one gave; its memory is taken over.
          batch: what `RowBatches.cut` gave.

        Returns:
          The new sums.
        """
        return _score(self, params, state.tree, losses, jax.device_put(dict(batch), self.place))

    def replaced(self, tree: Any, other: Any, chosen: np.ndarray) -> Any:
        """Replaces what some fits train by another.

        Args:
          tree: leaves [N, ...]; its memory is taken over.
          other: leaves [N, ...].
          chosen: bool [N], which ones.

        Returns:
          The new tree.
        """
        return _replaced(tree, other, chosen)

    @property
    def config(self) -> Any:
        """The model's config."""
        module: Any = self.module
        return module.config

    @property
    def place(self) -> Sharding:
        """Where fits and their rows lie; named even where there is one device, for what has no place compiles apart."""
        return SingleDeviceSharding(jax.devices()[0]) if self.mesh is None else NamedSharding(self.mesh, _BY_FIT)


@functools.partial(jax.jit, static_argnums=0)
def _start(program: FitProgram, params: Any, keys: jax.Array) -> FitState:
    params = put_together(params)

    def one(key: jax.Array) -> FitState:
        init_key, drop_key = jax.random.split(key)
        tree = program.tuning.start(program.module, params, init_key)
        return FitState(tree=tree, moments=_transform(program, tree).init(tree), keys=drop_key)

    return jax.vmap(one)(keys)


def _transform(program: FitProgram, tree: Any) -> optax.GradientTransformation:
    """Builds the optimizer of one fit's tree."""
    return program.optimizer.transform(program.tuning.stacked(program.module, tree))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _add(program: FitProgram, params: Any, state: FitState, sums: FitSums, step: jax.Array, batch: Any) -> FitSums:
    add = functools.partial(_add_on_device, program)
    if program.mesh is not None:
        specs = (_SHARED, _BY_FIT, _BY_FIT, _SHARED, _BY_FIT)
        add = jax.shard_map(add, mesh=program.mesh, in_specs=specs, out_specs=_BY_FIT, check_vma=False)
    return add(params, state, sums, step, batch)


def _add_on_device(
    program: FitProgram, params: Any, state: FitState, sums: FitSums, step: jax.Array, batch: Any
) -> FitSums:
    params, slots, tuning = put_together(params), batch["slots"], program.tuning
    keys = _row_keys(jnp.take(state.keys, slots), step, batch["places"])

    def objective(own: Any) -> tuple[jax.Array, jax.Array]:
        losses = _losses(program, tuning.variables(params, own, keys), batch)
        return losses.objective.sum(), losses.loss.sum(axis=-1)

    grads, loss = jax.grad(objective, has_aux=True)(tuning.own(state.tree, slots))
    return FitSums(grads=tuning.add(sums.grads, grads, slots), loss=sums.loss.at[slots].add(loss))


def _losses(program: FitProgram, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> Losses:
    """Scores a batch; the heads of a model are those of its fits."""
    return program.objective(program.module, variables, {**batch, "task_ids": batch["slots"]}, dropout_key=None)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _score(program: FitProgram, params: Any, tree: Any, losses: jax.Array, batch: Any) -> jax.Array:
    def add(params: Any, tree: Any, losses: jax.Array, batch: Any) -> jax.Array:
        params = put_together(params)
        own = program.tuning.own(tree, batch["slots"])
        found = _losses(program, program.tuning.variables(params, own, None), batch)
        return losses.at[batch["slots"]].add(found.loss.sum(axis=-1))

    if program.mesh is not None:
        specs = (_SHARED, _BY_FIT, _BY_FIT, _BY_FIT)
        add = jax.shard_map(add, mesh=program.mesh, in_specs=specs, out_specs=_BY_FIT, check_vma=False)
    return add(params, tree, losses, batch)


@functools.partial(jax.jit, donate_argnums=0)
def _replaced(tree: Any, other: Any, chosen: jax.Array) -> Any:
    one = lambda is_chosen, old, new: jax.tree.map(lambda a, b: jnp.where(is_chosen, b, a), old, new)
    return jax.vmap(one)(chosen, tree, other)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _update(program: FitProgram, state: FitState, sums: FitSums, rates: jax.Array, active: jax.Array) -> FitState:
    def one(tree: Any, moments: Any, grads: Any, rate: jax.Array, is_active: jax.Array) -> tuple[Any, Any]:
        updates, after = _transform(program, tree).update(grads, moments, tree)
        moved = jax.tree.map(lambda leaf, change: leaf - rate * change, tree, updates)
        keep = lambda new, old: jnp.where(is_active, new, old)
        return jax.tree.map(keep, moved, tree), jax.tree.map(keep, after, moments)

    tree, moments = jax.vmap(one)(state.tree, state.moments, sums.grads, rates, active)
    return FitState(tree=tree, moments=moments, keys=state.keys)


def fit_key(fit: Fit) -> jax.Array:
    """Returns the random key of a fit: of its seed and its name."""
    return jax.random.fold_in(jax.random.key(fit.seed), stable_hash("fit", fit.name) % 2**32)


@functools.partial(jax.jit, static_argnums=0)
def _zeros(program: FitProgram, state: FitState) -> FitSums:
    sums = FitSums(grads=jax.tree.map(jnp.zeros_like, state.tree), loss=jnp.zeros(state.keys.shape, jnp.float32))
    return jax.lax.with_sharding_constraint(sums, program.place)


def _row_keys(keys: jax.Array, step: jax.Array, places: jax.Array) -> jax.Array:
    """Gives rows [B] keys of their own from their fits' keys."""
    one = lambda key, place: jax.random.fold_in(jax.random.fold_in(key, step), place)
    return jax.vmap(one)(keys, places)
