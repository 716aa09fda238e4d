"""`jaxmtl evaluate`: scores a model on a split of a token store; started again, it repeats no finished task."""

import argparse
import dataclasses
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jaxmtl.types import InputError

if TYPE_CHECKING:
    import flax.linen as nn
    from jax.sharding import Mesh

    from jaxmtl.adapters.lora import Adapter
    from jaxmtl.feed.store import TokenStore
    from jaxmtl.types import Scores
    from jaxmtl.weights import Pretrained

    Adapters = Mapping[str, Adapter] | Adapter | None

HELP = "score a model on tasks: NLL, ROUGE-L, exact match"
TAKES_GIN = True


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
    scores = config.configured(evaluate)(config_hash=config.hash(), operative_text=config.operative)
    print(table(scores))
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model to score, and where its weights come from.

    Attributes:
      pretrained: the model.
      step: optimiser step of the weights.
      seed: seed of the run that made them.
    """

    pretrained: "Pretrained"
    step: int
    seed: int


def evaluate(
    *,
    load: Callable[[], Loaded],
    run_dir: str | os.PathLike,
    score: "Callable[..., dict[str, Scores]]",
    adapters: "Callable[[Pretrained], Adapters]" = lambda pretrained: None,
    study: str = "",
    config_hash: str = "",
    operative_text: Callable[[], str],
) -> "dict[str, Scores]":
    """Loads a model and scores it with a progress bar.

    Args:
      load: gives the model: `checkpoint` or `untrained` with its arguments bound.
      run_dir: where results go.
      score: `evals.runner.evaluate` with store, split and settings bound.
      adapters: gives the model's adapters: `adapter_folders.load` with its arguments bound.
      study: study the records belong to.
      config_hash: hash of the config, for the records.
      operative_text: gives the config with all values used, written to `config.gin` unless there is one.

    Returns:
      Task name to its scores.
    """
    from jaxmtl.commands.live_table import shown_tasks
    from jaxmtl.evals.summary import Labels

    loaded = load()
    labels = Labels(study=study, seed=loaded.seed, step=loaded.step, config_hash=config_hash, git_hash=git_hash())
    found = adapters(loaded.pretrained)
    options = {} if found is None else {"adapters": found}
    with shown_tasks("evaluating") as update:
        scores = score(loaded.pretrained, run_dir=run_dir, labels=labels, progress=update, **options)
    _keep_config(pathlib.Path(run_dir) / "config.gin", operative_text)
    return scores


def checkpoint(*, path: str | os.PathLike, dtype: str = "float32", mesh: "Mesh | None" = None) -> Loaded:
    """Loads a model.

    Args:
      path: a run folder, a Hugging Face folder or a hub id.
      dtype: dtype of weights and activations.
      mesh: devices to split over; the default device if None.

    Returns:
      The model, with step and seed of its run; both are 0 if it is no run folder.
    """
    from jaxmtl.weights import load_pretrained, seed_of, step_of

    pretrained = load_pretrained(path, dtype=dtype, mesh=mesh)
    return Loaded(pretrained=pretrained, step=step_of(path), seed=seed_of(path))


def untrained(*, module: "nn.Module", store: "TokenStore", seed: int = 0) -> Loaded:
    """Makes the random weights that training from scratch with this seed begins with.

    Args:
      module: the model.
      store: gives the tokenizer.
      seed: the run's seed.

    Returns:
      The model at step 0.
    """
    import flax.linen as nn
    import jax

    from jaxmtl.training.state import init_params
    from jaxmtl.weights import Pretrained

    params = jax.jit(lambda rng: nn.unbox(init_params(module, rng)))(jax.random.key(seed))
    return Loaded(pretrained=Pretrained(module.config, module, params, store.tokenizer()), step=0, seed=seed)


def git_hash() -> str:
    """Returns the commit of the checkout that the code runs from, or "" outside one."""
    here = pathlib.Path(__file__).resolve().parents[2]
    if not (here / ".git").exists() or shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _keep_config(path: pathlib.Path, text: Callable[[], str]) -> None:
    """Writes the config on the first host; that of the training in the same folder stays."""
    import jax

    from jaxmtl.files import write_whole

    if jax.process_index() == 0 and not path.exists():
        write_whole(path, text())


def table(scores: "Mapping[str, Scores]") -> str:
    """Returns the scores per category and over all examples as text; no such mean where tasks were scored repeatedly.

    The categories of few-shot runs are settings, and a mean over 0, 5 and 40 shots is the score of nothing.
    """
    from jaxmtl.tasks import metrics

    rows = list(metrics.per_category(scores.values()).values())
    if len({one.task for one in scores.values()}) == len(scores):
        rows.append(metrics.overall(scores.values()))
    names = list(rows[-1].metrics)
    lines = [f"{'category':<40}{'n':>6}" + "".join(f"{name:>14}" for name in names)]
    for row in rows:
        values = "".join(f"{row.metrics[name]:>14.2f}" for name in names)
        lines.append(f"{row.category:<40}{row.n:>6}{values}")
    return "\n".join(lines)
