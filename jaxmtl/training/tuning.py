"""What a fit trains: an adapter of its own on a shared model, a whole model of its own, or a head on a shared encoder.

Adapters and heads are small and leave the model as it is, so rows of many fits share a batch, which fills a device
however few examples a task has. Whole models share nothing: a batch of rows of different models would multiply each row
by kernels of its own, N models side by side do the same products as one after the other, and they need N times the
memory of parameters, moments and gradients. So whole models are trained one after the other by one compiled step, whose
batches are of one fit.
Letters in shapes: N fits trained together, B rows.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.adapters import rows
from jaxmtl.adapters.lora import SCALINGS, Adapter, LoRA, init_tree, path_key, scaled
from jaxmtl.adapters.targets import matching
from jaxmtl.models import flops
from jaxmtl.models.heads import INIT
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.trees import flat, nested
from jaxmtl.training.frozen_head import objective_of
from jaxmtl.training.head_objectives import HeadsLoss
from jaxmtl.training.objectives import EncoderDecoderLoss, Objective
from jaxmtl.training.state import stacked_leaves

Cost = Callable[[Any, Any, Any], np.ndarray]
"""Maps a config, S and T to the operations of a row."""


class Tuning(Protocol):
    """What a fit trains; hashable, for it decides what is compiled."""

    @property
    def most_fits(self) -> int | None:
        """Returns the most fits that can be trained together on a device; None if memory decides."""
        ...

    @property
    def cost(self) -> Cost:
        """Returns what counts the operations of a row, by which shapes are chosen."""
        ...

    def objective(self, module: nn.Module) -> Objective:
        """Returns what is minimised."""
        ...

    def start(self, module: nn.Module, params: Any, key: jax.Array) -> Any:
        """Returns the tree of one fit before its first step, given the model's parameters and the fit's key."""
        ...

    def stacked(self, module: nn.Module, tree: Any) -> Any:
        """Returns a tree of bools like that of one fit, True on leaves whose first axis counts layers."""
        ...

    def own(self, tree: Any, slots: jax.Array) -> Any:
        """Takes from leaves [N, ...] what rows with fits int32 [B] need; gradients are taken of this."""
        ...

    def variables(self, params: Any, own: Any, keys: jax.Array | None) -> Mapping[str, Any]:
        """Returns what the model is applied to; with random keys [B] what fits drop is dropped."""
        ...

    def add(self, total: Any, grads: Any, slots: jax.Array) -> Any:
        """Adds gradients of what `own` gave to sums with leaves [N, ...]."""
        ...

    def result(self, tree: Any) -> Any:
        """Returns what became of a fit, given its tree of numpy arrays."""
        ...


@dataclasses.dataclass(frozen=True)
class LowRankTuning:
    """Trains adapters; each row uses that of its fit.

    Attributes:
      lora: what they are made of.
    """

    lora: LoRA
    most_fits: None = None

    @property
    def cost(self) -> Cost:
        """See `Tuning`."""
        return flops.without_output

    def objective(self, module: nn.Module) -> Objective:
        """See `Tuning`."""
        return objective_of(module, self.lora)

    def start(self, module: nn.Module, params: Any, key: jax.Array) -> Any:
        """See `Tuning`."""
        return init_tree(matching(module, self.lora.targets), self.lora.rank, key)

    def stacked(self, module: nn.Module, tree: Any) -> Any:
        """See `Tuning`."""
        return jax.tree.map(lambda leaf: leaf.ndim > 2, tree)

    def own(self, tree: Any, slots: jax.Array) -> Any:
        """See `Tuning`."""
        return rows.take(tree, slots)

    def variables(self, params: Any, own: Any, keys: jax.Array | None) -> Mapping[str, Any]:
        """See `Tuning`."""
        scale = SCALINGS[self.lora.scaling](self.lora.alpha, self.lora.rank)
        adapters = rows.collection(scaled(own, scale))
        if self.lora.dropout and keys is not None:
            adapters = rows.with_dropout(adapters, keys, self.lora.dropout)
        return rows.variables(params, adapters)

    def add(self, total: Any, grads: Any, slots: jax.Array) -> Any:
        """See `Tuning`."""
        return jax.tree.map(lambda whole, part: whole.at[slots].add(part), total, grads)

    def result(self, tree: Any) -> Adapter:
        """See `Tuning`."""
        return Adapter(tree=tree, rank=self.lora.rank, alpha=self.lora.alpha, scaling=self.lora.scaling)


@dataclasses.dataclass(frozen=True)
class WholeTuning:
    """Trains all parameters of the model, its own dropout off."""

    most_fits: int = 1

    @property
    def cost(self) -> Cost:
        """See `Tuning`."""
        return flops.forward

    def objective(self, module: nn.Module) -> Objective:
        """See `Tuning`."""
        return EncoderDecoderLoss()

    def start(self, module: nn.Module, params: Any, key: jax.Array) -> Any:
        """See `Tuning`; all fits start with the model's parameters."""
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)

    def stacked(self, module: nn.Module, tree: Any) -> Any:
        """See `Tuning`."""
        return stacked_leaves(abstract_params(module))

    def own(self, tree: Any, slots: jax.Array) -> Any:
        """See `Tuning`; all rows are of the one fit."""
        return jax.tree.map(lambda leaf: leaf[0], tree)

    def variables(self, params: Any, own: Any, keys: jax.Array | None) -> Mapping[str, Any]:
        """See `Tuning`."""
        return {"params": own}

    def add(self, total: Any, grads: Any, slots: jax.Array) -> Any:
        """See `Tuning`."""
        return jax.tree.map(lambda whole, part: whole + part, total, jax.tree.map(lambda leaf: leaf[None], grads))

    def result(self, tree: Any) -> Any:
        """Returns the parameters."""
        return tree


@dataclasses.dataclass(frozen=True)
class HeadTuning:
    """Trains heads of one kind on an encoder that stays as it is, dropout off; fit n has the n-th head of the model.

    Attributes:
      kind: of all heads of the model that is fitted.
      count: how many heads there are.
    """

    kind: str
    count: int

    @property
    def most_fits(self) -> int:
        """See `Tuning`."""
        return self.count

    @property
    def cost(self) -> Cost:
        """See `Tuning`."""
        return flops.forward

    def objective(self, module: nn.Module) -> Objective:
        """See `Tuning`."""
        return HeadsLoss()

    def start(self, module: nn.Module, params: Any, key: jax.Array) -> Any:
        """See `Tuning`: kernels as new heads have them, biases 0."""
        leaves = {}
        for path, boxed in flat(abstract_params(module)["heads"][self.kind]).items():
            shape, own = boxed.value.shape[1:], path_key(key, path)
            leaves[path] = INIT(own, shape) if path.endswith("kernel") else jnp.zeros(shape)
        return nested(leaves)

    def stacked(self, module: nn.Module, tree: Any) -> Any:
        """See `Tuning`."""
        return jax.tree.map(lambda leaf: False, tree)

    def own(self, tree: Any, slots: jax.Array) -> Any:
        """See `Tuning`; the model itself takes each row's head."""
        return tree

    def variables(self, params: Any, own: Any, keys: jax.Array | None) -> Mapping[str, Any]:
        """See `Tuning`."""
        return {"params": {**params, "heads": {self.kind: own}}}

    def add(self, total: Any, grads: Any, slots: jax.Array) -> Any:
        """See `Tuning`."""
        return jax.tree.map(jnp.add, total, grads)

    def result(self, tree: Any) -> Any:
        """Returns the head's leaves, without the axis of heads."""
        return tree
