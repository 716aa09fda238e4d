"""Few-shot head-only tuning: a head for each task on an encoder that stays as it is, all heads of a kind at once.

Each setting has a folder in the run folder: model/, the encoder and all heads as safetensors, fits.json with
the training losses, and what an evaluation writes. What is there already is not computed again.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.evals import answer_runner
from jaxmtl.evals.few_shot import FITS, FewShot, Shots, announce, check, described, read_fits, write_fits
from jaxmtl.evals.few_shot_models import MODEL
from jaxmtl.evals.per_task import Setting
from jaxmtl.evals.requests import mesh_of
from jaxmtl.evals.summary import Labels
from jaxmtl.evals.watch import Within
from jaxmtl.feed.store import TokenStore
from jaxmtl.models.head_config import Head
from jaxmtl.models.roberta import roberta
from jaxmtl.training.fit_rows import as_labels
from jaxmtl.training.fits import Optimizer
from jaxmtl.training.fitting import ADAMW, fit_each
from jaxmtl.training.tuning import HeadTuning
from jaxmtl.types import InputError, Progress, Scores
from jaxmtl.weights import Pretrained, load_pretrained, save_pretrained

HEADS = "heads"


def evaluate(
    pretrained: Pretrained,
    store: TokenStore,
    split: str,
    run_dir: str | os.PathLike,
    *,
    few_shot: FewShot,
    optimizer: Optimizer = ADAMW,
    score: Callable[..., dict[str, Scores]] = answer_runner.evaluate,
    tasks: Sequence[str] | None = None,
    adapters: None = None,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Fits and scores a head for every task in every setting.

    Args:
      pretrained: an encoder, on one device; heads of its own are not used.
      store: holds the few examples and those that are scored, with typed answers.
      split: the split that is scored.
      run_dir: where to write.
      few_shot: what is fitted, and how.
      optimizer: turns gradients into updates.
      score: scores one setting: `answer_runner.evaluate` with its options bound.
      tasks: names of tasks; all tasks of the split if None.
      adapters: refused: fits begin with the plain model.
      labels: what the records say about the run; the setting is added to its name.
      progress: told what is done.

    Returns:
      "SETTING TASK" to the task's scores, with the setting as category.

    Raises:
      InputError: as `few_shot.evaluate`, or if a task has texts as targets or the model is no encoder on one device.
    """
    run_dir, labels = pathlib.Path(run_dir), (labels or Labels()).of_folder(run_dir)
    if not hasattr(pretrained.config, HEADS) or mesh_of(pretrained.params) is not None:
        raise InputError("heads are fitted on an encoder such as RoBERTa, on one device; give one, and no MESH")
    if any(setting.shots == 0 for setting in few_shot.settings):
        raise InputError("a setting has 0 shots; a head that has learnt nothing answers by chance: leave it out")
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
        model = _model(pretrained, shots, names, folder, optimizer, setting, told)
        scores = score(model, store, split, folder, tasks=names, labels=own, progress=told)
        for name, one in scores.items():
            found[f"{setting.label} {name}"] = dataclasses.replace(one, category=setting.label)
    return found


def _model(
    pretrained: Pretrained,
    shots: Shots,
    names: Sequence[str],
    folder: pathlib.Path,
    optimizer: Optimizer,
    setting: Setting,
    progress: Progress | None,
) -> Pretrained:
    """Loads the model of a setting; fits and saves all of its heads if one is missing or another."""
    made_of = dict(heads=type(optimizer).__name__, optimizer=dataclasses.asdict(optimizer))
    keys = {name: shots.key(pretrained, name, setting, made_of) for name in names}
    kept = read_fits(folder / FITS)
    if {name: entry.get("key") for name, entry in kept.items()} == keys:
        return load_pretrained(folder / MODEL, dtype=pretrained.config.dtype)
    heads = tuple(_head(shots.store, name, shots.few_shot.split) for name in names)
    leaves, entries = {}, {}
    for kind in sorted({head.kind for head in heads}):
        own = [head for head in heads if head.kind == kind]
        fits = [dataclasses.replace(shots.fit(head.name, setting), weigh=as_labels) for head in own]
        module = roberta(dataclasses.replace(pretrained.config, heads=tuple(own)))
        options: dict[str, Any] = dict(optimizer=optimizer, progress=progress)
        tuning = HeadTuning(kind, len(own))
        fitted = dict(fit_each(module, pretrained.params, fits, tuning, shots.few_shot.schedule, **options))
        trees = [fitted[number].learnt for number in range(len(own))]
        leaves[kind] = jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *trees)
        entries |= {fit.name: described(keys[fit.name], fit, fitted[number]) for number, fit in enumerate(fits)}
    config = dataclasses.replace(pretrained.config, heads=heads)
    params = {**{name: tree for name, tree in pretrained.params.items() if name != HEADS}, HEADS: leaves}
    model = Pretrained(config=config, module=roberta(config), params=params, tokenizer=pretrained.tokenizer)
    write_fits(folder / FITS, {})
    save_pretrained(folder / MODEL, model)
    write_fits(folder / FITS, entries)
    # Read again, so that what is scored is the same as after a restart.
    return load_pretrained(folder / MODEL, dtype=pretrained.config.dtype)


def _head(store: TokenStore, name: str, split: str) -> Head:
    entry = store.entry(name, split)
    if not entry.answer:
        raise InputError(f"token store {store.folder}: task {name} has texts as targets; cache with tasks/transfer.gin")
    return Head(name=name, kind=entry.answer, labels=tuple(entry.labels))
