"""Optimisers: AdamW and Adafactor over optax, aware that some leaves stack all layers along their first axis.

An optimiser here is a function of (learning-rate schedule, `stacked`) that gives an optax transformation. `stacked` is
a tree like the parameters with True on leaves whose first axis counts layers: such a leaf is L matrices, not one
three-dimensional array, which matters to Adafactor's factors and to which leaves are decayed.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmtl.models.trees import flat, nested
from jaxmtl.training.schedules import Schedule
from jaxmtl.types import InputError

Optimizer = Callable[[Schedule, Any], optax.GradientTransformation]
"""Builds a transformation from a schedule and the tree `stacked`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that learn at a rate of their own, or by an optimiser of their own.

    Attributes:
      name: what the group is called in errors.
      matches: says of a parameter's path, such as "encoder/attention/query/kernel", whether it belongs here.
      rate: factor on the learning rate; 0 keeps the group as it is, and costs no memory of the optimiser.
      optimizer: how the group learns, with a clipping of its own; None for the optimiser that has the groups.
    """

    name: str
    matches: Callable[[str], bool]
    rate: float = 1.0
    optimizer: Optimizer | None = None


def adamw(
    learning_rate: Schedule,
    stacked: Any,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    max_norm: float | None = 1.0,
    groups: Sequence[Group] = (),
) -> optax.GradientTransformation:
    """Builds Adam with decoupled weight decay and clipping by the global norm; defaults are Hugging Face's.

    Args:
      learning_rate: schedule.
      stacked: tree of bools, see the module.
      b1: decay of the first moment.
      b2: decay of the second moment.
      epsilon: added to the root of the second moment.
      weight_decay: decay per unit of learning rate, on matrices only (not on norms and biases).
      max_norm: gradients of a larger global norm are scaled down to it; None never clips.
      groups: parameters with rates of their own; the first group that matches counts.

    Returns:
      The transformation.

    Source: Loshchilov & Hutter 2019, algorithm 2.
    """

    def of_trained(stacked: Any) -> optax.GradientTransformation:
        steps = [optax.scale_by_adam(b1, b2, epsilon)]
        if weight_decay:
            steps.append(optax.add_decayed_weights(weight_decay, mask=lambda tree: matrices(tree, stacked)))
        return optax.chain(*_clipping(max_norm), *steps, optax.scale_by_learning_rate(learning_rate))

    return in_groups(of_trained, learning_rate, stacked, groups)


def adafactor(
    learning_rate: Schedule,
    stacked: Any,
    *,
    decay: float = 0.8,
    clipping: float = 1.0,
    step_offset: int = 0,
    min_factored_size: int = 128,
    max_norm: float | None = None,
    groups: Sequence[Group] = (),
) -> optax.GradientTransformation:
    """Builds Adafactor with T5X's defaults: factored second moments, rate relative to each parameter's scale.

    Args:
      learning_rate: schedule; the rate is multiplied by each matrix's root mean square, at least 1e-3.
      stacked: tree of bools, see the module.
      decay: exponent of the second moment's decay, 1 - step^-decay.
      clipping: largest root mean square of an update before the rate is applied.
      step_offset: subtracted from the step in the decay only.
      min_factored_size: smallest second-largest axis of a matrix that is factored.
      max_norm: as in `adamw`; T5X does not clip gradients.
      groups: as in `adamw`.

    Returns:
      The transformation.

    Source: Shazeer & Stern 2018, algorithm 4; defaults from methods 6.3.
    """

    def of_trained(stacked: Any) -> optax.GradientTransformation:
        per_matrix = optax.adafactor(
            learning_rate,
            min_dim_size_to_factor=min_factored_size,
            decay_rate=decay,
            decay_offset=step_offset,
            clipping_threshold=clipping,
        )
        return optax.chain(*_clipping(max_norm), per_layer(per_matrix, stacked))

    return in_groups(of_trained, learning_rate, stacked, groups)


def per_layer(inner: optax.GradientTransformation, stacked: Any) -> optax.GradientTransformation:
    """Applies a transformation to each leaf alone, and to each layer of a stacked leaf alone.

    Args:
      inner: a transformation whose update of a leaf depends on that leaf only.
      stacked: tree of bools, True on leaves [L, ...] that stack L layers.

    Returns:
      The transformation; its state is the parameter tree with a state of `inner` at each leaf.
    """

    def init(params: Any) -> Any:
        return jax.tree.map(lambda leaf, many: (jax.vmap(inner.init) if many else inner.init)(leaf), params, stacked)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(updates)
        others = (structure.flatten_up_to(tree) for tree in (state, params, stacked))
        pairs = [
            (jax.vmap(inner.update) if many else inner.update)(*leaf)
            for *leaf, many in zip(leaves, *others, strict=True)
        ]
        new_updates, new_states = zip(*pairs, strict=True)
        return structure.unflatten(new_updates), structure.unflatten(new_states)

    return optax.GradientTransformation(init, update)


def matrices(params: Any, stacked: Any) -> Any:
    """Marks the leaves to be decayed: those with two axes or more besides the layers' (no norms, no biases).

    Args:
      params: parameter tree.
      stacked: tree of bools like it.

    Returns:
      A tree of bools.
    """
    return jax.tree.map(lambda leaf, many: leaf.ndim - many >= 2, params, stacked)


def in_groups(
    make: Callable[[Any], optax.GradientTransformation],
    learning_rate: Schedule,
    stacked: Any,
    groups: Sequence[Group],
) -> optax.GradientTransformation:
    """Gives groups their rates and optimisers; what has rate 0 has no state in any, and stays as it is.

    Args:
      make: builds a transformation of a tree with the given `stacked`, for what has no optimiser of its own.
      learning_rate: schedule of all optimisers.
      stacked: tree of bools, see the module.
      groups: parameters with rates of their own; the first group that matches counts.

    Returns:
      The transformation. Its `init` raises InputError for a group that matches no parameter, or if nothing is trained.
    """
    if not groups:
        return make(stacked)
    rest = Group(name="", matches=lambda path: True)
    group_of = lambda path: next((group for group in groups if group.matches(path)), rest)
    learns_by = lambda path: group_of(path).name if group_of(path).optimizer is not None else rest.name
    part = lambda tree, name: nested(
        {path: leaf for path, leaf in flat(tree).items() if group_of(path).rate != 0 and learns_by(path) == name}
    )
    ways = {group.name: functools.partial(group.optimizer, learning_rate) for group in groups if group.optimizer}
    inner = {
        name: way(part(stacked, name)) for name, way in ({rest.name: make} | ways).items() if flat(part(stacked, name))
    }

    def init(params: Any) -> Any:
        _check_groups(groups, params)
        return {name: one.init(part(params, name)) for name, one in inner.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        made: dict[str, Any] = {}
        after = {}
        for name, one in inner.items():
            own = None if params is None else part(params, name)
            changed, after[name] = one.update(part(updates, name), state[name], own)
            made |= {path: leaf * group_of(path).rate for path, leaf in flat(changed).items()}
        still = {path: jnp.zeros_like(leaf) for path, leaf in flat(updates).items() if path not in made}
        return nested({path: (made | still)[path] for path in flat(updates)}), after

    return optax.GradientTransformation(init, update)


def _check_groups(groups: Sequence[Group], params: Any) -> None:
    """Refuses groups of one name, a group without parameters, and groups that leave nothing to train."""
    names = [group.name for group in groups]
    if "" in names or len(set(names)) < len(names):
        raise InputError(f"parameter groups are named {names}; expected a name for each, and all of them different")
    found = [next((i for i, group in enumerate(groups) if group.matches(path)), len(groups)) for path in flat(params)]
    for index, group in enumerate(groups):
        if index not in found:
            raise InputError(f"parameter group {group.name!r} matches no parameter; check its predicate")
    if not any((*groups, Group(name="", matches=bool))[index].rate for index in found):
        raise InputError("no parameter is trained: all of them are in groups of rate 0")


def _clipping(max_norm: float | None) -> list[optax.GradientTransformation]:
    return [] if max_norm is None else [optax.clip_by_global_norm(max_norm)]
