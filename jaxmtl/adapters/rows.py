"""Many adapters in one batch: stacked along a first axis, and given to the rows that use them.

Letters in shapes: N adapters, B rows, L layers (only where layers are stacked), R rank.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmtl.adapters.lora import path_key
from jaxmtl.models.low_rank import COLLECTION
from jaxmtl.models.trees import flat, nested

_STACKED = 3  # axes of a factor of layers that are stacked


def stack(trees: Sequence[Any]) -> Any:
    """Stacks equal trees of adapters: leaves get a first axis N."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any, count: int) -> list[Any]:
    """Returns the first trees of a stack.

    Args:
      tree: leaves [N, ...].
      count: how many.
    """
    return [jax.tree.map(lambda leaf, row=row: leaf[row], tree) for row in range(count)]


def take(tree: Any, index: jax.Array) -> Any:
    """Gives each row its adapter.

    Args:
      tree: leaves [N, L, in, R] and so on.
      index: int32 [B], the adapter of each row.

    Returns:
      Leaves [B, L, in, R] and so on.
    """
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0), tree)


def collection(tree: Any) -> Any:
    """Turns leaves [B, L, in, R] into [L, B, in, R], the form in which stacked layers read them."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1) if leaf.ndim > _STACKED else leaf, tree)


def with_dropout(tree: Any, keys: jax.Array, rate: float) -> Any:
    """Adds to a tree what a model needs to drop values before `a`.

    Args:
      tree: leaves [L, B, in, R], what `collection` gave.
      keys: random keys [B], one for each row.
      rate: share of values dropped.

    Returns:
      The tree, with `keys` uint32 [L, B, 2] and `drop_rate` float32 [L] in every layer; each layer draws its own.
    """
    leaves = flat(tree)
    for path in [path.removesuffix("/a") for path in leaves if path.endswith("/a")]:
        own = _of_path(keys, path)
        factor = leaves[f"{path}/a"]
        layers = factor.shape[:1] if factor.ndim > _STACKED else ()
        if layers:
            own = _of_layers(own, *layers)
        leaves |= {f"{path}/keys": jax.random.key_data(own), f"{path}/drop_rate": jnp.full(layers, rate, jnp.float32)}
    return nested(leaves)


def _of_path(keys: jax.Array, path: str) -> jax.Array:
    return jax.vmap(lambda key: path_key(key, path))(keys)


def _of_layers(keys: jax.Array, num_layers: int) -> jax.Array:
    """Draws keys [L, B] from keys [B]."""
    of_layer = lambda layer: jax.vmap(jax.random.fold_in, (0, None))(keys, layer)
    return jax.vmap(of_layer)(jnp.arange(num_layers))


def variables(params: Any, adapters: Any | None) -> dict[str, Any]:
    """Returns what a module is applied to: parameters, and adapters if there are any."""
    return {"params": params} if adapters is None else {"params": params, COLLECTION: adapters}
