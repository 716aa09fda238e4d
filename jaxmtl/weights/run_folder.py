"""Reads the parameters of a run folder: `model/` tells what they are, `checkpoints/STEP/params` holds them."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxmtl.types import InputError

MODEL = "model"
CHECKPOINTS = "checkpoints"


def is_run(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a run folder."""
    return (folder / CHECKPOINTS).is_dir()


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of all complete checkpoints of a run folder, ascending."""
    return sorted(int(path.name) for path in (folder / CHECKPOINTS).iterdir() if path.name.isdigit())


def read_params(folder: pathlib.Path, shapes: Any, shardings: Any, dtype: str) -> Any:
    """Reads the best checkpoint's parameters (the latest's if none is marked) straight to their devices.

    Args:
      folder: the run folder.
      shapes: the parameter tree with shapes as leaves.
      shardings: the same tree with shardings.
      dtype: dtype wanted.

    Returns:
      The parameter tree.

    Raises:
      InputError: if there is no complete checkpoint, or its sizes are not `shapes`.
    """
    found = steps(folder)
    if not found:
        raise InputError(f"{folder}: holds no complete checkpoint; train first")
    path = (folder / CHECKPOINTS / str(found[-1]) / "params").absolute()
    wanted = jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, jnp.dtype(dtype), sharding=to), shapes, shardings)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, wanted)
