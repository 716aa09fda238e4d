"""Moves the two factors of adapters between our layers and theirs, in which several of ours may lie side by side.

A layer of theirs reads its input once, by one lora_A: of ours that lie in it, those with the same `a` share its rows,
and others get rows of their own, with zeros in lora_B where they do not meet. So the rank grows, the function stays.

Letters in shapes: L layers, R rank of ours, G groups with an `a` each.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmtl.adapters.lora import SCALINGS, Adapter
from jaxmtl.models.trees import nested
from jaxmtl.weights.peft_modules import Linear

Groups = Sequence[Sequence[str]]
"""Paths of ours that share an `a`, group by group."""


@dataclasses.dataclass(frozen=True)
class Factors:
    """An adapter of one layer.

    Attributes:
      a: float32 [in, R].
      b: float32 [R, out].
      alpha: numerator of the scale.
    """

    a: np.ndarray
    b: np.ndarray
    alpha: float

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[1]


Stacks = dict[str, list[Factors | None]]
"""Factors by path, one per layer; None where a layer is not changed."""


def alpha_of_groups(alpha: float, count: int, scaling: str) -> float:
    """Returns the numerator that keeps a scale where the rank is `count` times as large."""
    return alpha * (SCALINGS[scaling](1.0, 1) / SCALINGS[scaling](1.0, count))


def groups_of(linear: Linear, leaves: Mapping[str, Any]) -> list[list[str]]:
    """Groups the paths that are changed by their `a`.

    Args:
      linear: the layer of theirs.
      leaves: the adapter's leaves by path.

    Returns:
      Groups in the order of the paths; none if the layer is not changed.
    """
    groups: list[list[str]] = []
    for path in (path for path in linear.paths if f"{path}/a" in leaves):
        same = lambda group, path=path: np.array_equal(leaves[f"{group[0]}/a"], leaves[f"{path}/a"])
        group = next(filter(same, groups), None)
        if group is None:
            groups.append([path])
        else:
            group.append(path)
    return groups


def joined(linear: Linear, leaves: Mapping[str, Any], groups: Groups) -> list[tuple[np.ndarray, np.ndarray]]:
    """Builds their two factors of each layer.

    Args:
      linear: the layer of theirs.
      leaves: the adapter's leaves by path.
      groups: what `groups_of` returned.

    Returns:
      lora_A [G·R, in] and lora_B [out, G·R] of each of L.
    """
    host = lambda name: np.asarray(jax.device_get(leaves[name]))
    stacked = lambda name: host(name) if linear.kernel.num_layers else host(name)[None]
    a = np.concatenate([stacked(f"{group[0]}/a") for group in groups], axis=-1)
    rank = a.shape[-1] // len(groups)
    b = np.zeros((a.shape[0], a.shape[-1], linear.outputs), a.dtype)
    for number, group in enumerate(groups):
        for path in group:
            rows, columns = _block(linear, path, number, rank)
            b[:, rows, columns] = stacked(f"{path}/b")
    return [(one.T, other.T) for one, other in zip(a, b, strict=True)]


def parted(linear: Linear, layers: Sequence[Factors | None], groups: Groups, scaling: str) -> Stacks:
    """Takes apart what `joined` built.

    Args:
      linear: the layer of theirs.
      layers: its factors [in, G·R] and [G·R, out], one per layer.
      groups: what `groups_of` returned; where the factors are not built of these groups, all paths share one `a`.
      scaling: a key of `SCALINGS`.

    Returns:
      Factors of each path.
    """
    if not groups or not all(layer is None or _is_of_groups(linear, layer, groups) for layer in layers):
        groups = [linear.paths]
    stacks = {}
    for number, group in enumerate(groups):
        for path in group:
            stacks[path] = [layer and _part(linear, layer, path, number, len(groups), scaling) for layer in layers]
    return stacks


def _part(linear: Linear, layer: Factors, path: str, number: int, count: int, scaling: str) -> Factors:
    rows, columns = _block(linear, path, number, layer.rank // count)
    return Factors(layer.a[:, rows], layer.b[rows, columns], layer.alpha / alpha_of_groups(1.0, count, scaling))


def _is_of_groups(linear: Linear, layer: Factors, groups: Groups) -> bool:
    """Tells whether factors are zero wherever a group's rows meet a path that is not in it."""
    if layer.rank % len(groups) or len({path for group in groups for path in group}) < sum(map(len, groups)):
        return False
    rest = layer.b.copy()
    for number, group in enumerate(groups):
        for path in group:
            rest[_block(linear, path, number, layer.rank // len(groups))] = 0
    return not rest.any()


def _block(linear: Linear, path: str, number: int, rank: int) -> tuple[slice, slice]:
    width, place = linear.kernel.outputs, linear.paths.index(path)
    return slice(number * rank, (number + 1) * rank), slice(place * width, (place + 1) * width)


def adapter_of(stacks: Stacks, layers: Mapping[str, Linear], scaling: str) -> Adapter:
    """Builds an adapter of one rank and one scale from factors that may have others each.

    Factors of a smaller rank are filled up with zeros, a difference of scales becomes part of `b`, and layers that are
    not changed are all zeros; so the function stays.

    Args:
      stacks: factors of each path, of one layer at least.
      layers: the layers of theirs, by path.
      scaling: a key of `SCALINGS`.

    Returns:
      The adapter.
    """
    found = [factors for stack in stacks.values() for factors in stack if factors is not None]
    largest = max(found, key=lambda factors: factors.rank)
    adapter = Adapter(tree=None, rank=largest.rank, alpha=largest.alpha, scaling=scaling)
    leaves = {}
    for path, stack in stacks.items():
        linear = layers[path]
        pairs = [_filled(linear, factors, adapter) for factors in stack]
        for name, parts in zip("ab", zip(*pairs, strict=True), strict=True):
            leaves[f"{path}/{name}"] = jax.numpy.asarray(np.stack(parts) if linear.kernel.num_layers else parts[0])
    return dataclasses.replace(adapter, tree=nested(leaves))


def _filled(linear: Linear, factors: Factors | None, adapter: Adapter) -> tuple[np.ndarray, np.ndarray]:
    sizes = linear.kernel
    if factors is None:
        return np.zeros((sizes.inputs, adapter.rank), np.float32), np.zeros((adapter.rank, sizes.outputs), np.float32)
    factor = SCALINGS[adapter.scaling](factors.alpha, factors.rank) / adapter.scale
    rest = adapter.rank - factors.rank
    return np.pad(factors.a, ((0, 0), (0, rest))), np.pad(factors.b * np.float32(factor), ((0, rest), (0, 0)))
