import itertools
import json
import math
import tracemalloc
from collections import Counter

import hypothesis
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from jaxmtl.feed.permutation import permute, random_bits, random_units, stream_key
from jaxmtl.feed.sampler import AnySampler, PooledSampler, Sampler
from jaxmtl.tasks import rates
from jaxmtl.types import InputError

KEY = np.uint64(77)
sizes_and_seed = (st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 2**40))


def make(mode: str, sizes: list[int], batch_size: int, seed: int) -> AnySampler:
    if mode == "pooled":
        return PooledSampler(sizes, batch_size, seed)
    return Sampler(sizes, rates.proportional, batch_size, seed)


def full_order(size: int, key: np.uint64) -> np.ndarray:
    return permute(np.arange(size), np.full(size, size), np.full(size, key))


@hypothesis.given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_permutation_holds_every_item_once(size: int, key: int) -> None:
    assert np.array_equal(np.sort(full_order(size, np.uint64(key))), np.arange(size))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_orders_of_few_items_are_equally_likely(size: int) -> None:
    keys = random_bits(KEY, np.arange(40_000))
    orders = np.stack([permute(np.full(keys.size, k), np.full(keys.size, size), keys) for k in range(size)], axis=1)
    counts = Counter(map(tuple, orders.tolist()))
    observed = [counts[order] for order in itertools.permutations(range(size))]
    assert len(observed) == math.factorial(size)
    assert scipy.stats.chisquare(observed).pvalue > 1e-4


@pytest.mark.parametrize("size", [26, 100])
def test_first_and_last_places_are_independent(size: int) -> None:
    keys = random_bits(KEY, np.arange(60_000))
    first, last = (permute(np.full(keys.size, k), np.full(keys.size, size), keys) for k in (0, size - 1))
    table = np.bincount(first * size + last, minlength=size * size).reshape(size, size)
    assert np.trace(table) == 0
    assert scipy.stats.chisquare(table[~np.eye(size, dtype=bool)]).pvalue > 1e-4


def test_a_permutation_of_a_billion_items_needs_no_memory() -> None:
    places = np.array([0, 1, 999_999_999])
    tracemalloc.start()
    found = permute(places, np.full(3, 10**9), np.full(3, KEY))
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    assert len(set(found.tolist())) == 3 and found.min() >= 0 and found.max() < 10**9


def test_random_bits_are_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 1234567, as published with the algorithm.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert random_bits(np.uint64(1234567), np.arange(3)).tolist() == expected


def test_fractions_are_evenly_spread() -> None:
    units = random_units(stream_key(0, "x"), np.arange(100_000))
    assert scipy.stats.kstest(units, "uniform").pvalue > 1e-4
    assert units.min() >= 0 and units.max() < 1


@pytest.mark.parametrize("mode", ["rates", "pooled"])
@hypothesis.given(*sizes_and_seed, st.integers(1, 7), st.integers(0, 12))
def test_resumed_draws_equal_unbroken_ones(mode: str, sizes: list[int], seed: int, batch_size: int, stop: int) -> None:
    unbroken = make(mode, sizes, batch_size, seed)
    draws = [unbroken.draw() for _ in range(stop + 4)]
    stopped = make(mode, sizes, batch_size, seed)
    for _ in range(stop):
        stopped.draw()
    resumed = make(mode, sizes, batch_size, seed)
    resumed.restore(json.loads(json.dumps(stopped.state())))
    for expected in draws[stop:]:
        found = resumed.draw()
        assert np.array_equal(found.task_ids, expected.task_ids)
        assert np.array_equal(found.example_ids, expected.example_ids)


@pytest.mark.parametrize("mode", ["rates", "pooled"])
@hypothesis.given(*sizes_and_seed, st.integers(1, 7), st.integers(1, 9))
def test_many_steps_at_once_equal_single_steps(
    mode: str, sizes: list[int], seed: int, batch_size: int, steps: int
) -> None:
    single = make(mode, sizes, batch_size, seed)
    draws = [single.draw() for _ in range(steps)]
    together = make(mode, sizes, batch_size, seed).draw(steps)
    assert np.array_equal(together.task_ids, np.concatenate([draw.task_ids for draw in draws]))
    assert np.array_equal(together.example_ids, np.concatenate([draw.example_ids for draw in draws]))
    assert (together.task_ids.dtype, together.example_ids.dtype) == (np.int32, np.int64)


@hypothesis.given(*sizes_and_seed)
def test_each_task_is_drawn_without_replacement_within_an_epoch(sizes: list[int], seed: int) -> None:
    draw = Sampler(sizes, rates.uniform, 5, seed).draw(60)
    for task, size in enumerate(sizes):
        seen = draw.example_ids[draw.task_ids == task]
        for start in range(0, len(seen), size):
            epoch = seen[start : start + size]
            assert len(set(epoch.tolist())) == len(epoch)
            assert epoch.min() >= 0 and epoch.max() < size


def test_epochs_have_different_orders() -> None:
    draw = Sampler([50], rates.uniform, 50, 3).draw(2)
    first, second = draw.example_ids.reshape(2, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)


