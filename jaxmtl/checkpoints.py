"""Checkpoints of a run, and the order in which a run finds its beginning.

`RUN/checkpoints/STEP/` holds three items: `params` (the parameter tree), `optimizer` (its state) and `progress` (JSON:
step, stream state, dropout key, metric sums, early stopping). Orbax writes each step beside its place and renames it at
the end, so a folder named by a number is always whole. The best step is named in the newest checkpoint's progress.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxmtl.types import InputError
from jaxmtl.weights.refusals import check_same_shapes, damaged, reason

FOLDER = "checkpoints"
PARAMS, OPTIMIZER, PROGRESS = "params", "optimizer", "progress"
SPARE_BYTES = 1 << 20
ADVICE_IF_DAMAGED = "remove this folder to go on from the one before it"
ADVICE_IF_OTHER = "use the sizes and the optimiser it was made with, or another run folder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """When to save and what to keep.

    Attributes:
      every: steps between checkpoints; the last step is always saved.
      keep: number of newest checkpoints kept; the best one is kept besides.
    """

    every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        """Refuses counts below 1."""
        if min(self.every, self.keep) < 1:
            raise InputError(f"checkpoints: every={self.every}, keep={self.keep}; expected both to be at least 1")


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
      source: what was found, for humans.
      params: parameter tree on its devices.
      opt_state: the optimiser's tree, or None if it is to be made new.
      progress: what was saved with it, or None at step 0.
    """

    source: str
    params: Any
    opt_state: Any | None = None
    progress: dict[str, Any] | None = None


def find_start(
    checkpoints: "Checkpoints",
    *,
    params: Any,
    opt_state: Any,
    resume_from: str | os.PathLike | None = None,
    pretrained: Callable[[], Any] | None = None,
    scratch: Callable[[], Any],
) -> Start:
    """Finds where a run begins, first match wins: own checkpoint, `resume_from`, `pretrained`, `scratch`.

    Args:
      checkpoints: the run's own.
      params: parameter tree of shape structs with shardings.
      opt_state: the optimiser's tree of shape structs with shardings.
      resume_from: another run's folder, continued with its optimiser, data position and step.
      pretrained: returns a parameter tree to start from at step 0.
      scratch: returns a random one.

    Returns:
      The start, all arrays placed as asked.

    Raises:
      InputError: if what is found is damaged or of another size, or `resume_from` holds no checkpoint.
    """
    if checkpoints.latest() is not None:
        return checkpoints.restore(params, opt_state)
    if resume_from is not None:
        if not (pathlib.Path(resume_from) / FOLDER).is_dir():
            raise InputError(f"{resume_from}: holds no checkpoints to resume from; give the folder of a run")
        with Checkpoints(resume_from, read_only=True) as other:
            if other.latest() is None:
                raise InputError(f"{resume_from}: holds no complete checkpoint to resume from; give another run")
            start = other.restore(params, opt_state)
            progress = start.progress or {}
            kept = {name: value for name, value in progress.items() if name not in ("best", "best_step")}
            return dataclasses.replace(start, progress=kept)  # the other run's best lies in its own folder
    if pretrained is not None:
        given = pretrained()
        check_same_shapes(given, params, "the pretrained weights", "give the model the sizes of the weights")
        # Copied, because training reuses the memory of its parameters, which may be the caller's.
        place = lambda leaf, to: jax.device_put(leaf.astype(to.dtype), to.sharding, may_alias=False)
        return Start("pretrained weights", jax.tree.map(place, given, params))
    return Start("random weights", scratch())


