"""What an evaluation costs: operations of real lengths, seconds of what is computed."""

import json
import types

import numpy as np
import pytest
from hyper_toy import LORA

from jaxmtl.adapters import hyper_flops
from jaxmtl.adapters.hyper_config import GeneratorConfig, HyperConfig
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.hypernet import Hyper
from jaxmtl.evals import cost, runner
from jaxmtl.evals.instructed import Instructions
from jaxmtl.evals.predictions import Work
from jaxmtl.models import flops


def work(lengths, count, instructions=None):
    examples = types.SimpleNamespace(lengths=lambda: tuple(np.array(lengths).T))
    what = dict(name="a", category="A", headline="rouge_l", split="test", key="k")
    return Work(examples=examples, count=count, instructions=instructions, **what)


def test_examples_count_by_their_own_lengths_and_only_those_that_are_scored(pretrained):
    found = cost.operations(pretrained, [work([(5, 2), (9, 3), (40, 40)], 2), work([(7, 1)], 1)])
    each = [float(flops.forward(pretrained.config, *pair)) for pair in ((5, 2), (9, 3), (7, 1))]
    assert found == pytest.approx(sum(each))


def test_an_instruction_counts_once_for_each_task_that_reads_it(pretrained):
    config = HyperConfig(outputs=(LORA,), generator=GeneratorConfig(hidden=6))
    hyper, module = Hyper(config=config, params={}), HyperModel(config, pretrained.module)
    told = Instructions(hyper=hyper, ids=[np.arange(6), np.arange(6), np.arange(11)])
    found = cost.operations(pretrained, [work([(5, 2), (9, 3), (4, 4)], 3, told)])
    once = hyper_flops.reading(module, 6) + hyper_flops.reading(module, 11)
    each = sum(float(hyper_flops.answering(module, *sizes)) for sizes in ((6, 5, 2), (6, 9, 3), (11, 4, 4)))
    assert found == pytest.approx(float(once) + each)


def test_seconds_are_those_of_the_work_and_not_of_what_is_done_with_it(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 13.0, 50.0, 50.0])
    monkeypatch.setattr(cost.time, "monotonic", lambda: next(clock))
    watch = cost.Stopwatch()
    assert list(watch.timed("ab")) == ["a", "b"]
    assert watch.seconds == 5.0


def test_an_evaluation_says_what_it_cost_and_a_restart_leaves_that(pretrained, store, tmp_path):
    evaluate = lambda: runner.evaluate(pretrained, store, "test", tmp_path, max_tokens=5)
    evaluate()
    text = (tmp_path / cost.COST).read_text()
    told = json.loads(text)
    lengths = np.concatenate([np.array(store.examples(name, "test").lengths()).T for name in store.task_names("test")])
    expected = 100 * flops.forward(pretrained.config, *lengths.T).mean()
    assert told["flops_per_100_examples"] == pytest.approx(expected)
    assert told["examples"] == told["examples_timed"] == len(lengths)
    assert told["seconds_per_100_examples"] > 0
    evaluate()
    assert (tmp_path / cost.COST).read_text() == text
