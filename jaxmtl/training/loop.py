"""The training loop: plan, find the start, then step, log, evaluate and save until done.

Numbers of a step are fetched while the next one runs, so that devices never wait for the host; but before a step is
logged, evaluated or saved they are fetched and checked, so that no broken state is ever kept.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from jaxmtl.checkpoints import CheckpointPolicy, Checkpoints, Start, find_start
from jaxmtl.partitioning import RULES, Rules, batch_sharding, make_mesh
from jaxmtl.training.compile import Compilation, CompiledStep, compilation_cache_in, peak_memory
from jaxmtl.training.draws import write_draws
from jaxmtl.training.early_stopping import Best, EarlyStopping, is_over, judge
from jaxmtl.training.given import on_mesh, taken_apart
from jaxmtl.training.interval import IntervalSums
from jaxmtl.training.memory import readable, state_memory
from jaxmtl.training.normalisers import Normaliser, batch_tokens
from jaxmtl.training.objectives import EncoderDecoderLoss, Objective
from jaxmtl.training.optim import Optimizer
from jaxmtl.training.prefetch import Prefetcher, Stream
from jaxmtl.training.schedules import Schedule
from jaxmtl.training.signals import StopSignal
from jaxmtl.training.state import Plan, TrainState, assemble, first_state, make_plan, num_parameters, scratch_params
from jaxmtl.training.step import LossSums, train_step
from jaxmtl.training.watch import Speed, Watch
from jaxmtl.types import InputError, unknown_name
from jaxmtl.writers import JsonLinesWriter, MultiWriter, Writer, console_writer

FINISHED, STOPPED_EARLY, TERMINATED = "finished", "stopped early", "terminated"
METRICS_FILE, COMPILED_FOLDER = "metrics.jsonl", "compiled"


class Evaluation(Protocol):
    """Something measured every few steps; a frozen object."""

    @property
    def name(self) -> str:
        """Returns the prefix of its metrics."""
        ...

    @property
    def every(self) -> int:
        """Returns the steps between two runs; it also runs at the last step."""
        ...

    def run(self, params: Any, step: int) -> Mapping[str, float]:
        """Measures the parameters of a step; returns values by name, without the prefix."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a training run is made of.

    Attributes:
      module: the model, see `jaxmtl.models`; its `config.pad_id` is the id that fills up the stream's inputs.
      stream: endless batches of training examples.
      task_names: N names; a batch's `task_ids` index them.
      stream_names: where each task comes from, N names, for losses by stream; none if there is one stream only.
      run_dir: the run folder; nothing is written elsewhere.
      num_steps: updates to make in all.
      optimizer: `optim.adamw` or `optim.adafactor`, other arguments bound.
      learning_rate: one of `schedules`.
      mesh: devices; all of them along `data` if None.
      rules: logical axis to mesh axis.
      objective: scores a batch; if its class is registered with JAX as a tree, arrays that it holds are arguments of
        the compiled step, else they are constants of it.
      num_microbatches: parts that each batch is cut into to need less memory.
      normaliser: `normalisers.batch_tokens`, or `window_tokens` for streams of `jaxmtl.feed.stream`.
      seed: seed of random weights and dropout.
      pretrained: returns parameters to start from, given the mesh.
      resume_from: another run's folder to continue.
      checkpoints: when to save and what to keep.
      evaluations: what to measure while training.
      early_stopping: which metric is followed, and when to stop.
      log_every: steps between lines of `metrics.jsonl`.
      writer: where numbers go; `standard_writer` if None.
      on_ready: called once, after the first step of this start: from then on it is known that everything fits.
      config_hash: hash of the run's config, kept with checkpoints.
    """

    module: nn.Module
    stream: Stream
    task_names: Sequence[str]
    run_dir: str | os.PathLike
    num_steps: int
    optimizer: Optimizer
    learning_rate: Schedule
    stream_names: Sequence[str] = ()
    mesh: Mesh | None = None
    rules: Rules = RULES
    objective: Objective = EncoderDecoderLoss()
    num_microbatches: int = 1
    normaliser: Normaliser = batch_tokens
    seed: int = 0
    pretrained: Callable[[Mesh], Any] | None = None
    resume_from: str | os.PathLike | None = None
    checkpoints: CheckpointPolicy = CheckpointPolicy()
    evaluations: Sequence[Evaluation] = ()
    early_stopping: EarlyStopping | None = None
    log_every: int = 10
    writer: Writer | None = None
    on_ready: Callable[[], None] = lambda: None
    config_hash: str = ""

    def __post_init__(self) -> None:
        """Refuses counts and intervals below 1, and an early stopping that no evaluation feeds.

        Raises:
          InputError: with the value seen and what is possible.
        """
        for name in ("num_steps", "num_microbatches", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"training: {name} is {getattr(self, name)}; expected at least 1")
        for evaluation in self.evaluations:
            if evaluation.every < 1:
                raise InputError(
                    f"evaluation {evaluation.name!r}: every is {evaluation.every}; expected at least 1 step"
                )
        names = [evaluation.name for evaluation in self.evaluations]
        if len(set(names)) < len(names):
            raise InputError(f"training: evaluations {names} share a name; give each its own")
        if self.early_stopping is not None and self.early_stopping.evaluation not in names:
            raise unknown_name("evaluation for early stopping", self.early_stopping.evaluation, names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended.

    Attributes:
      status: `FINISHED`, `STOPPED_EARLY` or `TERMINATED` (by SIGTERM; start again to go on).
      step: number of updates made.
      params: the last parameter tree.
      best: the best evaluation.
      compilations: shapes compiled, with seconds.
      peak_memory: bytes by "host" and "device".
    """

    status: str
    step: int
    params: Any
    best: Best
    compilations: Sequence[Compilation]
    peak_memory: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class _Begun:
    """A run ready for its next step."""

    plan: Plan
    store: Checkpoints
    writer: Writer
    sums: IntervalSums
    state: TrainState
    best: Best


