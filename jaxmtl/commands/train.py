"""`jaxmtl train`: trains a model on a token store, into a run folder; started again, it goes on where it stopped."""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.types import InputError

if TYPE_CHECKING:
    import flax.linen as nn

    from jaxmtl.evals.periodic import GenerationEvaluation
    from jaxmtl.feed.batching import Stream
    from jaxmtl.feed.store import TokenStore
    from jaxmtl.training.loop import Evaluation, Result, Run
    from jaxmtl.training.validation import ValidationLoss

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
        raise InputError("train needs gin files: --gin_file=models/t5_1_1/small.gin --gin_file=runs/train.gin")
    from jaxmtl.training.loop import TERMINATED

    result = config.configured(train)(
        config_text=config.text, operative_text=config.operative, config_hash=config.hash()
    )
    return int(result.status == TERMINATED)


def train(
    *,
    run_dir: str | os.PathLike,
    module: "nn.Module",
    store: "TokenStore",
    make_stream: Callable[..., "Stream"],
    make_run: Callable[..., "Run"],
    make_evaluations: Sequence[Callable[..., "Evaluation"]] = (),
    config_text: Callable[[], str] = str,
    operative_text: Callable[[], str] = str,
    config_hash: str = "",
) -> "Result":
    """Puts model, store and run folder together and trains.

    Args:
      run_dir: the run folder.
      module: the model.
      store: the tokenised examples.
      make_stream: called with the store, gives the training batches.
      make_run: `loop.Run` with its other fields bound.
      make_evaluations: called with `store=`, `module=`, `run_dir=`.
      config_text: gives the config as text, written to `config.gin`.
      operative_text: gives the config with all values used, which replaces it once they are known.
      config_hash: hash of the config.

    Returns:
      How the run ended.

    Raises:
      InputError: if the model has fewer embedding rows than the store's vocabulary has tokens.
    """
    import jax

    from jaxmtl.training import loop
    from jaxmtl.weights import write_config

    vocabulary = store.manifest.vocabulary
    if module.config.vocab_size < vocabulary.size:
        raise InputError(
            f"the model has {module.config.vocab_size} embedding rows, token store {store.folder} a vocabulary of "
            f"{vocabulary.size}; choose a model with more rows or cache with its own vocabulary"
        )
    folder = pathlib.Path(run_dir)
    stream = make_stream(store)
    run = make_run(
        module=module,
        stream=stream,
        task_names=stream.rows.names,
        run_dir=folder,
        evaluations=[make(store=store, module=module, run_dir=folder) for make in make_evaluations],
        config_hash=config_hash,
    )
    if jax.process_index() == 0:
        write_config(folder / "model", module.config)
        store.tokenizer().save(folder / "model")
        _write(folder / "config.gin", operative_text() or config_text())
    return loop.train(run)


def validation_loss(
    *,
    store: "TokenStore",
    module: "nn.Module",
    run_dir: object,
    split: str = "validation",
    batch_size: int = 16,
    every: int,
) -> "ValidationLoss":
    """Measures the loss on a split of the store from time to time.

    Args:
      store: the tokenised examples.
      module: the model.
      run_dir: not used.
      split: split to measure; its name is that of the metrics.
      batch_size: rows per batch, over all hosts.
      every: steps between two passes.

    Returns:
      The evaluation.
    """
    import jax

    from jaxmtl.feed.batching import eval_stream
    from jaxmtl.training.validation import ValidationLoss

    batches = eval_stream(
        store, split, batch_size=batch_size, host_index=jax.process_index(), num_hosts=jax.process_count()
    )
    return ValidationLoss(
        name=split, every=every, module=module, task_names=store.task_names(split), batches=lambda: batches
    )


def generation(
    *,
    store: "TokenStore",
    module: "nn.Module",
    run_dir: str | os.PathLike,
    split: str = "test",
    every: int,
    batch_size: int = 32,
    max_tokens: int = 128,
    max_examples: int | None = None,
) -> "GenerationEvaluation":
    """Generates for a split of the store from time to time and scores the texts.

    Args:
      store: the tokenised examples.
      module: the model.
      run_dir: the run folder; results go to its `evaluations/SPLIT`.
      split: split to score.
      every: steps between two passes.
      batch_size: examples computed at once.
      max_tokens: most tokens of a text.
      max_examples: most examples of each task; None for all.

    Returns:
      The evaluation.
    """
    from jaxmtl.evals.periodic import GenerationEvaluation
    from jaxmtl.weights import Pretrained

    return GenerationEvaluation(
        name=split,
        every=every,
        pretrained=Pretrained(module.config, module, None, store.tokenizer()),
        store=store,
        split=split,
        run_dir=pathlib.Path(run_dir) / "evaluations" / split,
        batch_size=batch_size,
        max_tokens=max_tokens,
        max_examples=max_examples,
    )


def weights_of(*, path: str) -> Callable[[Any], Any]:
    """Returns what `loop.Run.pretrained` wants: loads a folder's or hub id's weights onto a mesh, in float32.

    Args:
      path: what `load_pretrained` takes.
    """
    from jaxmtl.weights import load_pretrained

    return lambda mesh: load_pretrained(path, mesh=mesh).params


def module_of(*, path: str, **overrides: Any) -> "nn.Module":
    """Returns the module that fits a folder's or hub id's weights.

    Args:
      path: what `load_pretrained` takes.
      **overrides: fields of its config to set otherwise, such as `dtype` or `dropout_rate`.
    """
    from jaxmtl.weights import load_module

    module = load_module(path)
    return type(module)(dataclasses.replace(module.config, **overrides))


def _write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
