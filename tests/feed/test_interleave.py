import dataclasses
import functools
import itertools
import json
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxmtl import tokenizers
from jaxmtl.feed.changing_rates import DynamicWeightAverage
from jaxmtl.feed.interleave import InterleavedStream, interleaved_stream
from jaxmtl.feed.loss_history import LossHistory
from jaxmtl.feed.sampler import Sampler
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.stream import Stream, train_stream
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import Batch, InputError

make_main = functools.partial(train_stream, batch_size=8, window=4, seed=3)
make_text = functools.partial(train_stream, batch_size=4, window=3, seed=5)


@pytest.fixture(scope="session")
def text_store(
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tokenizer: tokenizers.Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> TokenStore:
    folder: pathlib.Path = tmp_path_factory.mktemp("stores") / "text"
    named = [dataclasses.replace(task, name=f"text_{task.name}") for task in tasks[:2]]
    return cache_tasks(named, ["train"], folder, preprocessing, tokenizer)


def mixed(store: TokenStore, text_store: TokenStore, every: int = 3) -> InterleavedStream:
    return interleaved_stream(store, text_store=text_store, make_main=make_main, make_text=make_text, every=every)


def equal(first: Batch, second: Batch) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("every", [1, 3, 5])
def test_text_comes_after_every_few_task_batches(store: TokenStore, text_store: TokenStore, every: int) -> None:
    stream = mixed(store, text_store, every)
    sources = [stream.stream_of(batch["task_ids"]) for batch in itertools.islice(stream, 3 * (every + 1))]
    assert sources == 3 * ([*["tasks"] * every, "text"])


def test_both_streams_are_what_they_are_alone_but_for_task_ids(store: TokenStore, text_store: TokenStore) -> None:
    alone, text = make_main(store), make_text(text_store)
    for number, batch in enumerate(itertools.islice(mixed(store, text_store), 20)):
        if number % 4 < 3:
            assert equal(batch, next(alone))
        else:
            expected = next(text)
            shifted = expected["task_ids"] + len(alone.rows.names)
            assert equal(batch, {**expected, "task_ids": shifted}) and batch["task_ids"].dtype == np.int32
            assert len(batch["inputs"]) == 4


def test_task_names_and_streams_are_in_the_order_of_task_ids(store: TokenStore, text_store: TokenStore) -> None:
    stream = mixed(store, text_store)
    assert list(stream.rows.names) == store.task_names("train") + text_store.task_names("train")
    assert stream.stream_names == ("tasks",) * 4 + ("text",) * 2
    for batch in itertools.islice(stream, 8):
        assert {stream.stream_names[task] for task in batch["task_ids"]} == {stream.stream_of(batch["task_ids"])}


@hypothesis.given(st.integers(0, 17), st.integers(1, 4))
@hypothesis.settings(max_examples=20)
def test_a_resumed_stream_equals_the_unbroken_one(
    store: TokenStore, text_store: TokenStore, stop: int, every: int
) -> None:
    batches = list(itertools.islice(mixed(store, text_store, every), stop + 9))
    stopped = mixed(store, text_store, every)
    for _ in range(stop):
        next(stopped)
    state = json.loads(json.dumps(stopped.state()))
    resumed = mixed(store, text_store, every)
    next(resumed)  # whatever it did before
    resumed.restore(state)
    assert resumed.state() == stopped.state() == state
    for expected in batches[stop:]:
        assert equal(next(resumed), expected)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_their_share_of_either_stream(store: TokenStore, text_store: TokenStore, hosts: int) -> None:
    make = functools.partial(
        interleaved_stream, store, text_store=text_store, make_main=make_main, make_text=make_text, num_hosts=hosts
    )
    parts = [make(host_index=index) for index in range(hosts)]
    for batch in itertools.islice(mixed(store, text_store), 8):
        found = [next(part) for part in parts]
        assert equal(batch, {name: np.concatenate([one[name] for one in found]) for name in batch})


def test_ids_that_stand_for_no_task_stay(store: TokenStore) -> None:
    class Packed(Stream):
        def __next__(self) -> Batch:
            return {**super().__next__(), "task_ids": np.array([[0, -1]], np.int32)}

    one = make_text(store, tasks=["a"])
    packed = Packed(one.rows, one.sampler, one.layout)
    stream = InterleavedStream(make_main(store, tasks=["task003.third"]), packed, every=1)
    found = [batch["task_ids"] for batch in itertools.islice(stream, 2)][1]
    assert found.tolist() == [[1, -1]] and stream.stream_of(found) == "text"


def test_bad_requests_are_one_line_input_errors(
    store: TokenStore,
    text_store: TokenStore,
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tmp_path: pathlib.Path,
) -> None:
    words = ["the quick brown fox jumps over lazy dogs and cats " * 2]
    other = tokenizers.train_sentencepiece(words * 99, tmp_path / "other.model", 40, 5)
    foreign = cache_tasks(tasks[1:2], ["train"], tmp_path / "foreign", preprocessing, other)
    main, text = make_main(store), make_text(text_store)
    stream = mixed(store, text_store)
    state = stream.state()
    calls = {
        "0 task batches": lambda: InterleavedStream(main, text, every=0),
        "two different names": lambda: InterleavedStream(main, text, names=("a", "a")),
        "both streams have tasks called": lambda: InterleavedStream(main, make_text(store)),
        "made differently: vocabulary": lambda: mixed(store, foreign),
        "taken with every 3, but this run has 2": lambda: mixed(store, text_store, 2).restore(state),
        "taken with every None": lambda: stream.restore(main.state()),
        "damaged: position 4": lambda: stream.restore({**state, "position": 4}),
        "damaged: position 0": lambda: stream.restore({**state, "text": None}),
        r"\['tasks', 'text'\]": lambda: stream.stream_of(np.array([0, 5])),
    }
    for message, call in calls.items():
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_losses_reach_the_stream_that_they_are_of(store: TokenStore, text_store: TokenStore) -> None:
    follows = functools.partial(Sampler, rates=DynamicWeightAverage(loss_period=2))
    main = functools.partial(make_main, sampler=follows)

    def make() -> InterleavedStream:
        return interleaved_stream(store, text_store=text_store, make_main=main, make_text=make_text, every=3)

    stream = make()
    for number in range(10):
        stream.observe(np.arange(6.0) + number, np.ones(6))
    expected = LossHistory(4, 2)
    for number in (0, 1, 2, 4, 5, 6, 8, 9):  # every fourth batch is text
        expected.observe(np.arange(4.0) + number, np.ones(4))
    told = json.loads(json.dumps(stream.observed()))
    assert told == {"batches": 10, "main": expected.state(), "text": {}}
    resumed = make()
    resumed.restore(json.loads(json.dumps(stream.state())), told)
    assert resumed.observed() == told
    drawn, asked = stream.counts()
    assert drawn.shape == asked.shape == (6,)
