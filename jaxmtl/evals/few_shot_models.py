"""Few-shot fine-tuning of all parameters: every task gets a model of its own, which is scored on that task.

Each setting has a folder in the run folder with fits.json, and in it each task has one: model/, a folder of safetensors
as Hugging Face has it, and what an evaluation writes. Models and scores that are there are not computed again.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxmtl.evals import runner
from jaxmtl.evals.few_shot import FITS, FewShot, Shots, announce, check, is_kept, keep, read_fits
from jaxmtl.evals.per_task import Setting
from jaxmtl.evals.requests import mesh_of
from jaxmtl.evals.summary import Labels
from jaxmtl.evals.watch import Within
from jaxmtl.feed.store import TokenStore
from jaxmtl.training.fits import Optimizer
from jaxmtl.training.fitting import ADAMW, fit_each
from jaxmtl.training.tuning import WholeTuning
from jaxmtl.types import InputError, Progress, Scores
from jaxmtl.weights import Pretrained, load_pretrained, save_pretrained

MODEL = "model"


def evaluate(
    pretrained: Pretrained,
    store: TokenStore,
    split: str,
    run_dir: str | os.PathLike,
    *,
    few_shot: FewShot,
    optimizer: Optimizer = ADAMW,
    score: Callable[..., dict[str, Scores]] = runner.evaluate,
    tasks: Sequence[str] | None = None,
    adapters: None = None,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Fits and scores a model for every task in every setting.

    Args:
      pretrained: the model that all fits begin with, on one device.
      store: holds the few examples and those that are scored.
      split: the split that is scored.
      run_dir: where to write.
      few_shot: what is fitted, and how; a setting of 0 shots scores the model itself.
      optimizer: turns gradients into updates.
      score: scores one model: `runner.evaluate` with its options bound.
      tasks: names of tasks; all tasks of the split if None.
      adapters: refused: fits begin with the plain model.
      labels: what the records say about the run; setting and task are added to its name.
      progress: told what is done.

    Returns:
      "SETTING TASK" to the task's scores, with the setting as category.

    Raises:
      InputError: as `few_shot.evaluate`, or if the model is split over devices.
    """
    run_dir, labels = pathlib.Path(run_dir), (labels or Labels()).of_folder(run_dir)
    if getattr(pretrained.config, "heads", ()) or mesh_of(pretrained.params) is not None:
        raise InputError("whole models are fitted to texts, on one device; give a model without heads, and no MESH")
    if adapters is not None:
        raise InputError("few-shot fits begin with a plain model: give no ADAPTER, or merge it, and no hypernetwork")
    names = store.task_names(split) if tasks is None else list(tasks)
    check(pretrained, store, run_dir, split, names, few_shot)
    announce(store, split, names, few_shot.settings, progress)
    found: dict[str, Scores] = {}
    shots = Shots(store=store, few_shot=few_shot, scored=split)
    for setting in few_shot.settings:
        folder, told = run_dir / setting.label, Within(progress, setting.label)
        own = dataclasses.replace(labels, run=f"{labels.run}/{setting.label}", seed=setting.seed)
        scores: dict[str, Scores] = {}
        if setting.shots == 0:
            scores = score(pretrained, store, split, folder, tasks=names, labels=own, progress=told)
        else:
            for name, model in _models(pretrained, shots, names, folder, optimizer, setting, told):
                of_task = dataclasses.replace(own, run=f"{own.run}/{name}")
                scores |= score(model, store, split, folder / name, tasks=[name], labels=of_task, progress=told)
        for name in names:
            found[f"{setting.label} {name}"] = dataclasses.replace(scores[name], category=setting.label)
    return found


def _models(
    pretrained: Pretrained,
    shots: Shots,
    names: Sequence[str],
    folder: pathlib.Path,
    optimizer: Optimizer,
    setting: Setting,
    progress: Progress | None,
) -> Iterator[tuple[str, Pretrained]]:
    """Loads the models of a setting, one at a time; fits and saves those of tasks that have none yet, or others."""
    made_of = dict(whole=type(optimizer).__name__, optimizer=dataclasses.asdict(optimizer))
    keys = {name: shots.key(pretrained, name, setting, made_of) for name in names}
    load = lambda name: load_pretrained(folder / name / MODEL, dtype=pretrained.config.dtype)
    kept = read_fits(folder / FITS)
    missing = [name for name in names if not is_kept(kept, name, keys)]
    for name in names:
        if name not in missing:
            yield name, load(name)
    fits = [shots.fit(name, setting) for name in missing]
    options: dict[str, Any] = dict(optimizer=optimizer, progress=progress)
    schedule = shots.few_shot.schedule
    for number, one in fit_each(pretrained.module, pretrained.params, fits, WholeTuning(), schedule, **options):
        name, model = fits[number].name, dataclasses.replace(pretrained, params=one.learnt)
        save = functools.partial(save_pretrained, folder / name / MODEL, model)
        keep(folder / FITS, kept, fits[number], one, keys[name], save)
        # Read again, so that what is scored is the same as after a restart.
        yield name, load(name)
