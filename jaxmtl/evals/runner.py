"""Scores a model on the tasks of a token store: NLL, generated texts and their metrics, per task and category.

What is finished is not computed again, see `task_runner`.
"""

import os
from collections.abc import Sequence

from jaxmtl.evals.decoding import Decoding
from jaxmtl.evals.predictions import Method
from jaxmtl.evals.requests import BATCH_SIZE
from jaxmtl.evals.summary import Labels
from jaxmtl.evals.task_adapters import Given
from jaxmtl.evals.task_runner import run_tasks
from jaxmtl.feed.store import TokenStore
from jaxmtl.tasks.metrics import METRICS
from jaxmtl.types import InputError, Progress, Scores, unknown_name
from jaxmtl.weights import Pretrained


def evaluate(
    pretrained: Pretrained,
    store: TokenStore,
    split: str,
    run_dir: str | os.PathLike,
    *,
    tasks: Sequence[str] | None = None,
    adapters: Given = None,
    metrics: Sequence[str] = tuple(METRICS),
    decoding: Decoding | None = None,
    max_tokens: int = 128,
    batch_size: int = BATCH_SIZE,
    chunk_size: int = 512,
    max_examples: int | None = None,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Scores tasks and writes predictions/TASK.jsonl, scores.json and records.jsonl into the run folder.

    Args:
      pretrained: the model; without a tokenizer the store's is used.
      store: the tokenised examples.
      split: split to score.
      run_dir: where to write; what it holds of the same evaluation is not computed again.
      tasks: names of tasks; all tasks of the split if None.
      adapters: task name to the adapter that the task is scored with; or one for all tasks; or a hypernetwork that
        makes them of the store's instructions; none if None.
      metrics: names of text metrics, keys of `tasks.metrics.METRICS`.
      decoding: how texts are generated; greedily if None.
      max_tokens: most tokens of a generated text.
      batch_size: examples computed at once; no score depends on it.
      chunk_size: tasks are taken together until they have this many examples; then their predictions are written.
      max_examples: scores only the first examples of each task; all if None.
      labels: what the records say about the run; nothing but the folder's name if None.
      progress: told after each batch (examples done, in all, stage), and of tasks if a `TaskWatch`.

    Returns:
      Task name to its scores: text metrics as means over examples in percent, "nll" as mean over examples of the nats
      per target token (of the store's target, end token included).

    Raises:
      InputError: as `task_runner.run_tasks`, or if an NLL is not finite.
      UnknownNameError: if there is no such split, task or metric, or no adapter of a task.
    """
    how = Method(decoding=decoding or Decoding(), max_tokens=max_tokens, metrics=_known(metrics), batch_size=batch_size)
    return run_tasks(
        pretrained,
        store,
        split,
        run_dir,
        how,
        tasks=tasks,
        adapters=adapters,
        chunk_size=chunk_size,
        max_examples=max_examples,
        labels=labels,
        progress=progress,
    )


def _known(metrics: Sequence[str]) -> tuple[str, ...]:
    for metric in metrics:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
    if not metrics:
        raise InputError(f"no metric to compute; expected some of {', '.join(METRICS)}")
    return tuple(dict.fromkeys(metrics))
