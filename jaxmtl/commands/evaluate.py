"""`jaxmtl evaluate`: scores a model on a split of a token store; started again, it repeats no finished task."""

import argparse
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jaxmtl.commands.progress import progress
from jaxmtl.types import InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxmtl.types import Scores

HELP = "score a model on tasks: NLL, ROUGE-L, exact match"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: gin files say everything (runs/evaluate.gin)."""


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Evaluates as the gin files say and prints the scores per category.

    Args:
      arguments: the flags.
      config: the gin config.

    Returns:
      0.
    """
    if config is None:
        raise InputError("evaluate needs gin files: --gin_file=runs/evaluate.gin --gin.CHECKPOINT=... --gin.STORE=...")
    scores = config.configured(evaluate)(config_hash=config.hash())
    print(table(scores))
    return 0


def evaluate(
    *,
    checkpoint: str | os.PathLike,
    run_dir: str | os.PathLike,
    score: Callable[..., "dict[str, Scores]"],
    dtype: str = "float32",
    mesh: "Mesh | None" = None,
    study: str = "",
    seed: int = 0,
    config_hash: str = "",
) -> "dict[str, Scores]":
    """Loads a model and scores it with a progress bar.

    Args:
      checkpoint: what `load_pretrained` takes: a run folder, a Hugging Face folder or a hub id.
      run_dir: where results go.
      score: `evals.runner.evaluate` with store, split and settings bound.
      dtype: dtype of weights and activations.
      mesh: devices to split over; the default device if None.
      study: study the records belong to.
      seed: the run's seed, for the records.
      config_hash: hash of the config, for the records.

    Returns:
      Task name to its scores.
    """
    from jaxmtl.evals.summary import Labels
    from jaxmtl.weights import load_pretrained, step_of

    pretrained = load_pretrained(checkpoint, dtype=dtype, mesh=mesh)
    labels = Labels(study=study, seed=seed, step=step_of(checkpoint), config_hash=config_hash)
    with progress("evaluating") as update:
        return score(pretrained, run_dir=run_dir, labels=labels, progress=update)


def table(scores: "Mapping[str, Scores]") -> str:
    """Returns the scores per category and over all examples as text."""
    from jaxmtl.tasks import metrics

    rows = [*metrics.per_category(scores.values()), metrics.overall(scores.values())]
    names = list(rows[-1].metrics)
    lines = [f"{'category':<40}{'n':>6}" + "".join(f"{name:>14}" for name in names)]
    for row in rows:
        values = "".join(f"{row.metrics[name]:>14.2f}" for name in names)
        lines.append(f"{row.category or 'all':<40}{row.n:>6}{values}")
    return "\n".join(lines)
