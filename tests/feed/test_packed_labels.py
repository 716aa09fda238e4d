"""Rows with labels in packed rows: each example once, in a slot of its own, with the tokens and labels of the store."""

import functools
import itertools

import hypothesis
import numpy as np
import pytest
from batches import row_of
from hypothesis import strategies as st
from labelled_toy import labelled_store

from jaxmtl.feed.layout_choice import cheapest
from jaxmtl.feed.packed_labels import PackedLabels, labels
from jaxmtl.feed.packing import Packed, packed
from jaxmtl.feed.preview import task_lengths
from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import Draw, PooledSampler
from jaxmtl.feed.stream import train_stream
from jaxmtl.tasks.answers import IGNORED
from jaxmtl.types import InputError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return labelled_store(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def rows(store):
    return TaskRows(store, "train")


def taken(draw, members):
    return Draw(draw.task_ids[members], draw.example_ids[members])


def check_slot(rows, batch, slot, slots):
    """Compares what a slot and its packed row hold with the store."""
    task, example, row = int(batch["task_ids"][slot]), int(batch["example_ids"][slot]), slot // slots
    source, target = row_of(rows, task, example)
    columns = batch["example_columns"][slot]
    assert (columns[len(source) :] == -1).all()
    columns = columns[: len(source)]
    assert batch["inputs"][row, columns].tolist() == source.tolist()
    assert batch["input_positions"][row, columns].tolist() == list(range(len(source)))
    (segment,) = np.unique(batch["input_segments"][row, columns])
    assert segment > 0 and (batch["input_segments"][row] == segment).sum() == len(source)
    assert batch["targets"][slot, : len(target)].tolist() == target.tolist()
    counted = (target != IGNORED) / (target != IGNORED).sum()
    np.testing.assert_allclose(batch["loss_mask"][slot, : len(target)], counted, rtol=1e-6)
    assert not batch["loss_mask"][slot, len(target) :].any()


@hypothesis.given(st.lists(st.integers(0, 44), min_size=1, max_size=30), st.integers(1, 5), st.integers(0, 60))
@hypothesis.settings(deadline=None, max_examples=40)
def test_every_example_is_in_exactly_one_slot(rows, places, slots, more):
    ends = np.cumsum(rows.sizes)
    task_ids = np.searchsorted(ends, places, side="right").astype(np.int32)
    draw = Draw(task_ids, np.array(places) - (ends - rows.sizes)[task_ids])
    lengths = rows.lengths(draw)
    layout = Packed((48 + more, 48), 2, PackedLabels(slots=slots, longest=48))
    batches, waiting = layout.arrange(*lengths)
    found = [places[k] for k in waiting]
    for placed in batches:
        batch = layout.read(rows, taken(draw, placed.members), placed)
        used = np.flatnonzero(batch["example_ids"] >= 0)
        for slot in used:
            check_slot(rows, batch, slot, slots)
        empty = batch["example_ids"] < 0
        assert len(empty) == 2 * slots and not batch["loss_mask"][empty].any()
        assert (batch["example_columns"][empty] == -1).all()
        assert set(batch["task_ids"][empty]) <= set(batch["task_ids"][used])
        assert (batch["input_segments"] > 0).sum() == (batch["example_columns"] >= 0).sum()
        found += ((ends - rows.sizes)[batch["task_ids"][used]] + batch["example_ids"][used]).tolist()
    assert sorted(found) == sorted(places)


def test_a_stream_draws_each_example_once_per_epoch(store, rows):
    total, found = int(rows.sizes.sum()), []
    stream = train_stream(store, batch_size=9, sampler=PooledSampler, layout=packed, window=total // 9)
    assert total % 9 == 0 and isinstance(stream.layout, Packed)
    while True:
        batch, state = next(stream), stream.state()
        if state["batches"]:  # of the next epoch
            break
        real = batch["example_ids"] >= 0
        found += zip(batch["task_ids"][real].tolist(), batch["example_ids"][real].tolist(), strict=True)
    found += map(tuple, state["waiting"])
    every = [(task, example) for task, size in enumerate(rows.sizes.tolist()) for example in range(size)]
    assert sorted(found) == every


def test_hosts_have_the_rows_and_examples_of_the_whole_batch(store):
    make = functools.partial(train_stream, store, batch_size=16, layout=packed, multiple=4, window=4)
    whole = list(itertools.islice(make(), 3))
    hosts = [make(host_index=index, num_hosts=2) for index in range(2)]
    for batch in whole:
        shares = [next(host) for host in hosts]
        for name, field in batch.items():
            joined = np.concatenate([share[name] for share in shares])
            if name == "task_ids":  # a filler has the task of an example of its own host
                real = batch["example_ids"] >= 0
                field, joined = field[real], joined[real]
            np.testing.assert_array_equal(joined, field)


def test_rows_hold_half_as_many_again_as_on_average_and_are_chosen_where_they_cost_less(rows):
    lengths = [np.concatenate(side) for side in zip(*task_lengths(rows), strict=True)]
    one_each = np.full(100, 10), np.full(100, 3)
    assert labels(*one_each, (40, 8)) == PackedLabels(slots=6, longest=10)
    layout = packed(*lengths, batch_size=16, contents=labels)
    assert layout.contents.longest == lengths[0].max() and layout.shape[1] >= lengths[1].max()
    # Long labels take no room: packed rows cost what their inputs cost.
    batches, _ = layout.arrange(*(np.tile(side, 8) for side in lengths))
    filled = sum(np.tile(lengths[0], 8)[batch.members].sum() for batch in batches)
    assert filled > 0.85 * sum(batch.num_rows * batch.shape[0] for batch in batches)
    chosen = cheapest(*lengths, batch_size=64, layouts=(packed,), contents=labels)
    assert chosen.contents == layout.contents


def test_labels_are_not_packed_as_texts_and_must_fit(store, rows):
    stream = train_stream(store, batch_size=4, layout=lambda *lengths, contents, **options: packed(*lengths, **options))
    with pytest.raises(InputError, match="has labels; pack them as packed_labels.labels"):
        next(stream)
    with pytest.raises(InputError, match="packed rows hold \\(8, 8\\)"):
        train_stream(store, batch_size=4, layout=functools.partial(packed, shape=(8, 8)))
    with pytest.raises(InputError, match="0 examples of 4 tokens; expected 1 or more"):
        PackedLabels(slots=0, longest=4)
