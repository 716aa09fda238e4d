"""Each instruction of a task as a task of its own."""

import json

import pytest

from jaxmtl.tasks import jsonl, sni
from jaxmtl.tasks.instructions import each_instruction
from jaxmtl.types import InputError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"input": f"x{number}", "output": "y", "split": "test"} for number in range(3)]
    rows[0]["definition"] = ["Answer.", "Say yes or no."]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_instruction_is_a_task_with_all_examples(file):
    spec = jsonl.load(file)["mine"]
    assert spec.definition == "Answer."
    first, second = each_instruction([spec])
    assert (first.name, second.name) == ("mine.instruction-1", "mine.instruction-2")
    assert (first.definition, second.definition) == ("Answer.", "Say yes or no.")
    assert first.category == second.category == "mine"
    assert first.examples == second.examples == spec.examples
    assert first.splits == second.splits == spec.splits


def test_a_task_with_one_instruction_is_one_task(file):
    file.write_text('{"input": "x", "output": "y", "definition": "Answer."}\n{"input": "z", "output": "y"}\n')
    (one,) = each_instruction(jsonl.load(file).values())
    assert (one.name, one.category, one.definition) == ("mine.instruction-1", "mine", "Answer.")


def test_files_of_natural_instructions_may_have_several(tmp_path):
    task = {
        "Categories": ["Question Answering"],
        "Definition": ["Answer.", "Reply."],
        "Positive Examples": [],
        "Negative Examples": [],
        "Instances": [{"id": "1", "input": "x", "output": ["y"]}],
    }
    (tmp_path / "task1_a.json").write_text(json.dumps(task))
    spec = sni.read_task(tmp_path / "task1_a.json")
    assert [one.definition for one in each_instruction([spec])] == ["Answer.", "Reply."]


@pytest.mark.parametrize("definition", [[], ["Answer.", 3], 3])
def test_instructions_are_texts(file, definition):
    file.write_text(json.dumps({"input": "x", "output": "y", "definition": definition}) + "\n")
    with pytest.raises(InputError, match="line 1: field 'definition'.*expected a text"):
        jsonl.load(file)
