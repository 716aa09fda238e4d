import dataclasses
import functools
import itertools
import json
import pathlib
from collections import Counter

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxmtl import tokenizers
from jaxmtl.feed import batching, shapes
from jaxmtl.feed.batching import EvalStream, Stream, TaskRows, eval_stream, train_stream, unsort
from jaxmtl.feed.sampler import PooledSampler, Sampler
from jaxmtl.feed.shapes import Shapes, fitted_shapes, useful_share
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.tasks import rates
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import Batch, InputError

UNIFORM = functools.partial(Sampler, rates=rates.uniform)


def stream(store: TokenStore, **options: object) -> Stream:
    return train_stream(store, **{"batch_size": 8, "window": 4, "seed": 3, "sampler": UNIFORM, **options})


def rows_of(batches: list[Batch]) -> list[tuple[int, int]]:
    pairs = [zip(batch["task_ids"].tolist(), batch["example_ids"].tolist(), strict=True) for batch in batches]
    return list(itertools.chain.from_iterable(pairs))


def check_rows(batch: Batch, store: TokenStore, split: str) -> None:
    names = store.task_names(split)
    for k, (task, example) in enumerate(rows_of([batch])):
        inputs, targets = store.examples(names[task], split).row(example)
        assert batch["inputs"][k].tolist() == inputs.tolist() + [0] * (batch["inputs"].shape[1] - len(inputs))
        assert batch["targets"][k].tolist() == targets.tolist() + [0] * (batch["targets"].shape[1] - len(targets))
        assert batch["loss_mask"][k].tolist() == [1.0] * len(targets) + [0.0] * (
            batch["targets"].shape[1] - len(targets)
        )


def equal(first: Batch, second: Batch) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_batches_hold_the_stored_rows_padded(store: TokenStore) -> None:
    for batch in itertools.islice(stream(store), 9):
        check_rows(batch, store, "train")
        dtypes = {name: array.dtype for name, array in batch.items()}
        assert dtypes == {
            "inputs": np.int32,
            "targets": np.int32,
            "loss_mask": np.float32,
            "task_ids": np.int32,
            "example_ids": np.int32,
        }


@pytest.mark.parametrize("window", [1, 3, 8])
def test_grouping_drops_nothing_and_repeats_nothing(store: TokenStore, window: int) -> None:
    sizes = store.sizes("train")
    batches = list(itertools.islice(stream(store, window=window), 2 * window))
    drawn = Sampler(sizes, rates.uniform, 8, 3).draw(2 * window)
    expected = list(zip(drawn.task_ids.tolist(), drawn.example_ids.tolist(), strict=True))
    half = 8 * window
    found = rows_of(batches)
    assert Counter(found[:half]) == Counter(expected[:half])
    assert Counter(found[half:]) == Counter(expected[half:])
    if window == 1:
        assert found == expected


def test_pooled_stream_visits_every_example_once_per_epoch(store: TokenStore) -> None:
    total = int(store.sizes("train").sum())
    assert total % 6 == 0
    batches = itertools.islice(stream(store, sampler=PooledSampler, batch_size=6, window=1), total // 6)
    every = [(task, k) for task, size in enumerate(store.sizes("train")) for k in range(size)]
    assert sorted(rows_of(list(batches))) == every


def test_grouped_batches_have_more_text_in_them(store: TokenStore) -> None:
    def share(window: int) -> float:
        return float(np.mean([useful_share(b) for b in itertools.islice(stream(store, window=window), 32)]))

    assert share(16) > share(1) + 0.05


def test_batches_of_a_window_come_in_a_random_order(store: TokenStore) -> None:
    lengths = [batch["inputs"].shape[1] for batch in itertools.islice(stream(store, window=16), 16)]
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)


@hypothesis.given(st.integers(0, 13), st.integers(1, 5), st.sampled_from([UNIFORM, PooledSampler]))
@hypothesis.settings(max_examples=30)
def test_resumed_stream_equals_unbroken_one(store: TokenStore, stop: int, window: int, sampler: object) -> None:
    unbroken = stream(store, window=window, sampler=sampler)
    batches = list(itertools.islice(unbroken, stop + 7))
    stopped = stream(store, window=window, sampler=sampler)
    for _ in range(stop):
        next(stopped)
    state = json.loads(json.dumps(stopped.state()))
    resumed = stream(store, window=window, sampler=sampler)
    next(resumed)  # whatever it did before
    resumed.restore(state)
    assert resumed.state() == stopped.state()
    for expected in batches[stop:]:
        assert equal(next(resumed), expected)


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_read_disjoint_and_complete_slices_of_the_same_batch(store: TokenStore, hosts: int) -> None:
    whole = stream(store)
    parts = [stream(store, host_index=index, num_hosts=hosts) for index in range(hosts)]
    for batch in itertools.islice(whole, 6):
        found = [next(part) for part in parts]
        together = {name: np.concatenate([one[name] for one in found]) for name in batch}
        assert equal(together, batch)


