import copy
import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxmtl.tasks import sni
from jaxmtl.tasks.sni_selection import OfficialTest
from jaxmtl.tasks.spec import Demonstration, TaskSpec
from jaxmtl.types import Example, InputError, UnknownNameError


def read(folder, name="task001_a", **options):
    return sni.read_task(folder / "tasks" / f"{name}.json", **options)


def test_every_field_arrives(sni_folder, record):
    task = read(sni_folder({"task001_a": record(2)}))
    assert task == TaskSpec(
        name="task001_a",
        category="Question Answering",
        definition="Answer the question.",
        positive=(Demonstration(inputs="1+1?", output="2", explanation="Adding."),),
        negative=(Demonstration(inputs="1+2?", output="4", explanation="It is 3."),),
        examples=(
            Example(id="i0", inputs="0+0?", targets=("0",)),
            Example(id="i1", inputs="1+0?", targets=("1",)),
        ),
        metric="rouge_l",
        metadata={
            "categories": ("Question Answering", "Other Kind"),
            "definitions": ("Answer the question.",),
            "source": ("made_up",),
            "domains": ("Wikipedia",),
            "input_language": ("English",),
            "output_language": ("English",),
            "instruction_language": ("English",),
            "num_empty_outputs": 0,
            "num_repeated_ids": 0,
        },
    )


def test_definition_may_be_a_text_or_several(sni_folder, record):
    folder = sni_folder({"one": record(Definition="Do it."), "two": record(Definition=["First.", "Second."])})
    assert read(folder, "one").definition == "Do it."
    assert read(folder, "two").definition == "First."
    assert read(folder, "two").metadata["definitions"] == ("First.", "Second.")


def test_the_2021_schema_has_no_domains_and_languages(sni_folder, record):
    old = record(Domains=None, Input_language=None, Output_language=None, Instruction_language=None, Reasoning=None)
    task = read(sni_folder({"task001_a": old}))
    assert task.metadata["domains"] == task.metadata["input_language"] == ()


def test_outputs_may_be_a_text_or_several_references(sni_folder, record):
    instances = [{"input": "a", "output": "x"}, {"input": "b", "output": ["y", "z", ""]}]
    task = read(sni_folder({"task001_a": record(Instances=instances)}))
    assert [example.targets for example in task.examples] == [("x",), ("y", "z", "")]


def test_instances_without_id_are_numbered_and_repeated_ids_made_different(sni_folder, record):
    keys = [{}, {"id": None}, {"id": 7}, {"id": "7"}, {"id": "7"}, {"id": ""}, {"id": "7#3"}]
    task = read(sni_folder({"task001_a": record(Instances=[{"input": "a", "output": "x"} | key for key in keys])}))
    ids = [example.id for example in task.examples]
    assert ids == ["task001_a-0", "task001_a-1", "7", "7#3", "7#4", "task001_a-5", "7#3#6"]
    assert task.metadata["num_repeated_ids"] == 3


def test_stray_keys_are_dropped(sni_folder, record):
    changed = record() | {"Instruction Source": [{"x": 1}], "URL": [float("nan")], "Foo": 3}
    assert "Instruction Source" not in str(read(sni_folder({"task001_a": changed})))


def test_two_tasks_may_share_a_number(sni_folder, record):
    tasks = sni.load(sni_folder({"task861_asdiv": record(), "task861_prost": record(1)}))
    assert [(name, len(task.examples)) for name, task in tasks.items()] == [("task861_asdiv", 3), ("task861_prost", 1)]


@pytest.mark.parametrize("empty", [[], [""], "", [" ", ""]])
def test_empty_outputs_by_option(sni_folder, record, empty):
    instances = [{"id": "e", "input": "a", "output": empty}, {"input": "b", "output": ["x"]}]
    folder = sni_folder({"task001_a": record(Instances=instances)})
    kept, dropped = read(folder), read(folder, empty_outputs="drop")
    assert [example.id for example in kept.examples] == ["e", "task001_a-1"] and not kept.examples[0].targets[0].strip()
    assert [example.id for example in dropped.examples] == ["task001_a-1"]
    assert kept.metadata["num_empty_outputs"] == dropped.metadata["num_empty_outputs"] == 1
    with pytest.raises(InputError, match=r"'Instances\[0\].output'"):
        read(folder, empty_outputs="error")


def test_number_of_empty_outputs_is_logged(sni_folder, record, caplog):
    caplog.set_level(logging.INFO)
    sni.load(sni_folder({"task001_a": record(Instances=[{"input": "a", "output": []}, {"input": "b", "output": "c"}])}))
    assert "1 instances with an empty output" in caplog.text


