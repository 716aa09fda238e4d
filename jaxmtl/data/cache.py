"""A SeqIO mixture -> token store: each task's pipeline runs once. The bytes are those of `jaxmtl.feed.tokenise`."""

from collections.abc import Sequence
from pathlib import Path

import seqio
import tensorflow as tf

from jaxmtl.data.seqio_mixtures import task_names
from jaxmtl.data.seqio_tasks import SpecSource, source_of
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.tokenise import cache_rows, describe, task_splits
from jaxmtl.feed.writer import Rows
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import InputError, Progress


def cache_mixture(
    name: str, splits: Sequence[str], folder: str | Path, *, progress: Progress | None = None
) -> TokenStore:
    """Runs the pipeline of every task of a mixture once and writes the token store that training reads.

    Args:
      name: a registered mixture (or task) of tasks that `seqio_tasks.register` registered.
      splits: which splits; a task takes part in those that it has.
      folder: the store to make; one that holds the same already is opened instead.
      progress: told after each task split.

    Returns:
      The store.

    Raises:
      UnknownNameError: if nothing is registered under the name.
      InputError: if the tasks differ in vocabulary or preprocessing, a text cannot be tokenised, or for any reason
        that `feed.tokenise.cache_tasks` has.
    """
    sources = {task: source_of(task) for task in task_names(name)}
    first = next(iter(sources.values()))
    description = describe(first.preprocessing, first.tokenizer)
    for task, source in sources.items():
        _check_like_first(task, source, first, description)
    by_spec = {source.task.name: task for task, source in sources.items()}

    def make_rows(task: TaskSpec, split: str) -> Rows:
        return pipeline_rows(by_spec[task.name], split)

    parts = task_splits((source.task for source in sources.values()), splits)
    return cache_rows(parts, make_rows, folder, description, first.tokenizer, progress=progress)


def pipeline_rows(name: str, split: str) -> Rows:
    """Runs the SeqIO pipeline of one task over one split.

    Args:
      name: a name that `seqio_tasks.register` returned.
      split: name of a split.

    Returns:
      One row per example, in the split's order.

    Raises:
      InputError: if there is no such task or split, or a text cannot be tokenised.
    """
    limits = source_of(name).preprocessing
    dataset = seqio.TaskRegistry.get(name).get_dataset(
        sequence_length={"inputs": limits.max_input_tokens, "targets": limits.max_target_tokens},
        split=split,
        shuffle=False,
        try_in_mem_cache=False,
    )
    try:
        rows = list(dataset.as_numpy_iterator())
    except tf.errors.OpError as error:
        cause = error.message.strip().splitlines()[0][:200]
        raise InputError(f"seqio task {name}, split {split!r}: its pipeline failed ({cause})") from error
    return Rows(
        ids=[row["id"].decode("utf-8") for row in rows],
        inputs=[row["inputs"].tolist() for row in rows],
        targets=[row["targets"].tolist() for row in rows],
        references=[[text.decode("utf-8") for text in row["references"].tolist()] for row in rows],
    )


def _check_like_first(name: str, source: SpecSource, first: SpecSource, description: object) -> None:
    if source.tokenizer.fingerprint != first.tokenizer.fingerprint:
        raise InputError(f"seqio task {name} has another vocabulary than the mixture's first task; cache it apart")
    # Tasks registered together share one object, so the description is computed once for nearly all.
    if (
        source.preprocessing is not first.preprocessing
        and describe(source.preprocessing, source.tokenizer) != description
    ):
        raise InputError(f"seqio task {name} has another prompt or limit than the mixture's first task; cache it apart")
