"""A SeqIO mixture -> token store: each task's pipeline runs once. The bytes are those of `jaxmtl.feed.tokenise`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from jaxmtl.data.seqio_mixtures import task_names
from jaxmtl.data.seqio_tasks import SpecSource, lengths, source_of
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.tokenise import cache_rows, task_splits
from jaxmtl.feed.writer import Rows
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import InputError, Progress

_log = logging.getLogger(__name__)


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
    description = first.describe()
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
      One row per example, in the split's order; with an objective, one per chunk of a document that is not too short
      for it (how many are is logged), the targets' own text as reference.

    Raises:
      InputError: if there is no such task or split, a text cannot be tokenised, or the task has more features than a
        store holds.
    """
    source = source_of(name)
    features = list(seqio.TaskRegistry.get(name).output_features)
    if set(features) != {"inputs", "targets"}:
        raise InputError(f"seqio task {name} makes {', '.join(features)}; a token store holds inputs and targets only")
    dataset = seqio.TaskRegistry.get(name).get_dataset(
        sequence_length=lengths(source.preprocessing),
        split=split,
        shuffle=False,
        try_in_mem_cache=False,
        seed=None if source.objective is None else source.objective.seed,
    )
    try:
        rows = list(dataset.as_numpy_iterator())
    except tf.errors.OpError as error:
        cause = error.message.strip().splitlines()[0][:200]
        raise InputError(f"seqio task {name}, split {split!r}: its pipeline failed ({cause})") from error
    if source.objective is not None:
        return _chunk_rows(rows, source, split)
    return Rows(
        ids=[row["id"].decode("utf-8") for row in rows],
        inputs=[row["inputs"].tolist() for row in rows],
        targets=[row["targets"].tolist() for row in rows],
        references=[[text.decode("utf-8") for text in row["references"].tolist()] for row in rows],
    )


def _chunk_rows(rows: Sequence[Mapping[str, Any]], source: SpecSource, split: str) -> Rows:
    ids = [row["id"].decode("utf-8") for row in rows]
    of_document = {key.rpartition("#")[0]: int(row["num_chunks"]) for key, row in zip(ids, rows, strict=True)}
    # A document of which nothing is here had one chunk, too short, or none.
    num_short = sum(of_document.values()) + source.num_input_examples(split) - len(of_document) - len(rows)
    where = f"task {source.task.name}, split {split!r}"
    if not rows:
        raise InputError(f"{where}: all {num_short} documents are too short for {source.objective}")
    if num_short:
        _log.warning("%s: %d chunks too short for the objective are left out, %d stay", where, num_short, len(rows))
    return Rows(
        ids=ids,
        inputs=[row["inputs"] for row in rows],
        targets=[row["targets"] for row in rows],
        references=[[source.tokenizer.decode(row["targets"])] for row in rows],
    )


def _check_like_first(name: str, source: SpecSource, first: SpecSource, description: object) -> None:
    if source.tokenizer.fingerprint != first.tokenizer.fingerprint:
        raise InputError(f"seqio task {name} has another vocabulary than the mixture's first task; cache it apart")
    # Tasks registered together share one object, so the description is computed once for nearly all.
    if (
        source.preprocessing is not first.preprocessing or source.objective is not first.objective
    ) and source.describe() != description:
        raise InputError(
            f"seqio task {name} has another prompt or limit or objective than the mixture's first task; cache it apart"
        )
