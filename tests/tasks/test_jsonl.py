import json

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from jaxmtl.tasks import jsonl
from jaxmtl.tasks.choices import choices_of
from jaxmtl.tasks.spec import Demonstration
from jaxmtl.types import Example, InputError, UnknownNameError


@pytest.fixture
def write(tmp_path):
    """A function that writes rows (objects or raw lines) to a file and returns its path."""

    def to_file(*rows, name="mine.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return to_file


def row(number=0, **fields):
    return {"inputs": f"x{number}", "targets": f"y{number}"} | fields


def test_three_lines_make_a_task(write):
    tasks = jsonl.load(write(row(0), row(1), row(2)))
    task = tasks["mine"]
    assert [(e.id, e.inputs, e.targets) for e in task.examples] == [
        (f"mine-{n}", f"x{n}", (f"y{n}",)) for n in range(3)
    ]
    assert (task.definition, task.category, task.metric) == ("", "Other", "rouge_l")
    assert {name: len(indices) for name, indices in task.splits.items()} == {"train": 1, "validation": 1, "test": 1}


def test_what_belongs_to_the_task_may_stand_in_any_row(write):
    shown = [{"input": "a", "output": "b", "explanation": "c"}, {"inputs": "d", "target": ["e", "f"]}]
    path = write(
        row(0, task="one", id="k"),
        row(1, task="two", category="Word Analogy", metric="rouge_l"),
        row(2, task="one", id=5, definition="Do.", positive=shown, negative=[], category="Word Analogy"),
    )
    one, two = jsonl.load(path).values()
    assert (one.name, one.definition, one.category, one.metric) == ("one", "Do.", "Word Analogy", "exact_match")
    assert one.positive == (
        Demonstration(inputs="a", output="b", explanation="c"),
        Demonstration(inputs="d", output="e"),
    )
    assert [example.id for example in one.examples] == ["k", "5"]
    assert (two.name, two.metric) == ("two", "rouge_l")


@pytest.mark.parametrize("key", ["targets", "target", "output", "outputs"])
def test_all_names_of_the_columns(write, key):
    tasks = jsonl.load(write({"input": "a", key: "b"}, {"inputs": "c", key: ["d", "e"], "unread": 1}))
    assert [example.targets for example in tasks["mine"].examples] == [("b",), ("d", "e")]


def test_choices_make_tasks_that_can_be_ranked(write):
    choices = [["y0", "n"], ["n", "y1", "m"]]
    task = jsonl.load(write(*(row(number, choices=texts) for number, texts in enumerate(choices))))["mine"]
    assert choices_of(task.examples) == [("y0", "n"), ("n", "y1", "m")]
    assert [example.targets for example in task.examples] == [("y0",), ("y1",)]
    for wrong in ("y0", ["n"], ["y0", 3]):
        with pytest.raises(InputError, match="line 1: field 'choices': .* expected a list of texts, 'y0' among them"):
            jsonl.load(write(row(0, choices=wrong)))


def test_a_folder_gives_one_task_per_file(write, tmp_path):
    write(row(0), name="b.jsonl")
    write(row(1), name="a.jsonl")
    write("not read", name="notes.txt")
    assert list(jsonl.load(tmp_path)) == ["a", "b"]


def test_blank_lines_a_byte_order_mark_and_odd_line_separators_are_harmless(write):
    path = write(
        "\ufeff" + json.dumps(row(0)), "", json.dumps({"input": "a\u2028b", "output": "c"}, ensure_ascii=False)
    )
    assert [example.inputs for example in jsonl.load(path)["mine"].examples] == ["x0", "a\u2028b"]


def test_named_splits_are_kept(write):
    path = write(row(0, split="train"), row(1, split="dev"), row(2, split="train"))
    assert jsonl.load(path)["mine"].splits == {"train": (0, 2), "dev": (1,)}


def test_drawn_splits_depend_on_seed_and_task_only_and_keep_equal_inputs_together(write):
    rows = [row(number % 40, id=number, task=task) for number in range(80) for task in ("a", "b")]
    together, alone = jsonl.load(write(*rows)), jsonl.load(write(*(r for r in rows if r["task"] == "a")))
    assert alone["a"] == together["a"]
    task = alone["a"]
    assert {name: len(indices) for name, indices in task.splits.items()} == {"train": 64, "validation": 8, "test": 8}
    inputs = [{example.inputs for example in task.split(name)} for name in task.splits]
    assert sum(map(len, inputs)) == 40
    other = jsonl.load(write(*rows), splits=jsonl.Fractions(seed=1))["a"]
    assert other.splits != task.splits


def test_fractions_of_nought_give_no_split(write):
    tasks = jsonl.load(write(*map(row, range(9))), splits=jsonl.Fractions(validation=0, test=0.5))
    assert {name: len(indices) for name, indices in tasks["mine"].splits.items()} == {"train": 5, "test": 4}
    assert set(jsonl.load(write(row(0), row(1)))["mine"].splits) == {"train"}


@given(st.integers(1, 40), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
@example(3, 0.9, 0.05)
@example(3, 0.05, 0.9)
def test_something_is_always_left_to_train_on(count, test, validation):
    assume(test + validation < 1)
    examples = tuple(Example(id=str(n), inputs=f"x{n}", targets=("y",)) for n in range(count))
    splits = jsonl.Fractions(validation=validation, test=test).splits("mine", examples)
    assert "train" in splits
    if count >= 3:
        assert set(splits) == {"train", *(["test"] if test else []), *(["validation"] if validation else [])}
    assert sorted(index for part in splits.values() for index in part) == list(range(count))


@pytest.mark.parametrize("fractions", [{"test": 1.0}, {"validation": -0.1}, {"test": float("nan")}])
def test_fractions_that_leave_nothing_are_refused(fractions):
    with pytest.raises(InputError, match="sum below 1"):
        jsonl.Fractions(**fractions)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", r"line 2: found list \[1\], expected a JSON object"),
        ({"inputs": "a"}, "line 2: expected one of the fields targets, target, output, outputs; found inputs"),
        ({"targets": "a"}, "line 2: expected one of the fields inputs, input; found targets"),
        ({"inputs": "a", "input": "b", "targets": "c"}, "found inputs, input"),
        ({"inputs": 3, "targets": "c"}, "line 2: field 'inputs': found int 3, expected a text"),
        ({"inputs": "a", "targets": 3}, "line 2: field 'targets': found int 3, expected a text or a list"),
        ({"inputs": "a", "targets": []}, r"field 'targets': found list \[\]"),
        ({"inputs": "a", "targets": ["b", None]}, "field 'targets': found list"),
        ({"inputs": "\ud800", "targets": "b"}, "lone surrogates"),
        (row(task="../up"), "line 2: '../up' is no task name"),
        (row(task=4), "line 2: field 'task': found 4"),
        (row(id=[1]), r"line 2: field 'id': found list \[1\]"),
        (row(id="mine-0"), "line 2: id 'mine-0' of task mine is also that of .*line 1"),
        (row(split="train"), "line 1: field 'split': found nothing, expected a text, as .*line 2"),
        (row(definition=3), "line 2: field 'definition': found int 3"),
        (row(positive={}), "line 2: field 'positive': found dict"),
        (row(positive=[{"input": "a"}]), r"line 2: positive\[0\]: expected one of the fields targets"),
        (row(positive=[{"input": "a", "output": "b", "explanation": 1}]), r"positive\[0\]: field 'explanation'"),
    ],
)
def test_errors_name_file_line_and_field(write, bad, message):
    with pytest.raises(InputError, match=message) as caught:
        jsonl.load(write(row(0), bad))
    assert "mine.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_rows_that_disagree_about_their_task_are_refused(write):
    with pytest.raises(InputError, match=r"line 3: field 'definition': found str 'B', expected what .* line 1 gives"):
        jsonl.load(write(row(0, definition="A"), row(1), row(2, definition="B")))


def test_unknown_metrics_name_the_closest(write):
    with pytest.raises(UnknownNameError, match="closest: exact_match"):
        jsonl.load(write(row(metric="exactmatch")))


def test_split_names_that_leave_their_folder_are_refused(write):
    with pytest.raises(InputError, match="no split name"):
        jsonl.load(write(row(split="../x")))


def test_missing_and_empty_files_are_named(write, tmp_path):
    for place in (None, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is not there"):
            jsonl.load(place)
    with pytest.raises(InputError, match="has no .jsonl file"):
        jsonl.load(tmp_path)
    with pytest.raises(InputError, match="no rows"):
        jsonl.load(write(""))
    (tmp_path / "mine.jsonl").write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read"):
        jsonl.load(tmp_path / "mine.jsonl")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.dictionaries(
            st.sampled_from(["inputs", "targets", "task", "id", "split", "definition", "positive", "metric"]),
            st.none() | st.integers() | st.text(max_size=3) | st.lists(st.text(max_size=2), max_size=2),
        ),
        max_size=4,
    )
)
def test_any_rows_give_tasks_or_an_input_error(write, rows):
    try:
        tasks = jsonl.load(write(*rows))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert sum(len(task.examples) for task in tasks.values()) == len(rows)