def train(run: Run) -> Result:
    """Trains a model; called again with the same folder, it goes on where it stopped.

    Args:
      run: what it is made of.

    Returns:
      How it ended.

    Raises:
      InputError: if something given does not fit, or at a loss or gradient that is not finite.
    """
    with contextlib.ExitStack() as stack:
        signal = stack.enter_context(StopSignal())
        begun = _begin(run, stack)
        state, sums, best, writer = begun.state, begun.sums, begun.best, begun.writer
        step = first = int(state.step)
        status = STOPPED_EARLY if is_over(run.early_stopping, best) else FINISHED
        run_step = _compiled_step(run, begun.plan, writer)
        batches = stack.enter_context(_prefetcher(run, begun.plan))
        watch, speed = Watch(sums, run.task_names, begun.store.describe, _observer(run)), Speed()

        while step < run.num_steps and status == FINISHED:
            fetched = next(batches)
            state, metrics = run_step(state, fetched.batch)
            if step == first:
                run.on_ready()
            step += 1
            watch.push(step, fetched.task_ids, metrics)
            speed.add(fetched.num_tokens)
            writer.advance(step)
            is_last = step == run.num_steps

            if step % run.log_every == 0 or is_last:
                watch.settle()
                writer.scalars(step, sums.take() | speed.take(batches.waited, run_step.seconds))

            due = [evaluation for evaluation in run.evaluations if step % evaluation.every == 0 or is_last]
            if due:
                watch.settle()
                with speed.paused():
                    values = evaluate(due, state.params, step)
                writer.scalars(step, values)
                best = judge(run.early_stopping, best, step, values)
                status = STOPPED_EARLY if is_over(run.early_stopping, best) else status

            if signal.wants_stop(step) and not is_last:
                status = TERMINATED
            if step % run.checkpoints.every == 0 or is_last or best.step == step or status != FINISHED:
                watch.settle()
                with speed.paused():
                    progress = _progress(run, state, sums, best, fetched.stream_state)
                    begun.store.save(step, state.params, state.opt_state, progress)
                    _write_draws(run)

        begun.store.wait()
        return _result(status, state, best, run_step, writer)


def evaluate(evaluations: Iterable[Evaluation], params: Any, step: int) -> dict[str, float]:
    """Runs evaluations.

    Args:
      evaluations: what to run.
      params: parameter tree.
      step: the step that it is from.

    Returns:
      All values, each name with the evaluation's name before it, such as "validation/loss".
    """
    return {
        f"{evaluation.name}/{name}": float(value)
        for evaluation in evaluations
        for name, value in evaluation.run(params, step).items()
    }


def standard_writer(run_dir: pathlib.Path) -> Writer:
    """Returns what writes to `metrics.jsonl` of a run folder and to the console."""
    return MultiWriter((JsonLinesWriter(run_dir / METRICS_FILE), console_writer()))


