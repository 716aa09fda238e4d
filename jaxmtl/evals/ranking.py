"""Scores a model on tasks with answer choices by rank classification: the likeliest choice is the answer.

Two rules at once, as papers differ: the sum of a choice's token log-probabilities ("accuracy": T0, FiD-ICL), and their
mean ("accuracy_mean": TAGI). End tokens count; the first of equally likely choices wins. Source: methods 3.3.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmtl.evals import scoring
from jaxmtl.evals.generation import decode_texts
from jaxmtl.evals.predictions import Row, Work, requested
from jaxmtl.evals.request_adapters import request_adapters
from jaxmtl.evals.requests import BATCH_SIZE, Ids, OnBatch
from jaxmtl.evals.summary import NLL, Labels
from jaxmtl.evals.task_adapters import Given
from jaxmtl.evals.task_runner import run_tasks
from jaxmtl.evals.variants import summary_of
from jaxmtl.feed.store import Examples, TokenStore
from jaxmtl.tasks import metrics as text_metrics
from jaxmtl.types import InputError, Progress, Scores
from jaxmtl.weights import Pretrained

ACCURACY, ACCURACY_MEAN = RULES = ("accuracy", "accuracy_mean")
Losses = list[list[np.ndarray]]
"""For each input and each of its choices the NLLs of its tokens [T], nats."""
Measure = Callable[[Pretrained, Sequence[Work], Sequence[list[list[int]]], OnBatch], Losses]
"""Measures the choices, as token ids, of all examples of some tasks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What ways of making predictions have in common that look at losses alone.

    Attributes:
      measure: how choices are measured.
      described: JSON values that say how.
      task_identity: gives JSON values that say what else the predictions of a task depend on.
    """

    measure: Measure
    described: Mapping[str, Any]
    task_identity: Callable[[str], Mapping[str, Any]] = lambda name: {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(Measured):
    """Rank classification, a `task_runner.Way`."""

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values that decide the predictions."""
        return {"ranking": dict(self.described)}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the metrics of a task's scores."""
        return (*RULES, NLL)

    def of_task(self, name: str, examples: Examples) -> Mapping[str, Any]:
        """Refuses a task without answer choices; returns what `task_identity` does."""
        if examples.choices is None:
            raise InputError(
                f"task {name} has no answer choices to rank; give only tasks that have (TASKS), such as those of "
                "tasks/p3.gin, or generate answers with runs/evaluate.gin alone"
            )
        return self.task_identity(name)

    def predict(
        self, pretrained: Pretrained, chunk: Sequence[Work], stage: Callable[[str], OnBatch]
    ) -> dict[str, list[Row]]:
        """Returns task name to rows: key, split, id, inputs, choices, sums (nats), num_tokens, prediction and more."""
        choices = [texts for work in chunk for texts in (work.examples.choices or [])[: work.count]]
        encoded = scoring.encode_choices(pretrained, choices)
        losses = iter(self.measure(pretrained, chunk, encoded, stage("rank")))
        return {work.name: _rows(pretrained, work, [next(losses) for _ in range(work.count)]) for work in chunk}

    def means(self, work: Work, rows: Sequence[Mapping[str, Any]]) -> Scores:
        """Returns accuracies in percent and the NLL of the right choice in nats per token."""
        found = text_metrics.task_scores(
            work.name, work.category, {name: [row[name] for row in rows] for name in RULES}
        )
        nll = float(np.mean([row[NLL] for row in rows], dtype=np.float64))
        return dataclasses.replace(found, headline=ACCURACY, metrics={**found.metrics, NLL: nll})

    def extras(self, scores: Mapping[str, Scores]) -> dict[str, Any]:
        """Returns what templates come to, see `variants.summary_of`."""
        return {"variants": {rule: summary_of(scores, rule) for rule in RULES}}


def evaluate(
    pretrained: Pretrained,
    store: TokenStore,
    split: str,
    run_dir: str | os.PathLike,
    *,
    tasks: Sequence[str] | None = None,
    adapters: Given = None,
    batch_size: int = BATCH_SIZE,
    chunk_size: int = 512,
    max_examples: int | None = None,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Ranks choices and writes predictions/TASK.jsonl, scores.json and records.jsonl into the run folder.

    Args:
      pretrained: the model; without a tokenizer the store's is used.
      store: the tokenised examples, with answer choices.
      split: split to score.
      run_dir: where to write; what it holds of the same evaluation is not computed again.
      tasks: names of tasks; all tasks of the split if None.
      adapters: as in `task_runner.run_tasks`.
      batch_size: inputs scored at once; no score depends on it.
      chunk_size: tasks are taken together until they have this many examples; then their predictions are written.
      max_examples: scores only the first examples of each task; all if None.
      labels: what the records say about the run; nothing but the folder's name if None.
      progress: as in `task_runner.run_tasks`.

    Returns:
      Task name to its scores: both accuracies in percent, "nll" in nats per token of the right choice.

    Raises:
      InputError: as `task_runner.run_tasks`, or if a task has no answer choices or an NLL is not finite.
      UnknownNameError: as `task_runner.run_tasks`.
    """
    way = Ranking(measure=functools.partial(_of_stored_inputs, batch_size=batch_size), described={"inputs": "alone"})
    options: dict[str, Any] = dict(tasks=tasks, adapters=adapters, chunk_size=chunk_size, max_examples=max_examples)
    return run_tasks(pretrained, store, split, run_dir, way, labels=labels, progress=progress, **options)


def _of_stored_inputs(
    pretrained: Pretrained,
    chunk: Sequence[Work],
    choices: Sequence[list[list[int]]],
    on_batch: OnBatch,
    *,
    batch_size: int,
) -> Losses:
    inputs: list[Ids] = [ids for work in chunk for ids in work.examples.rows(range(work.count))[0]]
    adapters = request_adapters(pretrained, requested(pretrained, chunk), len(inputs))
    options: dict[str, Any] = dict(adapters=adapters, batch_size=batch_size, on_batch=on_batch)
    return scoring.choice_losses(pretrained, inputs, choices, **options)


def _rows(pretrained: Pretrained, work: Work, losses: Losses) -> list[Row]:
    examples = work.examples
    inputs = decode_texts(pretrained, examples.rows(range(work.count))[0])
    described = zip(examples.ids, examples.choices or [], examples.references, inputs, losses, strict=False)
    return [_row(work, *one) for one in described]


def _row(
    work: Work, key: str, choices: Sequence[str], references: Sequence[str], inputs: str, losses: Sequence[np.ndarray]
) -> Row:
    sums, means = (scoring.scores_of([losses], normalise=mean)[0] for mean in (False, True))
    if not np.isfinite(sums).all():
        raise InputError(
            f"task {work.name}, example {key!r}: the NLL of a choice is not finite; the weights hold values that are "
            "not finite or too large: evaluate an earlier checkpoint"
        )
    answer = references[0]
    if answer not in choices:
        raise InputError(f"task {work.name}, example {key!r}: the answer {answer[:40]!r} is none of the choices")
    by_rule = {rule: choices[int(np.argmax(scores))] for rule, scores in zip(RULES, (sums, means), strict=True)}
    return dict(
        key=work.key,
        split=work.split,
        id=key,
        inputs=inputs,
        choices=list(choices),
        sums=sums.tolist(),
        num_tokens=[len(one) for one in losses],
        prediction=by_rule[ACCURACY],
        prediction_mean=by_rule[ACCURACY_MEAN],
        references=list(references),
        **{rule: float(text.strip() == answer.strip()) for rule, text in by_rule.items()},
        nll=-float(means[choices.index(answer)]),
    )
