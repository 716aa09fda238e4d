"""Reads the parameters of a run folder: `model/` tells what they are, `checkpoints/STEP/params` holds them."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxmtl.types import InputError
from jaxmtl.weights.refusals import check_same_shapes, damaged

MODEL = "model"
CHECKPOINTS = "checkpoints"
HYPERNET = "hypernet.json"
"""What the run of a hypernetwork has besides; its checkpoints hold more than a model's parameters."""
ADVICE_IF_DAMAGED = "remove its folder or choose another run"


def is_run(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a run folder."""
    return (folder / CHECKPOINTS).is_dir()


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of all complete checkpoints of a run folder, ascending."""
    return sorted(int(path.name) for path in (folder / CHECKPOINTS).iterdir() if path.name.isdigit())


def has_hypernetwork(folder: pathlib.Path) -> bool:
    """Returns whether a folder is the run folder of a hypernetwork."""
    return is_run(folder) and (folder / HYPERNET).is_file()


def is_trained(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a run folder with a complete checkpoint."""
    return is_run(folder) and bool(steps(folder))


def newest_progress(folder: pathlib.Path) -> dict[str, Any]:
    """Reads what the newest checkpoint says about the run.

    Args:
      folder: the run folder.

    Returns:
      JSON values by name, "seed" and "best_step" among them.

    Raises:
      InputError: if there is no complete checkpoint, or the newest cannot be read.
    """
    found = steps(folder)
    if not found:
        raise InputError(f"{folder}: holds no complete checkpoint; train first")
    path = folder / CHECKPOINTS / str(found[-1]) / "progress"
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        try:
            return checkpointer.restore(path.absolute())
        except Exception as error:
            raise damaged(path, error, ADVICE_IF_DAMAGED) from error


def best_step(folder: pathlib.Path) -> int:
    """Finds the checkpoint to use: the best one if the newest names it, else the newest.

    Args:
      folder: the run folder.

    Returns:
      Its step.

    Raises:
      InputError: as in `newest_progress`.
    """
    best, found = newest_progress(folder).get("best_step"), steps(folder)
    return best if best in found else found[-1]


def check_step(folder: pathlib.Path, step: int) -> int:
    """Returns a step if the run folder holds its checkpoint.

    Args:
      folder: the run folder.
      step: the step that is asked for.

    Raises:
      InputError: naming the steps that are kept.
    """
    found = steps(folder)
    if step not in found:
        kept = ", ".join(map(str, found)) or "none"
        raise InputError(f"{folder}: holds no checkpoint of step {step}; kept are {kept}")
    return step


def read_params(folder: pathlib.Path, shapes: Any, shardings: Any, dtype: str, step: int | None = None) -> Any:
    """Reads a checkpoint's parameters straight to their devices.

    Args:
      folder: the run folder.
      shapes: the parameter tree with shapes as leaves.
      shardings: the same tree with shardings.
      dtype: dtype wanted.
      step: which checkpoint; the best if None (the latest if none is marked).

    Returns:
      The parameter tree.

    Raises:
      InputError: if there is no complete checkpoint, it is damaged, or its sizes are not `shapes`.
    """
    step = best_step(folder) if step is None else check_step(folder, step)
    path = folder / CHECKPOINTS / str(step) / "params"
    # A checkpointer would also look for the metadata of a whole step here, and warn: this is one item of a step.
    handler: Any = ocp.StandardCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        try:
            found = handler.metadata(path.absolute()).tree
        except Exception as error:
            raise damaged(path, error, ADVICE_IF_DAMAGED) from error
        check_same_shapes(found, shapes, str(path), "model/config.json is another model's, or of another run")
        wanted = jax.tree.map(
            lambda s, to: jax.ShapeDtypeStruct(s.shape, jnp.dtype(dtype), sharding=to), shapes, shardings
        )
        try:
            return checkpointer.restore(path.absolute(), args=ocp.args.StandardRestore(wanted))
        except Exception as error:
            raise damaged(path, error, ADVICE_IF_DAMAGED) from error