def _begin(run: Run, stack: contextlib.ExitStack) -> _Begun:
    """Opens the run folder, plans, finds the start and says what will happen."""
    run_dir, began = pathlib.Path(run.run_dir), time.monotonic()
    writer = stack.enter_context(contextlib.closing(_writer(run, run_dir)))
    stack.enter_context(compilation_cache_in(run_dir / COMPILED_FOLDER))
    store = stack.enter_context(Checkpoints(run_dir, keep=run.checkpoints.keep))
    plan = make_plan(run.module, run.optimizer, run.learning_rate, run.mesh or make_mesh(), run.rules)
    start = find_start(
        store,
        params=plan.shapes.params,
        opt_state=plan.shapes.opt_state,
        resume_from=run.resume_from,
        pretrained=None if run.pretrained is None else functools.partial(run.pretrained, plan.mesh),
        scratch=functools.partial(scratch_params, plan, run.seed),
    )
    begun = _restore(run, plan, store, writer, start)
    step = int(begun.state.step)
    writer.start(step, run.num_steps)
    axes = ", ".join(f"{name} {size}" for name, size in plan.mesh.shape.items())
    changed = start.progress is not None and start.progress["config_hash"] != run.config_hash
    writer.note(f"parameters: {num_parameters(plan.shapes.params):,}; mesh: {axes}; start: {start.source}, step {step}")
    memory = state_memory(plan)
    writer.note(
        f"memory on each device: parameters {readable(memory.parameters)}, gradients {readable(memory.gradients)}, "
        f"optimizer state {readable(memory.optimizer)}"
    )
    writer.note(f"ready after {time.monotonic() - began:.1f} s" + ("; the config has changed since" if changed else ""))
    return begun


def _restore(run: Run, plan: Plan, store: Checkpoints, writer: Writer, start: Start) -> _Begun:
    """Puts state, sums, best evaluation and data position where the start left them."""
    sums, best, progress = IntervalSums(run.task_names, run.stream_names), Best(), start.progress
    if progress is None:
        return _Begun(plan, store, writer, sums, first_state(plan, run.seed, start.params), best)
    sums.restore(progress["sums"])
    run.stream.restore(progress["stream"], progress["observed"])
    state = assemble(plan, progress["step"], start.params, start.opt_state, jax.random.key(progress["seed"]))
    return _Begun(plan, store, writer, sums, state, Best(**progress.get("best", {})))


def _compiled_step(run: Run, plan: Plan, writer: Writer) -> CompiledStep:
    sizes = dict(num_tasks=len(run.task_names), num_microbatches=run.num_microbatches)
    arrays, together = taken_apart(run.objective)

    def step(state: TrainState, batch: Any, *given: Any) -> Any:
        return train_step(state, batch, plan=plan, objective=together(given), normaliser=run.normaliser, **sizes)

    return CompiledStep(step, plan, writer.note, on_mesh(arrays, plan.mesh))


def _observer(run: Run) -> Callable[[LossSums], None]:
    return lambda sums: run.stream.observe(np.asarray(sums.task_loss), np.asarray(sums.task_tokens))


def _prefetcher(run: Run, plan: Plan) -> Prefetcher:
    return Prefetcher(run.stream, batch_sharding(plan.mesh), run.module.config.pad_id)


def _writer(run: Run, run_dir: pathlib.Path) -> Writer:
    """Returns the run's writer on the first host, and one that writes nothing on the others."""
    if jax.process_index() != 0:
        return MultiWriter(())
    return run.writer or standard_writer(run_dir)


def _progress(run: Run, state: TrainState, sums: IntervalSums, best: Best, stream_state: Any) -> dict[str, Any]:
    """Returns what a checkpoint holds besides arrays, JSON-able."""
    return {
        "step": int(state.step),
        "seed": run.seed,
        "stream": stream_state,
        "observed": run.stream.observed(),
        "sums": sums.state(),
        "best": dataclasses.asdict(best),
        "best_step": best.step,
        "config_hash": run.config_hash,
    }


def _write_draws(run: Run) -> None:
    if jax.process_index() == 0:
        write_draws(pathlib.Path(run.run_dir), run.task_names, *run.stream.counts())


def _result(status: str, state: TrainState, best: Best, run_step: CompiledStep, writer: Writer) -> Result:
    """Says how the run ended."""
    step, peak, compilations = int(state.step), peak_memory(), tuple(run_step.compilations)
    memory = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in peak.items())
    found = "" if best.step is None else f"; best {best.value:.4g} at step {best.step}"
    writer.note(
        f"{status} at step {step}{found}; {len(compilations)} shapes compiled in {run_step.seconds:.1f} s; "
        f"peak memory: {memory}"
    )
    return Result(status=status, step=step, params=state.params, best=best, compilations=compilations, peak_memory=peak)