def test_a_stream_goes_on_with_another_number_of_hosts(store: TokenStore) -> None:
    whole, two = stream(store), stream(store, host_index=1, num_hosts=2)
    for _ in range(6):
        next(whole)
        next(two)
    resumed = stream(store)
    resumed.restore(two.state())
    assert equal(next(resumed), next(whole))


def test_states_of_other_streams_are_refused(store: TokenStore) -> None:
    state = stream(store).state()
    others = {
        "window": {"window": 5},
        "seed": {"seed": 4},
        "batch_size": {"batch_size": 4},
        "mode": {"sampler": PooledSampler},
        "tasks": {"tasks": ["a"]},
        "input lengths": {"shapes": Shapes(inputs=(64, 96), targets=(8, 16))},
        "target lengths": {"shapes": functools.partial(fitted_shapes, num_targets=1)},
    }
    for name, options in others.items():
        with pytest.raises(InputError, match=rf"was taken with (other )?{name} .*; resume with"):
            stream(store, **options).restore(state)


def test_a_store_of_the_same_sizes_with_other_tasks_or_texts_is_refused(
    store: TokenStore,
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tokenizer: tokenizers.Tokenizer,
    tmp_path: pathlib.Path,
) -> None:
    state = stream(store).state()
    renamed = [dataclasses.replace(task, name=f"{task.name}x") for task in tasks]
    reworded = [dataclasses.replace(tasks[0], definition="Say so."), *tasks[1:]]
    for name, changed in {"tasks": renamed, "examples": reworded, "": tasks}.items():
        other = cache_tasks(changed, ["train", "test"], tmp_path / f"{name}_store", preprocessing, tokenizer)
        assert other.sizes("train").tolist() == store.sizes("train").tolist()
        if not name:
            stream(other).restore(state)
            continue
        fixed = Shapes(inputs=(96,), targets=(16,))
        with pytest.raises(InputError, match=f"taken with other {name} .*{name}_store and this run"):
            stream(other, shapes=fixed).restore(stream(store, shapes=fixed).state())


@hypothesis.given(
    st.sampled_from(["sampler", "window", "window_number", "position", "seed", "tasks", "examples", "input lengths"]),
    st.none() | st.integers(-3, 3) | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
)
def test_damaged_stream_states_are_input_errors(store: TokenStore, field: str, value: object) -> None:
    one = stream(store)
    next(one)
    state = one.state()
    if state[field] == value or field in ("position", "window_number") and isinstance(value, int) and 0 <= value:
        return
    with pytest.raises(InputError, match="state"):
        one.restore({**state, field: value})


