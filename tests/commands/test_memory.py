import re

import pytest
from short_runs import MODEL, SHORT

from jaxmtl.main import main

PLAN = ["info", "--memory", *MODEL, "--gin_file=runs/train.gin", "--gin_file=mesh/gpu8.gin", "--gin_file=runs/plan.gin"]
LENGTHS = "--lengths=16,8"


def output(capsys, *words):
    assert main([*PLAN, *words]) == 0
    return capsys.readouterr().out


def numbers(text):
    """Returns the bytes of each line of the tables."""
    found = re.findall(r"(?m)^  (\S.*?) {2,}([\d,]+)  ", text)
    return {name: int(size.replace(",", "")) for name, size in found}


def test_the_state_is_planned_without_a_store(capsys):
    text = output(capsys, "--devices=8")
    found = numbers(text)
    assert "on each of 8 devices (data 1, fsdp 8, tensor 1)" in text
    assert found["optimizer state"] == 2 * found["parameters"] + 8 == 2 * found["gradients"] + 8
    assert found["all three"] == found["parameters"] + found["gradients"] + found["optimizer state"]


def test_a_step_is_compiled_for_given_lengths_and_for_those_of_a_store(store, capsys):
    text = output(capsys, LENGTHS)
    found = numbers(text)
    assert "a step on 16 rows x 16 / 8 tokens" in text
    batch = found["parameters, optimizer state, batch"] - found["parameters"] - found["optimizer state"]
    assert batch == 12 + 4 * 2 * (16 + 8 + 8 + 1)
    text = output(capsys, "--lengths=store", f"--gin.STORE={store}", *SHORT)
    assert re.search(r"a step on 8 rows x (\d+) / (\d+) tokens", text)


def test_the_largest_batch_is_found(capsys):
    text = output(capsys, LENGTHS, "--fit=1MB")
    rows, more = re.search(r"within 1.00 MB on each device: (\d+) rows; (\d+) rows would take", text).groups()
    assert int(more) == int(rows) + 8 and numbers(text)["in all"] <= 1e6
    assert numbers(output(capsys, LENGTHS, f"--gin.BATCH_SIZE={more}"))["in all"] > 1e6


@pytest.mark.parametrize(
    "words, message",
    [
        (["info", "--memory"], "--memory needs the gin files of a training"),
        (["info", "--memory", "folder", *PLAN[2:]], "folder: --memory is about a training"),
        (["info", "--devices=4"], "--devices 4: is about the memory of a training; give --memory too"),
        (["info", *PLAN[2:]], "give --memory too"),
        (["info", "--memory", *PLAN[2:-1], "--gin.STORE=x", "--gin.RUN_DIR=y"], "no gin file binds"),
        ([*PLAN, "--fit=1GB"], "--fit 1GB: needs the lengths of rows"),
        ([*PLAN, LENGTHS, "--fit=much"], "--fit is 'much'; expected bytes such as 16e9, 16GB or 16GiB"),
        ([*PLAN, LENGTHS, "--fit=10kB"], "no batch fits in 10.00 kB on each device: 8 rows x 16 / 8 tokens take"),
        ([*PLAN, "--lengths=12"], "--lengths is '12'; expected input and target tokens"),
        ([*PLAN, "--lengths=0,8"], "expected 1 or more rows"),
        ([*PLAN, LENGTHS, "--gin.BATCH_SIZE=12"], "12 rows does not split over data x fsdp = 8"),
        ([*PLAN, "--lengths=store"], "STORE: "),
        ([*PLAN, "--devices=0"], "--devices is 0; expected at least 1"),
        ([*PLAN, "--devices=16"], "JAX runs with 8 already"),
    ],
)
def test_mistakes_are_told_in_one_line(words, message, capsys):
    assert main(words) == 1
    error = capsys.readouterr().err.removeprefix("compiling a step of 8 rows ...\n")
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error and "--traceback" not in error
