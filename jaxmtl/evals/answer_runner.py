"""Scores a model with heads on the tasks of a token store: predictions, scores.json and records, as for texts.

A task's predictions are written as soon as they are there, and a restart takes over those of the same examples, labels,
weights and way of choosing spans.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxmtl.evals import files, summary
from jaxmtl.evals.answers import Predicted, predict, score
from jaxmtl.evals.spans import SpanChoice
from jaxmtl.evals.summary import Labels
from jaxmtl.evals.watch import TaskState, tell
from jaxmtl.feed.store import TokenStore
from jaxmtl.tasks.answers import SPAN
from jaxmtl.types import InputError, Progress, Scores
from jaxmtl.weights import Pretrained, check_reads
from jaxmtl.weights.fingerprint import weights_hash

VERSION = 1
"""Counted up when the same settings would give other predictions, so that old files are not taken for new ones."""
_FIELDS = [field.name for field in dataclasses.fields(Predicted)]


def evaluate(
    pretrained: Pretrained,
    store: TokenStore,
    split: str,
    run_dir: str | os.PathLike,
    *,
    tasks: Sequence[str] | None = None,
    batch_size: int = 32,
    span_choice: SpanChoice | None = None,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Answers a split and writes predictions/TASK.jsonl, scores.json and records.jsonl into the run folder.

    Args:
      pretrained: a model with a head for each of the tasks.
      store: the tokenised examples, with typed answers.
      split: split to score.
      run_dir: where to write; on one process what it holds of the same evaluation is not computed again.
      tasks: names of tasks; all tasks of the split if None.
      batch_size: rows computed at once; no answer depends on it.
      span_choice: how spans are chosen; the default if None.
      labels: what the records say about the run; nothing but the folder's name if None.
      progress: told after each task.

    Returns:
      Task name to its scores in percent; "score" is the task's own metric.

    Raises:
      InputError: if the model has no heads or other ones, the store was made with another vocabulary, or the run folder
        holds results of another split.
      UnknownNameError: if there is no such split or task, or no head for it.
    """
    run_dir, labels = pathlib.Path(run_dir), (labels or Labels()).of_folder(run_dir)
    check_reads(pretrained.config, pretrained.tokenizer, store)
    if not getattr(pretrained.config, "heads", ()):
        raise InputError("this model has no heads; score what it writes with runs/evaluate.gin")
    files.check_split(run_dir, split)
    names = list(store.task_names(split) if tasks is None else tasks)
    span_choice = span_choice or SpanChoice()
    spans = dataclasses.asdict(span_choice)
    settings = dict(split=split, weights_hash=weights_hash(pretrained.params), spans=spans)
    scores: dict[str, Scores] = {}
    states = {name: _told(progress, store, split, name) for name in names}
    for number, name in enumerate(names, 1):
        path, key = files.prediction_file(run_dir, name), _key(store, split, name, settings | _heads(pretrained))
        rows = _finished(path, key, store.examples(name, split).ids)
        if rows is None:
            model = (pretrained.module, pretrained.params)
            rows = predict(*model, store, split, tasks=[name], batch_size=batch_size, span_choice=span_choice)[name]
            if jax.process_index() == 0:
                made_by = {"key": key, "split": split}
                files.write_rows(path, [made_by | dataclasses.asdict(one) for one in rows])
        scores |= score({name: rows}, store, split)
        tell(progress, dataclasses.replace(states[name], n=scores[name].n, scores=scores[name]))
        if progress is not None:
            progress(number, len(names), name)
    summary.write(run_dir, scores, settings, labels)
    return scores


def _told(progress: Progress | None, store: TokenStore, split: str, name: str) -> TaskState:
    """Tells of a task that is to be answered, and returns what was told."""
    entry = store.entry(name, split)
    state = TaskState(task=name, category=entry.category, n=entry.num_examples)
    tell(progress, state)
    return state


def _key(store: TokenStore, split: str, name: str, settings: Mapping[str, Any]) -> str:
    """Hashes all that decides a task's predictions."""
    entry, vocabulary = store.entry(name, split), store.manifest.vocabulary.fingerprint
    settings = {field: value for field, value in settings.items() if field != "spans" or entry.answer == SPAN}
    labels = {"answer": entry.answer, "labels": list(entry.labels)}
    identity = {**settings, **labels, "version": VERSION, "task": name, "examples": entry.sha256, "words": vocabulary}
    return files.key_of(identity)


def _heads(pretrained: Pretrained) -> dict[str, Any]:
    """Describes what the weights do not tell: which rows of stacked heads are whose."""
    config = pretrained.config
    return {"heads": [dataclasses.asdict(head) for head in config.heads], "class_head": config.class_head}


def _finished(path: pathlib.Path, key: str, ids: Sequence[str]) -> list[Predicted] | None:
    """Reads predictions that need not be made again; None if there are none, or others."""
    if jax.process_count() > 1:
        return None  # other processes may not see the first one's files
    # The windows of a long context share an id and give one answer.
    rows = files.finished_rows(path, key, len(set(ids)))
    try:
        return None if rows is None else [Predicted(**{name: row[name] for name in _FIELDS}) for row in rows]
    except KeyError:
        return None  # damaged by hand: computed again
