"""Few-shot transfer to the tasks of a token store: fit an adapter to each task's few examples, score it on others.

Each setting (shots, seed, rate) has a folder of its own in the run folder: adapters/TASK in PEFT's form, fits.json with
the training losses, and what an evaluation writes. Adapters and scores that are there already are not computed again.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmtl.adapters.lora import Adapter, LoRA
from jaxmtl.evals import files, runner
from jaxmtl.evals.per_task import NOTHING_HELD, Held, Setting, fit_of_rows
from jaxmtl.evals.requests import mesh_of
from jaxmtl.evals.summary import Labels
from jaxmtl.evals.watch import TaskState, Within, tell
from jaxmtl.feed.store import TokenStore
from jaxmtl.files import write_whole
from jaxmtl.training.fit_rows import Fit
from jaxmtl.training.fitting import Fitted, Schedule, fit_each
from jaxmtl.training.tuning import LowRankTuning
from jaxmtl.types import InputError, Progress, Scores
from jaxmtl.weights import Pretrained, check_reads, load_adapter, save_adapter

VERSION = 2
"""Counted up when the same settings would give other adapters, so that old ones are not taken for new ones."""
FITS = "fits.json"
ADAPTERS = LoRA(dropout=0.05)
"""Those of S001's few-shot fine-tuning, methods 2.6."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
    """What is fitted, and how.

    Attributes:
      split: the split that holds the few examples.
      settings: shots, seeds and rates; a setting of 0 shots scores the plain model.
      schedule: how long and in which portions each task is trained.
      held: what is held out to find each task's best epoch.

    Raises:
      InputError: if there is no setting, or one twice.
    """

    split: str
    settings: Sequence[Setting]
    schedule: Schedule = Schedule()
    held: Held = NOTHING_HELD

    def __post_init__(self) -> None:
        labels = [setting.label for setting in self.settings]
        if not labels or len(set(labels)) < len(labels):
            raise InputError(f"settings of few-shot fits are {labels}; expected at least one, none twice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shots:
    """The examples that tasks are fitted to; none has the input of one that is scored.

    Attributes:
      store: the tokenised examples.
      few_shot: which of them, and how long.
      scored: the split that is scored.
    """

    store: TokenStore
    few_shot: FewShot
    scored: str

    def fit(self, name: str, setting: Setting) -> Fit:
        """Reads what a task is fitted to.

        Args:
          name: the task.
          setting: how many shots, and which.

        Returns:
          The fit.

        Raises:
          InputError: as `fit_of_rows`.
          UnknownNameError: if the task is not in a split.
        """
        held = self.few_shot.held
        others = ((), ()) if held.split is None else self._rows(name, held.split)
        return fit_of_rows(name, *self._rows(name, self.few_shot.split), setting, held, others)

    def key(self, pretrained: Pretrained, name: str, setting: Setting, made_of: Mapping[str, Any]) -> str:
        """Hashes all that decides what a task's fit becomes.

        Args:
          pretrained: the model.
          name: the task.
          setting: the setting.
          made_of: what is trained, and by which optimizer: JSON values.

        Returns:
          Hexadecimal digits.
        """
        few_shot, sha256 = self.few_shot, lambda split: self.store.entry(name, split).sha256
        schedule: dict[str, Any] = dict(epochs=few_shot.schedule.epochs, batch_size=few_shot.schedule.batch_size)
        if few_shot.schedule.steps is not None:
            schedule["steps"] = few_shot.schedule.steps
        if few_shot.held != NOTHING_HELD:
            others = None if few_shot.held.split is None else sha256(few_shot.held.split)
            schedule |= dict(patience=few_shot.schedule.patience, held=dataclasses.asdict(few_shot.held), others=others)
        identity = dict(
            version=VERSION,
            weights_hash=pretrained.hash,
            task=name,
            examples=sha256(few_shot.split),
            scored=sha256(self.scored),
            schedule=schedule,
            setting=dataclasses.asdict(setting),
        )
        return files.key_of(identity | dict(made_of))

    def check(self, names: Sequence[str]) -> None:
        """Looks whether there are enough examples.

        Args:
          names: the tasks.

        Raises:
          InputError: if a task has fewer than a setting asks for, or none to hold out.
          UnknownNameError: if there is no split to learn from.
        """
        most = max(1 if setting.shots is None else setting.shots for setting in self.few_shot.settings)
        counts = self._counts(names, self.few_shot.split)
        short = [name for name in names if counts[name] < most]
        if short:
            shown = ", ".join(f"{name} ({counts[name]})" for name in short[:5]) + ", ..." * (len(short) > 5)
            raise InputError(
                f"{most} shots asked for, but {len(short)} of {len(names)} tasks have fewer examples in split "
                f"{self.few_shot.split!r} whose input is not scored: {shown}; ask for fewer (SHOTS), name those that "
                "have enough (TASKS), or cache more into another store"
            )
        held = self.few_shot.held.split
        without = [] if held is None else [name for name, count in self._counts(names, held).items() if not count]
        if without:
            shown = ", ".join(without[:5]) + ", ..." * (len(without) > 5)
            raise InputError(
                f"{len(without)} of {len(names)} tasks have no examples in split {held!r} (HELD_SPLIT), from which "
                f"their best epoch is to be found: {shown}; hold out a share of the shots instead (HELD_SHARE)"
            )

    def _counts(self, names: Sequence[str], split: str) -> dict[str, int]:
        there = set(self.store.task_names(split))
        return {name: len(self._rows(name, split)[0]) if name in there else 0 for name in names}

    def _rows(self, name: str, split: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Reads inputs and targets of a task's split, but those whose input is scored."""
        both = [self.store.examples(name, one) for one in (split, self.scored)]
        (inputs, targets), (asked, _) = (examples.rows(range(len(examples))) for examples in both)
        scored = {ids.tobytes() for ids in asked}
        kept = [place for place, ids in enumerate(inputs) if ids.tobytes() not in scored]
        return [inputs[place] for place in kept], [targets[place] for place in kept]


def evaluate(
    pretrained: Pretrained,
    store: TokenStore,
    split: str,
    run_dir: str | os.PathLike,
    *,
    few_shot: FewShot,
    lora: LoRA = ADAPTERS,
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
      lora: what the adapters are made of.
      score: scores one setting: `runner.evaluate` with its options bound.
      tasks: names of tasks; all tasks of the split if None.
      adapters: refused: a fit begins with the plain model.
      labels: what the records say about the run; the setting is added to its name.
      progress: told what is done.

    Returns:
      "SETTING TASK" to the task's scores, with the setting as category.

    Raises:
      DivergedError: as `fit_each`; the fits of the other tasks of the setting are kept.
      InputError: as `runner.evaluate` and `fit_each`, or if a task has too few examples, or none, in the split of the
        few.
    """
    if adapters is not None:
        raise InputError("few-shot fits begin with a plain model: give no ADAPTER, or merge it, and no hypernetwork")
    run_dir, labels = pathlib.Path(run_dir), (labels or Labels()).of_folder(run_dir)
    names = store.task_names(split) if tasks is None else list(tasks)
    if getattr(pretrained.config, "heads", ()):
        raise InputError("this model has heads and writes no texts: fit its heads, with runs/few_shot_heads.gin")
    check(pretrained, store, run_dir, split, names, few_shot)
    announce(store, split, names, few_shot.settings, progress)
    found = {}
    # One setting after the other: what is finished survives a stop, and hundreds of tasks fill a device anyway.
    for setting in few_shot.settings:
        own = dataclasses.replace(labels, run=f"{labels.run}/{setting.label}", seed=setting.seed)
        told = Within(progress, setting.label)
        options: dict[str, Any] = dict(tasks=names, labels=own, progress=told)
        if setting.shots != 0:
            shots = Shots(store=store, few_shot=few_shot, scored=split)
            folder = run_dir / setting.label
            options["adapters"] = _adapters(pretrained, shots, names, folder, lora, setting, told)
        scores = score(pretrained, store, split, run_dir / setting.label, **options)
        for name, one in scores.items():
            found[f"{setting.label} {name}"] = dataclasses.replace(one, category=setting.label)
    return found


def check(
    pretrained: Pretrained,
    store: TokenStore,
    run_dir: pathlib.Path,
    split: str,
    names: Sequence[str],
    few_shot: FewShot,
) -> None:
    """Finds out before the first fit what scoring would refuse behind it.

    Args:
      pretrained: the model.
      store: the tokenised examples.
      run_dir: where the settings' folders are.
      split: the split that is scored.
      names: the tasks.
      few_shot: which examples, and how long.

    Raises:
      InputError: if there are several processes, the store has another vocabulary, a split would be learnt and also
        held out or scored, a setting's folder holds results of another split, or a task has fewer examples than shots
        are asked for, or none to hold out.
      UnknownNameError: if there is no split to learn from.
    """
    if jax.process_count() > 1:
        raise InputError(f"few-shot fits run in one process, on all its devices; here are {jax.process_count()}")
    check_reads(pretrained.config, pretrained.tokenizer, store)
    splits = [name for name in (split, few_shot.split, few_shot.held.split) if name is not None]
    if len(set(splits)) < len(splits):
        raise InputError(
            f"examples are learnt from {few_shot.split!r} (FEW_SHOT_SPLIT), held out from {few_shot.held.split!r} "
            f"(HELD_SPLIT) and scored in {split!r} (SPLIT); give different splits, or scores would flatter"
        )
    for setting in few_shot.settings:
        files.check_split(run_dir / setting.label, split)
    Shots(store=store, few_shot=few_shot, scored=split).check(names)


def announce(
    store: TokenStore, split: str, names: Sequence[str], settings: Sequence[Setting], progress: Progress | None
) -> None:
    """Tells of all tasks that are to be scored in all settings.

    Args:
      store: the tokenised examples.
      split: the split that is scored.
      names: the tasks.
      settings: the settings.
      progress: who is told.
    """
    for setting in settings:
        for name in names:
            count = store.entry(name, split).num_examples
            tell(progress, TaskState(task=name, category=setting.label, n=count))


def _adapters(
    pretrained: Pretrained,
    shots: Shots,
    names: Sequence[str],
    folder: pathlib.Path,
    lora: LoRA,
    setting: Setting,
    progress: Progress | None,
) -> dict[str, Adapter]:
    """Loads the adapters of a setting; fits and saves those of tasks that have none yet, or others."""
    place = lambda name: folder / "adapters" / name
    keys = {name: shots.key(pretrained, name, setting, dict(lora=dataclasses.asdict(lora))) for name in names}
    kept = read_fits(folder / FITS)
    found = {name: load_adapter(place(name), pretrained) for name in names if is_kept(kept, name, keys)}
    fits = [shots.fit(name, setting) for name in names if name not in found]
    options: dict[str, Any] = dict(mesh=mesh_of(pretrained.params), progress=progress)
    tuning, schedule = LowRankTuning(lora), shots.few_shot.schedule
    for number, one in fit_each(pretrained.module, pretrained.params, fits, tuning, schedule, **options):
        fit = fits[number]
        save = functools.partial(save_adapter, place(fit.name), one.learnt, pretrained)
        keep(folder / FITS, kept, fit, one, keys[fit.name], save)
        found[fit.name] = one.learnt
    return found


def is_kept(kept: Mapping[str, Any], name: str, keys: Mapping[str, str]) -> bool:
    """Tells whether a task's fit is there, whole and made of the same.

    Args:
      kept: what `read_fits` gave.
      name: the task.
      keys: tasks to what `Shots.key` gave.
    """
    return kept.get(name, {}).get("key") == keys[name]


def keep(
    path: pathlib.Path, kept: dict[str, Any], fit: Fit, fitted: Fitted, key: str, save: Callable[[], object]
) -> None:
    """Saves what a fit has become and then says so in the file of fits: what is named there is whole.

    Args:
      path: the file of fits.
      kept: what it says; this fit is added.
      fit: the fit.
      fitted: what became of it.
      key: hash of what made it.
      save: saves it.
    """
    if kept.pop(fit.name, None) is not None:  # what it names is replaced
        write_fits(path, kept)
    save()
    kept[fit.name] = described(key, fit, fitted)
    write_fits(path, kept)


def described(key: str, fit: Fit, fitted: Fitted) -> dict[str, Any]:
    """Returns what the file of fits says about one.

    Args:
      key: hash of what made it.
      fit: the fit.
      fitted: what became of it.
    """
    rounded = lambda losses: [round(float(loss), 6) for loss in np.asarray(losses)]
    found = dict(key=key, num_examples=len(fit.inputs), losses=rounded(fitted.losses))
    if fitted.best_epoch is not None:
        found |= dict(best_epoch=fitted.best_epoch, held_losses=rounded(fitted.held_losses))
    return found


def write_fits(path: pathlib.Path, tasks: Mapping[str, Any]) -> None:
    """Writes the file of fits.

    Args:
      path: the file.
      tasks: what is `described`, by task.
    """
    write_whole(path, json.dumps(dict(tasks=tasks), indent=1) + "\n")


def read_fits(path: pathlib.Path) -> dict[str, Any]:
    """Reads which fits are whole, each with the key of what made it: an entry is written behind what it describes.

    Args:
      path: the file.

    Returns:
      What is `described`, by task; nothing if the file is not there or damaged.
    """
    try:
        tasks = json.loads(path.read_text("utf-8"))["tasks"]
        return {name: entry for name, entry in tasks.items() if isinstance(entry, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # not there, or damaged by hand: fitted again
