import csv
import importlib.metadata
import json
import pathlib
import shlex
import shutil

import pytest
from short_runs import MODEL, evaluate_words

from jaxmtl.evals.decoding import Decoding
from jaxmtl.main import GinConfig, main


def output(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_info_tells_versions_and_devices(capsys):
    text = output(capsys, "info")
    assert f"jax {importlib.metadata.version('jax')}\n" in text
    assert "devices: 8 x cpu (cpu)" in text


def test_info_tells_what_a_folder_holds(store, run_dir, tmp_path, capsys):
    assert "train: 4 tasks" in output(capsys, "info", str(store))
    text = output(capsys, "info", str(run_dir))
    assert text.startswith("T5 of ") and "step 4" in text and "embed_dim 16" in text
    output(capsys, "convert", str(run_dir), str(tmp_path / "hf"))
    assert output(capsys, "info", str(tmp_path / "hf")).splitlines()[0] == text.splitlines()[0].removesuffix(", step 4")


def test_info_gives_a_folder_s_own_decoding_as_flags_that_say_it_again(run_dir, tmp_path, capsys):
    output(capsys, "convert", str(run_dir), str(tmp_path / "hf"))
    assert "decoding" not in output(capsys, "info", str(tmp_path / "hf"))
    own = dict(
        num_beams=4, early_stopping=True, length_penalty=0.6, min_length=6, max_length=20, repetition_penalty=1.5
    )
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(own))
    (line,) = [line for line in output(capsys, "info", str(tmp_path / "hf")).splitlines() if "decoding" in line]
    assert line.startswith("its own decoding, by generation_config.json: --gin.")
    bindings = [flag.removeprefix("--gin.") for flag in shlex.split(line.split(": ")[1])]
    assert "MAX_TOKENS=19" in bindings  # transformers counts the start token
    needed = ["STORE=runs/store", "RUN_DIR=runs/first", "CHECKPOINT=hf"]
    config = GinConfig(["runs/evaluate.gin"], [*needed, *bindings])
    expected = dict(num_beams=4, early_stopping=True, length_penalty=0.6, min_tokens=5, repetition_penalty=1.5)
    assert config.configured(Decoding)() == Decoding(method="beam", **expected)


def test_info_says_why_a_folder_s_own_decoding_cannot_be_stated(run_dir, tmp_path, capsys):
    output(capsys, "convert", str(run_dir), str(tmp_path / "hf"))
    (tmp_path / "hf" / "generation_config.json").write_text('{"penalty_alpha": 0.6}')
    assert "cannot be stated here: " in output(capsys, "info", str(tmp_path / "hf"))


def test_info_reads_a_store_whole(store, tmp_path, capsys):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    assert main(["info", str(copy)]) == 0
    printed = capsys.readouterr()
    files = list(copy.rglob("*.arrow"))
    assert f"whole: {len(files)} files" in printed.out and f"{len(files)}/{len(files)}" in printed.err
    damaged = bytearray(files[0].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    files[0].write_bytes(damaged)
    assert main(["info", str(copy)]) == 1
    printed = capsys.readouterr()
    assert str(files[0]) in printed.err and "checksum" in printed.err and printed.out == ""


@pytest.mark.parametrize("verb", ["info", "report"])
def test_a_folder_that_holds_nothing_is_told(verb, tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "none"):
        assert main([verb, str(folder)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and str(folder) in error
        assert "--traceback" not in error


@pytest.fixture(scope="module")
def evaluated(store, tmp_path_factory):
    """Three run folders with scores of random weights."""
    folders = [tmp_path_factory.mktemp("evaluated") / name for name in ("one", "two", "three")]
    for seed, folder in enumerate(folders):
        words = [*MODEL, "--gin_file=runs/untrained.gin", *evaluate_words(store, folder), f"--gin.SEED={seed}"]
        assert main(["evaluate", *words]) == 0
    return folders


def test_a_report_shows_an_evaluated_run(evaluated, tmp_path, capsys):
    text = output(capsys, "report", str(evaluated[0]), f"--out={tmp_path / 'out'}")
    assert text == f"report: {tmp_path / 'out' / 'report.html'}\n"
    assert "<html" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert list((tmp_path / "out").rglob("*.png"))
    tables = [list(csv.DictReader(path.read_text("utf-8").splitlines())) for path in (tmp_path / "out").rglob("*.csv")]
    assert any(len(rows) == 4 for rows in tables), "no table has a row for each task"


def test_runs_are_compared(evaluated, capsys):
    output(capsys, "report", str(evaluated[0]), "--compare", str(evaluated[1]), f"--compare={evaluated[2]}")
    page = (evaluated[0] / "report.html").read_text("utf-8")
    assert all(f"{name}, step 0" in page for name in ("one", "two", "three"))


def test_the_readme_names_all_that_a_run_folder_holds(evaluated, run_dir, capsys):
    output(capsys, "report", str(evaluated[0]))
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text("utf-8")
    names = {path.name for folder in (evaluated[0], run_dir) for path in folder.iterdir()}
    assert {name for name in names if f"`{name}" not in readme} == set()


def test_a_run_that_was_only_trained_has_a_report(run_dir, tmp_path, capsys):
    text = output(capsys, "report", str(run_dir), f"--out={tmp_path}")
    assert text == f"report: {tmp_path / 'report.html'}\n"
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "jaxmtl evaluate --gin_file=runs/evaluate.gin" in page
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"loss.png", "draws.png", "draws.csv", "draws.md"}
