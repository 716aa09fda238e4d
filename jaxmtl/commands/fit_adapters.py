"""`jaxmtl fit_adapters`: a LoRA adapter for each category of tasks, many at once; started again, it fits what is left.

Each adapter is a PEFT folder named after its category; `fits.json` says what made it.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.host_memory import keep_freed_memory
from jaxmtl.types import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh

    from jaxmtl.adapters.lora import LoRA
    from jaxmtl.feed.store import Examples, TokenStore
    from jaxmtl.training.fit_rows import Fit
    from jaxmtl.training.fitting import Fitted, Schedule
    from jaxmtl.weights import Pretrained

HELP = "fit a LoRA adapter to each category of tasks, many at once"
TAKES_GIN = True
VERSION = 2
"""Counted up when the same settings would give other adapters, so that old ones are not taken for new ones."""
FITS = "fits.json"
Reads = Callable[..., list[list[int]]]
"""Chooses what adapters learn from: see `instruction_and_input`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: gin files say everything (runs/teachers.gin)."""


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Fits as the gin files say and prints the first and the last loss of each adapter.

    Args:
      arguments: the flags.
      config: the gin config.

    Returns:
      0.
    """
    if config is None:
        raise UsageError("fit_adapters needs gin files: --gin_file=models/pretrained.gin --gin_file=runs/teachers.gin")
    keep_freed_memory()
    fits = config.configured(fit)(operative_text=config.operative)
    print(table(fits))
    return 0


def category(task: str, category: str) -> str:
    """Gives all tasks of a category one adapter.

    Args:
      task: the task's name.
      category: its category.

    Returns:
      The category.
    """
    return category


def task(task: str, category: str) -> str:
    """Gives each task an adapter of its own; arguments as in `category`.

    Returns:
      The task's name.
    """
    return task


def instruction_and_input(
    examples: "Examples", inputs: "Sequence[np.ndarray]", start: Sequence[int], end: int, most: int
) -> list[list[int]]:
    """Lets adapters learn from instruction and input as one text, or from inputs alone where there are no instructions.

    Args:
      examples: of a task.
      inputs: [n], their inputs.
      start: what `special_tokens.around_texts` gives before a text.
      end: id that ends a text.
      most: ids that there may be; an instruction is cut before an input is.

    Returns:
      What is read, [n].
    """
    from jaxmtl.feed.instructions import joined_ids

    if not examples.has_instructions:
        return input_alone(examples, inputs, start, end, most)
    return [joined_ids(examples.instruction(row), own, start, end, most) for row, own in enumerate(inputs)]


def input_alone(
    examples: "Examples", inputs: "Sequence[np.ndarray]", start: Sequence[int], end: int, most: int
) -> list[list[int]]:
    """Lets adapters learn from inputs that hold the instruction already, such as P3's.

    Args and Returns: as in `instruction_and_input`.
    """
    from jaxmtl.feed.tokenise import cut

    return [cut(own.tolist(), most, end) for own in inputs]


def folder_of(group: str) -> str:
    """Returns the name of a group's folder: letters, digits, "." and "-", everything else as "_".

    Args:
      group: the group's name.
    """
    return re.sub(r"[^\w.-]+", "_", group).lstrip(".") or "_"


def fit(
    *,
    path: str,
    store: "TokenStore",
    run_dir: str | os.PathLike,
    lora: "LoRA",
    schedule: "Schedule",
    learning_rate: float = 1e-4,
    seed: int = 0,
    split: str = "train",
    group: Callable[..., str] = category,
    reads: Reads = instruction_and_input,
    max_input_tokens: int = 1024,
    dtype: str = "float32",
    mesh: "Mesh | None" = None,
    operative_text: Callable[[], str] = str,
) -> dict[str, dict[str, Any]]:
    """Fits the adapters that are not there yet, as many at once as memory holds.

    Args:
      path: the model that is adapted, what `load_pretrained` takes.
      store: the tokenised examples.
      run_dir: where adapters go.
      lora: what the adapters are made of.
      schedule: how long and in which portions each is trained.
      learning_rate: constant rate of AdamW.
      seed: decides starts, orders and dropout.
      split: split to learn.
      group: (task, category) to the name of the group whose adapter the task trains.
      reads: `instruction_and_input` or `input_alone`.
      max_input_tokens: what is read is cut to this many ids.
      dtype: dtype of the model's weights and activations.
      mesh: devices that share the fits; the default device if None.
      operative_text: gives the config with all values used, written to `config.gin`.

    Returns:
      What `fits.json` says of each group: number of examples, first and last loss.

    Raises:
      InputError: if two groups would share a folder, the store has another vocabulary, or a loss is not finite.

    Source: TAGI's task teachers, methods 1.1 and 1.7.
    """
    from jaxmtl.weights import check_reads, load_pretrained, save_adapter

    pretrained = load_pretrained(path, dtype=dtype, mesh=mesh)
    check_reads(pretrained.config, pretrained.tokenizer, store)
    root, groups = pathlib.Path(run_dir), grouped(store, split, group)
    options: Any = dict(learning_rate=learning_rate, seed=seed, max_input_tokens=max_input_tokens, reads=reads)
    made_with = _made_with(pretrained, lora, schedule) | options | dict(reads=reads.__name__)
    keys = {name: _key(store, split, tasks, made_with) for name, tasks in groups.items()}
    kept = {name: entry for name, entry in _read(root / FITS).items() if entry.get("key") == keys.get(name)}
    _begin(root, kept, operative_text())
    fits = [fit_of_tasks(store, split, name, groups[name], **options) for name in groups if name not in kept]
    for one, fitted in _fitted(pretrained, fits, lora, schedule, mesh):
        save_adapter(root / folder_of(one.name), fitted.learnt, pretrained)
        kept[one.name] = _entry(keys[one.name], one, fitted)
        _write(root / FITS, kept)  # behind its adapter: what is named is whole
    return {name: kept[name] for name in groups}


