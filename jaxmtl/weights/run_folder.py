"""Reads the parameters of a run folder: `model/` tells what they are, `checkpoints/STEP/params` holds them."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxmtl.types import InputError
from jaxmtl.weights.key_table import flat

MODEL = "model"
CHECKPOINTS = "checkpoints"


def is_run(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a run folder."""
    return (folder / CHECKPOINTS).is_dir()


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of all complete checkpoints of a run folder, ascending."""
    return sorted(int(path.name) for path in (folder / CHECKPOINTS).iterdir() if path.name.isdigit())


def best_step(folder: pathlib.Path) -> int:
    """Finds the checkpoint to use: the best one if the newest names it, else the newest.

    Args:
      folder: the run folder.

    Returns:
      Its step.

    Raises:
      InputError: if there is no complete checkpoint, or the newest cannot be read.
    """
    found = steps(folder)
    if not found:
        raise InputError(f"{folder}: holds no complete checkpoint; train first")
    path = folder / CHECKPOINTS / str(found[-1]) / "progress"
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        try:
            best = checkpointer.restore(path.absolute()).get("best_step")
        except Exception as error:
            raise _damaged(path, error) from error
    return best if best in found else found[-1]


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
      InputError: if there is no complete checkpoint, it is damaged, or its sizes are not `shapes`.
    """
    step = best_step(folder)
    path = folder / CHECKPOINTS / str(step) / "params"
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            found = checkpointer.metadata(path.absolute()).item_metadata.tree
        except Exception as error:
            raise _damaged(path, error) from error
        _check(found, shapes, str(path))
        wanted = jax.tree.map(
            lambda s, to: jax.ShapeDtypeStruct(s.shape, jnp.dtype(dtype), sharding=to), shapes, shardings
        )
        try:
            return checkpointer.restore(path.absolute(), wanted)
        except Exception as error:
            raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> InputError:
    """Orbax tells damage by errors of many types."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return InputError(f"{path}: this checkpoint cannot be read ({reason}); remove its folder or choose another run")


def _check(found: Any, shapes: Any, where: str) -> None:
    """Refuses a checkpoint whose leaves are not those of `model/config.json`."""
    theirs = {path: tuple(leaf.shape) for path, leaf in flat(found).items()}
    ours = {path: tuple(leaf.shape) for path, leaf in flat(shapes).items()}
    for path in sorted(ours.keys() | theirs.keys()):
        if ours.get(path) != theirs.get(path):
            raise InputError(
                f"{where}: {path} has shape {theirs.get(path)}, model/config.json asks for {ours.get(path)}; "
                "the folder mixes two models"
            )
