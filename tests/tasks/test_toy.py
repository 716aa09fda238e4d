import hashlib
import random
import subprocess
import sys

import pytest

from jaxmtl.tasks import toy
from jaxmtl.tasks.metrics import METRICS, exact_match
from jaxmtl.tasks.toy_lexicon import KIND_OF, MONTHS, OPPOSITE_OF, number_words, plural
from jaxmtl.types import InputError

TASKS = toy.load()
UNSEEN = {name for name, task in TASKS.items() if task.metadata["held_out"]}
EVERY = [*toy.TRAIN_TASKS, *toy.UNSEEN_TASKS]


def test_there_are_enough_tasks_and_whole_categories_are_held_out():
    seen, unseen = ({TASKS[name].category for name in names} for names in (set(TASKS) - UNSEEN, UNSEEN))
    assert len(TASKS) - len(UNSEEN) >= 24 and len(UNSEEN) >= 6
    assert len(seen) >= 8 and len(unseen) >= 2 and not seen & unseen


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_has_the_form_of_an_sni_task(task):
    assert task.definition.endswith(".") and len(task.examples) == 200
    assert len(task.positive) >= 2 and len(task.negative) >= 1
    assert all(demo.explanation for demo in (*task.positive, *task.negative))
    assert task.metric in METRICS
    expected = {"test": 160, "fewshot": 40} if task.name in UNSEEN else {"train": 160, "validation": 20, "test": 20}
    assert {name: len(indices) for name, indices in task.splits.items()} == expected
    assert sorted(i for indices in task.splits.values() for i in indices) == list(range(200))


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_no_input_comes_twice_nor_is_a_demonstration(task):
    inputs = [item.inputs for item in (*task.examples, *task.positive, *task.negative)]
    assert len(set(inputs)) == len(inputs)


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_no_answer_of_a_closed_task_is_the_rule_and_wrong_outputs_are_wrong(task):
    items = [task.make(random.Random(number)) for number in range(300)]
    answers = [item.outputs[0] for item in items]
    assert max(answers.count(answer) for answer in set(answers)) <= 0.6 * len(answers)
    assert not any(exact_match(item.wrong, item.outputs) for item in items)
    assert all(item.wrong not in item.outputs for item in items)
    assert max(len(item.inputs) + len(item.outputs[0]) for item in items) < 160


def recomputed(name, text):
    """Right answers once more, from the text alone; None for tasks that are checked elsewhere."""
    words = text.rstrip(".").split()
    simple = {
        "toy_reverse_words": lambda: " ".join(reversed(words)),
        "toy_last_word": lambda: words[-1],
        "toy_sort_words": lambda: " ".join(sorted(words)),
        "toy_remove_vowels": lambda: text.translate(dict.fromkeys(map(ord, "aeiou"))),
        "toy_swap_ends": lambda: " ".join([words[-1], *words[1:-1], words[0]]),
        "toy_acronym": lambda: "".join(word[0] for word in words).upper(),
        "toy_odd_or_even": lambda: ["even", "odd"][int(text) % 2],
        "toy_larger_number": lambda: str(max(int(words[0]), int(words[2]))),
        "toy_count_things": lambda: str(text.count(",") + 1),
        "toy_opposite": lambda: OPPOSITE_OF[words[-1]],
        "toy_kind_of_thing": lambda: KIND_OF[words[3]],
        "toy_same_kind": lambda: "yes" if KIND_OF[words[0]] == KIND_OF[words[2].rstrip(",")] else "no",
        "toy_plural": lambda: plural(words[-1]),
        "toy_lives_in": lambda: "yes" if words[3].rstrip(".") == words[-1].rstrip("?") else "no",
        "toy_date_format": lambda: f"{words[2]}-{MONTHS.index(words[1]) + 1:02d}-{int(words[0]):02d}",
        "toy_plural_analogy": lambda: plural(words[-3]),
        "toy_opposite_analogy": lambda: OPPOSITE_OF[words[-3]],
        "toy_kind_analogy": lambda: KIND_OF[words[-3]],
    }
    return simple[name]() if name in simple else None


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_outputs_follow_from_the_inputs(task):
    for example in task.examples:
        answer = recomputed(task.name, example.inputs)
        if answer is not None:
            assert example.targets == (answer,)
        elif task.name.startswith("toy_extract"):
            assert example.targets[0] in example.inputs.replace(".", "").replace(",", "").split()


def test_times_and_numbers_in_words():
    for example in TASKS["toy_time_format"].examples:
        clock, half = example.inputs.split()
        hour, minute = map(int, clock.split(":"))
        assert example.targets == (f"{hour % 12 + 12 * (half == 'pm'):02d}:{minute:02d}",)
    known = {0: "zero", 7: "seven", 13: "thirteen", 20: "twenty", 45: "forty-five", 300: "three hundred"}
    known |= {101: "one hundred one", 999: "nine hundred ninety-nine"}
    assert {number: number_words(number) for number in known} == known
    assert len({number_words(number) for number in range(1000)}) == 1000


def digest(tasks):
    return hashlib.sha256(repr(list(tasks.values())).encode()).hexdigest()


def test_the_same_tasks_come_out_in_every_process():
    code = (
        "import hashlib; from jaxmtl.tasks import toy; tasks = toy.load();"
        "print(hashlib.sha256(repr(list(tasks.values())).encode()).hexdigest())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert result.stdout.strip() == digest(TASKS)


def test_another_seed_gives_other_examples_and_more_examples_begin_with_the_same():
    assert digest(toy.load(seed=1)) != digest(TASKS)
    for name, task in toy.load(num_examples=1000).items():
        assert task.examples[:200] == TASKS[name].examples and task.positive == TASKS[name].positive


@pytest.mark.parametrize("num_examples", [9, 10_000])
def test_impossible_numbers_of_examples_are_refused(num_examples):
    with pytest.raises(InputError, match="ask for fewer|at least 10"):
        toy.load(num_examples=num_examples)
