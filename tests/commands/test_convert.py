import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from jaxmtl.commands import convert
from jaxmtl.main import main
from jaxmtl.weights import load_pretrained, save_pretrained, t5x


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_folder_becomes_a_hugging_face_folder_that_converts_to_itself(run_dir, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["convert", str(run_dir), str(first)]) == 0
    assert capsys.readouterr().out == f"wrote {first} (320 embedding rows, with its tokenizer)\n"
    trained = load_pretrained(run_dir)
    tensors = safetensors.numpy.load_file(str(first / "model.safetensors"))
    np.testing.assert_array_equal(tensors["shared.weight"], trained.params["token_embedding"]["embedding"])
    assert json.loads((first / "config.json").read_text())["d_model"] == 16
    assert main(["convert", str(first), str(second)]) == 0
    assert contents(first) == contents(second)


def test_rows_and_dtype_may_change_on_the_way(run_dir, tmp_path):
    assert main(["convert", str(run_dir), str(tmp_path), "--vocab_rows=384", "--dtype=bfloat16"]) == 0
    tensors = safetensors.numpy.load_file(str(tmp_path / "model.safetensors"))
    assert tensors["shared.weight"].shape == tensors["lm_head.weight"].shape == (384, 16)
    assert tensors["shared.weight"].dtype == "bfloat16"
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == 384


@pytest.mark.parametrize(
    "source, flags, hint",
    [
        ("/no/such/model", [], "no such folder"),
        (None, ["--vocab_rows=12"], "12 rows would cut tokens"),
        (None, ["--vocab_rows=0"], "expected 1 or more"),
    ],
)
def test_what_cannot_be_converted_is_told_and_nothing_is_written(run_dir, tmp_path, capsys, source, flags, hint):
    assert main(["convert", source or str(run_dir), str(tmp_path / "new"), *flags]) == 1
    assert hint in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_target_that_is_a_file_is_told(run_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["convert", str(run_dir), str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path / "file") in error
    assert (tmp_path / "file").read_text() == "mine"


def test_a_source_without_tokenizer_is_said(run_dir, tmp_path, capsys):
    import dataclasses

    save_pretrained(tmp_path / "bare", dataclasses.replace(load_pretrained(run_dir), tokenizer=None))
    assert main(["convert", str(tmp_path / "bare"), str(tmp_path / "new")]) == 0
    assert "without a tokenizer: the source has none" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["t5x", "t5x_scanned", "t5x_file"])
def test_a_t5x_checkpoint_is_a_target_and_a_source(run_dir, tmp_path, capsys, form):
    direct, t5x, back = (tmp_path / name for name in ("direct", "t5x", "back"))
    assert main(["convert", str(run_dir), str(direct)]) == 0
    assert main(["convert", str(run_dir), str(t5x), f"--to={form}"]) == 0
    assert {path.name.split("_")[0] for path in t5x.iterdir()} >= {"checkpoint", "config.json", "spiece.model"}
    assert main(["convert", str(t5x), str(back)]) == 0
    assert contents(direct) == contents(back)
    assert main(["convert", str(direct), str(direct), f"--to={form}"]) == 1
    assert "holds safetensors" in capsys.readouterr().err


def test_every_form_that_can_be_written_has_a_flag():
    assert convert.FORMS.keys() == {"hf", *t5x.FORMS}


@pytest.mark.real_data
def test_what_is_not_read_of_a_t5x_checkpoint_is_said(tmp_path, capsys):
    source = pathlib.Path(__file__).parents[3] / "shared" / "data" / "weights" / "t5x_v1_0"
    assert main(["convert", str(source), str(tmp_path)]) == 0
    assert f"{source}: 220 arrays of the optimizer's state were not read" in capsys.readouterr().out
