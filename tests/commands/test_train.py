"""`jaxmtl train` as it is typed: run folder, resuming after SIGKILL, two processes; and what it refuses."""

import json
import shutil
import signal
import subprocess
import sys
import time
import unittest.mock

import jax
import numpy as np
import pytest
from short_runs import evaluate_words, train_words

from jaxmtl.commands.evaluate import git_hash, untrained
from jaxmtl.feed.store import TokenStore
from jaxmtl.main import GinConfig, main
from jaxmtl.partitioning import make_mesh
from jaxmtl.training import optim, schedules
from jaxmtl.training.state import make_plan, scratch_params
from jaxmtl.types import Record
from jaxmtl.weights import load_module, load_pretrained


def metrics(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(folder, name="train/loss"):
    return {row["step"]: row[name] for row in metrics(folder) if name in row}


def contents(folder):
    """Returns what tells what a run's checkpoints are."""
    files = [path for path in [folder / "config.gin", *(folder / "model").glob("*")] if path.is_file()]
    return {path.name: path.read_bytes() for path in files}


def start(words, environment, log):
    command = [sys.executable, "-m", "jaxmtl.main", *words]
    with log.open("a") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def test_a_run_folder_holds_what_is_promised(run_dir):
    names = {path.name for path in run_dir.iterdir()}
    assert {"config.gin", "metrics.jsonl", "checkpoints", "model"} <= names
    assert {path.name for path in (run_dir / "model").iterdir()} >= {"config.json", "spiece.model"}
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"2", "4"}
    assert sorted(losses(run_dir)) == [1, 2, 3, 4]
    assert not list(run_dir.rglob("*.partial"))


def test_the_operative_config_parses_and_trains_the_same(run_dir, tmp_path):
    text = (run_dir / "config.gin").read_text("utf-8")
    assert "STEPS = 4" in text
    config = GinConfig([str(run_dir / "config.gin")], [f"RUN_DIR={tmp_path}"])
    assert str(tmp_path) in config.text()
    assert main(["train", f"--gin_file={run_dir / 'config.gin'}", f"--gin.RUN_DIR={tmp_path / 'again'}"]) == 0
    assert losses(tmp_path / "again") == losses(run_dir)


@pytest.mark.long
def test_a_finished_run_started_again_changes_nothing(store, run_dir, tmp_path):
    assert main(train_words(store, tmp_path / "run", "--gin.STEPS=2")) == 0
    before = losses(tmp_path / "run")
    assert main(train_words(store, tmp_path / "run", "--gin.STEPS=2")) == 0
    assert losses(tmp_path / "run") == before
    assert main(train_words(store, tmp_path / "run", "--gin.STEPS=3", "--gin.SCHEDULE=@schedules.constant()")) == 0
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3]


@pytest.mark.long
def test_a_killed_run_goes_on_to_the_same_bits(store, tmp_path, on_cpu):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(train_words(store, whole, "--gin.STEPS=12")) == 0
    words = train_words(store, killed, "--gin.STEPS=12")
    child = start(words, on_cpu, tmp_path / "log")
    while len(losses(killed)) < 5 and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert main(words) == 0
    assert losses(killed) == losses(whole)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(killed).params, load_pretrained(whole).params)


def start_two(words, environment, port, tmp_path):
    """Starts the two processes of one training; each logs to a file of its own."""
    flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--traceback"]
    return [
        start([*words, *flags, f"--process_id={index}"], environment, tmp_path / f"log{index}") for index in range(2)
    ]


