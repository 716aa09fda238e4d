import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmtl.main import GinConfig
from jaxmtl.tasks import sni
from jaxmtl.tasks import sni_selection as selection
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import Example, InputError, UnknownNameError


def task(count=200, name="task001_a", **metadata):
    english = ("English",)
    known = {"categories": ("Summarization",), "source": ("cnn",), "domains": ("News",), "input_language": english}
    known |= {"output_language": english, "instruction_language": english} | metadata
    examples = tuple(Example(id=str(n), inputs=f"x{n}", targets=("y",)) for n in range(count))
    return TaskSpec(name=name, category=known["categories"][0], definition="D", examples=examples, metadata=known)


def test_every_task_keeps_training_examples_apart_from_the_official_test_ones():
    splits = selection.EveryTask().splits(task(250), None)
    assert splits["all"] == tuple(range(250)) and splits["test"] == tuple(range(100))
    assert len(splits["train"]) == 100 and min(splits["train"]) >= 100
    assert set(selection.EveryTask().splits(task(80), None)) == {"all", "test"}


def test_official_training_subset_and_validation_are_apart():
    splits = selection.OfficialTrain(num_validation=30).splits(task(250), None)
    assert (len(splits["train"]), len(splits["validation"])) == (100, 30)
    assert not set(splits["train"]) & set(splits["validation"])
    assert splits["train"] == selection.OfficialTrain().splits(task(250), None)["train"]
    assert len(selection.OfficialTrain(max_per_task=None).splits(task(250), None)["train"]) == 250
    # A small task keeps half for training.
    small = selection.OfficialTrain(num_validation=30).splits(task(20), None)
    assert (len(small["train"]), len(small["validation"])) == (10, 10)


def test_official_test_is_the_first_hundred_then_a_seeded_cut():
    assert selection.OfficialTest().splits(task(250), None) == {"test": tuple(range(100))}
    assert selection.OfficialTest().splits(task(26), None) == {"test": tuple(range(26))}
    cut = selection.OfficialTest(limit=10).splits(task(250), None)["test"]
    assert len(set(cut)) == 10 and max(cut) < 100
    assert cut != selection.OfficialTest(limit=10, seed=1).splits(task(250), None)["test"]


def test_examples_to_tune_on_are_none_of_those_that_are_scored():
    given = selection.OfficialTest(limit=10, num_fewshot=40).splits(task(110), None)
    assert given["test"] == selection.OfficialTest(limit=10).splits(task(110), None)["test"]
    assert len(set(given["fewshot"])) == 40 and not set(given["fewshot"]) & set(given["test"])
    assert min(given["fewshot"]) < 100, "they may be among the first"
    twice = task(110)
    again = (dataclasses.replace(one, id=f"{one.id}-again") for one in twice.examples)
    twice = dataclasses.replace(twice, examples=(*twice.examples, *again))
    found = selection.OfficialTest(num_fewshot=40).splits(twice, None)
    texts = lambda split: {twice.examples[index].inputs for index in found[split]}
    assert not texts("fewshot") & texts("test") and len(found["fewshot"]) == 20
    assert len(selection.OfficialTest(num_fewshot=40).splits(task(110), None)["fewshot"]) == 10
    assert "fewshot" not in selection.OfficialTest(num_fewshot=40).splits(task(90), None)


ANY = st.sampled_from([selection.EveryTask, selection.OfficialTrain, selection.OfficialTest, selection.TransferMatters])


@given(ANY, st.integers(0, 99), st.integers(1, 400))
def test_splits_depend_on_seed_name_and_size_only(kind, seed, count):
    one = kind(seed=seed).splits(task(count), None)
    for other in range(3):
        kind(seed=seed).splits(task(count, name=f"other{other}"), None)
    assert kind(seed=seed).splits(task(count), None) == one
    assert all(len(set(indices)) == len(indices) > 0 and max(indices) < count for indices in one.values())