@hypothesis.given(*sizes_and_seed, st.integers(1, 7))
def test_pooled_visits_every_example_once_per_epoch(sizes: list[int], seed: int, batch_size: int) -> None:
    total = sum(sizes)
    draw = PooledSampler(sizes, batch_size, seed).draw(-(-2 * total // batch_size))
    rows = list(zip(draw.task_ids.tolist(), draw.example_ids.tolist(), strict=True))
    every = [(task, example) for task, size in enumerate(sizes) for example in range(size)]
    assert sorted(rows[:total]) == sorted(rows[total : 2 * total]) == every


@pytest.mark.parametrize(
    "rate", [rates.uniform, rates.proportional, lambda s: rates.capped(s, 100), lambda s: rates.temperature(s, 3.0)]
)
def test_draws_follow_the_rates(rate: object) -> None:
    sizes = np.array([26, 100, 1000, 5000, 3, 250_000, 0])
    sampler = Sampler(sizes, rate, 16, 11)
    counts = np.bincount(sampler.draw(4000).task_ids, minlength=len(sizes))
    weights = np.asarray(rate(sizes))  # pyright: ignore[reportCallIssue]  (all of these are functions)
    asked = weights > 0
    assert counts[~asked].sum() == 0
    expected = weights[asked] / weights.sum() * counts.sum()
    assert scipy.stats.chisquare(counts[asked], expected).pvalue > 1e-4
    assert np.allclose(sampler.shares, weights / weights.sum())


def test_other_seeds_draw_other_rows_and_the_same_seed_the_same() -> None:
    draws = [Sampler([100, 200], rates.uniform, 16, seed).draw(4) for seed in (1, 1, 2)]
    assert np.array_equal(draws[0].example_ids, draws[1].example_ids)
    assert not np.array_equal(draws[0].example_ids, draws[2].example_ids)


def test_draws_are_pinned() -> None:
    # A change here breaks every saved run: bump the store's or state's version instead of editing the numbers.
    draw = Sampler([5, 1000, 70], [1.0, 2.0, 1.0], 6, 42).draw()
    assert draw.task_ids.tolist() == [1, 2, 2, 1, 1, 1]
    assert draw.example_ids.tolist() == [749, 61, 34, 422, 186, 51]


def test_the_state_of_1600_tasks_is_a_few_kilobytes() -> None:
    sizes = np.random.default_rng(0).integers(26, 5000, 1600)
    sampler = Sampler(sizes, rates.proportional, 16, 0)
    sampler.draw(20_000)
    assert len(json.dumps(sampler.state())) < 8_000


def test_huge_tasks_need_no_memory() -> None:
    tracemalloc.start()
    Sampler([10**9, 26], rates.uniform, 16, 0).draw(10)
    PooledSampler([10**9, 26], 16, 0).draw(10)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("sizes", "rate", "batch_size", "message"),
    [
        ([], rates.uniform, 1, "expected a list of whole numbers"),
        ([1.5], rates.uniform, 1, "expected a list of whole numbers"),
        ([3, -1], rates.uniform, 1, "task 1 has size -1"),
        ([3], rates.uniform, 0, "batch size is 0"),
        ([3, 0], [1, 1], 1, "rate of task 1 is 1.0 with 0 examples"),
        ([3, 4], [1, math.nan], 1, "rate of task 1 is nan"),
        ([3, 4], [-1, 1], 1, "rate of task 0 is -1.0"),
        ([3, 4], [1], 1, "one for each of the 2 tasks"),
        ([3, 4], [0, 0], 1, "all rates are 0"),
        ([0], rates.uniform, 1, "all rates are 0"),
        ([3, 4], "uniform", 1, "rates are 'uniform'; expected numbers or a function such as @rates.uniform"),
        ([3, 4], [1, "x"], 1, r"rates are \[1, 'x'\]; expected numbers"),
    ],
)
def test_senseless_arguments_are_input_errors(sizes: list, rate: object, batch_size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampler(sizes, rate, batch_size, 0)


def test_pooled_refuses_tasks_without_examples() -> None:
    with pytest.raises(InputError, match="none of the tasks has an example"):
        PooledSampler([0, 0], 2, 0)


def test_states_of_other_runs_are_refused() -> None:
    state = Sampler([5, 6], rates.uniform, 4, 0).state()
    for other in (
        Sampler([5, 7], rates.uniform, 4, 0),
        Sampler([5, 6], rates.uniform, 5, 0),
        Sampler([5, 6], rates.uniform, 4, 1),
        PooledSampler([5, 6], 4, 0),
    ):
        with pytest.raises(InputError, match="sampler state was taken with"):
            other.restore(state)


@hypothesis.given(
    st.sampled_from(["mode", "seed", "batch_size", "sizes", "step", "cursors"]),
    st.none() | st.integers(-3, 9) | st.text(max_size=8) | st.lists(st.integers(), max_size=2),
)
def test_damaged_states_are_input_errors(field: str, value: object) -> None:
    sampler = Sampler([5, 6], rates.uniform, 4, 0)
    sampler.draw(3)
    state = sampler.state()
    if state[field] == value:
        return
    with pytest.raises(InputError, match="sampler state"):
        sampler.restore({**state, field: value})
