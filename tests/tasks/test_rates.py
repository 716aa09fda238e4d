import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmtl.tasks import rates
from jaxmtl.types import InputError

SIZES = [0, 1, 10, 400]


def test_known_values():
    np.testing.assert_array_equal(rates.uniform(SIZES), [0, 1, 1, 1])
    np.testing.assert_array_equal(rates.proportional(SIZES), [0, 1, 10, 400])
    np.testing.assert_array_equal(rates.capped(SIZES, 20), [0, 1, 10, 20])
    np.testing.assert_allclose(rates.temperature(SIZES, 2), [0, 1, 10**0.5, 20], rtol=1e-15)
    np.testing.assert_allclose(rates.temperature(SIZES, 2, limit=100), [0, 1, 10**0.5, 10], rtol=1e-15)


def test_temperature_runs_from_proportional_to_uniform():
    np.testing.assert_array_equal(rates.temperature(SIZES, 1), rates.proportional(SIZES))
    np.testing.assert_array_equal(rates.temperature(SIZES, np.inf), rates.uniform(SIZES))


@given(st.lists(st.integers(0, 10**9), max_size=8), st.floats(0.5, 1000))
def test_weights_are_elementwise_float64(sizes, temperature):
    functions = (
        rates.uniform,
        rates.proportional,
        lambda n: rates.capped(n, 50),
        lambda n: rates.temperature(n, temperature),
    )
    for function in functions:
        whole = function(sizes)
        assert whole.dtype == np.float64 and whole.shape == (len(sizes),)
        # numpy's vectorised power may differ from its scalar one in the last bit
        np.testing.assert_allclose(whole, [float(function(size)) for size in sizes], rtol=1e-15)


def test_weights_are_a_copy():
    sizes = np.array([1.0, 2.0])
    rates.proportional(sizes)[0] = 7
    assert sizes[0] == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: rates.uniform([-1]),
        lambda: rates.proportional([np.nan]),
        lambda: rates.capped([1], 0),
        lambda: rates.temperature([1], 0),
        lambda: rates.temperature([1], float("nan")),
        lambda: rates.temperature([10**9], 0.01),
    ],
)
def test_senseless_numbers_are_refused(call):
    with pytest.raises(InputError, match="expected"):
        call()
