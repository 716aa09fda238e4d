"""The table that `jaxmtl evaluate` shows on a terminal, as text."""

import io

import pytest
import rich.console

from jaxmtl.commands.live_table import LiveTable, shown_tasks
from jaxmtl.evals.watch import TaskState, TaskWatch, Within, tell
from jaxmtl.types import Scores


def scored(task, category, n, **metrics):
    scores = Scores(task=task, category=category, n=n, metrics=metrics)
    return TaskState(task=task, category=category, n=n, scores=scores)


def drawn(table, height=30):
    """Returns the words of each line that is drawn."""
    console = rich.console.Console(file=io.StringIO(), width=90, height=height, force_terminal=False)
    table.console = console
    console.print(table)
    return [line.split() for line in console.file.getvalue().splitlines()]


@pytest.fixture
def table():
    made = LiveTable("evaluating", rich.console.Console(file=io.StringIO()))
    for task, category, n in (("a", "Tagging", 4), ("b", "Tagging", 12), ("c", "Titles", 8)):
        made.task(TaskState(task=task, category=category, n=n))
    return made


def test_categories_show_what_is_done_and_the_mean_over_examples_so_far(table):
    assert drawn(table)[1:4] == [["Tagging", "0/2", "0/16"], ["Titles", "0/1", "0/8"], ["all", "0/3", "0/24"]]
    table.task(scored("a", "Tagging", 4, rouge_l=50.0, nll=1.0))
    assert drawn(table)[1] == ["Tagging", "1/2", "4/16", "rouge_l", "50.00"]
    table.task(scored("b", "Tagging", 12, rouge_l=10.0, nll=1.0))
    assert drawn(table)[1] == ["Tagging", "2/2", "16/16", "rouge_l", "20.00"]  # (4 x 50 + 12 x 10) / 16
    table(20, 48, "score")
    assert drawn(table)[4][:2] == ["evaluating", "(score)"] and "20/48" in drawn(table)[4]


def test_tasks_are_rows_where_there_is_one_category():
    table = LiveTable("evaluating", rich.console.Console(file=io.StringIO()))
    table.task(scored("a", "Tagging", 4, nll=1.5))
    table.task(TaskState(task="b", category="Tagging", n=5))
    assert drawn(table)[1:3] == [["a", "1/1", "4/4", "nll", "1.50"], ["b", "0/1", "0/5"]]


def test_what_is_not_done_stays_in_sight_on_a_low_terminal(table):
    table.task(scored("a", "Tagging", 4, nll=1.0))
    table.task(scored("b", "Tagging", 12, nll=1.0))
    rows = drawn(table, height=9)
    assert rows[1][0] == "Titles" and rows[2] == ["and", "1", "more"]


def test_a_part_shows_its_tasks_under_its_own_name(table):
    told = []
    table.update = lambda *given: told.append(given)
    part = Within(table, "5-shots")
    part(1, 2, "fit")
    assert isinstance(part, TaskWatch) and told == [(1, 2, "5-shots: fit")]
    tell(part, TaskState(task="a", category="Tagging", n=7))
    assert [row[0] for row in drawn(table)[1:]][:4] == ["Tagging", "Titles", "5-shots", "all"]
    tell(lambda *given: None, TaskState(task="a", category="", n=1))  # a plain function wants nothing of tasks
    tell(None, TaskState(task="a", category="", n=1))


def test_a_pipe_gets_lines_and_a_terminal_the_table(capsys):
    with shown_tasks("evaluating") as told:
        told(4, 4, "score")
        assert not isinstance(told, TaskWatch)
    assert "evaluating (score): 4/4" in capsys.readouterr().err
    file = io.StringIO()
    with shown_tasks("evaluating", rich.console.Console(file=file, force_terminal=True, width=100)) as told:
        tell(told, scored("a", "Tagging", 4, nll=1.0))
        told(3, 12, "score")
    assert "Tagging" not in file.getvalue() and "evaluating" in file.getvalue() and "nll 1.00" in file.getvalue()
