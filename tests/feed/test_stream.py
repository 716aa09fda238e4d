import dataclasses
import functools
import itertools
import json
import pathlib
from collections import Counter

import hypothesis
import numpy as np
import pytest
from batches import check_rows, equal, rows_of
from hypothesis import strategies as st

from jaxmtl import tokenizers
from jaxmtl.feed.changing_rates import DynamicWeightAverage, FunctionRates, ReverseAnnealing
from jaxmtl.feed.grouping import Grouped, grouped, same_cost
from jaxmtl.feed.layout_choice import cheapest
from jaxmtl.feed.loss_history import DELAY
from jaxmtl.feed.packing import Packed, packed
from jaxmtl.feed.sampler import PooledSampler, Sampler
from jaxmtl.feed.shapes import Shapes, useful_share
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.stream import Stream, check_hosts, train_stream
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.tasks import rates
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import InputError

UNIFORM = functools.partial(Sampler, rates=rates.uniform)
ANNEALED = functools.partial(Sampler, rates=ReverseAnnealing(last_temperature=9.0, num_steps=11))
FOLLOWING = functools.partial(Sampler, rates=DynamicWeightAverage(loss_period=3, temperature=0.2))
LAYOUTS = [grouped, functools.partial(grouped, rows=same_cost), packed, cheapest]


def make_stream(store: TokenStore, **options: object) -> Stream:
    return train_stream(store, **{"batch_size": 8, "window": 4, "seed": 3, "sampler": UNIFORM, **options})


stream = make_stream


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
            "expected_tokens": np.float32,
        }


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


@hypothesis.given(
    st.integers(0, 13), st.integers(1, 5), st.sampled_from([UNIFORM, PooledSampler, ANNEALED]), st.sampled_from(LAYOUTS)
)
@hypothesis.settings(max_examples=25)
def test_resumed_stream_equals_unbroken_one(
    store: TokenStore, stop: int, window: int, sampler: object, layout: object
) -> None:
    stream = functools.partial(make_stream, layout=layout)
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


@pytest.mark.parametrize("layout", [packed, functools.partial(grouped, rows=same_cost)])
def test_other_hosts_go_on_with_the_rows_that_were_chosen_for_the_first_ones(store: TokenStore, layout: object) -> None:
    short = dict(batch_size=3, window=4, layout=layout)
    parts = [train_stream(store, host_index=index, num_hosts=2, **short) for index in range(2)]
    for part in parts:
        next(part)
    alone, other = train_stream(store, **short), train_stream(store, **short)
    assert alone.layout != parts[0].layout, "one host would choose other rows"
    alone.restore(parts[0].state())
    for _ in range(6):
        halves, whole = [next(part) for part in parts], next(alone)
        assert all((np.concatenate([half[name] for half in halves]) == whole[name]).all() for name in whole)
    assert alone.state() == parts[1].state()
    again = train_stream(store, **short)
    again.restore(alone.state())
    assert again.state() == alone.state()
    with pytest.raises(InputError, match="taken with other batch sizes"):
        other.restore({**parts[0].state(), "multiple": 1})
    with pytest.raises(InputError, match="cannot be shared by 5 hosts"):
        train_stream(store, host_index=0, num_hosts=5, **short).restore(parts[0].state())


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
        fixed = lambda *_, **__: Grouped(Shapes(pairs=[(96, 16)]), (8,))
        with pytest.raises(InputError, match=f"taken with other {name} .*{name}_store and this run"):
            stream(other, layout=fixed).restore(stream(store, layout=fixed).state())


@hypothesis.given(
    st.sampled_from(
        [
            "sampler",
            "window",
            "batches",
            "position",
            "seed",
            "tasks",
            "examples",
            "layout",
            "shapes",
            "rows",
            "multiple",
            "waiting",
        ]
    ),
    st.none() | st.integers(-3, 3) | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
)
def test_damaged_stream_states_are_input_errors(store: TokenStore, field: str, value: object) -> None:
    one = stream(store)
    next(one)
    state = one.state()
    if state[field] == value or field in ("position", "batches", "multiple") and isinstance(value, int) and 0 <= value:
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


