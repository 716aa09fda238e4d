import pickle

import pytest

from jaxmtl.tasks.spec import Demonstration, TaskSpec, check_task_name
from jaxmtl.types import Example, InputError, UnknownNameError


def make(**changes):
    examples = tuple(Example(id=str(n), inputs=f"x{n}", targets=(f"y{n}",)) for n in range(4))
    fields = {"name": "a_task", "category": "C", "definition": "D", "examples": examples}
    return TaskSpec(**(fields | changes))


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".a", "a b", "a\n", "é", "x" * 201, "a\\b", ".."])
def test_names_that_could_leave_their_folder_are_refused(name):
    with pytest.raises(InputError, match="no task name"):
        make(name=name)
    with pytest.raises(InputError, match="somewhere"):
        check_task_name(name, "somewhere")


@pytest.mark.parametrize("name", ["task001_quoref", "A-b.c", "-", "_", "a..b", "x" * 200])
def test_safe_names_are_kept(name):
    assert make(name=name).name == name


def test_split_returns_its_examples_in_the_splits_order():
    spec = make(splits={"train": (3, 0), "test": (1,), "none": ()})
    assert [example.id for example in spec.split("train")] == ["3", "0"]
    assert spec.split("none") == ()


def test_unknown_split_names_the_closest_one():
    with pytest.raises(UnknownNameError, match="closest: train"):
        make(splits={"train": (0,), "test": (1,)}).split("trian")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"a": (0, 0)}}, "twice"),
        ({"splits": {"a": (4,)}}, "there are 4"),
        ({"splits": {"a": (-1, 2)}}, "there are 4"),
        ({"splits": {"../a": (1,)}}, "no split name"),
        ({"examples": (Example(id="1", inputs="", targets=("a",)),) * 2}, "two examples"),
        ({"examples": (Example(id="1", inputs="", targets=()),)}, "no target"),
    ],
)
def test_inconsistent_tasks_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_specs_travel_between_processes():
    spec = make(splits={"train": (1,)}, positive=(Demonstration(inputs="a", output="b"),))
    assert pickle.loads(pickle.dumps(spec)) == spec