class Checkpoints:
    """The checkpoints of one run folder; a context manager that waits for unfinished saves."""

    def __init__(self, run_dir: str | os.PathLike, *, keep: int = 2, read_only: bool = False) -> None:
        """Opens the folder and clears what an interrupted save has left.

        Args:
          run_dir: the run folder.
          keep: number of newest checkpoints to keep.
          read_only: leaves the folder as it is.
        """
        self.folder = pathlib.Path(run_dir).absolute() / FOLDER
        self._made = [] if read_only else [path for path in (self.folder, self.folder.parent) if not path.exists()]
        self._best_step: int | None = None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Keep(keep, lambda: self._best_step),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        handlers = {
            PARAMS: ocp.StandardCheckpointHandler(),
            OPTIMIZER: ocp.StandardCheckpointHandler(),
            PROGRESS: ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        logging.getLogger("absl").addFilter(_is_not_raised)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def describe(self) -> str:
        """Returns where the newest checkpoint is, for messages."""
        step = self.latest()
        return f"none in {self.folder}" if step is None else f"step {step} in {self.folder}"

    def save(self, step: int, params: Any, opt_state: Any, progress: Mapping[str, Any]) -> None:
        """Starts to save; returns when the arrays are copied, while files are still being written.

        Args:
          step: the step.
          params: parameter tree.
          opt_state: the optimiser's tree.
          progress: JSON-able; its "best_step", if any, names the checkpoint that is never removed.

        Raises:
          InputError: if this or the previous checkpoint cannot be written; those before it stay whole.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        self._check_space(step, (params, opt_state))
        self._best_step = progress.get("best_step")
        items = {
            PARAMS: ocp.args.StandardSave(params),
            OPTIMIZER: ocp.args.StandardSave(opt_state),
            PROGRESS: ocp.args.JsonSave(dict(progress)),
        }
        self._guard(step, functools.partial(self._manager.save, step, args=ocp.args.Composite(**items), force=True))

    def restore(self, params: Any, opt_state: Any) -> Start:
        """Reads the newest checkpoint straight to where its arrays shall lie, whatever mesh it was saved from.

        Args:
          params: parameter tree of shape structs with shardings.
          opt_state: the optimiser's tree of shape structs with shardings.

        Returns:
          The start.

        Raises:
          InputError: if the checkpoint is damaged or of another size.
        """
        step = self.latest() or 0
        path = self.folder / str(step)
        try:
            metadata = self._manager.item_metadata(step)
            saved = (metadata[PARAMS].tree, metadata[OPTIMIZER].tree)
        except Exception as error:
            raise damaged(path, error, ADVICE_IF_DAMAGED) from error
        for name, found, wanted in ((PARAMS, saved[0], params), (OPTIMIZER, saved[1], opt_state)):
            check_same_shapes(found, wanted, f"{path}/{name}", ADVICE_IF_OTHER)
        items = {
            PARAMS: ocp.args.StandardRestore(params),
            OPTIMIZER: ocp.args.StandardRestore(opt_state),
            PROGRESS: ocp.args.JsonRestore(),
        }
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise damaged(path, error, ADVICE_IF_DAMAGED) from error
        self._best_step = found[PROGRESS].get("best_step")
        return Start(str(path), found[PARAMS], found[OPTIMIZER], found[PROGRESS])

    def wait(self) -> None:
        """Waits until the last save is on disk; raises InputError if it failed."""
        self._guard(None, self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for the last save and closes; a run that never saved leaves no folder that looks like a run."""
        try:
            self._guard(None, self._manager.close)
        finally:
            logging.getLogger("absl").removeFilter(_is_not_raised)
        for folder in self._made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()

    def _guard(self, step: int | None, act: Callable[[], Any]) -> None:
        """Turns any failure to write, also one of a save in the background, into an error for the user."""
        try:
            act()
        except Exception as error:
            self._remove_unfinished()
            what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            raise InputError(
                f"{self.folder}: {what} could not be written ({reason(error)}); the ones before it are whole; "
                "make room or choose another run folder, then start the same command again"
            ) from error

    def _remove_unfinished(self) -> None:
        """Gives back the room that a failed save has taken; other processes may still be writing to the same folder."""
        if jax.process_count() == 1:
            for folder in self.folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                shutil.rmtree(folder, ignore_errors=True)  # the next start clears it otherwise

    def _check_space(self, step: int, tree: Any) -> None:
        """Refuses to begin a save that a nearly full disk cannot take."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) // jax.process_count() + SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise InputError(
                f"{self.folder}: the checkpoint of step {step} needs about {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB "
                "are free; the ones before it are whole; make room, then start the same command again"
            )


def _is_not_raised(record: logging.LogRecord) -> bool:
    """Tells whether a line of the log is news: what fails while Orbax writes is raised too, and told in one line."""
    return not (record.levelno >= logging.ERROR and "orbax" in record.pathname)


@dataclasses.dataclass
class _Keep:
    """Keeps the newest N checkpoints and the best one (orbax's preservation protocol)."""

    num_newest: int
    best_step: Callable[[], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Says of each checkpoint, oldest first, whether it stays."""
        newest = {checkpoint.step for checkpoint in checkpoints[-self.num_newest :]}
        return [checkpoint.step in newest or checkpoint.step == self.best_step() for checkpoint in checkpoints]
