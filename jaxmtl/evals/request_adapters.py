"""Which request is answered with which adapter: requests of many adapters, so of many tasks, share a batch.

Letters in shapes: N adapters, B rows, L layers (only where layers are stacked), R rank.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmtl.adapters import rows as adapter_rows
from jaxmtl.adapters.adaptation import Adaptation, Instructed
from jaxmtl.adapters.lora import Adapter, changed, check_adapter, scaled
from jaxmtl.evals import requests
from jaxmtl.evals.merging import Merged, worth_merging
from jaxmtl.models.low_rank import COLLECTION
from jaxmtl.models.trees import flat, nested
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestAdapters:
    """Adapters on the devices, and the one that each request is answered with.

    Attributes:
      tree: leaves [N, L, in, R] and [N, L, R, out], the scale part of the latter; without N where one serves all.
      index: int32 [n], the adapter of each request; None where one serves all.
      num_requests: n.
      mesh: devices that the tree is copied to; None for the default device.
      merged: parameters that the one that serves all is merged into.
    """

    tree: Any
    index: np.ndarray | None
    num_requests: int
    mesh: Mesh | None
    merged: Merged = dataclasses.field(default_factory=Merged)

    def collections(self, rows: np.ndarray, num_rows: int) -> dict[str, Any]:
        """Gives a batch the collections that a model reads beside its parameters; arguments as in `of_rows`."""
        return {COLLECTION: self.of_rows(rows, num_rows)}

    def of_rows(self, rows: np.ndarray, num_rows: int) -> Any:
        """Gives a batch its adapters.

        Args:
          rows: which requests the batch holds, at least one.
          num_rows: rows B of the batch; those behind the requests repeat the first, as in `requests.pad`.

        Returns:
          The collection that a model reads: leaves [L, B, in, R] and [L, B, R, out]; without B where one serves all.
        """
        if self.index is None:
            return self.tree
        return _gathered(self.tree, requests.place(_of_batch(self.index, rows, num_rows), self.mesh))

    @property
    def serves_all(self) -> bool:
        """Whether all requests use one adapter."""
        return self.index is None

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the layers that are changed."""
        return changed(self.tree)

    def updates(self) -> Any:
        """Returns the low-rank updates as a model reads them; for one adapter that serves all."""
        return self.tree

    def beside_updates(self, num_rows: int) -> dict[str, Any]:
        """Returns what an adapter does besides: nothing; arguments as in `RequestInstructions.beside_updates`."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestInstructions:
    """Instructions that were read, on the devices, and the one that each request follows.

    Attributes:
      adaptation: of U instructions.
      index: int32 [n], the instruction of each request.
      mesh: devices that it is copied to; None for the default device.
      merged: parameters that the updates of the one that all requests follow are merged into.
    """

    adaptation: Adaptation
    index: np.ndarray
    mesh: Mesh | None
    merged: Merged = dataclasses.field(default_factory=Merged)

    @property
    def num_requests(self) -> int:
        """Returns n."""
        return len(self.index)

    def collections(self, rows: np.ndarray, num_rows: int) -> dict[str, Any]:
        """Gives a batch the collections that a model reads; one instruction serves all rows without being repeated.

        Args:
          rows: which requests the batch holds, at least one.
          num_rows: rows B of the batch; those behind the requests repeat the first, as in `requests.pad`.

        Returns:
          The collections.
        """
        index = requests.place(_of_batch(self.index, rows, num_rows), self.mesh)
        generated = self.adaptation.generated
        is_one = self.adaptation.mask.shape[0] == 1
        taken = _of_one(generated, 0) if is_one else _gathered(generated, index)
        return self.adaptation.collections_with(taken, index)

    @property
    def serves_all(self) -> bool:
        """Whether all requests follow one instruction."""
        return bool(np.all(self.index == self.index[:1]))

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the layers that have low-rank updates; empty if none has."""
        return changed(self.adaptation.generated.get(COLLECTION, {}))

    def updates(self) -> Any:
        """Returns the low-rank updates as a model reads them; for one instruction that all requests follow."""
        return scaled(_of_one(self.adaptation.generated[COLLECTION], int(self.index[0])), self.adaptation.scale)

    def beside_updates(self, num_rows: int) -> dict[str, Any]:
        """Gives a batch all that this instruction does but its low-rank updates, once for all rows.

        Args:
          num_rows: rows B of the batch.

        Returns:
          The collections that a model reads.
        """
        others, number = self.adaptation.without_updates(), int(self.index[0])
        index = requests.place(np.full(num_rows, number, np.int32), self.mesh)
        return others.collections_with(_of_one(others.generated, number), index)


Requested = RequestAdapters | RequestInstructions
"""What changes the model for each request."""


