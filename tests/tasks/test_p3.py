"""P3's tasks: every template of a data set, with the data set's rows, splits and names."""

import json
import pathlib

import pytest

from jaxmtl.tasks import catalog, p3
from jaxmtl.tasks.choices import ChoiceExample, choices_of
from jaxmtl.tasks.p3 import task_name
from jaxmtl.tasks.p3_sources import HELD_OUT, SETS
from jaxmtl.types import Example, InputError, UnknownNameError

REAL = pathlib.Path(__file__).parents[3] / "shared" / "data"
COPA = """
dataset: super_glue
subset: copa
templates:
  0a: !Template
    answer_choices: '{{choice1}} ||| {{choice2}}'
    jinja: '{{ premise }} {{ question }}? ||| {{ answer_choices[label] }}'
    metadata: !TemplateMetadata {original_task: true}
    name: plain
  0b: !Template
    answer_choices: '{{choice1}} ||| {{choice2}}'
    jinja: '{% if question == "cause" %}{{ premise }} why? ||| {{ answer_choices[label] }}{% endif %}'
    metadata: !TemplateMetadata {original_task: true}
    name: "\\u2026why? C1 or C2"
  0c: !Template
    answer_choices: null
    jinja: '{{ choice1 }} because ||| {{ premise }}'
    metadata: !TemplateMetadata {original_task: false}
    name: backwards
"""
ANLI = """
templates:
  0a: !Template
    answer_choices: 'True ||| Neither ||| False'
    jinja: '{{ premise }} so {{ hypothesis }}? ||| {{ answer_choices[label] }}'
    metadata: !TemplateMetadata {original_task: true}
    name: GPT-3 style
"""
FILES = [(16, 0), (16, 100)]


def copa(premise, question, label=0, **more):
    return dict(premise=premise, choice1=f"{premise}1", choice2=f"{premise}2", question=question, label=label, **more)


@pytest.fixture
def folder(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)), "utf-8")

    write("p3_t0/promptsource_templates/super_glue/copa/templates.yaml", COPA)
    write("p3_t0/promptsource_templates/anli/templates.yaml", ANLI)
    sentence = 'Which sentence is the {} of "{}."? Choose one between A and B.\nA: {}.\nB: {}.'
    rows = [("cause", "It rained", "a", "b", "B"), ("effect", "He ran", "c", "d", "A")]
    lines = [{"sentence": sentence.format(*row[:4]), "label": row[4]} for row in rows]
    write("glue_superglue/COPA/test.jsonl", lines)
    shots = [copa("x", "cause", idx=1), copa("y", "effect", 1, idx=2)]
    write("p3_t0/fewshot/super_glue_copa/16_shot/0_seed.jsonl", shots)
    write("p3_t0/fewshot/super_glue_copa/16_shot/100_seed.jsonl", [shots[1], copa("z", "effect", idx=3)])
    write("p3_t0/fewglue/COPA/train.jsonl", [copa("g", "cause", idx=4)])
    dev = [dict(premise="p", hypothesis="h", label=label, uid=label) for label in "enc"]
    write("p3_t0/anli_dev/r2_dev.jsonl", dev)
    return tmp_path


def test_every_template_is_a_task_with_choices(folder):
    tasks = catalog.load("p3", folder)
    assert list(tasks) == ["anli_GPT_3_style_r2", "super_glue_copa_plain", "super_glue_copa__why_C1_or_C2"]
    task = tasks["super_glue_copa_plain"]
    assert (task.category, task.metric) == ("copa", "accuracy")
    first, second = task.split("test")
    assert isinstance(first, ChoiceExample)
    assert (first.inputs, first.targets, first.choices) == ("It rained. cause?", ("b.",), ("a.", "b."))
    assert (second.inputs, second.targets) == ("He ran. effect?", ("c.",))
    assert [one.targets[0] for one in tasks["anli_GPT_3_style_r2"].split("test")] == ["True", "Neither", "False"]


def test_few_shot_splits_are_the_published_files_and_all_their_rows(folder):
    assert set(catalog.load("p3", folder)["super_glue_copa_plain"].splits) == {"test", "fewshot", "fewglue"}
    task = catalog.load("p3", folder, few_shot_files=FILES)["super_glue_copa_plain"]
    names = {split: [one.inputs[0] for one in task.split(split)] for split in task.splits if split != "test"}
    assert names == {
        "fewshot": ["x", "y", "z"],
        "fewshot_16_seed_0": ["x", "y"],
        "fewshot_16_seed_100": ["y", "z"],
        "fewglue": ["g"],
    }
    assert len(task.examples) == 6  # y is one example of three splits
    with pytest.raises(InputError, match="copa.* has a few-shot file of 16 shots and seed 7"):
        catalog.load("p3", folder, few_shot_files=[(16, 7)])


def test_rows_that_a_template_does_not_apply_to_are_counted(folder):
    task = catalog.load("p3", folder, few_shot_files=FILES)["super_glue_copa__why_C1_or_C2"]
    assert [one.inputs for one in task.split("test")] == ["It rained. why?"]
    assert [one.inputs for one in task.split("fewshot")] == ["x why?"]
    assert "fewshot_16_seed_100" not in task.splits
    left_out = {"test": 1, "fewglue": 0, "fewshot": 2, "fewshot_16_seed_0": 1, "fewshot_16_seed_100": 2}
    assert task.metadata["num_left_out"] == left_out


