"""Sampling rates P(K): each function turns the tasks' sizes into weights, element by element, not normalised.

Weight / sum of weights is a task's share of the draws. A task without examples always weighs 0.
"""

import numpy as np
from numpy.typing import ArrayLike

from jaxmtl.types import InputError


def uniform(sizes: ArrayLike) -> np.ndarray:
    """Gives every task the same weight.

    Args:
      sizes: [N] numbers of examples; a single number works too.

    Returns:
      float64 [N], 1 (0 for a task without examples).

    Raises:
      InputError: if a size is negative or not finite.
    """
    return (_checked(sizes) > 0).astype(np.float64)


def proportional(sizes: ArrayLike) -> np.ndarray:
    """Weighs tasks by their number of examples.

    Args:
      sizes: [N] numbers of examples.

    Returns:
      float64 [N], the sizes.

    Raises:
      InputError: if a size is negative or not finite.
    """
    return _checked(sizes)


def capped(sizes: ArrayLike, limit: float) -> np.ndarray:
    """Weighs tasks by their number of examples, none above a limit.

    Args:
      sizes: [N] numbers of examples.
      limit: the largest weight, in examples.

    Returns:
      float64 [N], min(size, limit).

    Raises:
      InputError: if a size is negative or not finite, or the limit is not above 0.

    Source: examples-proportional mixing with an artificial limit, T5 (Raffel et al. 2020), section 3.5.2.
    """
    if not limit > 0:
        raise InputError(f"rate limit is {limit}; expected a number of examples above 0")
    return np.minimum(_checked(sizes), limit)


def temperature(sizes: ArrayLike, temperature: float, limit: float | None = None) -> np.ndarray:
    """Flattens (temperature above 1) or sharpens (below 1) the proportional weights.

    Args:
      sizes: [N] numbers of examples.
      temperature: 1 is proportional, infinity is uniform.
      limit: caps the sizes first; None for no cap.

    Returns:
      float64 [N], min(size, limit) ** (1 / temperature).

    Raises:
      InputError: if an argument is out of range or a weight would be infinite.

    Source: temperature-scaled mixing, T5 (Raffel et al. 2020), section 3.5.2.
    """
    if not temperature > 0:
        raise InputError(f"rate temperature is {temperature}; expected a number above 0")
    sizes = _checked(sizes) if limit is None else capped(sizes, limit)
    with np.errstate(over="ignore"):
        # An empty task stays at 0: 0 ** 0 would be 1 at infinite temperature.
        weights = np.where(sizes > 0, sizes ** (1.0 / temperature), 0.0)
    if not np.isfinite(weights).all():
        raise InputError(f"rate temperature {temperature} makes weights infinite; expected one nearer to 1")
    return weights


def _checked(sizes: ArrayLike) -> np.ndarray:
    array = np.array(sizes, dtype=np.float64)
    if not (np.isfinite(array) & (array >= 0)).all():
        raise InputError(f"task sizes hold {array[~(np.isfinite(array) & (array >= 0))].flat[0]}; expected 0 or more")
    return array
