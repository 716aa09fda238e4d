import dataclasses
import re

import pytest
from short_runs import MODEL, SHORT

from jaxmtl.main import main
from jaxmtl.training import planning
from jaxmtl.training.memory import StepMemory

PLAN = ["info", "--memory", *MODEL, "--gin_file=runs/train.gin", "--gin_file=mesh/gpu8.gin", "--gin_file=runs/plan.gin"]
LENGTHS = "--lengths=16,8"


def output(capsys, *words):
    assert main([*PLAN, *words]) == 0
    return capsys.readouterr().out


def numbers(text):
    """Returns the bytes of each line of the tables."""
    found = re.findall(r"(?m)^  (\S.*?) {2,}([\d,]+)  ", text)
    return {name: int(size.replace(",", "")) for name, size in found}


@pytest.fixture
def compiled(monkeypatch):
    """Shapes that would be compiled, with a compiler that needs 1 kB a row and 50 kB besides."""
    shapes = []

    def step_memory(step, plan, shape):
        shapes.append(shape)
        return StepMemory(arguments=50_000, temporary=1000 * shape.rows, results=0)

    monkeypatch.setattr(planning, "step_memory", step_memory)
    return shapes


def test_the_state_is_planned_without_a_store(capsys):
    text = output(capsys, "--devices=8")
    found = numbers(text)
    assert "on each of 8 devices (data 1, fsdp 8, tensor 1)" in text
    assert found["optimizer state"] == 2 * found["parameters"] + 8 == 2 * found["gradients"] + 8
    assert found["all three"] == found["parameters"] + found["gradients"] + found["optimizer state"]


@pytest.mark.long
def test_a_step_is_compiled_for_given_lengths(capsys):
    text = output(capsys, LENGTHS)
    found = numbers(text)
    assert "a step on 16 rows x 16 / 8 tokens" in text
    batch = found["parameters, optimizer state, batch"] - found["parameters"] - found["optimizer state"]
    assert batch == 12 + 4 * 2 * (16 + 8 + 8 + 1)
    assert found["activations and gradients"] > 0


@pytest.mark.parametrize("layout", ["grouped", "packed"])
def test_the_largest_shape_of_a_store_is_found(layout, store, compiled, capsys):
    gin = [f"--gin.STORE={store}", *SHORT, f"--gin.LAYOUT=@{'grouping' if layout == 'grouped' else 'packing'}.{layout}"]
    output(capsys, "--lengths=store", *gin, "--gin.NUM_SHAPES=3")
    (shape,) = compiled
    assert shape.layout == layout and shape.source >= 64 > shape.target and shape.rows % 8 == 0
    text = output(capsys, "--lengths=store", *gin, "--fit=100kB")
    assert "100.00 kB on each device: 48 rows; 56 rows would take 106.00 kB" in text
    assert dataclasses.replace(shape, rows=48) in compiled


def test_the_largest_batch_divides_into_microbatches(compiled, capsys):
    text = output(capsys, LENGTHS, "--fit=100kB", "--gin.MICROBATCHES=4")
    assert "100.00 kB on each device: 32 rows; 64 rows would take" in text and numbers(text)["in all"] == 82_000


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["info", "--memory"], 2, "--memory needs the gin files of a training"),
        (["info", "--memory", "folder", *PLAN[2:]], 2, "folder: --memory is about a training"),
        (["info", "--devices=4"], 2, "--devices 4: is about the memory of a training; give --memory too"),
        (["info", *PLAN[2:]], 2, "give --memory too"),
        ([*PLAN, "--fit=1GB"], 2, "--fit 1GB: needs the lengths of rows"),
        ([*PLAN, LENGTHS, "--fit=much"], 2, "--fit is 'much'; expected bytes such as 16e9, 16GB or 16GiB"),
        (
            [*PLAN, LENGTHS, "--fit=57kB"],
            1,
            "no batch fits in 57.00 kB on each device: 8 rows x 16 / 8 tokens take 58.00",
        ),
        ([*PLAN, "--lengths=12"], 2, "--lengths is '12'; expected input and target tokens"),
        ([*PLAN, "--lengths=0,8"], 1, "expected 1 or more rows"),
        ([*PLAN, "--lengths=store"], 1, "token store STORE does not exist"),
        ([*PLAN, "--gin.MICROBATCHES=0"], 1, "num_microbatches is 0; expected at least 1"),
        ([*PLAN, "--devices=0"], 2, "--devices is 0; expected at least 1"),
        ([*PLAN, "--devices=16"], 2, "JAX runs with 8 already"),
    ],
)
def test_mistakes_are_told_in_one_line(words, code, message, compiled, capsys):
    assert main(words) == code
    error = capsys.readouterr().err.removeprefix("compiling a step of 8 rows ...\n")
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error and "--traceback" not in error


def test_a_batch_that_does_not_fit_the_mesh_is_told(capsys):
    assert main([*PLAN, LENGTHS, "--gin.BATCH_SIZE=12"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "12 rows does not split over data x fsdp = 8" in error
