"""In-context learning on the tasks of a token store: answers ranked, or targets scored, after examples of the task.

Each setting (way, shots, seed) has a folder of its own in the run folder, with what an evaluation writes; tasks that
are finished are not computed again. Demonstrations come from a split of their own; none has the input of an example
that is asked about. All examples of a task share them, so that FiD-ICL encodes them once.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxmtl.evals import files, icl
from jaxmtl.evals.icl_format import FID_ICL, Format, join_demonstrations, join_queries
from jaxmtl.evals.predictions import Work
from jaxmtl.evals.ranking import Losses, Ranking
from jaxmtl.evals.requests import BATCH_SIZE, OnBatch, tokenizer_of
from jaxmtl.evals.summary import Labels
from jaxmtl.evals.task_runner import Way, run_tasks
from jaxmtl.evals.watch import TaskState, Within, tell
from jaxmtl.feed.special_tokens import around_texts, without_special
from jaxmtl.feed.store import Examples, TokenStore
from jaxmtl.tasks.fewshot import shown_rows
from jaxmtl.types import InputError, Progress, Scores, unknown_name
from jaxmtl.weights import Pretrained

WAYS: Mapping[str, icl.Way] = {"concat": icl.concat_losses, "fid": icl.fid_losses, "ensemble": icl.ensemble_losses}
"""Name to how demonstrations are shown, see `jaxmtl.evals.icl`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is shown, and how.

    Attributes:
      way: a key of `WAYS`.
      shots: number of demonstrations; a larger number with the same seed begins with the same ones.
      seed: chooses the demonstrations and their order.

    Raises:
      InputError: if the number is negative.
      UnknownNameError: if there is no such way.
    """

    way: str
    shots: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise unknown_name("way of in-context learning", self.way, WAYS)
        if self.shots < 0:
            raise InputError(f"{self.shots} shots of in-context learning; expected 0 or more")

    @property
    def label(self) -> str:
        """A name that is safe as a folder's, such as "fid_16-shots_seed-0"."""
        return f"{self.way}_{self.shots}-shots_seed-{self.seed}"


def settings(*, ways: Sequence[str], shots: Sequence[int], seeds: Sequence[int] = (0,)) -> list[Setting]:
    """Lists all combinations.

    Args:
      ways: keys of `WAYS`.
      shots: numbers of demonstrations.
      seeds: seeds.

    Returns:
      The settings, seeds in the innermost loop.
    """
    combined = itertools.product(ways, shots, seeds)
    return [Setting(way=way, shots=count, seed=seed) for way, count, seed in combined]


