"""The predictions of a task: one JSON object for each example, with the key of what made it."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmtl.adapters.adaptation import Instructed
from jaxmtl.adapters.lora import Adapter
from jaxmtl.evals.decoding import Decoding
from jaxmtl.evals.generation import decode_texts
from jaxmtl.evals.instructed import Instructions, instructed
from jaxmtl.evals.request_adapters import request_adapters
from jaxmtl.evals.requests import OnBatch
from jaxmtl.evals.scored_texts import score_and_generate
from jaxmtl.evals.summary import NLL
from jaxmtl.feed.store import Examples
from jaxmtl.tasks import metrics as text_metrics
from jaxmtl.types import InputError, Scores
from jaxmtl.weights import Pretrained

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done for one task.

    Attributes:
      name: the task's name.
      category: the task's category.
      headline: name of the metric that stands for the task.
      examples: the task's examples; the first `count` are taken.
      split: the split that they belong to.
      count: number of examples.
      key: hash of all that decides the predictions.
      adapter: what the model is adapted to the task with; None for nothing.
      instructions: what a hypernetwork adapts the model with instead; None for nothing.
    """

    name: str
    category: str
    headline: str
    examples: Examples
    split: str
    count: int
    key: str
    adapter: Adapter | None = None
    instructions: Instructions | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """How predictions are made.

    Attributes:
      decoding: how texts are generated.
      max_tokens: most tokens of a generated text.
      metrics: names of text metrics.
      batch_size: examples computed at once.

    Raises:
      InputError: if texts cannot be so short.
    """

    decoding: Decoding
    max_tokens: int
    metrics: tuple[str, ...]
    batch_size: int

    def __post_init__(self) -> None:
        """Finds out now what decoding would refuse later."""
        self.decoding.generation(self.max_tokens)

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values that decide the predictions."""
        return dict(decoding=self.decoding.describe(), max_tokens=self.max_tokens, metrics=self.metrics)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the metrics of a task's scores."""
        return (*self.metrics, NLL)

    def of_task(self, name: str, examples: Examples) -> dict[str, Any]:
        """Returns nothing: any examples will do."""
        return {}

    def predict(
        self, pretrained: Pretrained, chunk: Sequence[Work], stage: Callable[[str], OnBatch]
    ) -> dict[str, list[Row]]:
        """Returns the rows of tasks, see `predict`."""
        return predict(pretrained, chunk, self, stage)

    def means(self, work: Work, rows: Sequence[Mapping[str, Any]]) -> Scores:
        """Returns what a task's rows come to, see `means`."""
        return means(work, rows, self.metrics)

    def extras(self, scores: Mapping[str, Scores]) -> dict[str, Any]:
        """Returns nothing."""
        return {}


def predict(
    pretrained: Pretrained, chunk: Sequence[Work], how: Method, stage: Callable[[str], OnBatch]
) -> dict[str, list[Row]]:
    """Scores and decodes the examples of several tasks together.

    Args:
      pretrained: the model, with a tokenizer.
      chunk: the tasks; all of them have an adapter, or none.
      how: decoding, metrics and batch size.
      stage: called with what is done, "score and generate"; what it returns is told after each batch how many examples
        are finished.

    Returns:
      Task name to its rows: key, split, id, inputs (the prompt's text), prediction, references, the metrics (0 ... 1),
      nll (nats per target token), num_target_tokens, num_generated_tokens.

    Raises:
      InputError: if an NLL is not finite; names task and example.
    """
    inputs, targets = [], []
    for work in chunk:
        some_inputs, some_targets = work.examples.rows(range(work.count))
        inputs += some_inputs
        targets += some_targets
    found = score_and_generate(
        pretrained,
        inputs,
        targets,
        adapters=request_adapters(pretrained, requested(pretrained, chunk), len(inputs)),
        max_tokens=how.max_tokens,
        decoding=how.decoding,
        streams=[_stream(work, row) for work in chunk for row in range(work.count)],
        batch_size=how.batch_size,
        on_batch=stage("score and generate"),
    )
    generated = [text for _, text in found]
    columns = dict(
        inputs=decode_texts(pretrained, inputs),
        prediction=decode_texts(pretrained, generated),
        nll=[float(np.mean(losses, dtype=np.float64)) for losses, _ in found],
        num_target_tokens=[len(row) for row in targets],
        num_generated_tokens=[len(row) for row in generated],
    )
    rows, start = {}, 0
    for work in chunk:
        end = start + work.count
        rows[work.name] = _rows(work, {name: column[start:end] for name, column in columns.items()}, how.metrics)
        start = end
    return rows


def requested(pretrained: Pretrained, chunk: Sequence[Work]) -> list[Adapter] | Instructed | None:
    """Collects what changes the model for each request of a chunk.

    Args:
      pretrained: the model.
      chunk: tasks; all have adapters, all have instructions, or none has either.

    Returns:
      The adapter of each request, or what their instructions became; None for nothing.
    """
    given = [work.instructions for work in chunk if work.instructions is not None]
    if given:
        return instructed(pretrained, given)
    return [work.adapter for work in chunk for _ in range(work.count) if work.adapter is not None] or None


def means(work: Work, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Scores:
    """Averages a task's rows.

    Args:
      work: the task.
      rows: its prediction rows.
      metrics: names of text metrics in the rows.

    Returns:
      Text metrics in percent, "nll" in nats per target token.
    """
    scores = text_metrics.task_scores(work.name, work.category, {name: [row[name] for row in rows] for name in metrics})
    nll = float(np.mean([row[NLL] for row in rows], dtype=np.float64))
    return dataclasses.replace(scores, headline=work.headline, metrics={**scores.metrics, NLL: nll})


def checked_nll(work: Work, example: str, nll: float) -> float:
    """Returns a negative log-likelihood.

    Args:
      work: the example's task.
      example: its id.
      nll: nats.

    Raises:
      InputError: if it is not finite; names task and example.
    """
    if not np.isfinite(nll):
        raise InputError(
            f"task {work.name}, example {example!r}: the NLL is {nll}; the weights hold values that are not finite or"
            " too large: evaluate an earlier checkpoint"
        )
    return nll


def _stream(work: Work, row: int) -> int:
    """Gives an example a stream of random numbers that depends on nothing but its task and its id."""
    return int(hashlib.sha256(json.dumps([work.name, work.examples.ids[row]]).encode()).hexdigest()[:8], 16)


def _rows(work: Work, columns: Mapping[str, Sequence[Any]], metrics: Sequence[str]) -> list[Row]:
    ids, references = work.examples.ids[: work.count], work.examples.references[: work.count]
    values = text_metrics.score(columns["prediction"], references, metrics)
    for example, nll in zip(ids, columns[NLL], strict=True):
        checked_nll(work, example, nll)
    return [
        dict(
            key=work.key,
            split=work.split,
            id=ids[row],
            inputs=columns["inputs"][row],
            prediction=columns["prediction"][row],
            references=references[row],
            **{name: float(values[name][row]) for name in metrics},
            **{name: columns[name][row] for name in (NLL, "num_target_tokens", "num_generated_tokens")},
        )
        for row in range(work.count)
    ]
