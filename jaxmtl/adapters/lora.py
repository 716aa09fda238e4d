"""LoRA: what adapters are made of, how they start, and the form in which a model reads them.

Letters in shapes: L layers (only where layers are stacked), R rank.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.adapters.targets import Kernel, kernels, matching
from jaxmtl.models.trees import flat, nested, parent
from jaxmtl.types import InputError, unknown_name

SCALINGS = {"standard": lambda alpha, rank: alpha / rank, "rank_stabilised": lambda alpha, rank: alpha / rank**0.5}
"""The factor on the low-rank product, by name. Source: LoRA (Hu et al. 2022) and rsLoRA (Kalajdzievski 2023)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """What adapters are made of.

    Attributes:
      rank: R.
      alpha: numerator of the scale.
      targets: which layers, see `targets.matching`.
      dropout: share of values dropped before `a` in training.
      scaling: a key of `SCALINGS`.

    Raises:
      InputError: if rank or alpha are not above 0, or dropout is no share below 1.
      UnknownNameError: if there is no such scaling.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str | Sequence[str] = "q,v"
    dropout: float = 0.0
    scaling: str = "standard"

    def __post_init__(self) -> None:
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))  # lists from configuration files are fine
        if self.rank < 1 or not self.alpha > 0:
            raise InputError(f"adapters have rank {self.rank} and alpha {self.alpha}; expected both above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout of adapters is {self.dropout}; expected 0 or more, less than 1")
        if self.scaling not in SCALINGS:
            raise unknown_name("scaling of adapters", self.scaling, SCALINGS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """One adapter.

    Attributes:
      tree: nested as the model's parameters; each layer it changes has `a` float32 [L, in, R] and `b` [L, R, out].
      rank: R.
      alpha: numerator of the scale.
      scaling: a key of `SCALINGS`.
    """

    tree: Any
    rank: int
    alpha: float
    scaling: str = "standard"

    @property
    def scale(self) -> float:
        """The factor on the low-rank product."""
        return SCALINGS[self.scaling](self.alpha, self.rank)

    @property
    def targets(self) -> tuple[str, ...]:
        """Paths of the layers that it changes, sorted."""
        return changed(self.tree)

    def collection(self) -> Any:
        """Returns the tree as a model reads it in the collection "lora": the scale is part of `b`."""
        return scaled(self.tree, self.scale)


def changed(tree: Any) -> tuple[str, ...]:
    """Returns the paths of the layers that a tree of adapters changes, sorted."""
    return tuple(sorted(path.removesuffix("/a") for path in flat(tree) if path.endswith("/a")))


def scaled(tree: Any, scale: jax.Array | float) -> Any:
    """Multiplies every `b` of a tree.

    Args:
      tree: of adapters.
      scale: the factor, of a shape that broadcasts with `b`.

    Returns:
      The tree as a model reads it.
    """
    return nested({path: leaf * scale if path.endswith("/b") else leaf for path, leaf in flat(tree).items()})


def init_adapter(module: nn.Module, lora: LoRA, key: jax.Array) -> Adapter:
    """Makes an adapter that changes nothing yet.

    Args:
      module: the model.
      lora: what it is made of.
      key: random key; what a layer draws depends on the key and its own path alone.

    Returns:
      `a` drawn uniformly from ±1/√in, `b` zero.

    Raises:
      UnknownNameError: if a target matches no layer.

    Source: PEFT's initialisation, methods 6.4.
    """
    layers = matching(module, lora.targets)
    return Adapter(tree=init_tree(layers, lora.rank, key), rank=lora.rank, alpha=lora.alpha, scaling=lora.scaling)


def init_tree(layers: dict[str, Kernel], rank: int, key: jax.Array) -> Any:
    """Draws the tree of `init_adapter`.

    Args:
      layers: path and sizes of each layer that is changed.
      rank: R.
      key: random key.

    Returns:
      float32 leaves `a` and `b`.
    """
    leaves = {}
    for path, kernel in layers.items():
        bound = kernel.inputs**-0.5
        shape = kernel.shape(kernel.inputs, rank)
        leaves[f"{path}/a"] = jax.random.uniform(path_key(key, path), shape, jnp.float32, -bound, bound)
        leaves[f"{path}/b"] = jnp.zeros(kernel.shape(rank, kernel.outputs), jnp.float32)
    return nested(leaves)


def path_key(key: jax.Array, path: str) -> jax.Array:
    """Returns a random key of a layer's own, the same whatever other layers there are."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def check_adapter(adapter: Adapter, module: nn.Module) -> None:
    """Refuses an adapter that does not fit a model.

    A model ignores what it does not read, so this is called wherever an adapter enters.

    Args:
      adapter: the adapter.
      module: the model.

    Raises:
      InputError: if the adapter changes no layer, lacks one of its two factors, or one has another shape.
      UnknownNameError: if it names a layer that the model does not have.
    """
    known, leaves = kernels(module), flat(adapter.tree)
    if not leaves:
        raise InputError("the adapter is empty; expected factors of at least one layer")
    for path in sorted({parent(path) for path in leaves}):
        if path not in known:
            raise unknown_name("layer of the adapter", path, known)
        kernel = known[path]
        wanted = {
            "a": kernel.shape(kernel.inputs, adapter.rank),
            "b": kernel.shape(adapter.rank, kernel.outputs),
        }
        found = {name.rpartition("/")[2]: tuple(leaf.shape) for name, leaf in leaves.items() if parent(name) == path}
        if found != wanted:
            raise InputError(
                f"adapter at {path} has factors {found}, the model asks for {wanted}; is it another model's?"
            )


def merge(params: Any, adapter: Adapter, *, sign: float = 1.0) -> Any:
    """Adds an adapter to the kernels that it changes.

    Args:
      params: the model's parameters.
      adapter: an adapter that fits them.
      sign: 1 adds it; -1 takes it out again, up to rounding.

    Returns:
      New parameters of the same dtypes; the sum is taken in float32.
    """
    return with_updates(params, scaled(adapter.tree, sign * adapter.scale))


def with_updates(params: Any, tree: Any) -> Any:
    """Adds low-rank updates to the kernels that they change.

    Args:
      params: the model's parameters, or those that are changed.
      tree: `a` [L, in, R] and `b` [L, R, out] of each layer that is changed, as a model reads them: the scale is part
        of `b`.

    Returns:
      New parameters of the same dtypes; products and sums are those of float32.
    """
    leaves, merged = flat(tree), flat(params)
    exact: dict[str, Any] = dict(precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    for path in changed(tree):
        kernel = merged[f"{path}/kernel"]
        update = jnp.matmul(leaves[f"{path}/a"], leaves[f"{path}/b"], **exact)
        merged[f"{path}/kernel"] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return nested(merged)


unmerge = functools.partial(merge, sign=-1.0)
"""Takes a merged adapter out of the kernels again, up to rounding."""