@pytest.mark.long
@pytest.mark.parametrize("axis", ["data", "tensor"])
def test_two_processes_train_like_one(store, tmp_path, on_cpu, free_port, axis):
    validated = ["--gin.STEPS=3", "--gin_file=runs/validation.gin", "--gin.EVALUATE_EVERY=2"]
    more = [*validated, f"--gin.partitioning.make_mesh.{axis}=2"]
    folder = tmp_path / "two"
    children = start_two(train_words(store, folder, *more), on_cpu, free_port, tmp_path)
    codes = [child.wait(timeout=200) for child in children]
    logs = [(tmp_path / f"log{index}").read_text() for index in range(2)]
    assert codes == [0, 0], "\n".join(logs)
    assert "process 0 of 2" in logs[0] and "process 1 of 2" in logs[1]
    alone = tmp_path / "one"
    assert main(train_words(store, alone, *validated)) == 0
    # The same sums in another order, in float32.
    for name in ("train/loss", "train/tokens", "validation/loss"):
        assert losses(folder, name) == pytest.approx(losses(alone, name), rel=1e-5)
    ours, theirs = load_pretrained(folder).params, load_pretrained(alone).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


@pytest.mark.long
def test_a_run_stopped_on_two_processes_goes_on_on_one(store, tmp_path, on_cpu, free_port):
    more = ["--gin.LAYOUT=@packing.packed", "--gin.SAVE_EVERY=100"]
    folder, alone = tmp_path / "two", tmp_path / "one"
    long = train_words(store, folder, *more, "--gin.STEPS=40")
    children = start_two([*long, "--gin.partitioning.make_mesh.data=2"], on_cpu, free_port, tmp_path)
    while len(losses(folder)) < 3 and children[0].poll() is None:
        time.sleep(0.01)
    for child in children:
        child.terminate()
    codes = [child.wait(timeout=200) for child in children]
    stopped = max(losses(folder), default=0)
    assert 3 <= stopped < 40, "\n".join((tmp_path / f"log{index}").read_text() for index in range(2))
    assert codes == [1, 1], "not finished"
    assert main(long) == 0
    assert main(train_words(store, alone, *more, "--gin.STEPS=40")) == 0
    assert sorted(losses(folder)) == list(range(1, 41))
    # The same sums in another order while there were two, in float32, which later steps carry on.
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.parametrize(
    "flags, hint",
    [
        (["--gin.VOCAB_ROWS=100"], "the model has 100 embedding rows, token store"),
        (["--gin.t5_config.T5Config.eos_id=2"], "the model has pad_id 0 and eos_id 2, token store"),
        (["--gin.SPLIT=tain"], "closest: train"),
        (["--gin.STEPS=0"], "(STEPS)"),
        (["--gin.BATCH_SIZE=0"], "batch"),
        (["--gin.MICROBATCHES=3"], "microbatches"),
        (["--gin.RESUME_FROM=/no/run"], "/no/run: holds no checkpoints to resume from"),
        (["--gin.partitioning.make_mesh.fsdp=16"], "devices"),
    ],
)
def test_what_cannot_train_is_told_in_one_line(store, tmp_path, capsys, flags, hint):
    assert main(train_words(store, tmp_path / "run", "--gin.STEPS=2", *flags)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and hint in error
    assert "--traceback" not in error, "not told as a mistake of the user"
    assert {path.name for path in tmp_path.glob("run/*")} <= {"compiled"}


@pytest.mark.parametrize(
    "flags, hint",
    [
        (["--gin.t5_config.T5Config.mlp_dim=48"], "found shape (2, 16, 32), expected shape (2, 16, 48)"),
        (["--gin.MICROBATCHES=3"], "microbatches"),
        (["--gin.STORE=OTHER"], "another vocabulary (250 ids)"),
    ],
)
def test_a_mistaken_command_leaves_a_run_as_it_was(store, other_store, run_dir, tmp_path, capsys, flags, hint):
    folder = shutil.copytree(run_dir, tmp_path / "run")
    flags = [flag.replace("OTHER", str(other_store)) for flag in flags]
    assert main(train_words(store, folder, "--gin.STEPS=6", *flags)) == 1
    assert hint in capsys.readouterr().err.splitlines()[-1]
    assert contents(folder) == contents(run_dir)
    assert losses(folder) == losses(run_dir)


@pytest.mark.long
def test_weights_are_trained_only_on_stores_of_their_vocabulary(store, other_store, run_dir, tmp_path, capsys):
    assert main(["convert", str(run_dir), str(tmp_path / "hf")]) == 0
    pretrained = ["--gin_file=models/pretrained.gin", f"--gin.PRETRAINED={tmp_path / 'hf'}"]
    short = train_words(other_store, tmp_path / "run", "--gin.STEPS=2")
    files = short[short.index("--gin_file=runs/train.gin") :]
    for words in (["train", *pretrained, *files], [*short, f"--gin.RESUME_FROM={run_dir}"]):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert f"token store {other_store} was made with another vocabulary (250 ids) than the model's" in error
        assert not (tmp_path / "run").exists()
    assert main(["train", *pretrained, *files, f"--gin.STORE={store}"]) == 0
    assert "start: pretrained weights" in capsys.readouterr().err


@pytest.mark.long
def test_numbers_go_to_more_writers_if_asked_for(store, tmp_path, capsys, monkeypatch):
    flags = ["--gin.STEPS=2", "--gin.WRITERS=(@writers.TensorBoardWriter,)"]
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert main(train_words(store, tmp_path / "run", *flags)) == 1
    assert "pip install tensorboardX" in capsys.readouterr().err
    summary_writer = unittest.mock.Mock()
    monkeypatch.setitem(sys.modules, "tensorboardX", unittest.mock.Mock(SummaryWriter=summary_writer))
    assert main(train_words(store, tmp_path / "run", *flags)) == 0
    summary_writer.assert_called_once_with(str(tmp_path / "run"), purge_step=1)
    summary_writer().add_scalar.assert_any_call("train/loss", losses(tmp_path / "run")[1], 1)


@pytest.mark.long
def test_records_of_evaluations_while_training_tell_their_run(store, tmp_path):
    flags = ["--gin_file=runs/generation.gin", "--gin.GENERATE_EVERY=2", "--gin.MAX_TOKENS=2", "--gin.MAX_EXAMPLES=1"]
    labels = ["--gin.SEED=5", "--gin.STUDY=mine"]
    assert main(train_words(store, tmp_path / "first", "--gin.STEPS=2", *flags, *labels)) == 0
    lines = (tmp_path / "first" / "evaluations" / "test" / "records.jsonl").read_text().splitlines()
    records = [Record.from_json(line) for line in lines]
    assert {(record.study, record.run, record.seed, record.step) for record in records} == {("mine", "first", 5, 2)}
    assert {record.config_hash for record in records} == {
        json.loads((tmp_path / "first/checkpoints/2/progress/metadata").read_text())["config_hash"]
    }
    assert {record.git_hash for record in records} == {git_hash()}


def test_an_evaluation_repeats_no_finished_task(store, run_dir, tmp_path, capsys):
    words = [
        "evaluate",
        "--gin_file=runs/evaluate.gin",
        f"--gin.CHECKPOINT={run_dir}",
        *evaluate_words(store, tmp_path),
    ]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[0].split()[:2] == ["category", "n"]
    predictions = sorted((tmp_path / "predictions").rglob("*.jsonl"))
    assert len(predictions) == 4
    stamps = [path.stat().st_mtime_ns for path in predictions]
    assert main(words) == 0
    assert capsys.readouterr().out == table
    assert [path.stat().st_mtime_ns for path in predictions] == stamps
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert {record["step"] for record in records} == {4}
    assert len({(record["task"], record["metric"]) for record in records}) == len(records)


def test_untrained_weights_are_those_that_training_begins_with(store, run_dir):
    module = load_module(run_dir)
    made = untrained(module=module, store=TokenStore(store), seed=3)
    plan = make_plan(module, optim.adamw, schedules.constant(rate=0.1), make_mesh(data=1))
    jax.tree.map(np.testing.assert_array_equal, made.pretrained.params, scratch_params(plan, 3))
    assert (made.step, made.seed) == (0, 3)
