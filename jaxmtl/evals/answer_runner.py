"""Scores a model with heads on the tasks of a token store: predictions, scores.json and records, as for texts."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import jax

from jaxmtl.evals import files, summary
from jaxmtl.evals.answers import Predicted, predict, score
from jaxmtl.evals.fingerprint import weights_hash
from jaxmtl.evals.spans import SpanChoice
from jaxmtl.evals.summary import Labels
from jaxmtl.feed.store import TokenStore
from jaxmtl.types import InputError, Progress, Scores
from jaxmtl.weights import Pretrained, check_reads


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
      run_dir: where to write.
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
    for number, name in enumerate(names, 1):
        model = (pretrained.module, pretrained.params)
        predicted = predict(*model, store, split, tasks=[name], batch_size=batch_size, span_choice=span_choice)
        scores |= score(predicted, store, split)
        if jax.process_index() == 0:
            files.write_rows(files.prediction_file(run_dir, name), [_row(one, split) for one in predicted[name]])
        if progress is not None:
            progress(number, len(names), name)
    summary.write(run_dir, scores, settings, labels)
    return scores


def _row(predicted: Predicted, split: str) -> dict[str, object]:
    return {"split": split, **dataclasses.asdict(predicted)}