@pytest.mark.parametrize(
    ("batch_size", "host", "hosts", "message"),
    [(8, 0, 3, "make it a multiple"), (8, 2, 2, "host index is 2"), (0, 0, 1, "make it a multiple")],
)
def test_hosts_must_divide_the_batch(batch_size: int, host: int, hosts: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_hosts([8, batch_size], host, hosts)


def test_windows_below_one_are_input_errors(store: TokenStore) -> None:
    with pytest.raises(InputError, match="window is 0"):
        stream(store, window=0)


def rows_in(batches: list) -> list[tuple[int, int]]:
    """The (task, example) pairs of packed or plain batches, in order."""
    found = []
    for batch in batches:
        first = batch["target_positions"] == 0 if "target_positions" in batch else np.s_[:]
        pairs = zip(batch["task_ids"][first].tolist(), batch["example_ids"][first].tolist(), strict=True)
        found += [pair for pair in pairs if pair[0] >= 0]
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [1, 3, 8])
def test_layouts_drop_nothing_and_repeat_nothing(store: TokenStore, window: int, layout: object) -> None:
    one = stream(store, window=window, layout=layout)
    found = rows_in(list(itertools.islice(one, 5 * window)))
    drawn = Sampler(store.sizes("train"), rates.uniform, 8, 3).draw(40 * window)
    pairs = list(zip(drawn.task_ids.tolist(), drawn.example_ids.tolist(), strict=True))
    state = one.state()
    ends = int(sum(one.counts()[0]))
    # All that was drawn is in a batch already, in one still to come of this window, or waits for the next.
    rest = [one._batches[place].members for place in range(state["position"], len(one._batches))]
    later = [(int(one._drawn.task_ids[k]), int(one._drawn.example_ids[k])) for group in rest for k in group]
    waiting = list(zip(one._waiting.task_ids.tolist(), one._waiting.example_ids.tolist(), strict=True))
    assert Counter(found + later + waiting) == Counter(pairs[:ends])


