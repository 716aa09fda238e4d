import functools

import hypothesis
import numpy as np
import pytest
from batches import row_of
from hypothesis import strategies as st

from jaxmtl.feed.bins import BLOCK, first_fit
from jaxmtl.feed.grouping import Grouped, grouped, same_cost
from jaxmtl.feed.layout import num_tokens, on_host
from jaxmtl.feed.layout_choice import cheapest, trial
from jaxmtl.feed.packing import Packed, packed
from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import Draw
from jaxmtl.feed.shapes import Shapes
from jaxmtl.feed.store import TokenStore
from jaxmtl.types import InputError

rows_of_lengths = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=50)
MAKE = [grouped, functools.partial(grouped, rows=same_cost, multiple=2), functools.partial(packed, multiple=2)]


def split(rows: list) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(rows)
    return array[:, 0], array[:, 1]


@hypothesis.given(rows_of_lengths, st.integers(1, 6), st.sampled_from(MAKE))
@hypothesis.settings(deadline=None)
def test_every_row_is_in_one_batch_or_waits(rows: list, batch_size: int, make: object) -> None:
    inputs, targets = split(rows)
    layout = make(inputs, targets, batch_size=batch_size, cost=num_tokens)
    batches, waiting = layout.arrange(inputs, targets)
    members = np.concatenate([*(batch.members for batch in batches), waiting])
    assert sorted(members.tolist()) == list(range(len(rows)))
    for batch in batches:
        source = np.bincount(batch.bins, inputs[batch.members], batch.num_rows)
        target = np.bincount(batch.bins, targets[batch.members], batch.num_rows)
        assert source.max() <= batch.shape[0] and target.max() <= batch.shape[1]
        assert source.min() > 0, "an empty row"
        # Else more would be compiled than were asked for.
        identity = layout.identity()
        assert ([*batch.shape], batch.num_rows) in zip(identity["shapes"], identity["rows"], strict=True)


@hypothesis.given(rows_of_lengths)
def test_first_fit_takes_the_first_bin_with_room(rows: list) -> None:
    found = first_fit(np.array(rows), np.array([60, 20]))
    room: list[list[int]] = []
    for number, (source, target) in enumerate(rows):
        place = next((k for k, (s, t) in enumerate(room) if s >= source and t >= target), len(room))
        if place == len(room):
            room.append([60, 20])
        room[place] = [room[place][0] - source, room[place][1] - target]
        assert found[number] == place


def test_rows_that_fill_no_batch_move_to_a_larger_shape() -> None:
    layout = Grouped(Shapes(pairs=[(8, 8), (16, 8), (16, 16)]), (2, 2, 2))
    inputs, targets = np.array([8, 8, 8, 16, 4, 9]), np.array([1, 1, 1, 1, 9, 1])
    batches, waiting = layout.arrange(inputs, targets)
    # Three rows are of the first shape: two fill a batch, the third one meets row 3; rows 4 and 5 need the largest.
    assert [(batch.members.tolist(), batch.shape) for batch in batches] == [
        ([0, 1], (8, 8)),
        ([2, 3], (16, 8)),
        ([4, 5], (16, 16)),
    ]
    assert waiting.size == 0


def test_batches_of_like_cost_have_more_short_rows() -> None:
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(1, 500, 1000), rng.integers(1, 20, 1000)
    layout = grouped(inputs, targets, batch_size=16, multiple=4, cost=num_tokens, rows=same_cost)
    cells = [size * sum(pair) for size, pair in zip(layout.num_rows, layout.shapes.pairs, strict=True)]
    assert all(size % 4 == 0 for size in layout.num_rows) and layout.num_rows[0] > 2 * layout.num_rows[-1]
    assert max(cells) < 1.6 * min(cells)


def test_a_packed_batch_holds_its_rows_one_after_another(store: TokenStore) -> None:
    rows = TaskRows(store, "train")
    draw = Draw(np.array([0, 3, 0, 3, 1], np.int32), np.array([5, 1, 2, 80, 6]))
    layout = Packed((280, 64), 2)
    lengths = rows.lengths(draw)
    (placed,), waiting = layout.arrange(*lengths)
    assert waiting.size == 0
    batch = layout.read(rows, Draw(draw.task_ids[placed.members], draw.example_ids[placed.members]), placed)
    found = []
    for row in range(2):
        for segment in range(1, batch["input_segments"][row].max() + 1):
            cells, heads = batch["input_segments"][row] == segment, batch["target_segments"][row] == segment
            (task,), (example,) = np.unique(batch["task_ids"][row][heads]), np.unique(batch["example_ids"][row][heads])
            source, target = row_of(rows, int(task), int(example))
            assert batch["inputs"][row][cells].tolist() == source.tolist()
            assert batch["targets"][row][heads].tolist() == target.tolist()
            assert batch["input_positions"][row][cells].tolist() == list(range(len(source)))
            assert batch["target_positions"][row][heads].tolist() == list(range(len(target)))
            found.append((int(task), int(example)))
    assert sorted(found) == sorted(zip(draw.task_ids.tolist(), draw.example_ids.tolist(), strict=True))
    empty = batch["target_segments"] == 0
    assert not batch["loss_mask"][empty].any() and (batch["loss_mask"][~empty] == 1).all()
    assert (batch["task_ids"][empty] == -1).all() and (batch["example_ids"][empty] == -1).all()
    assert not batch["inputs"][batch["input_segments"] == 0].any()


