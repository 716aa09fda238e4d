"""What instructions do to a model, as arrays: computed once for each instruction, given to the rows that have it.

Letters in shapes: U instructions, I instruction length, B rows, L layers, D embed, H heads, K head width.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.adapters import rows
from jaxmtl.adapters.lora import scaled
from jaxmtl.models.instruction import FUSION, MEMORY
from jaxmtl.models.low_rank import COLLECTION as LORA
from jaxmtl.types import InputError


@flax.struct.dataclass
class Adaptation:
    """All that U instructions do to a model: computed once for each, kept as long as it is used.

    Attributes:
      generated: trees by collection; leaves [U, L, rows, width], without L where layers are not stacked. Low-rank
        updates are without their scale.
      fusion: what encoder layers look at, see `InstructionFusion`; None if they do not look.
      memory: `key` and `value` [L, U, I, H, K], what each cross-attention sees of the instructions; None if nothing.
      mask: bool [U, I], True on the instructions' real tokens.
      scale: the factor on low-rank products.
    """

    generated: dict[str, Any]
    fusion: dict[str, Any] | None
    memory: dict[str, Any] | None
    mask: jax.Array
    scale: float = flax.struct.field(pytree_node=False, default=1.0)

    def with_memory(self, memory: dict[str, Any]) -> "Adaptation":
        """Returns the same with another memory."""
        return Adaptation(generated=self.generated, fusion=self.fusion, memory=memory, mask=self.mask, scale=self.scale)

    def without_updates(self) -> "Adaptation":
        """Returns the same without low-rank updates: what is left where they are merged into the kernels."""
        others = {name: tree for name, tree in self.generated.items() if name != LORA}
        return dataclasses.replace(self, generated=others)

    def collections(self, index: jax.Array) -> dict[str, Any]:
        """Gives each row what its instruction became.

        Args:
          index: int32 [B], the instruction of each row.

        Returns:
          The collections that a model reads beside its parameters.
        """
        taken = rows.collection(rows.take(self.generated, index))
        return self.collections_with(taken, index)

    def collections_with(self, taken: dict[str, Any], index: jax.Array) -> dict[str, Any]:
        """Completes what was generated for rows to what `collections` gives.

        Args:
          taken: trees by collection, leaves [L, B, ...], or [L, ...] where all rows share them.
          index: int32 [B], the instruction of each row.

        Returns:
          The collections that a model reads beside its parameters.
        """
        trees = dict(taken)
        if LORA in trees:
            trees[LORA] = scaled(trees[LORA], self.scale)
        if self.fusion is not None:
            trees[FUSION] = {"encoder": _indexed(self.fusion, index)}
        if self.memory is not None:
            of_layers = {"cross_attention": _indexed(self.memory, index)}
            trees[MEMORY] = {"mask": self.mask, "index": index, "decoder": of_layers}
        return trees


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instructed:
    """Requests and their instructions.

    Attributes:
      adaptation: of U instructions.
      index: int32 [n], the instruction of each request.
    """

    adaptation: Adaptation
    index: np.ndarray


def together(adaptations: Sequence[Adaptation]) -> Adaptation:
    """Puts instructions that were read apart side by side, so that their rows can share batches.

    Args:
      adaptations: of one hypernetwork; at least one.

    Returns:
      One adaptation; instruction u of adaptation n comes behind all of those before n.

    Raises:
      InputError: if there is none.
    """
    if not adaptations:
        raise InputError("no instruction to put together; expected at least one")
    length = max(one.mask.shape[1] for one in adaptations)
    wide = [_padded(one, length) for one in adaptations]
    join = lambda axis: lambda *leaves: jnp.concatenate(leaves, axis=axis)
    fusion, memory = wide[0].fusion, None
    if fusion is not None:
        fused = lambda name: join(1)(*(one.fusion[name] for one in wide if one.fusion))
        fusion = fusion | {name: fused(name) for name in _OF_INSTRUCTIONS}
    if wide[0].memory is not None:
        memory = jax.tree.map(join(1), *(one.memory for one in wide))
    return Adaptation(
        generated=jax.tree.map(join(0), *(one.generated for one in wide)),
        fusion=fusion,
        memory=memory,
        mask=join(0)(*(one.mask for one in wide)),
        scale=wide[0].scale,
    )


_OF_INSTRUCTIONS = ("key", "value", "mask")
"""Leaves of the fusion that are made of instructions; the others are parameters."""


def _indexed(leaves: dict[str, Any], index: jax.Array) -> dict[str, Any]:
    """Adds the instruction of each row, the same in all layers, to what layers read."""
    num_layers = leaves["key"].shape[0]
    return leaves | {"index": jnp.broadcast_to(index, (num_layers, *index.shape))}


def _padded(one: Adaptation, length: int) -> Adaptation:
    """Pads the instructions of an adaptation to a length."""
    missing = length - one.mask.shape[1]
    pad = lambda leaf, axis: jnp.pad(leaf, [(0, missing if at == axis else 0) for at in range(leaf.ndim)])
    fusion = one.fusion
    if fusion is not None:
        fusion = fusion | {name: pad(fusion[name], 2) for name in _OF_INSTRUCTIONS}
    memory = None if one.memory is None else jax.tree.map(lambda leaf: pad(leaf, 2), one.memory)
    return Adaptation(generated=one.generated, fusion=fusion, memory=memory, mask=pad(one.mask, 1), scale=one.scale)
