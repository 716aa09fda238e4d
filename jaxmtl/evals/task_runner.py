"""Predictions task by task, whichever way they are made: planned, resumed, written, summed up in scores and records.

Examples of all tasks are flattened, so that different tasks share a batch; a task's predictions are written as soon as
all of its examples are done, and a restart skips what is finished: same task, same examples, same weights and adapter,
same way. `scores.json` and `records.jsonl` are made from the predictions at the end, `cost.json` says what they cost.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmtl.evals import cost, files, summary, task_adapters
from jaxmtl.evals.instructed import ByInstruction, first_of, instructions_of
from jaxmtl.evals.predictions import Method, Row, Work
from jaxmtl.evals.requests import OnBatch
from jaxmtl.evals.summary import Labels
from jaxmtl.evals.task_adapters import Adapted, Given
from jaxmtl.evals.watch import TaskState, tell
from jaxmtl.feed.store import Examples, TokenStore
from jaxmtl.tasks.spec import check_task_name
from jaxmtl.types import InputError, Progress, Scores
from jaxmtl.weights import Pretrained, check_reads

VERSION = 2
"""Counted up when the same settings would give other predictions, so that old files are not taken for new ones."""
MOST_INSTRUCTED = 16
"""Tasks that a hypernetwork adapts the model to at the same time: each takes the memory of a long prompt."""


class Way(Protocol):
    """A way of making predictions."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON values that decide the predictions, besides model, adapters and examples."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the metrics of a task's scores."""
        ...

    def of_task(self, name: str, examples: Examples) -> Mapping[str, Any]:
        """Returns what else decides a task's predictions, as JSON values; refuses other examples with an InputError."""
        ...

    def predict(
        self, pretrained: Pretrained, chunk: Sequence[Work], stage: Callable[[str], OnBatch]
    ) -> Mapping[str, Sequence[Row]]:
        """Returns task name to prediction rows: "key", "split", "id" and what else there is to say of an example."""
        ...

    def means(self, work: Work, rows: Sequence[Mapping[str, Any]]) -> Scores:
        """Returns what a task's rows come to; KeyError or TypeError if they are not such rows."""
        ...

    def extras(self, scores: Mapping[str, Scores]) -> Mapping[str, Any]:
        """Returns what scores.json says besides, as JSON values."""
        ...