def test_templates_and_sets_are_chosen(folder):
    load = lambda **options: list(catalog.load("p3", folder, **options))
    assert load(templates="fid_icl", names=["copa"]) == ["super_glue_copa_plain"]
    assert load(templates=["backwards"]) == ["super_glue_copa_backwards"]
    everything = catalog.load("p3", folder, templates="all", names=None)
    assert len(everything) == 4
    open_answers = everything["super_glue_copa_backwards"]
    assert open_answers.metric == "rouge_l" and choices_of(open_answers.examples) is None
    with pytest.raises(UnknownNameError, match="choice of templates 't5'; closest: t0"):
        load(templates="t5")
    with pytest.raises(UnknownNameError, match="template 'plane'; closest: plain"):
        load(templates=["plane"])
    with pytest.raises(UnknownNameError, match="data set of P3 'copra'; closest: copa"):
        load(names=["copra"])
    with pytest.raises(InputError, match="holds templates and rows of none of the sets wic"):
        load(names=["wic"])


def test_names_are_those_of_p3():
    assert task_name("super_glue/copa", "C1 or C2? premise, so/because…") == (
        "super_glue_copa_C1_or_C2_premise_so_because_"
    )
    assert task_name("super_glue/wsc.fixed", "GPT-3 Style") == "super_glue_wsc.fixed_GPT_3_Style"


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("p3_t0/anli_dev/r2_dev.jsonl", '{"premise": "p"}', r"r2_dev.jsonl, line 1: has no 'hypothesis'"),
        (
            "p3_t0/anli_dev/r2_dev.jsonl",
            '{"premise": "p", "hypothesis": "h", "label": 2}',
            r"line 1: label 2; expected one of e, n, c",
        ),
        (
            "glue_superglue/COPA/test.jsonl",
            '{"sentence": "Why?", "label": "A"}',
            "sentence 'Why[?]'; expected the form",
        ),
        ("p3_t0/fewshot/super_glue_copa/16_shot/a_seed.jsonl", "", "expected a name like 16_shot/0_seed.jsonl"),
        (
            "p3_t0/fewshot/super_glue_copa/16_shot/0_seed.jsonl",
            json.dumps(copa("x", "cause", 5)),
            r"0_seed.jsonl, line 1: .*'plain': fails on a row .*has no element 5",
        ),
        (
            "p3_t0/promptsource_templates/anli/templates.yaml",
            ANLI.replace("answer_choices[label]", '"Maybe"'),
            r"r2_dev.jsonl, line 1: example 'test-0': the answer 'Maybe' is none of the choices 'True', 'Neither'",
        ),
    ],
)
def test_bad_files_are_one_line(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        catalog.load("p3", folder)
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="has no folder p3_t0/promptsource_templates"):
        catalog.load("p3", tmp_path)
    with pytest.raises(InputError, match="needs its folder"):
        catalog.load("p3", None)


def test_choices_hold_the_answer():
    with pytest.raises(InputError, match="example 'a': the answer 'no' is none of the choices 'yes', 'maybe'"):
        ChoiceExample(id="a", inputs="x", targets=("no",), choices=("yes", "maybe"))
    assert choices_of([]) is None and choices_of([Example(id="a", inputs="x", targets=("y",))]) is None


COUNTS = dict(anli_r1=15, anli_r2=15, anli_r3=15, cb=15, copa=12, hellaswag=4, rte=10, wic=10, winogrande=5, wsc=10)
"""Templates of T0's evaluation. Source: methods 3.2."""


@pytest.fixture(scope="module")
def real():
    return catalog.load("p3", REAL, names=None, few_shot_files=[(16, seed) for seed in (0, 1, 32)])


@pytest.mark.real_data
def test_real_sets_have_the_published_templates_and_sizes(real):
    by_set = {name: [task for task in real.values() if task.category == name] for name in SETS}
    assert {name: len(by_set[name]) for name in HELD_OUT} == COUNTS
    sizes = {name: len(tasks[0].splits.get("test", ())) for name, tasks in by_set.items()}
    assert (sizes["anli_r1"], sizes["anli_r2"], sizes["cb"], sizes["rte"], sizes["wic"]) == (1000, 1000, 56, 277, 638)
    assert max(len(task.splits["test"]) for task in by_set["copa"]) == 100
    partial = [task.metadata["template"] for task in real.values() if any(task.metadata["num_left_out"].values())]
    assert sorted(partial) == sorted(p3.ONE_SIDED["copa"])
    for seed in (0, 1, 32):
        assert all(len(task.splits[f"fewshot_16_seed_{seed}"]) == 16 for task in by_set["anli_r3"])


@pytest.mark.real_data
def test_real_rows_render_whole_and_no_shown_row_is_asked_about(real):
    for task in real.values():
        asked = {one.inputs for one in task.split("test")} if "test" in task.splits else set()
        for split in task.splits:
            if split != "test":
                assert asked.isdisjoint(one.inputs for one in task.split(split)), (task.name, split)
        for example in task.examples:
            assert example.inputs and example.targets[0] in example.choices
            assert "{{" not in example.inputs and "|||" not in example.inputs and len(example.choices) >= 2


@pytest.mark.real_data
def test_a_real_rendering_is_the_one_written_by_hand(real):
    first = real["super_glue_copa_C1_or_C2_premise_so_because_"].split("test")[0]
    assert first.inputs == (
        '"The toilet filled with water." or "Water flowed from the spout."? The man turned on the faucet.  so'
    )
    assert first.targets == ("Water flowed from the spout.",)
