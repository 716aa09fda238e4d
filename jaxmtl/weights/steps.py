"""What a path to weights says about the run that made them: step, kept steps, seed."""

import os
import pathlib

from jaxmtl.types import InputError
from jaxmtl.weights import run_folder, t5x_io


def step_of(path: str | os.PathLike) -> int:
    """Returns the step of the checkpoint that `load_pretrained` takes; 0 for models that tell none.

    Args:
      path: as in `load_pretrained`.
    """
    folder = pathlib.Path(path)
    if run_folder.is_run(folder):
        return run_folder.best_step(folder)
    location = t5x_io.find(folder)
    return 0 if location is None else location.step


def steps_of(path: str | os.PathLike) -> list[int]:
    """Lists the checkpoints that a run folder keeps.

    Args:
      path: a run folder.

    Returns:
      Their steps, ascending, at least one.

    Raises:
      InputError: if it is no run folder, or holds no complete checkpoint.
    """
    folder = pathlib.Path(path)
    found = run_folder.steps(folder) if run_folder.is_run(folder) else []
    if not found:
        raise InputError(f"{path}: holds no complete checkpoint of a run; give the folder of a run that was trained")
    return found


def seed_of(path: str | os.PathLike) -> int:
    """Returns the seed that a run folder was trained with; 0 for other models.

    Args:
      path: as in `load_pretrained`.
    """
    folder = pathlib.Path(path)
    return run_folder.newest_progress(folder)["seed"] if run_folder.is_run(folder) else 0
