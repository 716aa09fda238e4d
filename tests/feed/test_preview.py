import functools

import numpy as np
import pytest
from batches import equal, row_of

from jaxmtl.feed import preview as ahead
from jaxmtl.feed.changing_rates import DynamicWeightAverage, ReverseAnnealing
from jaxmtl.feed.grouping import Grouped, grouped
from jaxmtl.feed.layout import num_tokens
from jaxmtl.feed.packing import Packed, packed
from jaxmtl.feed.sampler import PooledSampler, Sampler
from jaxmtl.feed.shapes import Shapes
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.stream import Stream, train_stream
from jaxmtl.tasks import rates
from jaxmtl.types import InputError

LAYOUTS = {"grouped": grouped, "packed": packed}
SIZES = np.array([40, 7, 1, 90])


def look(stream: Stream, num_steps: int = 100) -> ahead.MixturePreview:
    return ahead.preview(stream, num_steps, cost=num_tokens, layouts=LAYOUTS)


def stream_of(store: TokenStore, sampler: object = PooledSampler, **options: object) -> Stream:
    return train_stream(store, batch_size=6, sampler=sampler, **options)


def test_tasks_are_expected_by_their_shares(store: TokenStore) -> None:
    found = look(stream_of(store, functools.partial(Sampler, rates=rates.uniform))).tasks
    assert [task.name for task in found] == store.task_names("train")
    assert [task.examples for task in found] == SIZES.tolist()
    assert [task.rows for task in found] == pytest.approx([150] * 4)
    assert [task.epochs for task in found] == pytest.approx((150 / SIZES).tolist())
    assert [(task.first_share, task.last_share) for task in found] == [(0.25, 0.25)] * 4


def test_lengths_are_those_of_the_examples(store: TokenStore) -> None:
    for task in look(stream_of(store)).tasks:
        rows = [store.examples(task.name, "train").row(index) for index in range(task.examples)]
        for place, mean, long in (
            (0, task.mean_input_tokens, task.long_input_tokens),
            (1, task.mean_target_tokens, task.long_target_tokens),
        ):
            lengths = sorted(len(row[place]) for row in rows)
            assert mean == pytest.approx(sum(lengths) / len(lengths))
            # The shortest length that at least 99 of 100 examples do not exceed.
            assert long == lengths[-(-99 * len(lengths) // 100) - 1]


def test_a_limit_counts_only_the_examples_that_it_keeps(store: TokenStore) -> None:
    stream = stream_of(store, limit=5)
    found = look(stream).tasks
    assert [task.examples for task in found] == [5, 5, 1, 5]
    kept = [len(row_of(stream.rows, 0, example)[0]) for example in range(5)]
    assert found[0].mean_input_tokens == pytest.approx(sum(kept) / 5)


def test_rates_that_change_are_averaged_over_the_steps(store: TokenStore) -> None:
    annealing = ReverseAnnealing(last_temperature=5, num_steps=9)
    found = look(stream_of(store, functools.partial(Sampler, rates=annealing)), 10).tasks
    weights = [SIZES ** (1 / (1 + 4 * step / 9)) for step in range(10)]
    shares = np.array([one / one.sum() for one in weights])
    assert [task.first_share for task in found] == pytest.approx(shares[0].tolist())
    assert [task.last_share for task in found] == pytest.approx(shares[-1].tolist())
    assert [task.rows for task in found] == pytest.approx((6 * shares.sum(axis=0)).tolist())


def test_many_steps_are_looked_at_in_part(store: TokenStore) -> None:
    annealing = ReverseAnnealing(last_temperature=5, num_steps=20_000)
    sampler = Sampler(SIZES, annealing, batch_size=1, seed=0)
    every = np.mean([sampler.shares_at(step) for step in range(20_000)], axis=0)
    assert ahead.expected_shares(sampler, 20_000) == pytest.approx(every, abs=1e-4)


def test_what_is_expected_is_what_is_drawn(store: TokenStore) -> None:
    annealing = ReverseAnnealing(last_temperature=9, num_steps=400)
    stream = stream_of(store, functools.partial(Sampler, rates=annealing), window=50)
    expected = np.array([task.rows for task in look(stream, 400).tasks])
    counts = np.zeros(4)
    for _ in range(400):
        counts += np.bincount(next(stream)["task_ids"], minlength=4)
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected)).all()


