"""`jaxmtl evaluate` as it is typed: what its records say about the weights, and the config that it keeps."""

import dataclasses
import json
import pathlib
import shutil

import jax
import pytest
from short_runs import MODEL, evaluate_words

from jaxmtl.adapters.lora import LoRA, init_adapter
from jaxmtl.commands.evaluate import table
from jaxmtl.evals import files
from jaxmtl.feed.store import TokenStore
from jaxmtl.main import main
from jaxmtl.types import InputError, Scores
from jaxmtl.weights import load_pretrained


@pytest.fixture(scope="module")
def seed_3(run_dir, tmp_path_factory):
    """A run folder whose checkpoints say that they are of seed 3."""
    folder = tmp_path_factory.mktemp("seeds") / "run"
    shutil.copytree(run_dir, folder)
    for path in folder.glob("checkpoints/*/progress/metadata"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 3}))
    return folder


def evaluate_checkpoint(store, checkpoint, run_dir, *more):
    words = [f"--gin.CHECKPOINT={checkpoint}", *evaluate_words(store, run_dir, *more)]
    assert main(["evaluate", "--gin_file=runs/evaluate.gin", *words]) == 0


def test_records_hold_step_and_seed_of_the_checkpoint(store, seed_3, tmp_path):
    evaluate_checkpoint(store, seed_3, tmp_path)
    assert {(one.step, one.seed) for one in files.read_records(tmp_path / "records.jsonl")} == {(4, 3)}
    assert json.loads((tmp_path / "scores.json").read_text())["seed"] == 3


def test_records_of_random_weights_hold_their_seed(store, tmp_path):
    words = [*MODEL, "--gin_file=runs/untrained.gin", *evaluate_words(store, tmp_path, "--gin.SEED=5")]
    assert main(["evaluate", *words]) == 0
    assert {(one.step, one.seed) for one in files.read_records(tmp_path / "records.jsonl")} == {(0, 5)}


def test_the_config_of_the_first_evaluation_is_kept_and_gives_the_same_again(store, run_dir, tmp_path, capsys):
    evaluate_checkpoint(store, run_dir, tmp_path / "one")
    text = (tmp_path / "one" / "config.gin").read_text("utf-8")
    assert "MAX_TOKENS = 4" in text and "chunk_size = " in text  # a default that no file sets
    evaluate_checkpoint(store, run_dir, tmp_path / "one", "--gin.MAX_TOKENS=3")
    assert (tmp_path / "one" / "config.gin").read_text("utf-8") == text
    config = f"--gin_file={tmp_path / 'one' / 'config.gin'}"
    assert main(["evaluate", config, f"--gin.RUN_DIR={tmp_path / 'two'}"]) == 0
    evaluate_checkpoint(store, run_dir, tmp_path / "one")
    for name in ("one", "two"):
        scores = json.loads((tmp_path / name / "scores.json").read_text())
        assert scores["max_tokens"] == 4
    predictions = [sorted((tmp_path / name).glob("predictions/*.jsonl")) for name in ("one", "two")]
    assert len(predictions[0]) == 4
    assert [path.read_bytes() for path in predictions[0]] == [path.read_bytes() for path in predictions[1]]