def _begin(root: pathlib.Path, kept: Mapping[str, Any], config: str) -> None:
    from jaxmtl.files import write_whole

    _write(root / FITS, kept)
    write_whole(root / "config.gin", config)


def _made_with(pretrained: "Pretrained", lora: "LoRA", schedule: "Schedule") -> dict[str, Any]:
    how_long = dict(epochs=schedule.epochs, steps=schedule.steps, batch_size=schedule.batch_size)
    return dict(version=VERSION, weights_hash=pretrained.hash, lora=dataclasses.asdict(lora), **how_long)


def _fitted(
    pretrained: "Pretrained", fits: "Sequence[Fit]", lora: "LoRA", schedule: "Schedule", mesh: "Mesh | None"
) -> "Iterator[tuple[Fit, Fitted]]":
    """Trains with a progress bar and gives each fit as soon as it is done."""
    from jaxmtl.commands.progress import shown
    from jaxmtl.training.fitting import fit_each
    from jaxmtl.training.tuning import LowRankTuning

    with shown("fitting") as told:
        given = (pretrained.module, pretrained.params, fits, LowRankTuning(lora), schedule)
        for index, fitted in fit_each(*given, mesh=mesh, progress=told):
            yield fits[index], fitted


def grouped(store: "TokenStore", split: str, group: Callable[..., str]) -> dict[str, list[str]]:
    """Sorts the tasks of a split into groups.

    Args:
      store: the tokenised examples.
      split: the split.
      group: as in `fit`.

    Returns:
      Group to its tasks.

    Raises:
      InputError: if two groups would share a folder.
    """
    groups: dict[str, list[str]] = {}
    for name in store.task_names(split):
        groups.setdefault(group(name, store.entry(name, split).category), []).append(name)
    folders: dict[str, str] = {}
    for name in groups:
        other = folders.setdefault(folder_of(name), name)
        if other != name:
            raise InputError(f"groups {other!r} and {name!r} would share the folder {folder_of(name)}; rename one")
    return groups


def fit_of_tasks(
    store: "TokenStore",
    split: str,
    name: str,
    tasks: Sequence[str],
    learning_rate: float,
    seed: int,
    max_input_tokens: int,
    reads: Reads = instruction_and_input,
) -> "Fit":
    """Puts the examples of a group's tasks together.

    Args:
      store: the tokenised examples.
      split: the split.
      name: the group.
      tasks: its tasks.
      learning_rate: rate of every step.
      seed: decides start, order and dropout.
      max_input_tokens: what is read is cut to this many ids.
      reads: as in `fit`.

    Returns:
      What is to be fitted.
    """
    from jaxmtl.feed.special_tokens import around_texts
    from jaxmtl.training.fit_rows import Fit

    end, start = store.manifest.vocabulary.eos, around_texts(store.tokenizer())[0]
    inputs: list[Sequence[int]] = []
    targets: list[np.ndarray] = []
    for task_name in tasks:
        examples = store.examples(task_name, split)
        sources, own_targets = examples.rows(range(len(examples)))
        inputs += reads(examples, sources, start, end, max_input_tokens)
        targets += own_targets
    return Fit(name=name, inputs=inputs, targets=targets, learning_rate=learning_rate, seed=seed)


def table(fits: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns number of examples, first and last loss of each group as text.

    Args:
      fits: what `fit` returned.
    """
    lines = [f"{'group':<40}{'n':>8}{'first loss':>12}{'last loss':>12}"]
    losses = lambda one: "".join(f"{one.get(name, float('nan')):>12.3f}" for name in ("first_loss", "last_loss"))
    lines += [f"{name:<40}{one['num_examples']:>8}{losses(one)}" for name, one in sorted(fits.items())]
    return "\n".join(lines)


def _entry(key: str, one: "Fit", fitted: "Fitted") -> dict[str, Any]:
    import numpy as np

    losses = np.asarray(fitted.losses, np.float64)
    share = max(1, len(losses) // 10)  # single steps are noisy
    mean = lambda some: round(float(np.mean(some)), 6)
    ends = dict(first_loss=mean(losses[:share]), last_loss=mean(losses[-share:])) if len(losses) else {}
    return dict(key=key, folder=folder_of(one.name), num_examples=len(one.inputs), num_steps=len(losses), **ends)


def _key(store: "TokenStore", split: str, tasks: Sequence[str], made_with: Mapping[str, Any]) -> str:
    from jaxmtl.evals import files

    examples = {name: store.entry(name, split).sha256 for name in tasks}
    return files.key_of({**made_with, "examples": examples})


def _write(path: pathlib.Path, fits: Mapping[str, Any]) -> None:
    from jaxmtl.files import write_whole

    write_whole(path, json.dumps(dict(fits=fits), indent=1) + "\n")


def finished(run_dir: str | os.PathLike) -> set[str] | None:
    """Lists the folders of adapters that are whole.

    Args:
      run_dir: where adapters are.

    Returns:
      Their names; None if `fit` did not make them.
    """
    path = pathlib.Path(run_dir) / FITS
    return {folder_of(name) for name in _read(path)} if path.exists() else None


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Reads which adapters are whole; what is not there or damaged by hand is fitted again."""
    try:
        fits = json.loads(path.read_text("utf-8"))["fits"]
        return {name: entry for name, entry in fits.items() if isinstance(entry, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
