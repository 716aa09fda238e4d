"""Where generated numbers go: which leaves of which layers, and which slot and network each comes from.

Letters in shapes: L layers, R rank, P prefix length, D embed, H heads, K head width.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn

from jaxmtl.adapters.hyper_config import BottleneckOutput, GeneratorConfig, Output, PrefixOutput
from jaxmtl.adapters.lora import LoRA
from jaxmtl.adapters.targets import Kernel, kernels, matching
from jaxmtl.models import bottleneck, low_rank, prefix
from jaxmtl.models.trees import parent
from jaxmtl.types import InputError, unknown_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """One kind of generated array: in each layer a matrix [rows, width], stored as it is or turned.

    Attributes:
      collection: where the model reads it.
      path: of the layer or sub-layer that reads it.
      name: what it is called there.
      rows: vectors of which the matrix consists.
      width: length of each.
      num_layers: copies along the layers; 0 if they are not stacked.
      is_turned: True if it is stored as [width, rows].
      is_update: True if the model is unchanged while it is 0.
    """

    collection: str
    path: str
    name: str
    rows: int
    width: int
    num_layers: int
    is_turned: bool = False
    is_update: bool = False

    @property
    def layers(self) -> int:
        """L, 1 if layers are not stacked."""
        return max(1, self.num_layers)

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix as it is stored."""
        return (self.width, self.rows) if self.is_turned else (self.rows, self.width)

    @property
    def kind(self) -> str:
        """The sub-layer that it belongs to, such as "encoder/attention"."""
        return parent(self.path) if self.collection == low_rank.COLLECTION else self.path

    @property
    def component(self) -> str:
        """What it changes, the same in all sub-layers: a projection's name, "attention" or "mlp"."""
        return self.path.rpartition("/")[2].rpartition("_")[2]

    @property
    def full_name(self) -> str:
        """Its path in the collection."""
        return f"{self.path}/{self.name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slots:
    """Slots that lie side by side, layer after layer.

    Attributes:
      start: the first one's number.
      num_layers: L.
      per_layer: slots of each layer.
      place: number of the slots' layer among those of its kind, for projections of one layer.
      siblings: number of projections in a layer of that kind.
    """

    start: int
    num_layers: int
    per_layer: int
    place: int
    siblings: int

    @property
    def stop(self) -> int:
        """The number behind the last one's."""
        return self.start + self.num_layers * self.per_layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """All that is generated for a model.

    Attributes:
      leaves: what is generated.
      slots: where each leaf's vectors come from; leaves of one layer share slots that emit whole matrices.
      groups: networks by name, and the leaves of each, as numbers.
    """

    leaves: tuple[Leaf, ...]
    slots: tuple[Slots, ...]
    groups: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def num_slots(self) -> int:
        """Slots in all."""
        return max((slots.stop for slots in self.slots), default=0)


def layout_of(module: nn.Module, outputs: Sequence[Output], generator: GeneratorConfig) -> Layout:
    """Lays out what is generated for a model.

    Args:
      module: the model.
      outputs: what is generated.
      generator: how.

    Returns:
      The layout.

    Raises:
      InputError: if a pattern of targets is no regular expression.
      UnknownNameError: if it matches no layer.
    """
    leaves = tuple(leaf for output in outputs for leaf in _leaves(module, output))
    return Layout(leaves=leaves, slots=tuple(_slots(leaves, generator.emits)), groups=tuple(_groups(leaves, generator)))


def _leaves(module: nn.Module, output: Output) -> Iterator[Leaf]:
    if isinstance(output, LoRA):
        yield from _of_lora(matching(module, output.targets), output.rank)
    elif isinstance(output, PrefixOutput):
        for path, kernel in _parents(module, "key", output.targets, "prefix").items():
            sizes: dict[str, Any] = dict(collection=prefix.COLLECTION, path=path, num_layers=kernel.num_layers)
            for name in ("key", "value"):
                yield Leaf(name=name, rows=output.length, width=kernel.outputs, **sizes)
    else:
        for path, kernel in _parents(module, "wo", output.targets, "bottleneck adapter").items():
            yield from _of_bottleneck(path, kernel, output)


def _of_lora(targets: dict[str, Kernel], rank: int) -> Iterator[Leaf]:
    for path, kernel in targets.items():
        sizes: dict[str, Any] = dict(collection=low_rank.COLLECTION, path=path, rows=rank, num_layers=kernel.num_layers)
        yield Leaf(name="a", width=kernel.inputs, is_turned=True, **sizes)
        yield Leaf(name="b", width=kernel.outputs, is_update=True, **sizes)


def _of_bottleneck(path: str, kernel: Kernel, output: BottleneckOutput) -> Iterator[Leaf]:
    sizes: dict[str, Any] = dict(collection=bottleneck.COLLECTION, path=path, num_layers=kernel.num_layers)
    embed = kernel.outputs
    yield Leaf(name="down", rows=output.width, width=embed, is_turned=True, **sizes)
    yield Leaf(name="up", rows=output.width, width=embed, is_update=True, **sizes)
    yield Leaf(name="down_bias", rows=1, width=output.width, **sizes)
    yield Leaf(name="up_bias", rows=1, width=embed, is_update=True, **sizes)


def _parents(module: nn.Module, child: str, targets: str, what: str) -> dict[str, Kernel]:
    """Finds the sub-layers that have a linear layer of a name, and that layer's sizes."""
    known = {parent(path): kernel for path, kernel in kernels(module).items() if path.endswith(f"/{child}")}
    try:
        chosen = {path: kernel for path, kernel in known.items() if re.fullmatch(targets, path)}
    except re.error as error:
        raise InputError(f"target of a {what} {targets!r} is no regular expression ({error})") from error
    if not chosen:
        raise unknown_name(f"target of a {what}", targets, known)
    return chosen


def _slots(leaves: Iterable[Leaf], emits: str) -> Iterator[Slots]:
    """Numbers the slots in the order of their layers."""
    leaves = list(leaves)
    kinds: dict[str, list[str]] = {}
    for leaf in leaves:
        paths = kinds.setdefault(leaf.kind, [])
        paths += [] if leaf.path in paths else [leaf.path]
    known: dict[tuple[str, ...], Slots] = {}
    stop = 0
    for leaf in leaves:
        key = (leaf.collection, leaf.path) + ((leaf.name,) if emits == "rows" else ())
        if key not in known:
            siblings = kinds[leaf.kind]
            known[key] = Slots(
                start=stop,
                num_layers=leaf.layers,
                per_layer=leaf.rows if emits == "rows" else 1,
                place=siblings.index(leaf.path),
                siblings=len(siblings),
            )
            stop = known[key].stop
        yield known[key]


def _groups(leaves: Sequence[Leaf], generator: GeneratorConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Gives leaves that share a network, and so a width of what it emits, the same name."""
    by_kind = generator.sharing in ("kind", "layer")
    groups: dict[tuple[str, int, int], list[int]] = {}
    for number, leaf in enumerate(leaves):
        kind = leaf.kind if by_kind else leaf.component
        emitted = leaf.width * (leaf.rows if generator.emits == "matrices" else 1)
        name = "_".join((leaf.collection, *kind.split("/"), leaf.name))
        layers = leaf.layers if by_kind else 0
        groups.setdefault((name, emitted, layers), []).append(number)
    names = [name for name, _, _ in groups]
    for (name, emitted, _), members in groups.items():
        yield name if names.count(name) == 1 else f"{name}_{emitted}", tuple(members)
