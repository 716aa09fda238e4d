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
    for setting in how:
        files.check_split(run_dir / setting.label, split)
        for name in chosen:
            _shown(store, split, shown_split, name, setting)  # finds out now what would be too few
            count = store.entry(name, split).num_examples
            tell(progress, TaskState(task=name, category=setting.label, n=min(count, max_examples or count)))
    found = {}
    for setting in how:
        way = _way(judge, store, split, shown_split, setting, form, batch_size)
        own = dataclasses.replace(labels, run=f"{labels.run}/{setting.label}", seed=setting.seed)
        told = Within(progress, setting.label)
        options: dict[str, Any] = dict(tasks=chosen, labels=own, max_examples=max_examples, chunk_size=1, progress=told)
        found[setting] = run_tasks(pretrained, store, split, run_dir / setting.label, way, **options)
    return _named(found)


def _way(
    judge: Callable[..., Way],
    store: TokenStore,
    split: str,
    shown_split: str,
    setting: Setting,
    form: Format,
    batch_size: int,
) -> Way:
    return judge(
        measure=functools.partial(_measured, store, split, shown_split, setting, form, batch_size),
        described={**dataclasses.asdict(setting), "form": dataclasses.asdict(form), "shown": shown_split},
        task_identity=functools.partial(_identity, store, shown_split),
    )


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


def _identity(store: TokenStore, shown_split: str, name: str) -> dict[str, str]:
    return {"shown_examples": store.entry(name, shown_split).sha256}


def _shown(store: TokenStore, split: str, shown_split: str, name: str, setting: Setting) -> list[int]:
    """Chooses rows of the split of demonstrations."""
    if split == shown_split:
        raise InputError(f"split {split!r} cannot be asked about and shown; give another FEW_SHOT_SPLIT")
    store.entry(name, shown_split)
    pool, queries = _keys(store.examples(name, shown_split)), _keys(store.examples(name, split))
    return shown_rows(pool, queries, setting.shots, setting.seed, name)


def _keys(examples: Examples) -> list[tuple[str, bytes]]:
    inputs, _ = examples.rows(range(len(examples)))
    return [(key, ids.tobytes()) for key, ids in zip(examples.ids, inputs, strict=True)]


def _measured(
    store: TokenStore,
    split: str,
    shown_split: str,
    setting: Setting,
    form: Format,
    batch_size: int,
    pretrained: Pretrained,
    chunk: Sequence[Work],
    choices: Sequence[list[list[int]]],
    on_batch: OnBatch,
) -> Losses:
    tokenizer = tokenizer_of(pretrained)
    start, _ = around_texts(tokenizer)
    plain = functools.partial(without_special, start=start, eos_token_id=tokenizer.eos_token_id)
    losses: Losses = []
    for work in chunk:
        pool = store.examples(work.name, shown_split)
        rows = map(pool.row, _shown(store, split, shown_split, work.name, setting))
        shown = join_demonstrations(tokenizer, [(plain(inputs), plain(targets)) for inputs, targets in rows], form)
        queries = join_queries(tokenizer, [plain(ids) for ids in work.examples.rows(range(work.count))[0]], form)
        own = choices[len(losses) : len(losses) + work.count]
        losses += WAYS[setting.way](pretrained, shown, queries, own, batch_size=batch_size)
        on_batch(work.count)
    return losses
