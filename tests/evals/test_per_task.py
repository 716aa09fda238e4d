"""Few-shot fitting from tasks as text: which examples are learnt, in which settings, and that it helps."""

import jax
import numpy as np
import pytest

from jaxmtl.adapters.lora import LoRA
from jaxmtl.evals.per_task import (
    NOTHING_HELD,
    PREPROCESSING,
    Held,
    Setting,
    _fits,
    fit_adapters,
    fit_of_rows,
    fit_settings,
    settings,
)
from jaxmtl.evals.scoring import loss
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.training.fitting import Schedule
from jaxmtl.types import Example, InputError

LORA_OPTIONS = dict(rank=2, alpha=4.0, dropout=0.0)
WORDS = ["cat", "dog", "ball", "hill", "sky", "mat", "birds"]


def make_task(name, answer, count=6):
    examples = tuple(Example(id=str(k), inputs=f"the {WORDS[k % 7]}", targets=(answer,)) for k in range(count))
    splits = {"few_shot": tuple(range(count // 2)), "test": tuple(range(count // 2, count))}
    return TaskSpec(name=name, category="toy", definition="say it.", examples=examples, splits=splits)


TASKS = [make_task("yes", "yes"), make_task("blue", "blue", 4)]


def prompt(word):
    return f"Definition: say it.\n\nNow complete the following example -\nInput: the {word}.\nOutput: "


@pytest.mark.long
def test_an_adapter_for_each_task_lowers_its_own_loss(pretrained):
    adapters = fit_adapters(pretrained, TASKS, **LORA_OPTIONS, learning_rate=3e-2, epochs=6, batch_size=4)
    inputs, targets = [prompt("sky")] * 2, ["yes", "blue"]
    before = loss(pretrained, inputs, targets)
    for number, adapter in enumerate(adapters):
        change = loss(pretrained, inputs, targets, adapter=adapter) - before
        assert change[number] < -0.5 and change[number] < change[1 - number] - 0.3


@pytest.mark.long
def test_settings_are_all_combinations_and_each_is_what_it_would_be_alone(pretrained):
    schedule = Schedule(epochs=2, batch_size=4, num_shapes=1)
    how = settings(shots=(0, 3), seeds=(0, 1), learning_rates=(1e-3, 1e-2))
    found = fit_settings(pretrained, TASKS, how, LoRA(**LORA_OPTIONS), schedule)
    assert [(one.task, one.setting) for one in found] == [(task.name, one) for task in TASKS for one in how]
    assert [one.num_examples for one in found[:8]] == [0] * 4 + [3] * 4
    alone = fit_settings(pretrained, TASKS[1:], [how[6]], LoRA(**LORA_OPTIONS), schedule)[0]
    np.testing.assert_allclose(found[8 + 6].fitted.losses, alone.fitted.losses, atol=1e-5)
    first, second = (found[number].fitted.learnt.tree for number in (4, 6))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def test_more_shots_of_a_seed_hold_the_fewer(pretrained):
    few, many = _fits(pretrained, TASKS[0], settings(shots=(2, 5)), None, NOTHING_HELD, PREPROCESSING)
    assert few.inputs == many.inputs[:2] and len(many.inputs) == 5


def test_held_shots_are_not_learnt():
    inputs, targets = [[number] for number in range(8)], [[number + 10] for number in range(8)]
    plain = fit_of_rows("task", inputs, targets, Setting(shots=5))
    fit = fit_of_rows("task", inputs, targets, Setting(shots=5), Held(share=0.4))
    assert (len(fit.inputs), len(fit.held_inputs)) == (3, 2)
    assert [*fit.inputs, *fit.held_inputs] == plain.inputs and not plain.held_inputs
    assert [target[0] - 10 for target in fit.held_targets] == [source[0] for source in fit.held_inputs]
    few = [fit_of_rows("task", inputs, targets, Setting(shots=shots), Held(share=0.1)) for shots in (1, 2, 0)]
    assert [(len(fit.inputs), len(fit.held_inputs)) for fit in few] == [(1, 0), (1, 1), (0, 0)]


def test_as_many_examples_of_a_split_are_held_out_as_there_are_shots():
    rows, others = [[number] for number in range(8)], [[number] for number in range(20, 24)]
    fits = [
        fit_of_rows("task", rows, rows, Setting(shots=shots), Held(split="validation"), (others, others))
        for shots in (3, 6)
    ]
    assert [(len(fit.inputs), len(fit.held_inputs)) for fit in fits] == [(3, 3), (6, 4)]
    assert all(fit.held_inputs == fit.held_targets and min(fit.held_inputs)[0] >= 20 for fit in fits)


def test_what_cannot_be_held_out_is_refused():
    with pytest.raises(InputError, match="task: no examples in split 'validation'"):
        fit_of_rows("task", [[1]], [[2]], Setting(), Held(split="validation"))
    with pytest.raises(InputError, match=r"share of shots to hold out is 1\.0"):
        Held(share=1.0)
    with pytest.raises(InputError, match="give one of the two"):
        Held(share=0.5, split="validation")


def test_only_the_split_is_learnt(pretrained):
    schedule = Schedule(epochs=1, batch_size=4, num_shapes=1)
    found = fit_settings(pretrained, TASKS, settings(), LoRA(**LORA_OPTIONS), schedule, split="few_shot")
    assert [one.num_examples for one in found] == [3, 2]


def test_what_cannot_be_fitted_is_refused(pretrained):
    with pytest.raises(InputError, match="task blue: 5 shots asked for, but it has 4 examples"):
        fit_settings(pretrained, TASKS, settings(shots=(5,)), LoRA(), Schedule())
    with pytest.raises(InputError, match="two tasks are called 'yes'"):
        fit_adapters(pretrained, [TASKS[0], TASKS[0]])