def run_tasks(
    pretrained: Pretrained,
    store: TokenStore,
    split: str,
    run_dir: str | os.PathLike,
    way: Way,
    *,
    tasks: Sequence[str] | None = None,
    adapters: Given = None,
    chunk_size: int = 512,
    max_examples: int | None = None,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Predicts tasks and writes predictions/TASK.jsonl, scores.json, records.jsonl and cost.json into the run folder.

    Args:
      pretrained: the model; without a tokenizer the store's is used.
      store: the tokenised examples.
      split: split to score.
      run_dir: where to write; what it holds of the same evaluation is not computed again.
      way: how predictions are made.
      tasks: names of tasks; all tasks of the split if None.
      adapters: task name to the adapter that the task is scored with; or one for all tasks; or a hypernetwork that
        makes them of the store's instructions; none if None.
      chunk_size: tasks are taken together until they have this many examples; then their predictions are written.
      max_examples: scores only the first examples of each task; all if None.
      labels: what the records say about the run; nothing but the folder's name if None.
      progress: told after each batch (examples done, in all, stage), and of tasks if a `TaskWatch`.

    Returns:
      Task name to its scores.

    Raises:
      InputError: if the model has heads, a task has no example in the split, the store has another vocabulary, the run
        folder holds results of another split, an adapter does not fit, or a file is not written.
      UnknownNameError: if there is no such split or task, or no adapter of a task.
    """
    run_dir, labels = pathlib.Path(run_dir), (labels or Labels()).of_folder(run_dir)
    pretrained = _with_tokenizer(pretrained, store)
    settings = dict(split=split, **way.settings)
    adapted = task_adapters.of_tasks(pretrained, adapters, _names(store, split, tasks))
    work = _instructed(_plan(store, split, max_examples, settings, adapted, way), store, split, adapters)
    files.check_split(run_dir, split)
    scores = _agree({task.name: _finished(run_dir, task, way) for task in work}, work, way.columns)
    left = [task for task in work if task.name not in scores]
    for task in work:
        tell(progress, _state(task, scores.get(task.name)))
    watch = cost.Stopwatch()
    for task, rows in watch.timed(_predictions(pretrained, left, way, chunk_size, progress)):
        scores[task.name] = _kept(run_dir, task, rows, way)
        tell(progress, _state(task, scores[task.name]))
    scores = {task.name: scores[task.name] for task in work}
    told = {**settings, **task_adapters.stated_hashes(adapters, adapted), **way.extras(scores)}
    summary.write(run_dir, scores, told, labels)
    if left:
        # Other ways make other passes over an example than one over its input and target.
        flops = cost.operations(pretrained, work) if isinstance(way, Method) else None
        cost.write(run_dir, work, flops, sum(task.count for task in left), watch.seconds)
    return scores


def _kept(run_dir: pathlib.Path, task: Work, rows: Sequence[Row], way: Way) -> Scores:
    """Writes a task's predictions and returns what they come to."""
    if jax.process_index() == 0:
        files.write_rows(files.prediction_file(run_dir, task.name), rows)
    return way.means(task, rows)


def _finished(run_dir: pathlib.Path, work: Work, way: Way) -> Scores | None:
    """Looks for predictions that need not be made again; None if there are none, or others, or damaged ones."""
    rows = files.finished_rows(files.prediction_file(run_dir, work.name), work.key, work.count)
    try:
        return None if rows is None else way.means(work, rows)
    except (KeyError, TypeError):
        return None  # damaged by hand: computed again


def _state(task: Work, scores: Scores | None) -> TaskState:
    return TaskState(task=task.name, category=task.category, n=task.count, scores=scores)


def _predictions(
    pretrained: Pretrained, left: Sequence[Work], way: Way, chunk_size: int, progress: Progress | None
) -> Iterator[tuple[Work, Sequence[Row]]]:
    """Gives tasks with their prediction rows, as soon as they are computed."""
    count = _Counter(sum(task.count for task in left), progress)
    for chunk in _chunks(left, chunk_size):
        rows = way.predict(pretrained, chunk, count.stage)
        yield from ((task, rows[task.name]) for task in chunk)


def _with_tokenizer(pretrained: Pretrained, store: TokenStore) -> Pretrained:
    if getattr(pretrained.config, "heads", ()):
        raise InputError("this model has heads and writes no texts; score its answers with runs/evaluate_heads.gin")
    check_reads(pretrained.config, pretrained.tokenizer, store)
    if pretrained.tokenizer is not None:
        return pretrained
    return dataclasses.replace(pretrained, tokenizer=store.tokenizer())


def _names(store: TokenStore, split: str, tasks: Sequence[str] | None) -> list[str]:
    """Returns the names of the tasks, each once; refuses those that the store does not have."""
    names = list(store.task_names(split) if tasks is None else dict.fromkeys(tasks))
    for name in names:
        store.entry(name, split)
    if not names:
        raise InputError(f"split {split!r} of token store {store.folder}: no task to evaluate; expected at least one")
    return names


def _plan(
    store: TokenStore,
    split: str,
    max_examples: int | None,
    settings: Mapping[str, Any],
    adapted: Mapping[str, Adapted],
    way: Way,
) -> list[Work]:
    """Lists the tasks; finds what is wrong with any of them before the first is computed."""
    if max_examples is not None and max_examples < 1:
        raise InputError(f"max_examples is {max_examples}; expected at least 1, or None for all")
    vocabulary = store.manifest.vocabulary.fingerprint
    work = []
    for name, own in adapted.items():
        entry = store.entry(name, split)
        check_task_name(name, f"token store {store.folder}")
        if entry.num_examples == 0:
            raise InputError(f"task {name}: split {split!r} is empty; leave the task out or cache examples for it")
        count = min(entry.num_examples, max_examples or entry.num_examples)
        made_from = dict(version=VERSION, task=name, examples=entry.sha256, count=count, vocabulary=vocabulary)
        examples = store.examples(name, split)
        of_task = way.of_task(name, examples)
        key = files.key_of({**settings, **of_task, **made_from, "weights_hash": own.weights_hash})
        what: dict[str, Any] = dict(name=name, category=entry.category, headline=entry.metric, split=split)
        work.append(Work(examples=examples, count=count, key=key, adapter=own.adapter, **what))
    return work


def _instructed(work: list[Work], store: TokenStore, split: str, adapters: Given) -> list[Work]:
    """Gives tasks their instructions if a hypernetwork is to read any; whose they are is part of a task's key."""
    if not isinstance(adapters, ByInstruction):
        return work
    first = [first_of(store, split, task.name, adapters.hyper) for task in work]
    sources = adapters.choose([task.name for task in work], [task.category for task in work], first)
    found = []
    for task, source in zip(work, sources, strict=True):
        given = instructions_of(store, split, source, task.count, adapters.hyper)
        foreign = {} if source == task.name else dict(instruction_of=source, there=store.entry(source, split).sha256)
        key = files.key_of({"key": task.key, **foreign})
        found.append(dataclasses.replace(task, instructions=given, key=key))
    return found


def _agree(found: Mapping[str, Scores | None], work: Sequence[Work], columns: Sequence[str]) -> dict[str, Scores]:
    """Drops tasks without scores; of many hosts all take what the first one found, so that all do the same work."""
    if jax.process_count() == 1:
        return {name: scores for name, scores in found.items() if scores is not None}
    table = np.zeros((len(work), 1 + len(columns)), np.float64)
    for row, scores in zip(table, found.values(), strict=True):
        if scores is not None:
            row[:] = [scores.n, *(scores.metrics[name] for name in columns)]
    # Sent as 32-bit words: JAX would round float64.
    words = np.asarray(multihost_utils.broadcast_one_to_all(table.view(np.uint32)), np.uint32)
    agreed = {}
    for task, (n, *values) in zip(work, words.view(np.float64).tolist(), strict=True):
        if n:
            means = dict(zip(columns, values, strict=True))
            what = dict(task=task.name, category=task.category, headline=task.headline)
            agreed[task.name] = Scores(n=int(n), metrics=means, **what)
    return agreed


def _chunks(work: Sequence[Work], chunk_size: int) -> Iterator[list[Work]]:
    chunk: list[Work] = []
    for task in work:
        chunk.append(task)
        is_full = sum(member.count for member in chunk) >= chunk_size
        if is_full or (task.instructions is not None and len(chunk) == MOST_INSTRUCTED):
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class _Counter:
    """Counts the examples of all batches together and passes the sum on."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def stage(self, text: str) -> Callable[[int], None]:
        """Returns a function that counts the batches of one stage."""

        def add(examples: int) -> None:
            self.done += examples
            if self.progress is not None:
                self.progress(self.done, self.total, text)

        return add
