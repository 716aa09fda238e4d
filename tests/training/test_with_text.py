"""The loop over two token stores in turns: tasks and text, with a rate that counts task steps."""

import dataclasses
import functools

import pytest
from training_toy import Recorder, assert_trees_equal, toy_run

from jaxmtl import tokenizers
from jaxmtl.checkpoints import CheckpointPolicy
from jaxmtl.feed.interleave import interleaved_stream
from jaxmtl.feed.stream import train_stream
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.tasks import prompts
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.training import schedules
from jaxmtl.training.loop import train
from jaxmtl.types import Example

WORDS = "the quick brown fox jumps over lazy dogs and cats while seven birds sing old songs".split()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feed")
    tokenizer = tokenizers.train_sentencepiece([" ".join(WORDS)] * 50, folder / "spiece.model", 45, 10)
    examples = tuple(Example(id=f"{k}", inputs=WORDS[k], targets=(WORDS[k + 1],)) for k in range(12))
    task = TaskSpec(name="next", category="", definition="", examples=examples, splits={"train": tuple(range(12))})
    how = Preprocessing(prompt=prompts.bare, max_input_tokens=32, max_target_tokens=32)
    long = tuple(Example(id=f"{k}", inputs=" ".join(WORDS[:k]), targets=(" ".join(WORDS[k:]),)) for k in range(4, 12))
    text = dataclasses.replace(task, name="wiki", examples=long, splits={"train": tuple(range(8))})
    return [cache_tasks([one], ["train"], folder / one.name, how, tokenizer) for one in (task, text)]


def run_of(stores, folder, **options):
    make_main, make_text = (functools.partial(train_stream, batch_size=size, window=2) for size in (8, 4))
    stream = interleaved_stream(stores[0], text_store=stores[1], make_main=make_main, make_text=make_text, every=3)
    names = {"task_names": stream.rows.names, "stream_names": stream.stream_names}
    given = {"stream": stream, "num_steps": 8, "log_every": 1, **names}
    return toy_run(folder, **(given | options))


def test_losses_of_text_are_logged_where_text_is_seen_and_rates_follow_the_task_clock(stores, tmp_path):
    writer = Recorder()
    clock = schedules.task_clock(schedules.linear(peak=0.5, num_steps=10), every=3)
    train(run_of(stores, tmp_path, writer=writer, learning_rate=clock))
    lines = {step: values for step, values in writer.lines if "train/loss" in values}
    assert [step for step, values in lines.items() if "train/task_loss/wiki" in values] == [4, 8]
    assert [step for step, values in lines.items() if "train/task_loss/next" in values] == [1, 2, 3, 5, 6, 7]
    for values in lines.values():
        (stream,) = {name.split("/")[1] for name in values if name.endswith("/loss") and name.count("/") == 2}
        assert values[f"train/{stream}/loss"] == pytest.approx(values["train/loss"])
        assert ("train/task_loss/wiki" in values) == (stream == "text")
    rates = [values["train/learning_rate"] for values in lines.values()]
    assert rates == pytest.approx([0.5, 0.45, 0.4, 0.35, 0.35, 0.3, 0.25, 0.2])


@pytest.mark.long
@pytest.mark.parametrize("stop", [3, 4, 6])
def test_a_resumed_run_sees_the_same_batches(stores, tmp_path, stop):
    whole = train(run_of(stores, tmp_path / "whole"))
    policy = CheckpointPolicy(every=stop)
    train(run_of(stores, tmp_path / "parts", num_steps=stop, checkpoints=policy))
    resumed = train(run_of(stores, tmp_path / "parts", checkpoints=policy))
    assert_trees_equal(resumed.params, whole.params)
