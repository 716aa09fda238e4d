"""Predicts classes, tags and spans for a split of a token store, and scores them per task.

Letters in shapes: B batch, S input length, L labels.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.evals.spans import SpanChoice, best_spans
from jaxmtl.feed.eval_stream import eval_stream
from jaxmtl.feed.store import Examples, TokenStore
from jaxmtl.models.head_config import Head
from jaxmtl.tasks import answer_metrics
from jaxmtl.tasks.answers import CLASS, IGNORED, SPAN, TAGS
from jaxmtl.types import Batch, InputError, Scores, unknown_name

PERCENT = 100.0
SCORE = "score"
"""Metric that tasks of all kinds have: each its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a model answers to one example.

    Attributes:
      id: the example.
      prediction: the label, the tags of the words that were not cut off, or the answer's text.
      references: the right label, the right tags of the same words, or all right answers.
    """

    id: str
    prediction: Any
    references: Any


def head_ids(heads: Sequence[Head], names: Sequence[str]) -> np.ndarray:
    """Finds the heads of tasks.

    Args:
      heads: a model's heads.
      names: tasks.

    Returns:
      int32 [tasks], the place of each task's head.

    Raises:
      UnknownNameError: if a task has no head.
    """
    place = {head.name: index for index, head in enumerate(heads)}
    for name in names:
        if name not in place:
            raise unknown_name("head of task", name, place)
    return np.array([place[name] for name in names], np.int32)


def renumbered(batches: Iterable[Batch], ids: np.ndarray) -> Iterator[Batch]:
    """Gives batches of a split the task ids that a model's heads have: a split may lack tasks.

    Args:
      batches: batches whose task ids count the tasks of the split.
      ids: int32 [tasks], see `head_ids`.

    Yields:
      The batches.
    """
    for batch in batches:
        yield {**batch, "task_ids": ids[batch["task_ids"]]}


def predict(
    module: Any,
    params: Any,
    store: TokenStore,
    split: str,
    *,
    tasks: Sequence[str] | None = None,
    batch_size: int = 32,
    span_choice: SpanChoice | None = None,
) -> dict[str, list[Predicted]]:
    """Answers all examples of a split.

    Args:
      module: a model with heads, one of them for each of the tasks.
      params: its parameter tree.
      store: the tokenised examples, with typed answers.
      split: name of the split.
      tasks: names of tasks; None for all of the split.
      batch_size: rows computed at once; no answer depends on it.
      span_choice: how spans are chosen; the default if None.

    Returns:
      Task name to its examples in the store's order; the windows of an example's context give one answer.

    Raises:
      UnknownNameError: if there is no such split or task, or no head for a task.
      InputError: if a task of the store has other labels than its head.
    """
    stream = eval_stream(store, split, batch_size=batch_size, tasks=tasks)
    heads: tuple[Head, ...] = module.config.heads
    ids = head_ids(heads, stream.rows.names)
    for name, entry, place in zip(stream.rows.names, stream.rows.entries, ids, strict=True):
        if (entry.answer, tuple(entry.labels)) != (heads[place].kind, heads[place].labels):
            raise InputError(f"task {name}: the store has other labels than the model's head; cache and train again")
    found: dict[tuple[int, int], Any] = {}
    for batch in stream:
        answers = jax.device_get(_answers(module, params, batch["inputs"], ids[batch["task_ids"]]))
        for row in np.flatnonzero(batch["example_ids"] >= 0).tolist():
            task, example = int(batch["task_ids"][row]), int(batch["example_ids"][row])
            found[task, example] = answers[heads[ids[task]].kind][row]
    spans = functools.partial(_spans, store=store, choice=span_choice or SpanChoice())
    read = {CLASS: _classes, TAGS: _tags, SPAN: spans}
    predicted = {}
    for task, (name, entry) in enumerate(zip(stream.rows.names, stream.rows.entries, strict=True)):
        own = [found[task, example] for example in range(entry.num_examples)]
        predicted[name] = list(read[entry.answer](store.examples(name, split), entry.labels, own))
    return predicted


@functools.partial(jax.jit, static_argnums=0)
def _answers(module: Any, params: Any, inputs: jax.Array, task_ids: jax.Array) -> dict[str, jax.Array]:
    """Returns the best class [B], the best tag of each token [B, S] and span logits [B, S, 2], where there are such."""
    logits: Any = module.apply({"params": params}, inputs=inputs, task_ids=task_ids)
    found = {}
    if logits.classes is not None:
        found[CLASS] = jnp.argmax(logits.classes, axis=-1)
    if logits.tags is not None:
        found[TAGS] = jnp.argmax(logits.tags, axis=-1)
    if logits.spans is not None:
        found[SPAN] = logits.spans
    return found


def _classes(examples: Examples, labels: Sequence[str], answers: Sequence[Any]) -> Iterator[Predicted]:
    for index, answer in enumerate(answers):
        right = labels[examples.row(index)[1][0]]
        yield Predicted(id=examples.ids[index], prediction=labels[answer], references=right)


def _tags(examples: Examples, labels: Sequence[str], answers: Sequence[Any]) -> Iterator[Predicted]:
    named = lambda ids: [labels[one] for one in ids.tolist()]
    for index, answer in enumerate(answers):
        targets = examples.row(index)[1]
        words = np.flatnonzero(targets != IGNORED)
        ours, theirs = named(np.asarray(answer)[words]), named(targets[words])
        yield Predicted(id=examples.ids[index], prediction=ours, references=theirs)


def _spans(
    examples: Examples, labels: Sequence[str], answers: Sequence[Any], *, store: TokenStore, choice: SpanChoice
) -> Iterator[Predicted]:
    tokenizer, eos = store.tokenizer(), store.manifest.vocabulary.eos
    windows: dict[str, list[int]] = {}
    for index, key in enumerate(examples.ids):
        windows.setdefault(key, []).append(index)
    for key, rows in windows.items():
        inputs = [examples.row(index)[0] for index in rows]
        logits = [answers[index][: len(ids)] for index, ids in zip(rows, inputs, strict=True)]
        text = tokenizer.decode(best_spans(logits, inputs, eos, choice)).strip()
        yield Predicted(id=key, prediction=text, references=examples.references[rows[0]])


def score(predicted: Mapping[str, Sequence[Predicted]], store: TokenStore, split: str) -> dict[str, Scores]:
    """Scores predictions.

    Args:
      predicted: task name to its predictions.
      store: where the tasks are.
      split: the split that was predicted.

    Returns:
      Task name to its scores, in percent: accuracy and macro F1 of classes, entity F1 of tags, SQuAD's F1 and exact
      match of spans; and under `SCORE`, which all tasks have, the one that is the task's own.
    """
    scores = {}
    for name, rows in predicted.items():
        entry = store.entry(name, split)
        metrics = {metric: PERCENT * value for metric, value in METRICS[entry.answer](rows).items()}
        metrics[SCORE] = metrics[entry.metric]
        scores[name] = Scores(task=name, category=entry.category, n=len(rows), metrics=metrics, headline=SCORE)
    return scores


def _over_all(**functions: Callable[[Any, Any], float]) -> Callable[[Sequence[Predicted]], dict[str, float]]:
    """Scores a task by functions of all its predictions and all its references."""

    def scores(rows: Sequence[Predicted]) -> dict[str, float]:
        pair = [row.prediction for row in rows], [row.references for row in rows]
        return {name: function(*pair) for name, function in functions.items()}

    return scores


def _mean(function: Callable[[str, Sequence[str]], float]) -> Callable[[Any, Any], float]:
    return lambda ours, theirs: float(np.mean([function(*pair) for pair in zip(ours, theirs, strict=True)]))


METRICS = {
    CLASS: _over_all(accuracy=answer_metrics.accuracy, macro_f1=answer_metrics.macro_f1),
    TAGS: _over_all(entity_f1=answer_metrics.entity_f1),
    SPAN: _over_all(squad_f1=_mean(answer_metrics.squad_f1), squad_exact=_mean(answer_metrics.squad_exact)),
}
"""Kind of answer to its metrics, 0 ... 1, by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerEvaluation:
    """Answers a split from time to time while a model is trained.

    Attributes:
      name: prefix of the metrics.
      every: steps between two runs.
      module: the model.
      store: the tokenised examples.
      split: split to answer.
      batch_size: rows computed at once.
    """

    name: str = "answers"
    every: int
    module: nn.Module
    store: TokenStore
    split: str = "validation"
    batch_size: int = 32

    def run(self, params: Any, step: int) -> dict[str, float]:
        """Answers the split.

        Args:
          params: parameter tree.
          step: not used.

        Returns:
          `TASK/METRIC` in percent, and `mean`, over tasks, of each task's own metric.
        """
        predicted = predict(self.module, params, self.store, self.split, batch_size=self.batch_size)
        scores = score(predicted, self.store, self.split)
        values = {f"{name}/{metric}": value for name, one in scores.items() for metric, value in one.metrics.items()}
        return {"mean": float(np.mean([one.metrics[SCORE] for one in scores.values()])), **values}