def request_adapters(
    pretrained: Pretrained, adapter: Adapter | Sequence[Adapter] | Instructed | None, num_requests: int
) -> Requested | None:
    """Puts adapters on the devices of a model.

    Args:
      pretrained: the model.
      adapter: one for all requests, or [n] one for each; an object that comes more than once is kept once. They may
        differ in rank and in the layers that they change. Or all that instructions do, from a hypernetwork.
      num_requests: n.

    Returns:
      The adapters; None if there are none.

    Raises:
      InputError: if there are not as many as requests, or one of them does not fit the model.
      UnknownNameError: if one names a layer that the model does not have.
    """
    if adapter is None:
        return None
    if isinstance(adapter, Instructed):
        return _instructed(pretrained, adapter, num_requests)
    listed = [adapter] if isinstance(adapter, Adapter) else list(adapter)
    if not isinstance(adapter, Adapter) and len(listed) != num_requests:
        raise InputError(f"{len(listed)} adapters for {num_requests} inputs; expected one for all, or one for each")
    slots = {id(one): one for one in listed}
    for one in slots.values():
        check_adapter(one, pretrained.module)
    if not slots:
        return None
    mesh = requests.mesh_of(pretrained.params)
    trees = [one.collection() for one in slots.values()]
    if len(trees) == 1:
        return RequestAdapters(tree=_placed(trees[0], mesh), index=None, num_requests=num_requests, mesh=mesh)
    place = {key: slot for slot, key in enumerate(slots)}
    index = np.array([place[id(one)] for one in listed], np.int32)
    return RequestAdapters(tree=_placed(_stacked(trees), mesh), index=index, num_requests=num_requests, mesh=mesh)


def batch_variables(
    pretrained: Pretrained, adapters: Requested | None, rows: np.ndarray, num_rows: int
) -> dict[str, Any]:
    """Returns what the module is applied to for a batch: the parameters, and the adapters of its rows.

    Where all requests use one adapter, its low-rank updates are merged into the parameters if that pays:
    `worth_merging`. Batches of one adapter among those of others are left alone: merged and unmerged batches need
    programs of their own, and few of them do not make up for compiling both.

    Args:
      pretrained: the model.
      adapters: of all requests; None for none.
      rows: which requests the batch holds.
      num_rows: rows B of the batch.
    """
    if adapters is None:
        return {"params": pretrained.params}
    if not (adapters.serves_all and worth_merging(pretrained, adapters.paths, adapters.num_requests)):
        return {"params": pretrained.params} | adapters.collections(rows, num_rows)
    params = adapters.merged.params(pretrained.params, adapters.updates)
    return {"params": params} | adapters.beside_updates(num_rows)


def check_count(adapters: Requested | None, num_requests: int) -> None:
    """Refuses adapters of other requests.

    Args:
      adapters: of all requests; None for none.
      num_requests: how many there are.

    Raises:
      InputError: if there are adapters for another number of requests.
    """
    if adapters is not None and adapters.index is not None and len(adapters.index) != num_requests:
        raise InputError(f"adapters of {len(adapters.index)} requests for {num_requests} inputs; expected as many")


def _instructed(pretrained: Pretrained, instructed: Instructed, num_requests: int) -> RequestInstructions:
    if len(instructed.index) != num_requests:
        raise InputError(f"{len(instructed.index)} instructions for {num_requests} inputs; expected one for each")
    mesh = requests.mesh_of(pretrained.params)
    adaptation = _placed(instructed.adaptation, mesh)
    return RequestInstructions(adaptation=adaptation, index=instructed.index, mesh=mesh)


def _of_batch(index: np.ndarray, rows: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns int32 [B], what the rows of a batch use of what requests use, [n]."""
    of_batch = np.full(num_rows, index[rows[0]], np.int32)
    of_batch[: len(rows)] = index[rows]
    return of_batch


@jax.jit
def _of_one(tree: Any, number: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[number], tree)


@jax.jit
def _gathered(tree: Any, index: jax.Array) -> Any:
    return adapter_rows.collection(adapter_rows.take(tree, index))


def _stacked(trees: Sequence[Any]) -> Any:
    """Stacks trees to leaves [N, ...], zero where one has a smaller rank or no such layer; N is one of few values."""
    all_leaves = [flat(tree) for tree in trees]
    stacks = {}
    for path in sorted(set().union(*all_leaves)):
        own = {slot: np.asarray(leaves[path]) for slot, leaves in enumerate(all_leaves) if path in leaves}
        stack = np.zeros((requests.bucket(len(trees)), *_largest(leaf.shape for leaf in own.values())), np.float32)
        for slot, leaf in own.items():
            stack[slot][tuple(map(slice, leaf.shape))] = leaf
        stacks[path] = stack
    return nested(stacks)


def _largest(shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _placed(tree: Any, mesh: Mesh | None) -> Any:
    """Puts a tree on the default device, or whole on every device of a mesh."""
    return jax.device_put(tree) if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
