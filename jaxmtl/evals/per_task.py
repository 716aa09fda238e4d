"""Few-shot fine-tuning of many tasks at once: every task, number of shots, seed and rate an adapter of its own."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from jaxmtl.adapters.lora import Adapter, LoRA
from jaxmtl.evals.requests import Ids, mesh_of, tokenizer_of
from jaxmtl.feed.tokenise import Preprocessing, tokenise_examples
from jaxmtl.tasks.fewshot import seeded_subset
from jaxmtl.tasks.prompts import tk_instruct
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.training.fit_rows import Fit
from jaxmtl.training.fits import AdamW
from jaxmtl.training.fitting import ADAMW, Fitted, Schedule, fit_all
from jaxmtl.types import Example, InputError, Progress
from jaxmtl.weights import Pretrained

PREPROCESSING = Preprocessing(prompt=tk_instruct)
"""Definition and input, as Tk-Instruct writes them; the first reference is learnt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How a task is fitted, besides what all fits have in common.

    Attributes:
      shots: examples learnt from; all that there are if None.
      seed: chooses the examples, and decides the adapter's start, the order of rows and dropout.
      learning_rate: the rate of every step.
    """

    shots: int | None = None
    seed: int = 0
    learning_rate: float = 1e-3

    @property
    def label(self) -> str:
        """A name that is safe as a folder's, such as "5-shots_seed-0_rate-0.001"."""
        shots = "all" if self.shots is None else self.shots
        return f"{shots}-shots_seed-{self.seed}_rate-{self.learning_rate:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
    """What each fit holds out to find its best epoch: a part of its shots, or examples of another split.

    Attributes:
      share: share of the shots that is not learnt, at least one of two or more; 0 for none.
      split: a split with the held-out examples: as many as there are shots, or all if it has fewer; None for none.

    Raises:
      InputError: if the share is no share below 1, or both are given.
    """

    share: float = 0.0
    split: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise InputError(f"the share of shots to hold out is {self.share}; expected 0 or more, less than 1")
        if self.share and self.split is not None:
            raise InputError(f"held out are a share of {self.share} and split {self.split!r}; give one of the two")

    def count(self, shots: int) -> int:
        """Returns how many of a number of shots are not learnt."""
        return min(shots - 1, max(1, round(self.share * shots))) if self.share and shots > 1 else 0


NOTHING_HELD = Held()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskFit:
    """An adapter for a task.

    Attributes:
      task: the task's name.
      setting: how it was fitted.
      num_examples: examples it has learnt from.
      fitted: the adapter and its training losses.
    """

    task: str
    setting: Setting
    num_examples: int
    fitted: Fitted


def settings(
    *, shots: Sequence[int | None] = (None,), seeds: Sequence[int] = (0,), learning_rates: Sequence[float] = (1e-3,)
) -> list[Setting]:
    """Lists all combinations of numbers of shots, seeds and learning rates.

    Args:
      shots: numbers of examples; with the same seed a larger number holds the smaller one's examples.
      seeds: seeds.
      learning_rates: rates.

    Returns:
      The settings, learning rates in the innermost loop.
    """
    combined = itertools.product(shots, seeds, learning_rates)
    return [Setting(shots=count, seed=seed, learning_rate=rate) for count, seed, rate in combined]


def fit_adapters(
    pretrained: Pretrained,
    tasks: Sequence[TaskSpec],
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.05,
    learning_rate: float = 1e-3,
    epochs: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    targets: str | Sequence[str] = "q,v",
    split: str | None = None,
    held: Held = NOTHING_HELD,
    patience: int | None = None,
    preprocessing: Preprocessing = PREPROCESSING,
    progress: Progress | None = None,
) -> list[Adapter]:
    """Fits a LoRA adapter to each task, all at once; what one becomes does not depend on the others.

    Args:
      pretrained: the model, with a tokenizer; it stays as it is, and its own dropout is off.
      tasks: the tasks; one without examples gets an adapter that changes nothing.
      rank: rank of the adapters.
      alpha: numerator of their scale.
      dropout: share of values dropped before `a`.
      learning_rate: constant rate of AdamW.
      epochs: passes over a task's examples.
      batch_size: examples of a step; the last step of an epoch takes what is left.
      seed: decides starts, orders and dropout.
      targets: which layers, see `jaxmtl.adapters.targets.matching`.
      split: the split that is learnt; all examples of a task if None.
      held: what is held out to find each task's best epoch, which is kept; by default nothing, and the last is kept.
      patience: epochs in a row without a lower held-out loss after which a task stops; None never stops.
      preprocessing: how examples become ids.
      progress: told after each step.

    Returns:
      An adapter for each task, in their order.

    Raises:
      DivergedError: if losses of some tasks are not finite; carries the fits of the others, by their places.
      InputError: if two tasks share a name, or the model has no tokenizer.

    Source: defaults of S001's few-shot fine-tuning, methods 2.6.
    """
    lora = LoRA(rank=rank, alpha=alpha, targets=targets, dropout=dropout)
    how = Setting(seed=seed, learning_rate=learning_rate)
    schedule = Schedule(epochs=epochs, batch_size=batch_size, patience=patience)
    options: dict[str, Any] = dict(split=split, held=held, preprocessing=preprocessing, progress=progress)
    return [one.fitted.learnt for one in fit_settings(pretrained, tasks, [how], lora, schedule, **options)]


