"""Which linear layers an adapter changes: presets and regular expressions over the paths of a model's kernels."""

import dataclasses
import functools
import re
from collections.abc import Sequence

import flax.linen as nn

from jaxmtl.models.initial import abstract_params
from jaxmtl.models.trees import flat, parent
from jaxmtl.types import InputError, unknown_name

PRESETS = {
    "q,v": r".*/(query|value)",
    "q,k,v,o": r".*/(query|key|value|out)",
    "all": r".*",
}
"""Regular expressions by name; "all" is every linear layer but those that give the output."""

_OUTPUTS = ("lm_head", "heads")
_LAYERS = "layers"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The sizes of a linear layer.

    Attributes:
      inputs: width of what it reads.
      outputs: width of what it gives.
      num_layers: copies of it along the first axis; 0 if it is not stacked.
    """

    inputs: int
    outputs: int
    num_layers: int

    def shape(self, *sizes: int) -> tuple[int, ...]:
        """Returns sizes, behind the number of layers if it is stacked."""
        return (self.num_layers, *sizes) if self.num_layers else sizes


def kernels(module: nn.Module) -> dict[str, Kernel]:
    """Lists the linear layers of a model that an adapter can change.

    Args:
      module: the model.

    Returns:
      Path of each, such as "encoder/attention/query", and its sizes; layers that give the output are left out.
    """
    return dict(_kernels(module))


@functools.lru_cache(maxsize=8)
def _kernels(module: nn.Module) -> dict[str, Kernel]:
    """Reads the shapes once: tracing a model takes a tenth of a second, and adapters come by the hundred."""
    found = {}
    for path, boxed in flat(abstract_params(module)).items():
        if not path.endswith("/kernel") or path.partition("/")[0] in _OUTPUTS:
            continue
        is_stacked = boxed.names[0] == _LAYERS
        shape = boxed.value.shape
        found[parent(path)] = Kernel(shape[-2], shape[-1], shape[0] if is_stacked else 0)
    return found


def matching(module: nn.Module, targets: str | Sequence[str]) -> dict[str, Kernel]:
    """Finds the linear layers that are meant.

    Args:
      module: the model.
      targets: a preset, a regular expression that must match the whole path of a layer, or several of these.

    Returns:
      Path of each layer that is meant, sorted, and its sizes.

    Raises:
      InputError: if a pattern is no regular expression.
      UnknownNameError: if one of them matches no layer; names the closest ones.
    """
    known = kernels(module)
    chosen: set[str] = set()
    for target in [targets] if isinstance(targets, str) else list(targets):
        members = {path for path in known if _pattern(target).fullmatch(path)}
        if not members:
            raise unknown_name("target of adapters", target, {*PRESETS, *known})
        chosen |= members
    if not chosen:
        raise InputError(f"no target for adapters; expected one of {', '.join(PRESETS)} or a pattern")
    return {path: known[path] for path in sorted(chosen)}


def _pattern(target: str) -> re.Pattern:
    try:
        return re.compile(PRESETS.get(target, target))
    except re.error as error:
        raise InputError(f"target of adapters {target!r} is no regular expression ({error})") from error