def test_a_window_of_one_step_keeps_the_drawn_order(store: TokenStore) -> None:
    drawn = Sampler(store.sizes("train"), rates.uniform, 8, 3).draw(5)
    found = rows_of(list(itertools.islice(stream(store, window=1), 5)))
    assert found == list(zip(drawn.task_ids.tolist(), drawn.example_ids.tolist(), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hosts_share_batches_of_every_layout(store: TokenStore, layout: object) -> None:
    options = {"layout": layout, "multiple": 4}
    whole = stream(store, **options)
    parts = [stream(store, host_index=index, num_hosts=4, **options) for index in range(4)]
    for batch in itertools.islice(whole, 9):
        found = [next(part) for part in parts]
        assert equal({name: np.concatenate([one[name] for one in found]) for name in batch}, batch)


def test_states_of_other_streams_are_refused(store: TokenStore) -> None:
    state = stream(store).state()
    others = {
        "window": {"window": 5},
        "seed": {"seed": 4},
        "batch_size": {"batch_size": 4, "layout": lambda *_, **__: stream(store).layout},
        "batch sizes": {"batch_size": 4},
        "mode": {"sampler": PooledSampler},
        "tasks": {"tasks": ["a"]},
        "examples": {"limit": 5},
        "layout": {"layout": packed},
        "shapes": {"layout": functools.partial(grouped, num_shapes=1)},
    }
    for name, options in others.items():
        with pytest.raises(InputError, match=rf"was taken with (other )?{name} .*; resume with"):
            stream(store, **options).restore(state)


def test_rows_that_do_not_fit_are_refused(store: TokenStore) -> None:
    for layout in (Grouped(Shapes(pairs=[(32, 16)]), (8,)), Packed((96, 8), 4)):
        with pytest.raises(InputError, match="tokens, but .* larger"):
            next(stream(store, layout=lambda *_, one=layout, **__: one))


@pytest.mark.parametrize("period", [4, 20])
def test_rates_that_follow_losses_resume_at_every_step_of_a_reader_that_is_ahead(
    store: TokenStore, period: int
) -> None:
    follow = lambda facts: 1 + np.nan_to_num(facts.losses[-1]) if len(facts.losses) else np.ones(4)
    rates_of_losses = FunctionRates(function=follow, loss_period=period, steady_steps=None)
    options = {"sampler": functools.partial(Sampler, rates=rates_of_losses), "window": 16}
    losses = lambda batch: (np.array([batch % 7, 1.0, batch % 5, 3.0]), np.ones(4))
    ahead, read, expected, saved = stream(store, **options), [], [], []
    for number in range(110):
        while len(read) < 3:
            read.append((next(ahead), json.dumps(ahead.state())))
        batch, state = read.pop(0)
        expected.append(batch)
        ahead.observe(*losses(number))
        saved.append((json.loads(state), json.loads(json.dumps(ahead.observed()))))
    for stop in range(1, 100, 3):
        resumed = stream(store, **options)
        resumed.restore(*saved[stop - 1])
        for number in range(stop, min(stop + 20, 110)):
            assert equal(next(resumed), expected[number]), (stop, number)
            resumed.observe(*losses(number))
    with pytest.raises(InputError, match="its losses are"):
        stream(store, **options).restore({**saved[50][0], "losses": "AAAA"}, saved[50][1])


def test_changing_rates_are_not_drawn_further_ahead_than_they_hold(store: TokenStore) -> None:
    annealed = lambda steps: functools.partial(Sampler, rates=ReverseAnnealing(last_temperature=9.0, num_steps=steps))
    found = [stream(store, window=256, sampler=annealed(steps)).window for steps in (10, 1000, 10**6)]
    assert found == [1, 20, 256]
    assert stream(store, window=256).window == 256


def test_rates_follow_losses_the_same_way_after_a_resume(store: TokenStore) -> None:
    def losses(batch: int) -> tuple[np.ndarray, np.ndarray]:
        return np.array([4.0, 1.0, 2.0, 3.0]) / (1 + batch * np.array([0.0, 1.0, 0.3, 0.1])), np.ones(4)

    def run(one: Stream, first: int, last: int) -> list:
        found = []
        for number in range(first, last):
            found.append(next(one))
            one.observe(*losses(number))
        return found

    options = {"sampler": FOLLOWING, "window": 4}
    unbroken = stream(store, **options)
    expected = run(unbroken, 0, 60)
    with pytest.raises(InputError, match="holds no losses"):
        stream(store, **options).restore(unbroken.state())
    drawn, asked = unbroken.counts()
    assert drawn[0] > 1.5 * drawn[1] and np.abs(drawn - asked).max() < 40  # the task that learns nothing is drawn more
    for stop in (0, 7, 23, 32):
        stopped = stream(store, **options)
        run(stopped, 0, stop)
        resumed = stream(store, **options)
        resumed.restore(*json.loads(json.dumps([stopped.state(), stopped.observed()])))
        assert all(equal(*pair) for pair in zip(run(resumed, stop, 60), expected[stop:], strict=True))


def test_shares_follow_the_last_two_periods_soon_after_they_are_over(store: TokenStore) -> None:
    sampler = functools.partial(Sampler, rates=DynamicWeightAverage(loss_period=40))
    one, levels = stream(store, sampler=sampler, window=256), np.array([[2, 2, 2, 2], [1, 2, 4, 6], [1, 1, 1, 1]])
    softmax = lambda ratios: np.exp(ratios) / np.exp(ratios).sum()
    shares = []
    for batch in range(120):
        next(one)
        shares.append(one.sampler.shares)
        one.observe(levels[batch // 40].astype(float), np.ones(4))
    late = 40 // 10 + DELAY  # the window that is drawn at once, and how far ahead of the losses draws may be
    assert np.array(shares[:80]) == pytest.approx(np.full((80, 4), 0.25))
    assert np.array(shares[80 + late :]) == pytest.approx(np.tile(softmax(levels[1] / levels[0]), (40 - late, 1)))
