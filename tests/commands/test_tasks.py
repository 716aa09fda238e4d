import json

import pytest

from jaxmtl.main import main
from jaxmtl.tasks import catalog


def test_json_has_a_line_for_every_task(capsys):
    assert main(["tasks", "toy", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tasks = catalog.load("toy", None)
    assert [row["name"] for row in rows] == list(tasks)
    for row in rows:
        task = tasks[row["name"]]
        assert (row["category"], row["metric"]) == (task.category, task.metric)
        assert row["examples"] == len(task.examples)
        assert row["splits"] == {split: len(task.split(split)) for split in task.splits}


def test_the_table_shows_a_file_of_ones_own(tmp_path, capsys):
    rows = [dict(task="capitals", input=f"country {k}", output="town", definition="Name it.") for k in range(30)]
    rows += [dict(task="sums", input=f"{k} + 1", output=str(k + 1), definition="Add.") for k in range(20)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["tasks", "jsonl", str(path)]) == 0
    text = capsys.readouterr().out
    assert "jsonl: 2 tasks" in text and "capitals" in text
    assert [word for line in text.splitlines() if "sums" in line for word in line.split() if word.isdigit()][0] == "20"


@pytest.mark.parametrize(
    "words, hint",
    [
        (["tasks", "toyy"], "unknown collection 'toyy'; closest: toy"),
        (["tasks", "jsonl", "/no/such.jsonl"], "/no/such.jsonl"),
        (["tasks", "sni", "/no/such/folder"], "/no/such/folder"),
        (["tasks", "sni"], "'sni' needs its folder: give data_dir (jaxmtl tasks sni FOLDER"),
        (["tasks", "toy", "mine.jsonl"], "'mine.jsonl'; its tasks are made by code"),
        (["tasks", "toy", "--task_list=x"], "task_list"),
    ],
)
def test_what_cannot_be_listed_is_told_in_one_line(words, hint, capsys):
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and hint in error
    assert "--traceback" not in error, "not told as a mistake of the user"
