import io

import rich.console

from jaxmtl.commands import progress


def test_lines_tell_rate_and_time_left_and_are_not_too_many():
    file, seconds = io.StringIO(), iter([0.0, 1.0, 20.0, 21.0, 40.0])
    update = progress.lines("evaluating", file, lambda: next(seconds))
    for done in (5, 40, 45, 80):
        update(done, 80, "score")
    assert file.getvalue().splitlines() == [
        "evaluating (score): 40/80, 2/s, 20 s left",
        "evaluating (score): 80/80, 2/s, 0 s left",
    ]


def test_a_count_behind_another_has_a_rate_of_its_own():
    file, seconds = io.StringIO(), iter([0.0, 300.0, 302.0, 310.0])
    update = progress.lines("evaluating", file, lambda: next(seconds))
    update(185, 185, "fitting")
    update(200, 800, "rank")
    update(400, 800, "rank")
    assert file.getvalue().splitlines() == [
        "evaluating (fitting): 185/185, 0.617/s, 0 s left",
        "evaluating (rank): 400/800, 40/s, 10 s left",
    ]


def test_a_terminal_gets_a_bar():
    file = io.StringIO()
    console = rich.console.Console(file=file, force_terminal=True, width=120)
    with progress.shown("evaluating", console) as update:
        update(3, 12, "generate")
    assert "evaluating (generate)" in file.getvalue() and "3/12" in file.getvalue()


def test_a_pipe_gets_lines(capsys):
    with progress.shown("evaluating") as update:
        update(4, 4, "score")
    assert "evaluating (score): 4/4" in capsys.readouterr().err