def test_the_config_of_a_training_stays(store, seed_3):
    before = (seed_3 / "config.gin").read_bytes()
    evaluate_checkpoint(store, seed_3, seed_3)
    assert (seed_3 / "config.gin").read_bytes() == before


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A folder of two adapters; what is loaded is noted."""
    loaded = []

    def load_adapter(folder, pretrained):
        loaded.append(folder.name if isinstance(folder, pathlib.Path) else folder)
        adapter = init_adapter(pretrained.module, LoRA(rank=len(loaded)), jax.random.key(0))
        return dataclasses.replace(adapter, tree=jax.tree.map(lambda leaf: leaf + 0.01, adapter.tree))

    monkeypatch.setattr("jaxmtl.weights.load_adapter", load_adapter, raising=False)
    for name in ("one", "other"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / "adapter_config.json").write_text("{}")
    return tmp_path / "adapters", loaded


def hashes(run_dir):
    return {one.task: one.weights_hash for one in files.read_records(run_dir / "records.jsonl")}


@pytest.mark.long
def test_adapters_of_tasks_are_loaded_by_the_tasks_names(store, run_dir, folders, tmp_path):
    folder, loaded = folders
    tasks = sorted(TokenStore(store).task_names("test"))
    for name, task in zip(("one", "other"), tasks, strict=False):
        (folder / name).rename(folder / task)
    evaluate_checkpoint(store, run_dir, tmp_path / "run", f"--gin.ADAPTERS={folder}", f"--gin.TASKS={tasks[1:2]!r}")
    assert loaded == tasks[1:2]
    evaluate_checkpoint(store, run_dir, tmp_path / "run", f"--gin.ADAPTERS={folder}", f"--gin.TASKS={tasks[:2]!r}")
    found = hashes(tmp_path / "run")
    assert list(found) == [tasks[1], tasks[0]]
    models, adapters = zip(*(value.split("+") for value in found.values()), strict=True)
    assert len(set(models)) == 1 and len(set(adapters)) == 2


def test_one_adapter_serves_all_tasks(store, run_dir, folders, tmp_path):
    evaluate_checkpoint(store, run_dir, tmp_path / "plain")
    evaluate_checkpoint(store, run_dir, tmp_path / "adapted", "--gin.ADAPTER=somewhere/one")
    assert folders[1] == ["somewhere/one"]
    assert len(set(hashes(tmp_path / "adapted").values()) | set(hashes(tmp_path / "plain").values())) == 2


def test_wrong_adapters_are_named(store, run_dir, folders, tmp_path, capsys):
    folder, _ = folders
    words = ["evaluate", "--gin_file=runs/evaluate.gin", f"--gin.CHECKPOINT={run_dir}"]
    words += evaluate_words(store, tmp_path / "run", f"--gin.ADAPTERS={folder}")
    task = TokenStore(store).task_names("test")[0]
    for more, message in (
        ([], f"unknown adapter of task '{task}'"),
        (["--gin.ADAPTER=somewhere"], "give one of them"),
        ([f"--gin.ADAPTERS={tmp_path / 'none'}"], "holds no folder TASK/adapter_config.json"),
    ):
        assert main([*words, *more]) in (1, 2)
        assert message in capsys.readouterr().err


def test_a_mean_is_printed_over_tasks_but_not_over_settings():
    of = lambda task, category, value: Scores(task=task, category=category, n=2, metrics={"nll": value})
    rows = lambda scores: [line.split()[0] for line in table(scores).splitlines()[1:]]
    one, two = of("a", "5-shots", 1.0), of("b", "5-shots", 3.0)
    assert rows({"1": one, "2": two}) == ["5-shots", "all"]
    assert rows({"1": one, "2": two, "3": of("a", "0-shots", 5.0)}) == ["0-shots", "5-shots"]


TRAJECTORY = "--gin_file=runs/trajectory.gin"


def test_a_trajectory_scores_every_kept_checkpoint_and_repeats_none(store, run_dir, tmp_path, capsys):
    task = TokenStore(store).task_names("test")[0]
    alone = f"--gin.TASKS={(task,)!r}"
    evaluate_checkpoint(store, run_dir, tmp_path / "all", TRAJECTORY, alone)
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [["step", "2"], ["step", "4"]]  # a row for each step, and no mean over them
    for step in (2, 4):
        folder = tmp_path / "all" / f"step-{step}"
        model = load_pretrained(run_dir, step=step)
        (record, *_) = files.read_records(folder / "records.jsonl")
        assert (record.step, record.run, record.weights_hash) == (step, "all", model.hash)
    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").glob("step-*/predictions/*.jsonl")}
    assert len(rows) == 2
    evaluate_checkpoint(store, run_dir, tmp_path / "all", TRAJECTORY, alone)
    assert rows == {path: path.stat().st_mtime_ns for path in rows}
    assert main(["report", str(tmp_path / "all")]) == 0
    assert (tmp_path / "all" / "report" / "steps.png").is_file()


def test_steps_that_are_not_kept_are_refused(store, run_dir, tmp_path, capsys):
    words = ["evaluate", "--gin_file=runs/evaluate.gin", TRAJECTORY, *evaluate_words(store, tmp_path / "all")]
    assert main([*words, f"--gin.CHECKPOINT={run_dir}", "--gin.STEPS=(2, 3)"]) == 1
    assert "STEPS is (2, 3);" in capsys.readouterr().err
    assert main([*words, f"--gin.CHECKPOINT={run_dir / 'model'}"]) == 1
    assert "holds no complete checkpoint of a run" in capsys.readouterr().err
    with pytest.raises(InputError, match="no checkpoint of step 3; kept are 2, 4"):
        load_pretrained(run_dir, step=3)
    with pytest.raises(InputError, match="step 3 was asked for, but this is no run folder"):
        load_pretrained(run_dir / "model", step=3)