def fit_settings(
    pretrained: Pretrained,
    tasks: Sequence[TaskSpec],
    how: Sequence[Setting],
    lora: LoRA,
    schedule: Schedule,
    *,
    split: str | None = None,
    held: Held = NOTHING_HELD,
    preprocessing: Preprocessing = PREPROCESSING,
    optimizer: AdamW = ADAMW,
    progress: Progress | None = None,
) -> list[TaskFit]:
    """Fits every task in every setting, all at once.

    Args:
      pretrained: the model, with a tokenizer.
      tasks: the tasks.
      how: the settings, see `settings`.
      lora: what the adapters are made of.
      schedule: how long and in which portions.
      split: the split that is learnt; all examples of a task if None.
      held: what is held out to find the best epoch.
      preprocessing: how examples become ids.
      optimizer: turns gradients into updates.
      progress: told after each step.

    Returns:
      One for each task and setting, the settings of a task together.

    Raises:
      InputError: as `fit_adapters`, or if a task has fewer examples than a setting asks for.
    """
    fits = [fit for task in _named_apart(tasks) for fit in _fits(pretrained, task, how, split, held, preprocessing)]
    options: dict[str, Any] = dict(optimizer=optimizer, mesh=mesh_of(pretrained.params), progress=progress)
    found = fit_all(pretrained.module, pretrained.params, fits, lora, schedule, **options)
    pairs = itertools.product(tasks, how)
    return [
        TaskFit(task=task.name, setting=setting, num_examples=len(fit.inputs), fitted=fitted)
        for (task, setting), fit, fitted in zip(pairs, fits, found, strict=True)
    ]


def _fits(
    pretrained: Pretrained,
    task: TaskSpec,
    how: Sequence[Setting],
    split: str | None,
    held: Held,
    preprocessing: Preprocessing,
) -> Iterator[Fit]:
    """Tokenises a task's examples once and gives each setting its own."""
    tokenise = lambda examples: tokenise_examples(task, examples, preprocessing, tokenizer_of(pretrained))
    examples: Sequence[Example] = task.examples if split is None else task.split(split)
    rows = tokenise(examples)
    others = None if held.split is None else tokenise(task.split(held.split))
    further = ((), ()) if others is None else (others.inputs, others.targets)
    return (fit_of_rows(task.name, rows.inputs, rows.targets, setting, held, further) for setting in how)


def fit_of_rows(
    name: str,
    inputs: Sequence[Ids],
    targets: Sequence[Ids],
    setting: Setting,
    held: Held = NOTHING_HELD,
    others: tuple[Sequence[Ids], Sequence[Ids]] = ((), ()),
) -> Fit:
    """Chooses the shots of a setting among a task's examples.

    Args:
      name: the task's name.
      inputs: token ids of each example.
      targets: token ids of each example.
      setting: how the task is fitted.
      held: what is held out.
      others: inputs and targets of the task in the held-out split, if there is one.

    Returns:
      What is to be fitted.

    Raises:
      InputError: if the task has fewer examples than shots, or none in the held-out split.
    """
    if (setting.shots or 0) > len(inputs):
        raise InputError(f"task {name}: {setting.shots} shots asked for, but it has {len(inputs)} examples")
    if held.split is not None and not others[0]:
        raise InputError(f"task {name}: no examples in split {held.split!r}, from which its best epoch is to be found")
    drawn = seeded_subset(range(len(inputs)), setting.shots, setting.seed, name, "shots")
    learnt = len(drawn) - held.count(len(drawn))
    wanted = min(len(drawn), len(others[0]))
    further = seeded_subset(range(len(others[0])), wanted, setting.seed, name, "held-out shots")
    columns = zip((inputs, targets), others, strict=True)
    held_rows = [[own[i] for i in drawn[learnt:]] + [other[i] for i in further] for own, other in columns]
    own_inputs, own_targets = ([column[index] for index in drawn[:learnt]] for column in (inputs, targets))
    return Fit(
        name=name,
        inputs=own_inputs,
        targets=own_targets,
        learning_rate=setting.learning_rate,
        seed=setting.seed,
        held_inputs=held_rows[0],
        held_targets=held_rows[1],
    )


def _named_apart(tasks: Sequence[TaskSpec]) -> Sequence[TaskSpec]:
    """Refuses two tasks of one name: they would start alike."""
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two tasks are called {name!r}; rename one")
    return tasks