def test_only_some_tasks_can_be_drawn_and_ids_follow_their_order(store: TokenStore) -> None:
    chosen = ["a", "task001_first"]
    batch = next(stream(store, tasks=chosen))
    for k, (task, example) in enumerate(rows_of([batch])):
        inputs, _ = store.examples(chosen[task], "train").row(example)
        assert batch["inputs"][k, : len(inputs)].tolist() == inputs.tolist()
    with pytest.raises(InputError, match="unknown task"):
        stream(store, tasks=["b"])
    with pytest.raises(InputError, match="no tasks"):
        stream(store, tasks=[])


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8, 64])
def test_evaluation_sees_every_row_once(store: TokenStore, batch_size: int, hosts: int) -> None:
    parts = [
        eval_stream(store, "test", batch_size=batch_size, host_index=index, num_hosts=hosts) for index in range(hosts)
    ]
    seen = []
    for batches in zip(*parts, strict=True):
        batch = {name: np.concatenate([one[name] for one in batches]) for name in batches[0]}
        assert batch["inputs"].shape[0] == batch_size
        real = batch["example_ids"] >= 0
        seen += rows_of([{name: array[real] for name, array in batch.items()}])
        assert not batch["loss_mask"][~real].any()
        assert (batch["inputs"][~real] != 0).any(axis=1).all()
        check_rows({name: array[real] for name, array in batch.items()}, store, "test")
    assert sorted(seen) == [(task, k) for task, size in enumerate(store.sizes("test")) for k in range(size)]
    assert len(parts[0]) == -(-len(seen) // batch_size)


def test_evaluation_starts_with_the_longest_and_can_be_repeated(store: TokenStore) -> None:
    evaluation = eval_stream(store, "test", batch_size=4)
    first, second = list(evaluation), list(evaluation)
    assert all(equal(*pair) for pair in zip(first, second, strict=True))
    lengths = [batch["inputs"].shape[1] for batch in first]
    assert lengths == sorted(lengths, reverse=True)


def test_unsort_gives_results_in_task_and_example_order(store: TokenStore) -> None:
    evaluation = eval_stream(store, "test", batch_size=8)
    rows = [row for row in rows_of(list(evaluation)) if row[1] >= 0]
    assert unsort(rows, evaluation.order) == sorted(rows)
    with pytest.raises(InputError, match="25 results for 24 rows"):
        unsort([*rows, (0, 0)], evaluation.order)


def test_few_shapes_are_used_and_each_is_listed(store: TokenStore) -> None:
    few = Shapes(inputs=(64, 96), targets=(8, 16))
    used = {(b["inputs"].shape[1], b["targets"].shape[1]) for b in itertools.islice(stream(store, shapes=few), 40)}
    assert used <= set(itertools.product(few.inputs, few.targets))


def test_rows_that_do_not_fit_are_refused_before_the_first_step(store: TokenStore) -> None:
    with pytest.raises(InputError, match="an input has 9. tokens, but the largest input length is 32"):
        stream(store, shapes=Shapes(inputs=(32,), targets=(16,)))
    with pytest.raises(InputError, match="largest target length is 8"):
        EvalStream(TaskRows(store, "test"), 4, shapes=Shapes(inputs=(96,), targets=(8,)))


@pytest.mark.parametrize("lengths", [(), (0, 8), (8, 8), (16, 8), (-8,)])
def test_senseless_shapes_are_input_errors(lengths: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="ascending numbers above 0"):
        Shapes(inputs=lengths, targets=(8,))
    with pytest.raises(InputError, match="ascending numbers above 0"):
        Shapes(inputs=(8,), targets=lengths)


@pytest.mark.parametrize(
    ("batch_size", "host", "hosts", "message"),
    [(8, 0, 3, "make it a multiple"), (8, 2, 2, "host index is 2"), (0, 0, 1, "make it a multiple")],
)
def test_hosts_must_divide_the_batch(batch_size: int, host: int, hosts: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        batching.host_slice(batch_size, host, hosts)


def test_windows_below_one_are_input_errors(store: TokenStore) -> None:
    with pytest.raises(InputError, match="window is 0"):
        stream(store, window=0)


@hypothesis.given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(1, 4))
@hypothesis.settings(max_examples=40)
def test_fitted_lengths_have_the_least_padding(lengths: list[int], count: int) -> None:
    array = np.array(lengths)
    found = fitted_shapes(array, array, count, count)

    def cells(choice: tuple[int, ...]) -> int:
        return sum(min(length for length in choice if length >= row) for row in lengths)

    last = -(-max(lengths) // 8) * 8
    candidates = itertools.combinations_with_replacement(range(8, last + 1, 8), count - 1)
    assert cells(found.inputs) == min(cells((*choice, last)) for choice in candidates)
    assert len(found.inputs) <= count and found.inputs == found.targets and found.inputs[-1] == last


def test_fitted_lengths_hold_very_long_rows() -> None:
    lengths = np.random.default_rng(0).integers(1, 100_000, 10_000)
    found = fitted_shapes(lengths, np.array([3]))
    assert found.inputs[-1] >= lengths.max() and found.targets == (8,)


def test_fitting_needs_rows() -> None:
    with pytest.raises(InputError, match="for 0 rows"):
        shapes.fitted_shapes(np.array([], int), np.array([3]))


def test_useful_share_counts_tokens_over_cells() -> None:
    batch = {"inputs": np.array([[5, 1, 0, 0], [5, 5, 5, 1]]), "loss_mask": np.array([[1.0, 0.0], [1.0, 1.0]])}
    assert useful_share(batch) == (6 + 3) / (8 + 4)
