import json

import pytest

from jaxmtl.tasks import catalog
from jaxmtl.types import InputError, UnknownNameError


def test_toy_needs_no_folder():
    tasks = catalog.load("toy", None, num_examples=20, seed=3)
    assert "toy_mood" in tasks and len(tasks["toy_mood"].examples) == 20


def test_every_reader_is_reached(tmp_path, sni_folder, record):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"input": "a", "output": "b"}))
    assert list(catalog.load("jsonl", tmp_path)) == ["mine"]
    assert list(catalog.load("sni", str(sni_folder({"task1_a": record()})))) == ["task1_a"]


def test_unknown_tasks_name_the_closest():
    tasks = catalog.load("toy", None, num_examples=10)
    with pytest.raises(UnknownNameError, match="unknown task 'toy_mod'; closest: toy_mood"):
        tasks["toy_mod"]
    assert tasks.get("toy_mod") is None and isinstance(tasks, dict)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: catalog.load("toys", None), "unknown collection 'toys'; closest: toy"),
        (lambda: catalog.load("toy", None, sed=1), "unknown option of collection 'toy' 'sed'; closest: seed"),
        (
            lambda: catalog.load("sni", None),
            r"collection 'sni' needs its folder: give data_dir .*--gin.DATA_DIR=FOLDER",
        ),
        (lambda: catalog.load("jsonl", None), "collection 'jsonl' needs its folder"),
        (
            lambda: catalog.load("toy", "some/folder"),
            "toy collection with folder 'some/folder'; .* leave the folder out",
        ),
    ],
)
def test_mistakes_are_input_errors(call, message):
    with pytest.raises(InputError, match=message):
        call()
