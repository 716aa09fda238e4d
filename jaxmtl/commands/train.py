"""`jaxmtl train`: trains a model on a token store, into a run folder; started again, it goes on where it stopped."""

import argparse
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.commands.evaluate import git_hash
from jaxmtl.commands.heads import check_heads
from jaxmtl.commands.hypernet import describe_hypernetwork
from jaxmtl.host_memory import keep_freed_memory
from jaxmtl.types import UsageError

if TYPE_CHECKING:
    import flax.linen as nn
    from jax.sharding import Mesh

    from jaxmtl.evals.decoding import Decoding
    from jaxmtl.evals.periodic import GenerationEvaluation
    from jaxmtl.feed.store import TokenStore
    from jaxmtl.feed.stream import Stream
    from jaxmtl.tokenizers import Tokenizer
    from jaxmtl.training.loop import Evaluation, Result, Run
    from jaxmtl.training.validation import ValidationLoss
    from jaxmtl.writers import Writer

HELP = "train a model on a token store"
TAKES_GIN = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: gin files say everything (runs/train.gin, a model, a mesh)."""


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Trains as the gin files say.

    Args:
      arguments: the flags.
      config: the gin config.

    Returns:
      0, or 1 if the run was stopped by a signal before its end.
    """
    if config is None:
        raise UsageError("train needs gin files: --gin_file=models/t5_1_1/small.gin --gin_file=runs/train.gin")
    from jaxmtl.training.loop import TERMINATED

    keep_freed_memory()
    result = config.configured(train)(
        config_text=config.text, operative_text=config.operative, config_hash=config.hash()
    )
    return int(result.status == TERMINATED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What the evaluations of a training run are made of.

    Attributes:
      store: the tokenised examples.
      module: the model.
      mesh: the devices.
      run_dir: the run folder.
      config_hash: hash of the config.
    """

    store: "TokenStore"
    module: "nn.Module"
    mesh: "Mesh"
    run_dir: pathlib.Path
    config_hash: str


def train(
    *,
    run_dir: str | os.PathLike,
    module: "nn.Module",
    store: "TokenStore",
    make_stream: Callable[..., "Stream"],
    make_run: Callable[..., "Run"],
    tokenizer: "Tokenizer | None" = None,
    mesh: "Mesh | None" = None,
    num_microbatches: int = 1,
    make_evaluations: "Sequence[Callable[[Parts], Evaluation]]" = (),
    make_writers: "Sequence[Callable[[pathlib.Path], Writer]]" = (),
    config_text: Callable[[], str] = str,
    operative_text: Callable[[], str] = str,
    config_hash: str = "",
) -> "Result":
    """Puts model, store and run folder together and trains.

    Args:
      run_dir: the run folder; nothing in it changes before the run is known to fit.
      module: the model.
      store: the tokenised examples.
      make_stream: gives the training batches; called with the store and what `_stream_options` returns.
      make_run: `loop.Run` with its other fields bound.
      tokenizer: what the model was trained with before; None if it starts from random weights or has none.
      mesh: devices; all of them along `data` if None.
      num_microbatches: parts that each batch is cut into to need less memory.
      make_evaluations: called with the parts of the run.
      make_writers: called with the run folder, give writers besides `metrics.jsonl` and the console.
      config_text: gives the config as text, written to `config.gin`.
      operative_text: gives the config with all values used, which replaces it once they are known.
      config_hash: hash of the config.

    Returns:
      How the run ended.

    Raises:
      InputError: if model, store, run folder and mesh do not fit together.
    """
    from jaxmtl.partitioning import make_mesh
    from jaxmtl.training import loop
    from jaxmtl.weights import check_reads

    check_reads(module.config, tokenizer, store)
    folder, mesh = pathlib.Path(run_dir), mesh or make_mesh()
    shared: dict[str, Any] = dict(module=module, mesh=mesh, run_dir=folder, config_hash=config_hash)
    parts = Parts(store=store, **shared)
    stream = make_stream(store, **_stream_options(parts, num_microbatches))
    check_heads(module, stream.rows.names)
    run = make_run(
        **shared,
        num_microbatches=num_microbatches,
        evaluations=[make(parts) for make in make_evaluations],
        writer=_writer(folder, make_writers),
        **_of_stream(stream),
        on_ready=lambda: _describe(parts, operative_text() or config_text()),
    )
    _check_continued([folder, run.resume_from], module, store)
    return loop.train(run)


def _of_stream(stream: "Stream") -> dict[str, Any]:
    """Returns the fields of a run that come from its stream."""
    return dict(stream=stream, task_names=stream.rows.names, stream_names=stream.stream_names)


def _writer(folder: pathlib.Path, make_writers: "Sequence[Callable[[pathlib.Path], Writer]]") -> "Writer":
    from jaxmtl.training import loop
    from jaxmtl.writers import MultiWriter

    return MultiWriter((loop.standard_writer(folder), *(make(folder) for make in make_writers)))


def _stream_options(parts: Parts, num_microbatches: int) -> dict[str, Any]:
    """Returns what a training stream has to know of the model and the mesh."""
    from jaxmtl.models import flops
    from jaxmtl.partitioning import batch_share

    share, num_shares = batch_share(parts.mesh)
    cost = functools.partial(flops.forward, parts.module.config)
    multiple = parts.mesh.shape["data"] * parts.mesh.shape["fsdp"] * max(num_microbatches, 1)
    return dict(cost=cost, multiple=multiple, host_index=share, num_hosts=num_shares)


def validation_loss(parts: Parts, *, split: str = "validation", batch_size: int = 16, every: int) -> "ValidationLoss":
    """Measures the loss on a split of the store from time to time.

    Args:
      parts: parts of the run.
      split: split to measure; its name is that of the metrics.
      batch_size: rows per batch, over all hosts.
      every: steps between two passes.

    Returns:
      The evaluation.
    """
    from jaxmtl.feed.eval_stream import eval_stream
    from jaxmtl.partitioning import batch_share
    from jaxmtl.training.validation import ValidationLoss

    share, num_shares = batch_share(parts.mesh)
    batches = eval_stream(parts.store, split, batch_size=batch_size, host_index=share, num_hosts=num_shares)
    names = parts.store.task_names(split)
    return ValidationLoss(name=split, every=every, module=parts.module, task_names=names, batches=lambda: batches)


def generation(
    parts: Parts,
    *,
    split: str = "test",
    every: int,
    batch_size: int = 32,
    decoding: "Decoding | None" = None,
    max_tokens: int = 128,
    max_examples: int | None = None,
    study: str = "",
    seed: int = 0,
) -> "GenerationEvaluation":
    """Generates for a split of the store from time to time and scores the texts.

    Args:
      parts: parts of the run; results go to `evaluations/SPLIT` of its folder.
      split: split to score.
      every: steps between two passes.
      batch_size: examples computed at once.
      decoding: how texts are generated; greedily if None.
      max_tokens: most tokens of a text.
      max_examples: most examples of each task; None for all.
      study: study the records belong to.
      seed: the run's seed, for the records.

    Returns:
      The evaluation.
    """
    from jaxmtl.evals.periodic import GenerationEvaluation
    from jaxmtl.evals.summary import Labels
    from jaxmtl.weights import Pretrained

    name = parts.run_dir.resolve().name
    return GenerationEvaluation(
        name=split,
        every=every,
        pretrained=Pretrained(parts.module.config, parts.module, None, parts.store.tokenizer()),
        store=parts.store,
        split=split,
        run_dir=parts.run_dir / "evaluations" / split,
        batch_size=batch_size,
        decoding=decoding,
        max_tokens=max_tokens,
        max_examples=max_examples,
        labels=Labels(study=study, run=name, seed=seed, config_hash=parts.config_hash, git_hash=git_hash()),
    )


def weights_of(*, path: str) -> Callable[[Any], Any]:
    """Returns what `loop.Run.pretrained` wants: loads a folder's or hub id's weights onto a mesh, in float32.

    Args:
      path: what `load_pretrained` takes.
    """
    from jaxmtl.weights import load_pretrained

    return lambda mesh: load_pretrained(path, mesh=mesh).params


def tokenizer_of(*, path: str) -> "Tokenizer | None":
    """Returns the tokenizer of a folder's or hub id's model, None if it has none.

    Args:
      path: what `load_pretrained` takes.
    """
    from jaxmtl import weights

    return weights.tokenizer_of(path)


def module_of(*, path: str, **overrides: Any) -> "nn.Module":
    """Returns the module that fits a folder's or hub id's weights.

    Args:
      path: what `load_pretrained` takes.
      **overrides: fields of its config to set otherwise, such as `dtype` or `dropout_rate`.
    """
    from jaxmtl.weights import load_module

    module = load_module(path)
    return type(module)(dataclasses.replace(module.config, **overrides))


def _check_continued(runs: "Sequence[str | os.PathLike | None]", module: "nn.Module", store: "TokenStore") -> None:
    """Refuses to continue runs that were trained with another vocabulary."""
    from jaxmtl.weights import check_reads, run_folder, tokenizer_of

    for folder in runs:
        if folder is not None and run_folder.is_trained(pathlib.Path(folder)):
            check_reads(module.config, tokenizer_of(folder), store)


def _describe(parts: Parts, config: str) -> None:
    """Writes what the run folder's checkpoints are, on the first host."""
    import jax

    from jaxmtl.files import write_whole
    from jaxmtl.weights import run_folder, write_config

    if jax.process_index() == 0:
        write_config(parts.run_dir / run_folder.MODEL, parts.module.config)
        describe_hypernetwork(parts)
        parts.store.tokenizer().save(parts.run_dir / run_folder.MODEL)
        write_whole(parts.run_dir / "config.gin", config)
