import json
import shlex

import pytest

from jaxmtl.main import main


@pytest.mark.tf
@pytest.mark.long
def test_the_demo_goes_the_whole_way_and_every_command_it_shows_can_be_typed(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert main(["demo", f"--run_dir={folder}", "--steps=4", "--examples=12"]) == 0
    text = capsys.readouterr().out
    commands = [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("$ jaxmtl ")]
    assert [words[0] for words in commands] == ["cache", "evaluate", "train", "evaluate", "report"]
    report = folder / "run" / "report.html"
    assert f"open {report}" in text and "<html" in report.read_text("utf-8")
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines() if "(" in line}
    for title in ("held-out examples of trained tasks", "tasks never seen, zero-shot"):
        before, after = rows[title][-4], rows[title][-2]
        assert 0 <= float(before) <= 100 and 0 <= float(after) <= 100
    records = [json.loads(line) for line in (folder / "run" / "records.jsonl").read_text().splitlines()]
    assert {record["step"] for record in records} == {0, 4}
    assert main(commands[-2]) == 0  # typed once more, it has nothing left to do
    assert len((folder / "run" / "records.jsonl").read_text().splitlines()) == len(records)
