"""Few-shot transfer to the tasks of a token store: fit an adapter to each task's few examples, score it on others.

Each setting (shots, seed, rate) has a folder of its own in the run folder: adapters/TASK in PEFT's form, fits.json with
the training losses, and what an evaluation writes. Settings that are there already are not computed again.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmtl.adapters.lora import Adapter, LoRA
from jaxmtl.evals import files, runner
from jaxmtl.evals.per_task import Setting, fit_of_rows
from jaxmtl.evals.requests import mesh_of
from jaxmtl.evals.summary import Labels
from jaxmtl.feed.store import TokenStore
from jaxmtl.files import explained, write_whole
from jaxmtl.training.fitting import Fitted, Schedule, fit_all
from jaxmtl.types import InputError, Progress, Scores
from jaxmtl.weights import Pretrained, check_reads, load_adapter, save_adapter

VERSION = 1
"""Counted up when the same settings would give other adapters, so that old ones are not taken for new ones."""
FITS = "fits.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
    """What is fitted, and how.

    Attributes:
      split: the split that holds the few examples.
      settings: shots, seeds and rates; a setting of 0 shots scores the plain model.
      lora: what the adapters are made of.
      schedule: how long and in which portions each task is trained.

    Raises:
      InputError: if there is no setting, or one twice.
    """

    split: str
    settings: Sequence[Setting]
    lora: LoRA = LoRA(dropout=0.05)
    schedule: Schedule = Schedule()

    def __post_init__(self) -> None:
        labels = [setting.label for setting in self.settings]
        if not labels or len(set(labels)) < len(labels):
            raise InputError(f"settings of few-shot fits are {labels}; expected at least one, none twice")


def evaluate(
    pretrained: Pretrained,
    store: TokenStore,
    split: str,
    run_dir: str | os.PathLike,
    *,
    few_shot: FewShot,
    score: Callable[..., dict[str, Scores]] = runner.evaluate,
    tasks: Sequence[str] | None = None,
    adapters: None = None,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Fits and scores every task in every setting.

    Args:
      pretrained: the model; it stays as it is.
      store: holds the few examples and those that are scored.
      split: the split that is scored.
      run_dir: where to write.
      few_shot: what is fitted, and how.
      score: scores one setting: `runner.evaluate` with its options bound.
      tasks: names of tasks; all tasks of the split if None.
      adapters: refused: a fit begins with the plain model.
      labels: what the records say about the run; the setting is added to its name.
      progress: told what is done.

    Returns:
      "SETTING TASK" to the task's scores, with the setting as category.

    Raises:
      InputError: as `runner.evaluate` and `fit_all`, or if a task has too few examples or none in the split of the few.
    """
    if adapters is not None:
        raise InputError("few-shot fits begin with the plain model; give no ADAPTER, or merge it into a checkpoint")
    if jax.process_count() > 1:
        raise InputError(f"few-shot fits run in one process, on all its devices; here are {jax.process_count()}")
    run_dir, labels = pathlib.Path(run_dir), (labels or Labels()).of_folder(run_dir)
    names = store.task_names(split) if tasks is None else list(tasks)
    _check(pretrained, store, run_dir, split, few_shot.settings)
    found = {}
    # One setting after the other: what is finished survives a stop, and hundreds of tasks fill a device anyway.
    for setting in few_shot.settings:
        own = dataclasses.replace(labels, run=f"{labels.run}/{setting.label}", seed=setting.seed)
        options: dict[str, Any] = dict(tasks=names, labels=own, progress=progress)
        if setting.shots != 0:
            options["adapters"] = _adapters(pretrained, store, names, run_dir, few_shot, setting, progress)
        scores = score(pretrained, store, split, run_dir / setting.label, **options)
        for name, one in scores.items():
            found[f"{setting.label} {name}"] = dataclasses.replace(one, category=setting.label)
    return found


def _check(
    pretrained: Pretrained, store: TokenStore, run_dir: pathlib.Path, split: str, settings: Sequence[Setting]
) -> None:
    """Finds out before the first fit what scoring would refuse behind it."""
    if getattr(pretrained.config, "heads", ()):
        raise InputError("this model has heads and writes no texts: adapters cannot be fitted to its targets")
    check_reads(pretrained.config, pretrained.tokenizer, store)
    for setting in settings:
        files.check_split(run_dir / setting.label, split)


def _adapters(
    pretrained: Pretrained,
    store: TokenStore,
    names: Sequence[str],
    run_dir: pathlib.Path,
    few_shot: FewShot,
    setting: Setting,
    progress: Progress | None,
) -> dict[str, Adapter]:
    """Loads the adapters of a setting, or fits and saves them."""
    folder = run_dir / setting.label
    key = _key(pretrained, store, names, few_shot, setting)
    place = lambda name: folder / "adapters" / name
    if _finished(folder / FITS, key):
        return {name: load_adapter(place(name), pretrained) for name in names}
    fits = []
    for name in names:
        examples = store.examples(name, few_shot.split)
        fits.append(fit_of_rows(name, *examples.rows(range(len(examples))), setting))
    options: dict[str, Any] = dict(mesh=mesh_of(pretrained.params), progress=progress)
    fitted = fit_all(pretrained.module, pretrained.params, fits, few_shot.lora, few_shot.schedule, **options)
    by_task = dict(zip(names, fitted, strict=True))
    with explained(folder / FITS):
        (folder / FITS).unlink(missing_ok=True)  # what it names is replaced, one adapter after the other
    for name, one in by_task.items():
        save_adapter(place(name), one.adapter, pretrained)
    write_whole(folder / FITS, _described(key, by_task, {fit.name: len(fit.inputs) for fit in fits}))
    return {name: one.adapter for name, one in by_task.items()}


def _described(key: str, fitted: Mapping[str, Fitted], counts: Mapping[str, int]) -> str:
    losses = lambda one: [round(float(loss), 6) for loss in np.asarray(one.losses)]
    tasks = {name: dict(num_examples=counts[name], losses=losses(one)) for name, one in fitted.items()}
    return json.dumps(dict(key=key, tasks=tasks), indent=1) + "\n"


def _finished(path: pathlib.Path, key: str) -> bool:
    """Returns whether the adapters beside a file are those of a key: the file is written last."""
    try:
        return json.loads(path.read_text("utf-8"))["key"] == key
    except (OSError, ValueError, KeyError, TypeError):
        return False  # not there, or damaged by hand: fitted again


def _key(pretrained: Pretrained, store: TokenStore, names: Sequence[str], few_shot: FewShot, setting: Setting) -> str:
    schedule = dict(epochs=few_shot.schedule.epochs, batch_size=few_shot.schedule.batch_size)
    return files.key_of(
        dict(
            version=VERSION,
            weights_hash=pretrained.hash,
            examples={name: store.entry(name, few_shot.split).sha256 for name in names},
            lora=dataclasses.asdict(few_shot.lora),
            schedule=schedule,
            setting=dataclasses.asdict(setting),
        )
    )