def test_reading_a_task_alone_or_among_others_gives_the_same_splits(sni_folder, record):
    folder = sni_folder({name: record(300) for name in "cab"}, alone=["a"], many=["c", "b", "a"])
    for kind in (selection.EveryTask, selection.OfficialTrain, selection.TransferMatters):
        results = [sni.load(folder, selection=kind())["a"]]
        for name in ("alone", "many"):
            results.append(sni.load(folder, selection=kind(), task_list=f"splits/default/{name}_tasks.txt")["a"])
        assert results[0] == results[1] == results[2]


def test_official_lists_decide_the_role(sni_folder, record):
    names = {"tr1": record(250), "te1": record(250), "unlisted": "{"}
    folder = sni_folder(names, train=["tr1"], test=["te1"])
    tasks = sni.load(folder, selection=selection.Official(train=selection.OfficialTrain(num_validation=5)))
    assert {name: {key: len(v) for key, v in spec.splits.items()} for name, spec in tasks.items()} == {
        "tr1": {"train": 100, "validation": 5},
        "te1": {"test": 100},
    }


def test_official_lists_must_not_share_a_task_nor_be_replaced(sni_folder, record):
    folder = sni_folder({"a": record()}, train=["a"], test=["a"])
    with pytest.raises(InputError, match="task a is in splits/default/train_tasks.txt and in"):
        sni.load(folder, selection=selection.Official())
    with pytest.raises(InputError, match="reads its own two lists"):
        sni.load(folder, selection=selection.Official(), task_list="splits/default/train_tasks.txt")


def test_unseen_tasks_get_100_test_and_40_few_shot_examples():
    splits = selection.TransferMatters().splits(task(500, categories=("Title Generation",)), None)
    assert {name: len(indices) for name, indices in splits.items()} == {"test": 100, "fewshot": 40}
    assert not set(splits["test"]) & set(splits["fewshot"])


def test_few_shot_examples_have_inputs_that_no_test_example_has():
    unseen = task(500, categories=("Title Generation",))
    twice = [dataclasses.replace(one, inputs=f"x{number % 250}") for number, one in enumerate(unseen.examples)]
    splits = selection.TransferMatters().splits(dataclasses.replace(unseen, examples=tuple(twice)), None)
    test, few = ({twice[index].inputs for index in splits[name]} for name in ("test", "fewshot"))
    assert not test & few and len(splits["test"]) == 100 and len(splits["fewshot"]) == 40


def test_seen_tasks_are_cut_80_10_10_with_at_most_5000_to_train_on():
    splits = selection.TransferMatters().splits(task(6500), None)
    assert {name: len(indices) for name, indices in splits.items()} == {"train": 5000, "validation": 650, "test": 650}
    assert len(set().union(*splits.values())) == 6300
    few = dataclasses.replace(selection.TransferMatters(), max_train=50).splits(task(6500), None)
    assert few["test"] == splits["test"] and few["train"] == splits["train"][:50]


@pytest.mark.parametrize(
    ("role", "count", "metadata"),
    [
        ("train", 5, {}),
        ("train", 5, {"categories": ("Textual Entailment",)}),
        ("train", 5, {"domains": ("Social Media -> Facebook",), "source": ("paws_x",)}),
        (None, 500, {"input_language": ("English", "French")}),
        (None, 500, {"output_language": ("Hindi",)}),
        (None, 500, {"instruction_language": ()}),
        (None, 500, {"source": ("synthetic",)}),
        ("synthetic", 140, {"source": ("synthetic", "x"), "categories": ("Word Analogy",)}),
        ("unseen", 141, {"categories": ("Misc.", "Word Analogy")}),
        (None, 140, {"categories": ("Word Analogy",)}),
        ("unseen", 141, {"categories": ("Word Analogy",), "source": ("hans",), "domains": ("Sports",)}),
        ("adversarial", 140, {"source": ("hans",), "domains": ("Sports",)}),
        (None, 139, {"source": ("hans",)}),
        ("domain", 140, {"domains": ("News", "Reviews -> Books")}),
        (None, 139, {"domains": ("Animals",)}),
    ],
)
def test_roles_of_the_transfer_study(role, count, metadata):
    assert selection.TransferMatters().role(task(count, **metadata)) == role


def test_tasks_without_language_fields_by_option():
    old = task(input_language=(), output_language=(), instruction_language=())
    assert selection.TransferMatters().role(old) == "train"
    assert selection.TransferMatters(no_language="other").role(old) is None