def test_a_preview_does_not_move_the_stream(store: TokenStore) -> None:
    stream, other = stream_of(store), stream_of(store)
    look(stream)
    assert stream.state() == other.state()
    assert equal(next(stream), next(other))


def test_rates_that_follow_losses_say_so(store: TokenStore) -> None:
    average = functools.partial(Sampler, rates=DynamicWeightAverage(loss_period=2))
    assert look(stream_of(store, average)).follows_losses
    assert not look(stream_of(store)).follows_losses


def test_fixed_rows_are_padded_to_the_longest_of_all(store: TokenStore) -> None:
    found = look(stream_of(store)).layouts[ahead.FIXED]
    inputs, targets = store.lengths("train")
    cells = int(inputs.max() + targets.max())
    assert found.shapes == ((inputs.max(), targets.max(), 6),)
    assert (found.cost, found.examples_per_batch) == (cells, 6)
    # Pooled draws are of all examples alike, so the padding is close to that of the whole split.
    assert found.padding == pytest.approx(1 - (inputs + targets).mean() / cells, abs=0.02)


def test_layouts_are_ordered_as_they_waste(store: TokenStore) -> None:
    found = look(stream_of(store)).layouts
    assert list(found) == [ahead.FIXED, ahead.DRAWN, ahead.USED, "packed"], "the stream's own is grouped"
    costs = [found[name].cost for name in (ahead.FIXED, ahead.DRAWN, ahead.USED)]
    assert costs == sorted(costs, reverse=True)
    assert (found[ahead.USED].kind, len(found[ahead.USED].shapes)) == ("grouped", 8)
    assert list(look(stream_of(store, layout=packed)).layouts)[2:] == [ahead.USED, "grouped"]


def test_batches_that_hold_more_examples_draw_more(store: TokenStore) -> None:
    found = look(stream_of(store, layout=lambda *lengths, **options: Packed((300, 60), 4)))
    per_batch = found.layouts[ahead.USED].examples_per_batch
    assert per_batch > 6
    assert sum(task.rows for task in found.tasks) == pytest.approx(100 * per_batch)


def test_a_layout_is_tried_on_rows_by_hand() -> None:
    drawn = ahead.Sample(np.array([4, 7, 8, 3, 8]), np.array([1, 2, 1, 1, 2]), np.array([5, 5, 5, 2, 5]))
    layout = Grouped(Shapes(pairs=[(4, 1), (8, 2)]), (2, 2))
    found = ahead.try_layout(layout, drawn, num_rows=3, cost=lambda source, target: source * target)
    # Row 0 alone fills no batch of 4x1, so it joins row 1 in 8x2; row 2 waits for the next three rows, of which row 3
    # joins it in the same way; row 4 fills nothing.
    assert found.examples_per_batch == 2 and found.shapes == ((4, 1, 2), (8, 2, 2))
    assert found.cost == 4 * 16 / 4
    assert found.tasks_per_batch == (1 + 2) / 2
    assert found.padding == pytest.approx(1 - (4 + 1 + 7 + 2 + 8 + 1 + 3 + 1) / (4 * 10))
    bins = ahead.try_layout(Packed((8, 3), 1), drawn, num_rows=5, cost=num_tokens)
    # Bins in the order of opening: rows 0 and 3; 1; 2; 4.
    assert (bins.examples_per_batch, bins.cost) == (5 / 4, 4 * 11 / 5)
    assert bins.padding == pytest.approx(1 - (30 + 7) / 44)


def test_rows_that_fill_no_batch_cost_nothing_that_is_known() -> None:
    layout = Grouped(Shapes(pairs=[(8, 2)]), (9,))
    drawn = ahead.Sample(np.array([3, 4]), np.array([1, 1]), np.array([0, 1]))
    found = ahead.try_layout(layout, drawn, num_rows=2, cost=num_tokens)
    assert (found.examples_per_batch, found.tasks_per_batch, found.padding, found.cost) == (0, 0, 0, 0)


def test_a_preview_of_no_steps_is_refused(store: TokenStore) -> None:
    with pytest.raises(InputError, match="preview of 0 steps"):
        look(stream_of(store), 0)


def test_only_streams_of_rows_can_be_looked_at_ahead():
    with pytest.raises(InputError, match="a object cannot be looked at ahead"):
        ahead.check_rows(object())
