import dataclasses
import functools
import json
import operator
import os
import signal

import jax
import numpy as np
import pytest
from training_toy import (
    TASKS,
    Recorder,
    Tiny,
    TinyConfig,
    ToyStream,
    assert_trees_equal,
    broken_mask,
    make_batch,
    toy_run,
)

from jaxmtl.checkpoints import CheckpointPolicy
from jaxmtl.partitioning import make_mesh
from jaxmtl.training import loop
from jaxmtl.training.early_stopping import Best, EarlyStopping
from jaxmtl.training.loop import train
from jaxmtl.training.normalisers import window_tokens
from jaxmtl.training.validation import ValidationLoss
from jaxmtl.training.watch import NonFiniteError
from jaxmtl.types import InputError, UnknownNameError
from jaxmtl.writers import JsonLinesWriter


@dataclasses.dataclass(frozen=True)
class Scripted:
    """An evaluation that returns given values in turn."""

    values: tuple
    name: str = "validation"
    every: int = 2

    def run(self, params, step):
        return {"loss": self.values[step // self.every - 1]}


def checkpoint_steps(run_dir):
    return sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir())


def deterministic(path):
    """Reads metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


def test_training_lowers_the_loss(tmp_path):
    writer = Recorder()
    repeat = ToyStream(change=lambda index, batch: make_batch(0))
    result = train(toy_run(tmp_path, stream=repeat, num_steps=30, log_every=10, writer=writer))
    losses = [values["train/loss"] for _, values in writer.lines]
    assert result.status == loop.FINISHED and result.step == 30
    assert losses[-1] < 0.7 * losses[0]
    assert writer.closed and writer.started == (0, 30)


def test_log_lines_are_the_means_over_their_steps(tmp_path):
    writer, module = Recorder(), Tiny(TinyConfig(dropout_rate=0.0))
    train(toy_run(tmp_path / "a", module=module, num_steps=4, log_every=4, writer=writer))
    singles = Recorder()
    train(toy_run(tmp_path / "b", module=module, num_steps=4, log_every=1, writer=singles))
    tokens = np.array([values["train/tokens"] for _, values in singles.lines])
    losses = np.array([values["train/loss"] for _, values in singles.lines])
    _, line = writer.lines[0]
    assert line["train/loss"] == pytest.approx((tokens * losses).sum() / tokens.sum(), rel=1e-6)
    assert {f"train/task_loss/{task}" for task in TASKS} <= line.keys()


def test_everything_is_compiled_once_and_kept_in_the_run_folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    result = train(toy_run(tmp_path, stream=ToyStream(lengths=((10, 6), (7, 5)))))
    assert [compilation.shape for compilation in result.compilations] == [(8, 10, 6), (8, 7, 5)]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "compiled", "draws.json"}
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_resumed_run_equals_the_unbroken_one(tmp_path, stop_at):
    """A run killed after `stop_at` steps is one whose stream breaks there: nothing is saved on the way out."""

    def breaks(index, batch):
        if index == stop_at:
            raise ConnectionError("the power went")
        return batch

    policy = CheckpointPolicy(every=2)
    options = dict(checkpoints=policy, log_every=3, evaluations=(validation(),))
    whole_dir, broken_dir = tmp_path / "whole", tmp_path / "broken"
    log = lambda folder: JsonLinesWriter(folder / "metrics.jsonl")
    whole = train(toy_run(whole_dir, writer=log(whole_dir), **options))
    with pytest.raises(ConnectionError):
        train(toy_run(broken_dir, writer=log(broken_dir), stream=ToyStream(change=breaks), **options))
    resumed = train(toy_run(broken_dir, writer=log(broken_dir), **options))
    assert_trees_equal(resumed.params, whole.params)
    assert deterministic(broken_dir / "metrics.jsonl") == deterministic(whole_dir / "metrics.jsonl")


def validation(**overrides):
    batches = lambda: [make_batch(index, seed=9) for index in range(2)]
    return ValidationLoss(**(dict(module=Tiny(), batches=batches, task_names=TASKS, every=2) | overrides))


def test_a_run_resumes_on_another_mesh(tmp_path):
    module = Tiny(TinyConfig(dropout_rate=0.0))
    whole = train(toy_run(tmp_path / "whole", module=module))
    train(toy_run(tmp_path / "moved", module=module, num_steps=3))
    moved = train(toy_run(tmp_path / "moved", module=module, mesh=make_mesh(data=2, fsdp=2, tensor=2)))
    # Sums in another order: Adam divides tiny differences by tiny roots, so a few updates differ in the fifth digit.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), moved.params, whole.params)


def test_a_non_finite_step_stops_with_its_tasks_and_the_last_checkpoint(tmp_path):
    stream = ToyStream(change=functools.partial(broken_mask, at=4))
    run = toy_run(tmp_path, stream=stream, checkpoints=CheckpointPolicy(every=2), num_steps=100, log_every=100)
    with pytest.raises(NonFiniteError, match=r"step 5: loss .*tasks in the batch: reverse; last checkpoint: step 4 in"):
        train(run)
    assert checkpoint_steps(tmp_path) == [2, 4]


def test_a_non_finite_step_is_not_saved_at_its_own_checkpoint(tmp_path):
    stream = ToyStream(change=functools.partial(broken_mask, at=3))
    with pytest.raises(NonFiniteError, match="step 4"):
        train(toy_run(tmp_path, stream=stream, checkpoints=CheckpointPolicy(every=2), log_every=100))
    assert checkpoint_steps(tmp_path) == [2]


def test_early_stopping_keeps_the_best_checkpoint(tmp_path):
    run = toy_run(
        tmp_path,
        num_steps=100,
        checkpoints=CheckpointPolicy(every=100, keep=1),
        evaluations=(Scripted((3.0, 1.0, 2.0, 1.5)),),
        early_stopping=EarlyStopping(patience=2),
    )
    result = train(run)
    assert (result.status, result.step) == (loop.STOPPED_EARLY, 8)
    assert (result.best.step, result.best.value) == (4, 1.0)
    assert checkpoint_steps(tmp_path) == [4, 8]
    progress = json.loads((tmp_path / "checkpoints" / "8" / "progress" / "metadata").read_text())
    assert progress["best_step"] == 4
    assert train(run).status == loop.STOPPED_EARLY  # starting again does not train on


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_only_a_finite_value_becomes_the_best(tmp_path, value):
    run = toy_run(tmp_path, evaluations=(Scripted((value, 2.0, value)),), early_stopping=EarlyStopping())
    assert train(run).best == Best(step=4, value=2.0, num_worse=1)


def test_scores_are_followed_upwards(tmp_path):
    rule = EarlyStopping(metric="validation/loss", better=operator.gt)
    result = train(toy_run(tmp_path, evaluations=(Scripted((3.0, 1.0, 2.0)),), early_stopping=rule))
    assert (result.best.step, result.status) == (2, loop.FINISHED)


def test_sigterm_saves_and_a_new_start_goes_on(tmp_path):
    def terminate(index, batch):
        if index == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    previous = signal.getsignal(signal.SIGTERM)
    writer = JsonLinesWriter(tmp_path / "b" / "metrics.jsonl")
    options = dict(num_steps=20, log_every=7)
    result = train(toy_run(tmp_path / "b", writer=writer, stream=ToyStream(change=terminate), **options))
    assert result.status == loop.TERMINATED and 0 < result.step < 20
    assert checkpoint_steps(tmp_path / "b") == [result.step]
    assert signal.getsignal(signal.SIGTERM) == previous
    resumed = train(toy_run(tmp_path / "b", writer=writer, **options))
    whole = train(toy_run(tmp_path / "a", writer=JsonLinesWriter(tmp_path / "a" / "metrics.jsonl"), **options))
    assert_trees_equal(resumed.params, whole.params)
    assert deterministic(tmp_path / "b" / "metrics.jsonl") == deterministic(tmp_path / "a" / "metrics.jsonl")


def test_training_starts_from_pretrained_weights_and_leaves_them_alone(tmp_path):
    first = train(toy_run(tmp_path / "a", num_steps=2))
    before = jax.tree.map(np.array, first.params)
    frozen = dict(learning_rate=lambda step: 0.0 * step, num_steps=2)
    result = train(toy_run(tmp_path / "b", pretrained=lambda mesh: first.params, **frozen))
    assert_trees_equal(result.params, before)
    assert_trees_equal(first.params, before)


def test_another_runs_checkpoint_can_be_continued(tmp_path):
    train(toy_run(tmp_path / "a", num_steps=3))
    continued = train(toy_run(tmp_path / "b", resume_from=tmp_path / "a"))
    assert_trees_equal(continued.params, train(toy_run(tmp_path / "whole")).params)
    assert checkpoint_steps(tmp_path / "a") == [3]


def test_errors_of_the_stream_surface(tmp_path):
    def fails(index, batch):
        raise InputError("shard 3 is missing")

    with pytest.raises(InputError, match="shard 3 is missing"):
        train(toy_run(tmp_path, stream=ToyStream(change=fails)))


def test_a_stream_that_ends_is_an_error(tmp_path):
    def ends(index, batch):
        if index == 2:
            raise StopIteration
        return batch

    with pytest.raises(InputError, match="ended after 2 batches"):
        train(toy_run(tmp_path, stream=ToyStream(change=ends)))


def test_a_batch_that_does_not_fit_the_mesh_is_refused(tmp_path):
    with pytest.raises(InputError, match="batch of 6 rows"):
        train(toy_run(tmp_path, stream=ToyStream(rows=6), mesh=make_mesh(data=4)))


def test_a_run_is_ready_once_its_first_step_is_made(tmp_path):
    ready = []
    on_ready = lambda: ready.append(checkpoint_steps(tmp_path))
    with pytest.raises(InputError, match="microbatches"):
        train(toy_run(tmp_path, num_microbatches=3, on_ready=on_ready))
    assert ready == []
    policy = CheckpointPolicy(every=1)
    train(toy_run(tmp_path, num_steps=2, checkpoints=policy, on_ready=on_ready))
    assert ready == [[]], "called more than once, or after a checkpoint"
    train(toy_run(tmp_path, num_steps=3, checkpoints=policy, on_ready=on_ready))
    assert ready == [[], [1, 2]]


@pytest.mark.parametrize("field", ["num_steps", "log_every", "num_microbatches"])
def test_counts_below_one_are_refused(tmp_path, field):
    with pytest.raises(InputError, match=field):
        toy_run(tmp_path, **{field: 0})


@pytest.mark.parametrize("every", [0, -1])
def test_an_evaluation_every_zero_steps_is_refused(tmp_path, every):
    with pytest.raises(InputError, match=f"evaluation 'validation': every is {every}; expected at least 1"):
        toy_run(tmp_path, evaluations=(validation(every=every),))


def test_early_stopping_without_its_evaluation_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="valdation"):
        toy_run(tmp_path, evaluations=(Scripted(()),), early_stopping=EarlyStopping(metric="valdation/loss"))


def test_early_stopping_on_an_unknown_metric_names_the_known_ones(tmp_path):
    rule = EarlyStopping(metric="validation/los")
    with pytest.raises(UnknownNameError, match="validation/loss"):
        train(toy_run(tmp_path, evaluations=(Scripted((1.0, 1.0, 1.0)),), early_stopping=rule))


def test_a_run_divides_as_it_is_told(tmp_path):
    with pytest.raises(InputError, match="expected_tokens"):
        train(toy_run(tmp_path, normaliser=window_tokens))
