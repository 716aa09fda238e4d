import math

import jax
import pytest

from jaxmtl.training import schedules
from jaxmtl.types import InputError


def test_constant_with_warmup_rises_and_stays():
    schedule = schedules.constant_with_warmup(peak=0.5, warmup_steps=10)
    assert [float(schedule(step)) for step in (0, 5, 10, 12345)] == [0.0, 0.25, 0.5, 0.5]
    assert float(schedules.constant_with_warmup(peak=0.5, warmup_steps=0)(0)) == 0.5


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
    with pytest.raises(InputError, match="warm-up steps"):
        schedules.linear(peak=1.0, num_steps=10, warmup_steps=warmup_steps)
    with pytest.raises(InputError, match="warm-up steps"):
        schedules.cosine(peak=1.0, num_steps=10, warmup_steps=warmup_steps)


def test_rsqrt_refuses_to_hold_for_no_step():
    with pytest.raises(InputError, match="hold_steps"):
        schedules.rsqrt(peak=1.0, hold_steps=0)


@pytest.mark.parametrize("every", [1, 3])
def test_a_task_clock_counts_task_steps_only(every):
    clock = schedules.task_clock(lambda step: step, every=every)
    done = 0
    for step in range(40):
        assert int(clock(step)) == int(jax.jit(clock)(step)) == done
        done += step % (every + 1) != every


def test_task_steps_have_the_rates_of_a_run_without_text():
    alone = schedules.linear(peak=1.0, num_steps=30, warmup_steps=5)
    mixed = schedules.task_clock(alone, every=3)
    assert [float(mixed(step)) for step in range(40) if step % 4 < 3] == [float(alone(step)) for step in range(30)]


def test_a_task_clock_is_exact_late_in_a_run():
    clock = schedules.task_clock(lambda step: step, every=3)
    assert int(clock(4 * 10_000_001)) == 30_000_003


def test_a_task_clock_refuses_no_task_step():
    with pytest.raises(InputError, match="task_clock: every is 0"):
        schedules.task_clock(schedules.constant(rate=1.0), every=0)
