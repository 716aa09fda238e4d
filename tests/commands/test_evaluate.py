"""`jaxmtl evaluate` as it is typed: what its records say about the weights, and the config that it keeps."""

import json
import shutil

import pytest
from short_runs import MODEL, evaluate_words

from jaxmtl.evals import files
from jaxmtl.main import main


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
