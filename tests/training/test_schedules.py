import math

import pytest

from jaxmtl.training import schedules
from jaxmtl.types import InputError


def test_constant_is_the_rate_everywhere():
    assert float(schedules.constant(rate=0.5)(12345)) == 0.5


@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (5, 0.5), (10, 1.0), (60, 0.55), (110, 0.1), (500, 0.1)])
def test_linear_rises_then_falls(step, rate):
    schedule = schedules.linear(peak=1.0, num_steps=110, warmup_steps=10, end=0.1)
    assert float(schedule(step)) == pytest.approx(rate, abs=1e-6)


@pytest.mark.parametrize("step", [0, 3, 10, 30, 60, 110, 200])
def test_cosine_is_half_a_cosine_after_the_warmup(step):
    schedule = schedules.cosine(peak=2.0, num_steps=110, warmup_steps=10, end=0.5)
    fall = 0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi * min((step - 10) / 100, 1)))
    assert float(schedule(step)) == pytest.approx(0.2 * step if step < 10 else fall, abs=1e-5)


@pytest.mark.parametrize("step", [0, 100, 10_000, 40_000])
def test_rsqrt_is_the_rate_of_t5s_pretraining(step):
    schedule = schedules.rsqrt(peak=0.01, hold_steps=10_000)
    assert float(schedule(step)) == pytest.approx(1 / math.sqrt(max(step, 10_000)), rel=1e-5)


@pytest.mark.parametrize("warmup_steps", [-1, 10, 11])
def test_a_warmup_that_does_not_fit_is_refused(warmup_steps):
    with pytest.raises(InputError, match="warmup_steps"):
        schedules.linear(peak=1.0, num_steps=10, warmup_steps=warmup_steps)
    with pytest.raises(InputError, match="warmup_steps"):
        schedules.cosine(peak=1.0, num_steps=10, warmup_steps=warmup_steps)


def test_rsqrt_refuses_to_hold_for_no_step():
    with pytest.raises(InputError, match="hold_steps"):
        schedules.rsqrt(peak=1.0, hold_steps=0)
