"""From the states of instructions to the leaves of their adapters.

Letters in shapes: U instructions, I instruction length, L layers, N slots, E width of what was pooled, G copies of a
network, M slots of each copy.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.adapters.generators import Generator
from jaxmtl.adapters.hyper_config import (
    AttentionPooling,
    DecoderPooling,
    HyperConfig,
    MeanPooling,
    TagiCodePooling,
)
from jaxmtl.adapters.pooling import CrossAttention, PoolingDecoder, TagiCodePool, masked_mean
from jaxmtl.adapters.slots import Layout, Leaf, Slots
from jaxmtl.models.layers import normal, parameter
from jaxmtl.models.trees import nested


class Hypernetwork(nn.Module):
    """From the states of instructions to the leaves of their adapters.

    Attributes:
      config: what it is made of.
      layout: what is generated.
      num_heads: heads of pooling.
      head_dim: their width.
    """

    config: HyperConfig
    layout: Layout
    num_heads: int
    head_dim: int

    @nn.compact
    def __call__(self, states: jax.Array, first: jax.Array | None, mask: jax.Array, *, train: bool) -> dict[str, Any]:
        """Generates.

        Args:
          states: [U, I, E], an encoder's last states.
          first: [U, I, E], those of its first layer; only for `TagiCodePooling`.
          mask: bool [U, I], True on real tokens.
          train: applies dropout (needs the rng "dropout").

        Returns:
          Trees by collection, leaves float32 [U, L, ...].
        """
        table = self._table(states.shape[-1])
        pooled = self._pooled(table, states, first, mask)
        leaves: dict[str, dict[str, jax.Array]] = {}
        for name, members in self.layout.groups:
            for number, made in zip(members, self._made(name, members, pooled, table, train=train), strict=True):
                leaf = self.layout.leaves[number]
                leaves.setdefault(leaf.collection, {})[leaf.full_name] = made
        return {collection: nested(of_collection) for collection, of_collection in leaves.items()}

    def _table(self, width: int) -> jax.Array | None:
        """Returns the slots' vectors [N, E]; None if nothing reads them."""
        pools_slots = isinstance(self.config.pooling, AttentionPooling | DecoderPooling)
        if not pools_slots and self.config.identity != "add":
            return None
        stddev = width**-0.5 if self.config.slot_stddev is None else self.config.slot_stddev
        return parameter(self, "slots", normal(stddev), ("slots", "embed"), (self.layout.num_slots, width))

    def _pooled(self, table: Any, states: jax.Array, first: Any, mask: jax.Array) -> jax.Array:
        """Returns [U, N, E], or [U, 1, E] if slots share what was pooled."""
        sizes = (self.num_heads, self.head_dim, states.shape[-1])
        match self.config.pooling:
            case AttentionPooling():
                return CrossAttention(*sizes, name="pooling")(table, states, mask)
            case DecoderPooling(num_layers=num_layers):
                return PoolingDecoder(num_layers, *sizes, name="pooling")(table, states, mask)
            case MeanPooling():
                return masked_mean(states, mask)[:, None]
            case TagiCodePooling(width=width):
                return TagiCodePool(width, name="pooling")(states, first)[:, None]

    def _made(self, name: str, members: tuple[int, ...], pooled: jax.Array, table: Any, *, train: bool) -> Any:
        """Yields what one network makes of each of its leaves' slots."""
        config, leaves = self.config.generator, [self.layout.leaves[number] for number in members]
        slots = [self.layout.slots[number] for number in members]
        x = _arranged([self._features(pooled, one) for one in slots], config.sharing)
        identity = None
        if self.config.identity == "add":
            identity = _arranged([_of_slots(table[None], one) for one in slots], config.sharing)[0]
        copies = x.shape[1] if config.sharing in ("layer", "trunk") else 0
        whole = config.emits == "matrices"
        network = Generator(
            config,
            leaves[0].width * (leaves[0].rows if whole else 1),
            leaves[0].width,
            0 if config.sharing == "trunk" else copies,
            copies,
            leaves[0].is_update,
            name=name,
        )
        made = network(x, identity, train=train) / _divisor(config.divisor, leaves[0], x.shape[-1])
        for leaf, one, vectors in zip(leaves, slots, _parted(made, slots, config.sharing), strict=True):
            yield _stored(vectors.reshape(vectors.shape[0], one.num_layers, one.per_layer, -1), leaf, is_whole=whole)

    def _features(self, pooled: jax.Array, slots: Slots) -> jax.Array:
        """Returns what is known of slots, [U, L, slots of a layer, E]."""
        x = _of_slots(pooled, slots)
        if self.config.identity != "index":
            return x
        number = slots.siblings * jnp.arange(slots.num_layers) + slots.place
        feature = jnp.broadcast_to(number[None, :, None, None].astype(x.dtype), (*x.shape[:-1], 1))
        return jnp.concatenate([x, feature], axis=-1)


def _of_slots(vectors: jax.Array, slots: Slots) -> jax.Array:
    """Returns [U, L, slots of a layer, E] of vectors [U, N, E], or of one [U, 1, E] that all share."""
    shape = (vectors.shape[0], slots.num_layers, slots.per_layer, vectors.shape[-1])
    if vectors.shape[1] == 1 and slots.stop > 1:
        return jnp.broadcast_to(vectors[:, :, None], shape)
    return vectors[:, slots.start : slots.stop].reshape(shape)


def _arranged(features: list[jax.Array], sharing: str) -> jax.Array:
    """Puts the slots of several leaves side by side: [U, G, M, E], G being what has networks of its own."""
    if sharing == "layer":
        return jnp.concatenate(features, axis=2)
    flattened = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in features]
    together = jnp.concatenate(flattened, axis=1)
    return together[:, :, None] if sharing == "trunk" else together[:, None]


def _parted(made: jax.Array, slots: list[Slots], sharing: str) -> list[jax.Array]:
    """Undoes `_arranged`: what each leaf's slots became, the axes behind U in any shape."""
    if sharing == "layer":
        stops, axis = [one.per_layer for one in slots], 2
    else:
        stops, axis = [one.num_layers * one.per_layer for one in slots], 1 if sharing == "trunk" else 2
    ends = [sum(stops[: number + 1]) for number in range(len(stops) - 1)]
    return jnp.split(made, ends, axis=axis)


def _stored(vectors: jax.Array, leaf: Leaf, *, is_whole: bool) -> jax.Array:
    """Turns [U, L, slots of a layer, W] into a leaf, float32 [U, L, ...]."""
    if is_whole:
        stored = vectors.reshape(*vectors.shape[:2], *leaf.shape)
    else:
        stored = jnp.swapaxes(vectors, -1, -2) if leaf.is_turned else vectors
    stored = stored.astype(jnp.float32)
    return stored if leaf.num_layers else stored[:, 0]


def _divisor(name: str, leaf: Leaf, width: int) -> float:
    """Returns what a network's results are divided by."""
    if name == "input":
        return width**0.5
    return leaf.rows**0.5 if name == "rank" and leaf.name == "b" else 1.0