@pytest.mark.parametrize(
    ("changes", "field", "found"),
    [
        ({"Definition": None}, "Definition", "nothing"),
        ({"Definition": []}, "Definition", "list []"),
        ({"Definition": " "}, "Definition", "str ' '"),
        ({"Definition": 3}, "Definition", "int 3"),
        ({"Definition": ["a", None]}, "Definition", "NoneType None"),
        ({"Definition": "\ud800"}, "Definition", "st"),
        ({"Categories": None}, "Categories", "nothing"),
        ({"Categories": []}, "Categories", "list []"),
        ({"Domains": [1]}, "Domains", "int 1"),
        ({"Instances": None}, "Instances", "nothing"),
        ({"Instances": {}}, "Instances", "dict {}"),
        ({"Instances": []}, "Instances", "list []"),
        ({"Instances": ["a"]}, "Instances[0]", "str 'a'"),
        ({"Instances": [{"input": "a"}]}, "Instances[0].output", "nothing"),
        ({"Instances": [{"input": "a", "output": "b"}, {"output": "b"}]}, "Instances[1].input", "nothing"),
        ({"Instances": [{"input": "a", "output": 4}]}, "Instances[0].output", "int 4"),
        ({"Instances": [{"input": "a", "output": ["b", 4]}]}, "Instances[0].output", "int 4"),
        ({"Instances": [{"id": True, "input": "a", "output": "b"}]}, "Instances[0].id", "bool True"),
        ({"Positive_Examples": "x"}, "Positive Examples", "str 'x'"),
        ({"Negative_Examples": [{"input": "a"}]}, "Negative Examples[0].output", "nothing"),
        ({"Positive_Examples": [{"input": "a", "output": []}]}, "Positive Examples[0].output", "list []"),
        (
            {"Positive_Examples": [{"input": "a", "output": "b", "explanation": 1}]},
            "Positive Examples[0].explanation",
            "int 1",
        ),
    ],
)
def test_errors_name_file_field_found_and_expected(sni_folder, record, changes, field, found):
    folder = sni_folder({"task001_a": record(**changes)})
    with pytest.raises(InputError, match=r"task001_a\.json: field .*, expected") as caught:
        read(folder)
    assert f"field {field!r}: found {found}" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"a": ' + "9" * 5000 + "}", "[" * 100_000, '{"Definition": "a"', "null"]
)
def test_files_that_are_no_json_object_are_named(sni_folder, text):
    with pytest.raises(InputError, match=r"task001_a\.json: .*expected") as caught:
        read(sni_folder({"task001_a": text}))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(sni_folder, record):
    folder = sni_folder({"task001_a": record()})
    (folder / "tasks" / "task001_a.json").write_bytes(b'{"Definition": "\xff"}')
    with pytest.raises(InputError, match=r"task001_a\.json: not JSON in UTF-8"):
        read(folder)
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read \(No such file"):
        read(folder, "nowhere")


def test_unsafe_file_names_are_refused(sni_folder, record):
    with pytest.raises(InputError, match="no task name"):
        sni.load(sni_folder({"task 1": record()}))


@pytest.mark.parametrize("folder", [None, "nowhere", "tasks/task001_a.json"])
def test_a_missing_folder_is_named(sni_folder, record, folder):
    root = sni_folder({"task001_a": record()})
    with pytest.raises(InputError, match="is not there; expected a folder"):
        sni.load(root / folder if folder else None)


def test_a_folder_without_tasks_is_refused(tmp_path):
    with pytest.raises(InputError, match="no task of"):
        sni.load(tmp_path)


def test_files_may_lie_in_the_folder_itself(sni_folder, record):
    assert list(sni.load(sni_folder({"task001_a": record()}) / "tasks")) == ["task001_a"]


def test_only_listed_files_are_opened_and_the_lists_order_is_kept(sni_folder, record):
    folder = sni_folder({"a": record(), "b": record(), "broken": "{"}, my=["b", "", "a", "b"])
    relative = sni.load(folder, task_list="splits/default/my_tasks.txt")
    absolute = sni.load(folder, task_list=folder / "splits" / "default" / "my_tasks.txt")
    assert list(relative) == list(absolute) == ["b", "a"]


def test_listed_tasks_that_are_not_there_are_an_error_or_a_warning(sni_folder, record):
    folder = sni_folder({"a": record()}, my=["a", *(f"gone{n}" for n in range(7))])
    with pytest.raises(InputError, match="7 of 8 listed tasks have no file in .*gone0, .*gone4 and 2 more;"):
        sni.load(folder, task_list="splits/default/my_tasks.txt")
    with pytest.warns(UserWarning, match="7 of 8 .* skipped"):
        assert list(sni.load(folder, task_list="splits/default/my_tasks.txt", missing="skip")) == ["a"]


def test_lists_with_paths_instead_of_names_are_refused(sni_folder, record):
    folder = sni_folder({"a": record()}, my=["a", "../../etc/passwd"])
    with pytest.raises(InputError, match=r"my_tasks.txt line 2: '\.\./\.\./etc/passwd' is no task name"):
        sni.load(folder, task_list="splits/default/my_tasks.txt")


def test_missing_and_empty_lists_are_named(sni_folder, record):
    folder = sni_folder({"a": record()}, my=[""])
    with pytest.raises(InputError, match="my_tasks.txt is empty"):
        sni.load(folder, task_list="splits/default/my_tasks.txt")
    with pytest.raises(InputError, match="nope.txt: cannot be read"):
        sni.load(folder, task_list="nope.txt")


@pytest.mark.parametrize("options", [{"missing": "skp"}, {"empty_outputs": "kep"}])
def test_unknown_option_values_name_the_closest(sni_folder, record, options):
    with pytest.raises(UnknownNameError, match="closest: (skip|keep)"):
        sni.load(sni_folder({"a": record()}), **options)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["input", "output", "id"]), inner),
    max_leaves=6,
)


