import io
import json
import sys
import types

import pytest
from rich.console import Console

from jaxmtl.types import InputError
from jaxmtl.writers import (
    ConsoleWriter,
    JsonLinesWriter,
    LinesWriter,
    MultiWriter,
    TensorBoardWriter,
    WandbWriter,
    console_writer,
)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_call_is_one_line_at_once(tmp_path):
    writer = JsonLinesWriter(tmp_path / "run" / "metrics.jsonl")
    writer.start(0, 10)
    writer.scalars(1, {"train/loss": 2.5})
    assert read(tmp_path / "run" / "metrics.jsonl") == [{"step": 1, "train/loss": 2.5}]
    writer.scalars(2, {"train/task_loss/ü": 1})
    assert read(tmp_path / "run" / "metrics.jsonl")[1] == {"step": 2, "train/task_loss/ü": 1.0}


def test_values_that_are_not_finite_stay_json(tmp_path):
    writer = JsonLinesWriter(tmp_path / "m")
    writer.scalars(1, {"a": float("nan"), "b": float("inf")})
    assert read(tmp_path / "m") == [{"step": 1, "a": None, "b": None}]


def test_a_resumed_run_forgets_lines_beyond_its_step_and_cut_ones(tmp_path):
    path = tmp_path / "m"
    path.write_text('{"step": 1, "x": 1.0}\n{"step": 2, "x": 2.0}\n{"step": 3, "x": 3.0}\n{"step": 4, "x"')
    JsonLinesWriter(path).start(2, 10)
    assert path.read_text() == '{"step": 1, "x": 1.0}\n{"step": 2, "x": 2.0}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_plain_lines_tell_rate_and_time_left():
    seconds, file = iter([0.0, 0.0, 5.0]), io.StringIO()
    writer = LinesWriter(file, clock=lambda: next(seconds))
    writer.start(10, 100)
    writer.scalars(20, {"train/loss": 1.23456, "train/task_loss/copy": 9.0})
    assert file.getvalue() == "step 20/100  train/loss 1.235  (2 steps/s, 0:00:40 left)\n"


def test_the_bar_shows_step_rate_and_values():
    file = io.StringIO()
    writer = ConsoleWriter(Console(file=file, force_terminal=True, width=120))
    writer.start(0, 4)
    for step in range(1, 5):
        writer.advance(step)
    writer.scalars(4, {"train/loss": 1.5, "train/task_loss/copy": 9.0})
    writer.note("[not markup]")
    writer.close()
    shown = file.getvalue()
    assert "4/4" in shown and "steps/s" in shown and "train/loss 1.5" in shown and "[not markup]" in shown
    assert "copy" not in shown


def test_no_bar_where_there_is_no_terminal(capsys):
    assert isinstance(console_writer(), LinesWriter)


def test_many_writers_all_hear_everything():
    class Ear:
        def __init__(self):
            self.heard = []

        def __getattr__(self, name):
            return lambda *args: self.heard.append((name, *args))

    ears = Ear(), Ear()
    writer = MultiWriter(ears)
    writer.start(0, 2)
    writer.advance(1)
    writer.scalars(1, {"a": 1.0})
    writer.note("hello")
    writer.close()
    expected = [("start", 0, 2), ("advance", 1), ("scalars", 1, {"a": 1.0}), ("note", "hello"), ("close",)]
    assert ears[0].heard == ears[1].heard == expected


@pytest.mark.parametrize(
    ("package", "make"),
    [("tensorboardX", lambda: TensorBoardWriter("x")), ("wandb", lambda: WandbWriter("x", project="p"))],
)
def test_a_missing_package_says_how_to_get_it(monkeypatch, package, make):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"pip install {package}"):
        make()


def test_tensorboard_gets_values_and_purges_lost_steps(monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    writer = TensorBoardWriter("folder")
    writer.start(5, 10)
    writer.scalars(6, {"train/loss": 2.0})
    writer.close()
    assert calls == [("folder", 6), ("train/loss", 2.0, 6), "closed"]


def test_wandb_gets_values(monkeypatch):
    calls = []

    class FakeRun:
        def log(self, values, step):
            calls.append((values, step))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append(options)
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    writer = WandbWriter("folder", project="mtl")
    writer.start(0, 10)
    writer.scalars(1, {"train/loss": 2.0})
    writer.close()
    assert calls == [{"dir": "folder", "project": "mtl", "name": None}, ({"train/loss": 2.0}, 1), "finished"]