def evaluate(
    pretrained: Pretrained,
    store: TokenStore,
    split: str,
    run_dir: str | os.PathLike,
    *,
    how: Sequence[Setting],
    shown_split: str,
    form: Format = FID_ICL,
    judge: Callable[..., Way] = Ranking,
    tasks: Sequence[str] | None = None,
    adapters: None = None,
    batch_size: int = BATCH_SIZE,
    max_examples: int | None = None,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Ranks answer choices, or scores targets, after demonstrations, in every setting.

    Args:
      pretrained: the model.
      store: the tokenised examples, with answer choices where these are ranked.
      split: the split that is asked about.
      run_dir: where to write.
      how: the settings.
      shown_split: the split that demonstrations are chosen from.
      form: how demonstrations and queries are written.
      judge: what is made of the losses: `Ranking`, of choices, or `TargetLosses`.
      tasks: names of tasks; all tasks of the split if None.
      adapters: refused: demonstrations are read by the plain model.
      batch_size: queries scored at once; no score depends on it.
      max_examples: asks about the first examples of each task only; all if None.
      labels: what the records say about the run; the setting is added to its name.
      progress: told what is done.

    Returns:
      "SETTING TASK" to the task's scores as `judge` gives them, with the setting as category.

    Raises:
      InputError: as `task_runner.run_tasks` and `judge`, if there is no setting or one twice, or a task has too few
        demonstrations.
      UnknownNameError: if a task has no demonstrations at all.
    """
    if adapters is not None:
        raise InputError("in-context learning asks a plain model: give no ADAPTER, or merge it, and no hypernetwork")
    _check_different(how)
    run_dir, labels = pathlib.Path(run_dir), (labels or Labels()).of_folder(run_dir)
    chosen = store.task_names(split) if tasks is None else list(tasks)
    shows = _Shows(store=store, split=split, shown_split=shown_split, form=form, batch_size=batch_size)
    for setting in how:
        files.check_split(run_dir / setting.label, split)
        shows.announce(setting, chosen, max_examples, progress)
    found = {}
    for setting in how:
        way = shows.way(judge, setting)
        own = dataclasses.replace(labels, run=f"{labels.run}/{setting.label}", seed=setting.seed)
        told = Within(progress, setting.label)
        options: dict[str, Any] = dict(tasks=chosen, labels=own, max_examples=max_examples, chunk_size=1, progress=told)
        found[setting] = run_tasks(pretrained, store, split, run_dir / setting.label, way, **options)
    return _named(found)


def _named(found: Mapping[Setting, Mapping[str, Scores]]) -> dict[str, Scores]:
    """Puts the scores of all settings together, with the setting as category."""
    return {
        f"{setting.label} {name}": dataclasses.replace(one, category=setting.label)
        for setting, scores in found.items()
        for name, one in scores.items()
    }


def _check_different(how: Sequence[Setting]) -> None:
    names = [one.label for one in how]
    if not names or len(set(names)) < len(names):
        raise InputError(f"settings of in-context learning are {names}; expected at least one, none twice")


def _keys(examples: Examples) -> list[tuple[str, bytes]]:
    inputs, _ = examples.rows(range(len(examples)))
    return [(key, ids.tobytes()) for key, ids in zip(examples.ids, inputs, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shows:
    """Shows demonstrations before queries; attributes as in `evaluate`."""

    store: TokenStore
    split: str
    shown_split: str
    form: Format
    batch_size: int

    def announce(
        self, setting: Setting, names: Sequence[str], max_examples: int | None, progress: Progress | None
    ) -> None:
        """Tells of the tasks of a setting; finds out now what would be too few."""
        for name in names:
            self.rows(name, setting)
            count = self.store.entry(name, self.split).num_examples
            tell(progress, TaskState(task=name, category=setting.label, n=min(count, max_examples or count)))

    def way(self, judge: Callable[..., Way], setting: Setting) -> Way:
        """Returns how a setting's predictions are made."""
        form = dataclasses.asdict(self.form)
        return judge(
            measure=functools.partial(self.measured, setting),
            described={**dataclasses.asdict(setting), "form": form, "shown": self.shown_split},
            task_identity=self.identity,
        )

    def identity(self, name: str) -> dict[str, str]:
        """Returns what a task's predictions depend on besides."""
        return {"shown_examples": self.store.entry(name, self.shown_split).sha256}

    def rows(self, name: str, setting: Setting) -> list[int]:
        """Chooses rows of the split of demonstrations."""
        if self.split == self.shown_split:
            raise InputError(f"split {self.split!r} cannot be asked about and shown; give another FEW_SHOT_SPLIT")
        self.store.entry(name, self.shown_split)
        pool, queries = (_keys(self.store.examples(name, split)) for split in (self.shown_split, self.split))
        return shown_rows(pool, queries, setting.shots, setting.seed, name)

    def measured(
        self,
        setting: Setting,
        pretrained: Pretrained,
        chunk: Sequence[Work],
        choices: Sequence[list[list[int]]],
        on_batch: OnBatch,
    ) -> Losses:
        """Measures the choices of all examples of some tasks, a `ranking.Measure` of a setting."""
        tokenizer = tokenizer_of(pretrained)
        start, _ = around_texts(tokenizer)
        plain = functools.partial(without_special, start=start, eos_token_id=tokenizer.eos_token_id)
        losses: Losses = []
        for work in chunk:
            rows = map(self.store.examples(work.name, self.shown_split).row, self.rows(work.name, setting))
            pairs = [(plain(inputs), plain(targets)) for inputs, targets in rows]
            shown = join_demonstrations(tokenizer, pairs, self.form)
            asked = [plain(ids) for ids in work.examples.rows(range(work.count))[0]]
            queries = join_queries(tokenizer, asked, self.form)
            own = choices[len(losses) : len(losses) + work.count]
            losses += WAYS[setting.way](pretrained, shown, queries, own, batch_size=self.batch_size)
            on_batch(work.count)
        return losses