def test_further_evaluation_sets_are_kept_when_asked_for():
    adversarial = task(source=("anli",))
    assert selection.TransferMatters().splits(adversarial, None) is None
    splits = selection.TransferMatters(keep=("adversarial",)).splits(adversarial, None)
    assert {name: len(indices) for name, indices in splits.items()} == {"test": 100, "fewshot": 40}


@pytest.mark.parametrize("options", [{"keep": ("trian",)}, {"no_language": "englisch"}])
def test_unknown_choices_name_the_closest(options):
    with pytest.raises(UnknownNameError, match="closest: (train|english)"):
        selection.TransferMatters(**options)


@pytest.mark.parametrize("brackets", [tuple, list, set])
def test_sets_of_names_may_come_in_any_brackets(brackets):
    names = brackets(["Summarization", "Misc."])
    kind = selection.TransferMatters(held_out_categories=names, held_out_domains=brackets([]))
    assert kind.role(task(500)) == "unseen"
    assert kind == selection.TransferMatters(held_out_categories=frozenset(names), held_out_domains=frozenset())


def test_sets_of_names_can_be_set_from_gin(tmp_path):
    (tmp_path / "mine.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom jaxmtl.tasks import sni_selection\n"
        'sni_selection.TransferMatters.held_out_categories = ("Summarization",)\n'
        'sni_selection.TransferMatters.adversarial_sources = ["cnn"]\n'
    )
    made = GinConfig([str(tmp_path / "mine.gin")], []).configured(selection.TransferMatters)()
    assert made.role(task(500)) == "unseen"
    assert made.role(task(500, categories=("Title Generation",))) == "adversarial"


@pytest.mark.parametrize("field", ["keep", "held_out_categories", "held_out_domains", "adversarial_sources"])
@pytest.mark.parametrize("names", ["train", (1, 2), None])
def test_a_single_text_is_no_set_of_names(field, names):
    with pytest.raises(InputError, match=f"{field} is .*; expected texts in brackets"):
        selection.TransferMatters(**{field: names})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            selection.EveryTask,
            {"max_per_task": -1},
            "EveryTask: max_per_task is -1; expected 0 or more, or None",
        ),
        (selection.EveryTask, {"num_test": -1}, "EveryTask: num_test is -1; expected 0 or more$"),
        (selection.OfficialTrain, {"max_per_task": -1}, "max_per_task is -1"),
        (selection.OfficialTrain, {"num_validation": -2}, "num_validation is -2"),
        (selection.OfficialTest, {"first": -1}, "OfficialTest: first is -1"),
        (selection.OfficialTest, {"limit": -1}, "limit is -1"),
        (selection.OfficialTest, {"num_fewshot": -1}, "num_fewshot is -1"),
        (selection.TransferMatters, {"max_train": -1}, "max_train is -1"),
        (selection.TransferMatters, {"num_fewshot": -1}, "num_fewshot is -1"),
        (selection.TransferMatters, {"test_fraction": -0.1}, "test_fraction -0.1 .* their sum below 1"),
        (selection.TransferMatters, {"test_fraction": 0.5, "validation_fraction": 0.5}, "leave nothing to train on"),
        (selection.TransferMatters, {"validation_fraction": float("nan")}, "leave nothing to train on"),
        (selection.TransferMatters, {"num_fewshot": 41}, "num_test 100 and num_fewshot 41 .* more_than 140"),
    ],
)
def test_numbers_that_would_leave_examples_out_silently_are_refused(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind(**options)


@pytest.mark.real_data
def test_transfer_study_on_the_real_files(real_sni):
    tasks = sni.load(real_sni, selection=selection.TransferMatters())
    unseen = {name for name, spec in tasks.items() if "fewshot" in spec.splits}
    assert all(spec.category in selection.HELD_OUT_CATEGORIES for name, spec in tasks.items() if name in unseen)
    assert all(len(tasks[name].splits["test"]) == 100 for name in unseen)
    assert not any(spec.category in selection.HELD_OUT_CATEGORIES for n, spec in tasks.items() if n not in unseen)
    assert len(unseen) > 60 and len(tasks) - len(unseen) > 200
