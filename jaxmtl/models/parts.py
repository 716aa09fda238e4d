"""Takes a batch apart where a CPU is faster with few rows at a time, whose activations stay in its cache."""

from collections.abc import Callable
from typing import Any

import jax

CACHED_TOKENS = 2048
"""Most tokens of a part. Products of that many rows run at a CPU's full speed, and read weights seldom enough."""


def by_parts(function: Callable[[Any], Any], rows: Any) -> Any:
    """Applies a function to a batch, on one CPU part after part: a fifth less time for BART base, a tenth for T5 small.

    Args:
      function: treats every row alone; takes what `rows` is and returns a tree of arrays [B, ...].
      rows: a tree of arrays [B, S, ...].

    Returns:
      What the function gives of the whole batch.
    """
    batch, length = jax.tree.leaves(rows)[0].shape[:2]
    size = rows_of_part(batch, length)
    if size == batch or jax.default_backend() != "cpu" or not jax.sharding.get_abstract_mesh().empty:
        return function(rows)
    parted = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), rows)
    return jax.tree.map(lambda leaf: leaf.reshape(batch, *leaf.shape[2:]), jax.lax.map(function, parted))


def rows_of_part(batch: int, length: int) -> int:
    """Chooses how many rows are taken at a time.

    Args:
      batch: B, rows in all.
      length: S, tokens of a row.

    Returns:
      The most rows that divide the batch and hold at most `CACHED_TOKENS`; the whole batch if that would be less than
      half as many.
    """
    fitting = [size for size in range(1, batch + 1) if batch % size == 0 and size * length <= CACHED_TOKENS]
    largest = max(fitting, default=batch)
    return largest if 2 * largest * length >= CACHED_TOKENS else batch
