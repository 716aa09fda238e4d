"""What training changes at every step, and the plan of it: shapes and shardings known before anything is allocated."""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.linen.spmd import LogicallyPartitioned
from jax.sharding import Mesh

from jaxmtl.models.initial import initial_arguments
from jaxmtl.partitioning import RULES, Rules, replicated, shardings_for
from jaxmtl.training.optim import Optimizer
from jaxmtl.training.schedules import Schedule


@flax.struct.dataclass
class TrainState:
    """Everything that the step reads and replaces; as a plan, the same tree of shapes or shardings.

    Attributes:
      step: int32 scalar, number of updates made.
      params: float32 parameter tree.
      opt_state: the optimiser's tree.
      rng: typed key that all dropout keys are folded from; it never changes.
    """

    step: Any
    params: Any
    opt_state: Any
    rng: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How the state will lie on the devices.

    Attributes:
      module: the model.
      transform: the optimiser.
      learning_rate: its schedule.
      mesh: the devices.
      rules: logical axis to mesh axis.
      shapes: TrainState with shape structs that carry their shardings.
      shardings: TrainState of shardings.
    """

    module: nn.Module
    transform: optax.GradientTransformation
    learning_rate: Schedule
    mesh: Mesh
    rules: Rules
    shapes: TrainState
    shardings: TrainState


def init_params(module: nn.Module, rng: jax.Array) -> Any:
    """Returns a module's new parameters, leaves boxed with their logical axes.

    Args:
      module: the model.
      rng: key.
    """
    return module.init(rng, **initial_arguments(module))["params"]


def make_plan(
    module: nn.Module, optimizer: Optimizer, learning_rate: Schedule, mesh: Mesh, rules: Rules = RULES
) -> Plan:
    """Plans the state of a run without allocating it.

    Args:
      module: the model.
      optimizer: builds the transformation.
      learning_rate: schedule.
      mesh: devices to split over.
      rules: logical axis to mesh axis.

    Returns:
      The plan.
    """
    boxed = jax.eval_shape(lambda rng: init_params(module, rng), jax.random.key(0))
    transform = optimizer(learning_rate, stacked_leaves(boxed))
    params = nn.unbox(boxed)
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        opt_state=jax.eval_shape(transform.init, params),
        rng=jax.eval_shape(lambda: jax.random.key(0)),
    )
    param_shardings = shardings_for(boxed, mesh, rules)
    shardings = TrainState(
        step=replicated(mesh),
        params=param_shardings,
        opt_state=optimizer_shardings(shapes.opt_state, params, param_shardings, mesh),
        rng=replicated(mesh),
    )
    placed = jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes, shardings)
    return Plan(
        module=module,
        transform=transform,
        learning_rate=learning_rate,
        mesh=mesh,
        rules=rules,
        shapes=placed,
        shardings=shardings,
    )


STACKS = (("layers",), ("head_stack",))
"""First logical axis of leaves that hold one parameter after the other."""


def stacked_leaves(boxed: Any) -> Any:
    """Marks the leaves whose first logical axis counts layers or heads, each of which is a parameter of its own.

    Args:
      boxed: parameter tree with leaves boxed by their logical axes; a leaf without box is not stacked.

    Returns:
      The unboxed tree with bools as leaves.
    """
    is_box = lambda leaf: isinstance(leaf, LogicallyPartitioned)
    return jax.tree.map(lambda leaf: is_box(leaf) and leaf.names[:1] in STACKS, boxed, is_leaf=is_box)


def optimizer_shardings(opt_state: Any, params: Any, param_shardings: Any, mesh: Mesh) -> Any:
    """Places the optimiser's leaves: one that has a parameter's path and shape lies as the parameter does.

    All others (counts, Adafactor's rows and columns) are small and are kept whole on every device.

    Args:
      opt_state: the optimiser's tree of shapes.
      params: parameter tree of shapes.
      param_shardings: parameter tree of shardings.
      mesh: the devices.

    Returns:
      The optimiser's tree with shardings as leaves.
    """
    name = lambda path: "/" + jax.tree_util.keystr(path, simple=True, separator="/") + "/"
    leaves = jax.tree_util.tree_leaves_with_path(params)
    known = [(name(p), leaf.shape, to) for (p, leaf), to in zip(leaves, jax.tree.leaves(param_shardings), strict=True)]
    known.sort(key=lambda entry: -len(entry[0]))  # the longest path that fits is the parameter's own

    def place(path: Any, leaf: Any) -> Any:
        fits = (to for param, shape, to in known if param in name(path) and shape == leaf.shape)
        return next(fits, replicated(mesh))

    return jax.tree_util.tree_map_with_path(place, opt_state)


def first_state(plan: Plan, seed: int, params: Any) -> TrainState:
    """Returns the state at step 0 for given parameters, with a new optimiser state.

    Args:
      plan: the plan.
      seed: seed of dropout.
      params: parameter tree that lies as planned.
    """
    opt_state = jax.jit(plan.transform.init, out_shardings=plan.shardings.opt_state)(params)
    return assemble(plan, 0, params, opt_state, jax.random.key(seed))


def scratch_params(plan: Plan, seed: int) -> Any:
    """Returns random parameters, created directly where the plan wants them; the same on every mesh."""
    create = lambda rng: nn.unbox(init_params(plan.module, rng))
    return jax.jit(create, out_shardings=plan.shardings.params)(jax.random.key(seed))


def assemble(plan: Plan, step: int, params: Any, opt_state: Any, rng: jax.Array) -> TrainState:
    """Returns a state of parts that lie as planned, with `step` and `rng` put on the mesh."""
    step_array = jax.device_put(jnp.asarray(step, jnp.int32), plan.shardings.step)
    # A typed key cannot be put on devices of other processes; its bits can.
    bits = jax.device_put(jax.random.key_data(rng), plan.shardings.rng)
    placed_rng = jax.random.wrap_key_data(bits)
    return TrainState(step=step_array, params=params, opt_state=opt_state, rng=placed_rng)


def num_parameters(params: Any) -> int:
    """Returns the number of parameters in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