def test_hosts_have_disjoint_and_complete_shares() -> None:
    inputs, targets = np.full(24, 10), np.full(24, 3)
    (batch,), _ = Packed((30, 9), 8).arrange(inputs, targets)
    shares = [on_host(batch, index, 4) for index in range(4)]
    assert [share.num_rows for share, _ in shares] == [2] * 4
    assert np.concatenate([share.members for share, _ in shares]).tolist() == batch.members.tolist()
    assert all(set(share.bins) == {0, 1} for share, _ in shares)


def test_the_cheaper_layout_is_taken() -> None:
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(10, 100, 3000), rng.integers(2, 9, 3000)
    few = functools.partial(grouped, num_shapes=1)  # pads nearly twice: packing wastes less
    assert isinstance(cheapest(inputs, targets, batch_size=64, layouts=(few, packed)), Packed)
    steep = lambda source, target: source**3 + target  # a packed row pays dearly for its length
    assert isinstance(cheapest(inputs, targets, batch_size=64, cost=steep), Grouped)


def test_the_choice_keeps_to_the_batch_size_on_any_number_of_devices() -> None:
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(10, 100, 3000), rng.integers(2, 9, 3000)
    few = functools.partial(grouped, num_shapes=1)
    for devices in (1, 2, 4, 8, 64):
        chosen = cheapest(inputs, targets, batch_size=64, multiple=devices, layouts=(few, packed))
        assert trial(chosen, inputs, targets, batch_size=64, cost=num_tokens).examples == pytest.approx(64, rel=0.1)
        assert isinstance(chosen, Packed if devices <= 8 else Grouped)
    choices = [cheapest(inputs, targets, batch_size=64, multiple=n, layouts=(few, packed)) for n in (1, 2, 8)]
    assert choices[0] == choices[1] == choices[2], "a run goes on elsewhere with the same batches"
    # Eight rows of 200 tokens would hold far more than 8 examples.
    assert isinstance(cheapest(inputs, targets, batch_size=8, layouts=(few, packed)), Grouped)


def test_packing_looks_no_further_than_a_block() -> None:
    lengths = np.full(3 * BLOCK, 1)
    lengths[0] = 9  # leaves room for one, which the row behind it takes
    bins = first_fit(lengths[:, None], np.array([10]))
    assert bins[1] == 0 and (np.diff(bins) >= 0).all()
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 10, 2 * BLOCK)
    bins = first_fit(lengths[:, None], np.array([10]))
    assert bins[:BLOCK].max() + 1 == bins[BLOCK:].min()
    assert np.bincount(bins, lengths).max() <= 10


def test_costs_are_counted_per_example() -> None:
    layout = Grouped(Shapes(pairs=[(8, 8), (16, 8)]), (1, 1))
    tried = lambda layout: trial(layout, np.array([8]), np.array([8]), batch_size=1, cost=num_tokens)
    assert tried(layout) == (16, 1)
    assert tried(Packed((16, 16), 1)) == (16, 2)
    assert tried(Packed((8, 8), 10**6)) == (float("inf"), 0)


def test_senseless_layouts_are_input_errors() -> None:
    with pytest.raises(InputError, match="expected 1 or more for each"):
        Grouped(Shapes(pairs=[(8, 8)]), (1, 2))
    with pytest.raises(InputError, match="0 rows of"):
        Packed((8, 8), 0)
    with pytest.raises(InputError, match="there are no rows"):
        packed(np.array([], int), np.array([], int), batch_size=2)
    with pytest.raises(InputError, match="packed rows hold"):
        packed(np.array([9]), np.array([1]), batch_size=2, shape=(8, 8))


def test_a_limit_keeps_a_seeded_choice_that_a_larger_one_adds_to(store: TokenStore) -> None:
    def kept(limit: int | None, seed: int = 0) -> set:
        rows = TaskRows(store, "train", ["a"], limit=limit, seed=seed)
        assert rows.sizes.tolist() == [min(90, limit or 90)]
        return {tuple(row_of(rows, 0, k)[0].tolist()) for k in range(int(rows.sizes[0]))}

    assert len(kept(10)) == 10 and kept(10) < kept(50) < kept(90) == kept(None)
    assert kept(10) != kept(10, seed=1)
    rows = TaskRows(store, "train", ["a"], limit=10)
    draw = Draw(np.zeros(10, np.int32), np.arange(10))
    assert rows.lengths(draw)[0].tolist() == [len(row_of(rows, 0, k)[0]) for k in range(10)]
    with pytest.raises(InputError, match="limit of examples"):
        TaskRows(store, "train", limit=0)
