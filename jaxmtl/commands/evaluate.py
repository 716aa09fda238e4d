"""`jaxmtl evaluate`: scores a model on a split of a token store; started again, it repeats no finished task."""

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.host_memory import keep_freed_memory
from jaxmtl.types import InputError, UsageError

if TYPE_CHECKING:
    import flax.linen as nn
    from jax.sharding import Mesh

    from jaxmtl.adapters.lora import Adapter
    from jaxmtl.evals.instructed import ByInstruction, Choice
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
        raise UsageError("evaluate needs gin files: --gin_file=runs/evaluate.gin --gin.CHECKPOINT=... --gin.STORE=...")
    keep_freed_memory()
    show = config.configured(tables)  # a gin file that does not bind it is refused now
    print(show(config.configured(evaluate)(config_hash=config.hash(), operative_text=config.operative)))
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model to score, and where its weights come from.

    Attributes:
      pretrained: the model.
      step: optimiser step of the weights.
      seed: seed of the run that made them.
      adapters: what the model is scored with if the run was a hypernetwork's; None for nothing.
    """

    pretrained: "Pretrained"
    step: int
    seed: int
    adapters: "ByInstruction | None" = None


def evaluate(
    *,
    load: Callable[..., Loaded],
    run_dir: str | os.PathLike,
    score: "Callable[..., dict[str, Scores]]",
    adapters: "Callable[[Pretrained], Adapters]" = lambda pretrained: None,
    steps: Sequence[int] = (),
    study: str = "",
    config_hash: str = "",
    operative_text: Callable[[], str],
) -> "dict[str, Scores]":
    """Loads a model and scores it, or does so with several checkpoints, and shows how far it is.

    Args:
      load: gives the model: `checkpoint` or `untrained` with its arguments bound; with `steps`, called with each.
      run_dir: where results go.
      score: `evals.runner.evaluate` with store, split and settings bound.
      adapters: gives the model's adapters: `adapter_folders.load` with its arguments bound.
      steps: checkpoints to score, each into a folder `step-STEP` of its own in the run folder; one model if empty.
      study: study the records belong to.
      config_hash: hash of the config, for the records.
      operative_text: gives the config with all values used, written to `config.gin` unless there is one.

    Returns:
      Task name to its scores; with `steps`, "step STEP TASK" to scores that have the step as category.
    """
    from jaxmtl.commands.live_table import shown_tasks
    from jaxmtl.evals.summary import Labels
    from jaxmtl.evals.watch import Within

    labels = Labels(study=study, config_hash=config_hash, git_hash=git_hash()).of_folder(run_dir)
    found: dict[str, Scores] = {}
    with shown_tasks("evaluating") as told:
        if not steps:
            found = _scored(load(), score, adapters, run_dir=run_dir, labels=labels, progress=told)
        for step in steps:
            folder, own = pathlib.Path(run_dir) / f"step-{step}", Within(told, f"step {step}")
            scores = _scored(load(step=step), score, adapters, run_dir=folder, labels=labels, progress=own)
            found |= {f"step {step} {name}": _of_step(one, step, scores) for name, one in scores.items()}
    _keep_config(pathlib.Path(run_dir) / "config.gin", operative_text)
    return found


def _scored(
    loaded: Loaded,
    score: "Callable[..., dict[str, Scores]]",
    adapters: Callable[..., Any],
    *,
    labels: Any,
    **where: Any,
) -> "dict[str, Scores]":
    own = dataclasses.replace(labels, seed=loaded.seed, step=loaded.step)
    found = adapters(loaded.pretrained)
    if loaded.adapters is not None:
        if found is not None:
            raise InputError("a hypernetwork makes the adapters itself; give no ADAPTER and no ADAPTERS")
        found = loaded.adapters
    options = {} if found is None else {"adapters": found}
    return score(loaded.pretrained, labels=own, **where, **options)


def _of_step(one: "Scores", step: int, scores: "Mapping[str, Scores]") -> "Scores":
    """Names scores after their step, and after their setting too where tasks were scored in several."""
    setting = "" if _is_once(scores) else f", {one.category}"
    return dataclasses.replace(one, category=f"step {step}{setting}")


def kept_steps(*, path: str | os.PathLike, chosen: Sequence[int] | None = None) -> list[int]:
    """Lists checkpoints of a run to score one after the other.

    Args:
      path: the run folder.
      chosen: steps; all that are kept if None.

    Returns:
      The steps, ascending.

    Raises:
      InputError: if it is no run folder, one that is chosen is not kept, or none is chosen.
    """
    from jaxmtl.weights import steps_of

    kept = steps_of(path)
    steps = sorted(set(kept if chosen is None else chosen))
    missing = [step for step in steps if step not in kept]
    if missing or not steps:
        raise InputError(f"STEPS is {chosen}; {path} keeps the checkpoints of steps {', '.join(map(str, kept))}")
    return steps


def checkpoint(
    *,
    path: str | os.PathLike,
    dtype: str = "float32",
    mesh: "Mesh | None" = None,
    step: int | None = None,
    instruction_of: "Choice | None" = None,
) -> Loaded:
    """Loads a model, with its hypernetwork if the run trained one.

    Args:
      path: a run folder, a Hugging Face folder or a hub id.
      dtype: dtype of weights and activations.
      mesh: devices to split over; the default device if None.
      step: which checkpoint of a run folder; its best if None.
      instruction_of: which task's instruction a hypernetwork reads for each task; its own if None.

    Returns:
      The model, with step and seed of its run; both are 0 if it is no run folder.
    """
    from jaxmtl.weights import load_pretrained, run_folder, seed_of, step_of

    found = step_of(path) if step is None else step
    if run_folder.has_hypernetwork(pathlib.Path(path)):
        from jaxmtl.evals.instructed import ByInstruction, own
        from jaxmtl.weights.hyper_io import load_hyper_run

        pretrained, hyper = load_hyper_run(path, dtype=dtype, mesh=mesh, step=step)
        adapters = ByInstruction(hyper=hyper, choose=instruction_of or own)
        return Loaded(pretrained=pretrained, step=found, seed=seed_of(path), adapters=adapters)
    if instruction_of is not None:
        raise InputError(f"{path} is no run of a hypernetwork and reads no instructions; leave INSTRUCTION_OF at None")
    pretrained = load_pretrained(path, dtype=dtype, mesh=mesh, step=step)
    return Loaded(pretrained=pretrained, step=found, seed=seed_of(path))


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


def tables(scores: "Mapping[str, Scores]", *, more: Sequence[Callable[[], str]] = ()) -> str:
    """Returns what is printed at the end: the scores per category, and whatever else a gin file asks for.

    Args:
      scores: what `evaluate` gave.
      more: each gives another text.
    """
    return "\n\n".join([table(scores), *(text() for text in more)])


def variants_table(*, run_dir: str | os.PathLike) -> str:
    """Returns what templates come to in each setting that a run folder holds, as text.

    Args:
      run_dir: the run folder.
    """
    from jaxmtl.reports.sources import read_run
    from jaxmtl.reports.variants import variant_table

    found = variant_table(read_run(run_dir).columns)
    return found.to_string(index=False, na_rep="", float_format="{:.2f}".format, justify="right")


def table(scores: "Mapping[str, Scores]") -> str:
    """Returns the scores per category and over all examples as text; no such mean where tasks were scored repeatedly.

    The categories of few-shot runs are settings, those of trajectories are steps: a mean over 0, 5 and 40 shots is the
    score of nothing.
    """
    from jaxmtl.tasks import metrics

    numbers = lambda row: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row.category)]
    rows = sorted(metrics.per_category(scores.values()).values(), key=numbers)  # 5 shots before 40
    if _is_once(scores):
        rows.append(metrics.overall(scores.values()))
    names = list(rows[-1].metrics)
    lines = [f"{'category':<40}{'n':>6}" + "".join(f"{name:>14}" for name in names)]
    for row in rows:
        values = "".join(f"{row.metrics[name]:>14.2f}" for name in names)
        lines.append(f"{row.category:<40}{row.n:>6}{values}")
    return "\n".join(lines)


def _is_once(scores: "Mapping[str, Scores]") -> bool:
    """Returns whether each task was scored once, not in several settings or at several steps."""
    return len({one.task for one in scores.values()}) == len(scores)
