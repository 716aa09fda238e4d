"""Where arrays live: the device mesh, the rules from logical axes to mesh axes, and shardings for whole trees.

Models only name their axes ("embed", "heads", ...). A run chooses the mesh; the rules below say which logical axis is
split over which mesh axis: `data` and `fsdp` split the batch, `fsdp` also splits parameters along the embedding, and
`tensor` splits heads, feed-forward and vocabulary.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.linen.spmd import logical_to_mesh_sharding
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxmtl.types import InputError

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

RULES: Rules = (
    ("batch", ("data", "fsdp")),
    ("tasks", ("data", "fsdp")),
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("embed", "fsdp"),
    ("layers", None),
    ("length", None),
    ("relative_buckets", None),
    ("positions", None),
    ("token_embed", None),
    ("head_stack", None),
    ("labels", None),
    ("slots", None),
    ("hyper_hidden", None),
    ("generated", "fsdp"),
)


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices in the axes `data`, `fsdp` and `tensor`.

    Args:
      data: copies of the model that see different rows; -1 takes what the other axes leave.
      fsdp: devices that share one copy's parameters and see different rows.
      tensor: devices that share each layer's heads, feed-forward and vocabulary.
      devices: devices to use; all by default, or the first ones if the product is smaller.

    Returns:
      The mesh.

    Raises:
      InputError: if the axes need more devices than there are or, with data = -1, do not divide their number, or a
        process would have no device.
    """
    devices = jax.devices() if devices is None else devices
    if data == -1:
        data, rest = divmod(len(devices), fsdp * tensor)
        if rest or not data:
            raise InputError(
                f"mesh fsdp={fsdp} tensor={tensor} does not divide the {len(devices)} devices; choose divisors of it"
            )
    count = math.prod((data, fsdp, tensor))
    if count > len(devices) or min(data, fsdp, tensor) < 1:
        raise InputError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} needs {count} devices, each axis at least 1; "
            f"there are {len(devices)}"
        )
    processes = lambda devices: {device.process_index for device in devices}
    idle = sorted(processes(devices) - processes(devices[:count]))
    if idle:
        raise InputError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} takes {count} of {len(devices)} devices and none of process "
            f"{idle[0]}; take all of them, as data=-1 does, or start fewer processes"
        )
    axis_types = (AxisType.Auto,) * 3
    return jax.make_mesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types, devices=devices[:count])


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Makes the models' logical constraints on activations real while a function is traced.

    Args:
      mesh: the mesh to split over.
      rules: logical axis to mesh axis, first match wins.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def _fit(spec: PartitionSpec, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Drops mesh axes from dimensions that they do not divide, such as 6 heads' biases over 4 devices."""

    def one(size: int, axes: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        names = (axes,) if isinstance(axes, str) else (axes or ())
        return axes if size % math.prod(mesh.shape[name] for name in names) == 0 else None

    padded = tuple(spec) + (None,) * (len(shape) - len(spec))
    return PartitionSpec(*(one(size, axes) for size, axes in zip(shape, padded, strict=True)))


def shardings_for(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Builds the shardings of a tree whose leaves carry logical axes.

    Args:
      tree: what `module.init` or `jax.eval_shape` of it returned, leaves still boxed with their axis names; leaves
        without names are kept whole on every device.
      mesh: the mesh to split over.
      rules: logical axis to mesh axis.

    Returns:
      The unboxed tree with a NamedSharding for each leaf.
    """
    specs = nn.get_partition_spec(tree)
    shardings = logical_to_mesh_sharding(specs, mesh, list(rules))
    fit = lambda leaf, sharding: NamedSharding(mesh, _fit(sharding.spec, leaf.shape, mesh))
    return jax.tree.map(fit, nn.unbox(tree), shardings)


def shardings_on(boxed: Any, mesh: Mesh | None) -> Any:
    """Returns a sharding per leaf: the mesh's, or the default device's.

    Args:
      boxed: parameter tree of shapes boxed with their logical axes.
      mesh: the devices; the default device if None.
    """
    if mesh is not None:
        return shardings_for(boxed, mesh)
    return jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), nn.unbox(boxed))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batch fields: rows over `data` and `fsdp`, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Finds out which rows of each batch this process feeds; processes that a tensor axis spans feed the same ones.

    Args:
      mesh: the mesh.

    Returns:
      Which share it is, and the number of shares; a share's rows are those of its devices, in the mesh's order.

    Raises:
      InputError: if processes would feed shares of different sizes, or share some of their rows.
    """
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"])
    held: dict[int, list[int]] = {}
    for row, devices in enumerate(rows):
        for process in sorted({device.process_index for device in devices}):
            held.setdefault(process, []).append(row)
    shares = sorted({tuple(part) for part in held.values()})
    mine = tuple(held.get(jax.process_index(), ()))
    is_partition = sorted(row for share in shares for row in share) == list(range(len(rows)))
    if mine not in shares or not is_partition or len({len(share) for share in shares}) > 1:
        axes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
        raise InputError(
            f"mesh {axes}: processes cannot share a batch evenly, by process they would hold the parts {held}; choose "
            "data times fsdp as a multiple of the processes, or tensor as a multiple of one process's devices"
        )
    return shares.index(mine), len(shares)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