def places(value, path=()):
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_file_gives_a_task_or_an_input_error(tmp_path, record, data):
    content = {"whole": record()}
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([place for place in places(content) if place]))
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        if data.draw(st.booleans()) and path != ("whole",):
            del parent[path[-1]]
        else:
            parent[path[-1]] = copy.deepcopy(data.draw(JSON))
    text = json.dumps(content["whole"])
    if data.draw(st.booleans()):
        cut = data.draw(st.integers(0, len(text)))
        text = text[:cut] + data.draw(st.text(max_size=3).filter(lambda t: t.isascii())) + text[cut + 1 :]
    file = tmp_path / "task001_a.json"
    file.write_text(text, encoding="utf-8")
    try:
        task = sni.read_task(file, empty_outputs=data.draw(st.sampled_from(sni.EMPTY_OUTPUTS)))
    except InputError as error:
        assert "task001_a.json" in str(error) and "expected" in str(error) and "\n" not in str(error)
    else:
        assert task.examples and task.definition.strip() and all(example.targets for example in task.examples)
        json.dumps([example.inputs for example in task.examples], ensure_ascii=False).encode("utf-8")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40))
def test_any_bytes_give_an_input_error(tmp_path, content):
    file = tmp_path / "task001_a.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match="task001_a.json"):
        sni.read_task(file)


@pytest.mark.real_data
def test_all_real_files_are_read_whole(real_sni):
    tasks = sni.load(real_sni)
    rows = [line.split("\t") for line in (real_sni / "manifest.tsv").read_text("utf-8").splitlines()]
    columns = {name: rows[0].index(name) for name in rows[0]}
    assert set(tasks) == {row[0] for row in rows[1:]} and len(tasks) == 302
    for row in rows[1:]:
        task = tasks[row[0]]
        assert len(task.examples) == int(row[columns["n_instances_kept"]])
        assert len(task.positive) == int(row[columns["n_pos"]])
        assert len(task.negative) == int(row[columns["n_neg"]])
        assert task.category == row[columns["categories"]].split("|")[0]
        assert "|".join(task.metadata["domains"]) in ("", row[columns["domains"]])
    empty = {name: n for name, task in tasks.items() if (n := task.metadata["num_empty_outputs"])}
    assert empty == {"task388_torque_token_classification": 2}
    assert not any(task.metadata["num_repeated_ids"] for task in tasks.values())


@pytest.mark.real_data
def test_real_official_list_names_tasks_that_are_not_held(real_sni):
    with pytest.raises(InputError, match="20 of 119 listed tasks"):
        sni.load(real_sni, task_list="test_tasks.txt")
    with pytest.warns(UserWarning, match="20 of 119"):
        tasks = sni.load(real_sni, task_list="test_tasks.txt", missing="skip", selection=OfficialTest())
    held = (real_sni / "test_tasks_held.txt").read_text().split()
    assert sorted(tasks) == sorted(held)
    assert all(task.splits["test"] == tuple(range(min(100, len(task.examples)))) for task in tasks.values())
