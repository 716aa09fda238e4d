"""A SeqIO mixture -> token store: every example is run once. The bytes are those of `jaxmtl.feed.tokenise`."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import seqio
import tensorflow as tf

from jaxmtl.data.seqio_mixtures import task_names
from jaxmtl.data.seqio_tasks import INSTRUCTIONS, SpecSource, lengths, source_of
from jaxmtl.data.shared_pipeline import SharedPipeline, can_share
from jaxmtl.feed.parts import Part
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.tokenise import cache_parts, task_splits
from jaxmtl.feed.writer import Rows
from jaxmtl.tasks.choices import choices_of
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import InputError, Progress

_log = logging.getLogger(__name__)
Run = Callable[[str, str], list[dict[str, Any]]]
"""Runs the pipeline of (seqio task, split): the features of its rows."""


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
    plan = plan_of(name, splits)
    pipeline = SharedPipeline([(task, split) for task, _, split in plan.parts if can_share(task)])
    by_spec = {spec.name: task for task, spec, _ in plan.parts}
    parts = [Part.of(spec, split) for _, spec, split in plan.parts]

    def make_rows(part: Part) -> Rows:
        task = by_spec[part.task]
        return pipeline_rows(task, part.split, shared.run if can_share(task) else own_pipeline)

    with contextlib.closing(pipeline) as shared:
        return cache_parts(parts, make_rows, folder, plan.description, plan.tokenizer, progress=progress)


class Plan(NamedTuple):
    """What the store of a mixture is made of.

    Attributes:
      parts: (seqio task, its task spec, split), in the order of the store.
      description: what `SpecSource.describe` says of each task.
      tokenizer: the vocabulary of all.
    """

    parts: Sequence[tuple[str, TaskSpec, str]]
    description: dict[str, Any]
    tokenizer: Tokenizer


def plan_of(name: str, splits: Sequence[str]) -> Plan:
    """Looks up what a mixture's store will be made of.

    Args:
      name: a registered mixture (or task) of tasks that `seqio_tasks.register` registered.
      splits: which splits; a task takes part in those that it has.

    Returns:
      The plan.

    Raises:
      UnknownNameError: if nothing is registered under the name.
      InputError: if the tasks differ in vocabulary or preprocessing, or a split is missing or empty.
    """
    sources = {task: source_of(task) for task in task_names(name)}
    first = next(iter(sources.values()))
    description = first.describe()
    for task, source in sources.items():
        _check_like_first(task, source, first, description)
    by_spec = {source.task.name: task for task, source in sources.items()}
    parts = task_splits((source.task for source in sources.values()), splits)
    return Plan([(by_spec[spec.name], spec, split) for spec, split in parts], description, first.tokenizer)


def own_pipeline(name: str, split: str) -> list[dict[str, Any]]:
    """Builds the SeqIO pipeline of one task over one split and runs it.

    Args:
      name: a name that `seqio_tasks.register` returned.
      split: name of a split.

    Returns:
      The features of its rows.
    """
    source = source_of(name)
    dataset = seqio.TaskRegistry.get(name).get_dataset(
        sequence_length=lengths(source.preprocessing, seqio.TaskRegistry.get(name).output_features),
        split=split,
        shuffle=False,
        try_in_mem_cache=False,
        seed=None if source.objective is None else source.objective.seed,
    )
    return list(dataset.as_numpy_iterator())


def pipeline_rows(name: str, split: str, run: Run = own_pipeline) -> Rows:
    """Turns what the SeqIO pipeline of one task makes of one split into rows of a store.

    Args:
      name: a name that `seqio_tasks.register` returned.
      split: name of a split.
      run: runs the pipeline.

    Returns:
      One row per example, in the split's order; with an objective, one per chunk of a document that is not too short
      for it (how many are is logged), the targets' own text as reference.

    Raises:
      InputError: if there is no such task or split, a text cannot be tokenised, or the task has more features than a
        store holds.
    """
    source = source_of(name)
    features = list(seqio.TaskRegistry.get(name).output_features)
    if not {"inputs", "targets"} <= set(features) <= {"inputs", "targets", INSTRUCTIONS}:
        raise InputError(
            f"seqio task {name} makes {', '.join(features)}; a token store holds inputs, targets and instructions only"
        )
    try:
        rows = run(name, split)
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
        choices=choices_of(source.task.split(split)),
        instructions=_instructions(rows),
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
        instructions=_instructions(rows),
    )


def _instructions(rows: Sequence[Mapping[str, Any]]) -> list[Any] | None:
    return [row[INSTRUCTIONS].tolist() for row in rows] if INSTRUCTIONS in rows[0] else None


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
