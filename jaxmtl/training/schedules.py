"""Learning rates as functions of the step: constant, linear, cosine, inverse square root, with linear warm-up.

The first update is step 0, so with a warm-up the first update has rate 0, as in Hugging Face's schedules.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmtl.types import InputError

Schedule = Callable[[Any], jax.Array]
"""Maps the int32 step to the float32 learning rate."""


def constant(*, rate: float) -> Schedule:
    """Returns a schedule that is `rate` at every step."""
    return lambda step: jnp.full_like(step, rate, dtype=jnp.float32)


def constant_with_warmup(*, peak: float, warmup_steps: int) -> Schedule:
    """Rises to `peak` over the warm-up and stays there.

    Args:
      peak: highest rate.
      warmup_steps: steps of linear rise from 0.

    Returns:
      The schedule.
    """
    return _after_warmup(peak, warmup_steps, lambda step: jnp.full_like(step, peak))


def linear(*, peak: float, num_steps: int, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Rises to `peak` over the warm-up, then falls in a straight line to `end` at `num_steps`.

    Args:
      peak: highest rate.
      num_steps: step at which `end` is reached; the rate stays there.
      warmup_steps: steps of linear rise from 0.
      end: last rate.

    Returns:
      The schedule.

    Raises:
      InputError: if the warm-up does not end before `num_steps`.
    """
    _check(num_steps, warmup_steps)
    return _after_warmup(peak, warmup_steps, lambda step: peak + (end - peak) * _done(step, warmup_steps, num_steps))


def cosine(*, peak: float, num_steps: int, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Rises to `peak` over the warm-up, then falls along half a cosine to `end`; arguments as in `linear`."""
    _check(num_steps, warmup_steps)

    def fall(step: jax.Array) -> jax.Array:
        return end + (peak - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * _done(step, warmup_steps, num_steps)))

    return _after_warmup(peak, warmup_steps, fall)


def rsqrt(*, peak: float, hold_steps: int, warmup_steps: int = 0) -> Schedule:
    """Holds `peak` until `hold_steps`, then falls with the inverse square root of the step.

    T5 was pretrained with 1/sqrt(max(step, 10000)): peak 0.01, hold_steps 10000.

    Args:
      peak: highest rate.
      hold_steps: step from which the rate falls, at least 1.
      warmup_steps: steps of linear rise from 0.

    Returns:
      The schedule.

    Raises:
      InputError: if `hold_steps` is below 1.

    Source: Raffel et al. 2020, §3.1.2.
    """
    if hold_steps < 1:
        raise InputError(f"rsqrt: hold_steps is {hold_steps}; expected at least 1")
    return _after_warmup(peak, warmup_steps, lambda step: peak * jnp.sqrt(hold_steps / jnp.maximum(step, hold_steps)))


def task_clock(schedule: Schedule, *, every: int = 3) -> Schedule:
    """Lets a schedule count task steps only, where one text step follows every `every` task steps.

    The rate then falls as in a run without text: task step i has the rate of `schedule` at i, and so has the text step
    before it. Without this wrapper a schedule counts all steps alike.

    Args:
      schedule: maps the number of earlier task steps to the rate; its number of steps is that of task steps.
      every: task steps before each text step, as in `jaxmtl.feed.interleave`.

    Returns:
      Maps the optimiser's step to the rate.

    Raises:
      InputError: if `every` is below 1.
    """
    if every < 1:
        raise InputError(f"task_clock: every is {every}; expected at least 1")

    def clock(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step)  # whole numbers until the last: float32 cannot count beyond 2^24
        return schedule(step // (every + 1) * every + jnp.minimum(step % (every + 1), every))

    return clock


def _check(num_steps: int, warmup_steps: int) -> None:
    if not 0 <= warmup_steps < num_steps:
        raise InputError(
            f"schedule: {warmup_steps} warm-up steps (WARMUP_STEPS) of {num_steps} in all (STEPS); expected 0 or more, "
            "and fewer than there are steps"
        )


def _done(step: jax.Array, warmup_steps: int, num_steps: int) -> jax.Array:
    """Returns the share of the steps after the warm-up that is over, from 0 to 1."""
    return jnp.clip((step - warmup_steps) / (num_steps - warmup_steps), 0.0, 1.0)


def _after_warmup(peak: float, warmup_steps: int, then: Callable[[jax.Array], jax.Array]) -> Schedule:
    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        return jnp.where(step < warmup_steps, peak * step / max(warmup_steps, 1), then(step))

    return schedule
