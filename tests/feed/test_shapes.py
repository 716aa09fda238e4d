import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxmtl.feed.shapes import Shapes, cheapest_shapes, useful_share
from jaxmtl.types import InputError

lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 24)), min_size=1, max_size=10)


def quadratic(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return inputs + inputs**2 / 50 + 3 * targets


def total(pairs: list, rows: list, cost: object) -> float:
    fitting = [[cost(np.float64(s), np.float64(t)) for s, t in pairs if s >= row[0] and t >= row[1]] for row in rows]
    return sum(min(costs) for costs in fitting)


@hypothesis.given(lengths, st.integers(1, 3))
@hypothesis.settings(max_examples=60, deadline=None)
def test_chosen_shapes_hold_all_rows_and_cost_nearly_the_least(rows: list, count: int) -> None:
    array = np.array(rows)
    found = list(cheapest_shapes(array[:, 0], array[:, 1], num_shapes=count, cost=quadratic).pairs)
    top = tuple(-(-array.max(axis=0) // 8) * 8)
    grid = list(itertools.product(range(8, top[0] + 1, 8), range(8, top[1] + 1, 8)))
    best = min(total([*some, top], rows, quadratic) for some in itertools.product(grid, repeat=min(count - 1, 2)))
    assert found[-1] == top and len(found) <= count
    # The search adds and moves one shape at a time; it is exact for two shapes and misses little for three.
    assert total(found, rows, quadratic) <= best * (1.0 if count < 3 else 1.15) + 1e-9
    costs = [quadratic(*map(np.float64, pair)) for pair in found]
    assert costs == sorted(costs)


def test_very_long_rows_are_held() -> None:
    inputs = np.random.default_rng(0).integers(1, 100_000, 10_000)
    assert cheapest_shapes(inputs, np.full(10_000, 3)).pairs[-1] == (-(-inputs.max() // 8) * 8, 8)


def test_choosing_needs_rows_and_shapes() -> None:
    with pytest.raises(InputError, match="for 0 rows"):
        cheapest_shapes(np.array([], int), np.array([], int))
    with pytest.raises(InputError, match="choose 0 shapes"):
        cheapest_shapes(np.array([3]), np.array([3]), num_shapes=0)


def test_the_cheapest_shape_that_holds_a_row_is_taken() -> None:
    shapes = Shapes(pairs=[(8, 8), (24, 8), (8, 24), (32, 32)])
    assert [shapes.fit(*row) for row in ((8, 1), (9, 8), (1, 9), (9, 9))] == list(shapes.pairs)
    with pytest.raises(InputError, match="33 input and 1 target tokens"):
        shapes.fit(33, 1)


@pytest.mark.parametrize("pairs", [(), [(0, 8)], [(8, 8), (4, 16)], [(8, 8), (16, 4)], [(-8, 8)]])
def test_senseless_shapes_are_input_errors(pairs: list) -> None:
    with pytest.raises(InputError, match="expected pairs of input and target lengths above 0"):
        Shapes(pairs=pairs)


def test_useful_share_counts_tokens_over_cells() -> None:
    batch = {"inputs": np.array([[5, 1, 0, 0], [5, 5, 5, 1]]), "loss_mask": np.array([[1.0, 0.0], [1.0, 1.0]])}
    assert useful_share(batch) == (6 + 3) / (8 + 4)
