"""Seeded choices: subsets of a task's examples, and demonstrations for one example.

Every choice is ranked by SHA-256 of (seed, task name, purpose, item), so it depends on nothing else: not on other
tasks, their order, the process or the version of a random number library. Longer choices begin with shorter ones.
"""

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from jaxmtl.tasks.spec import Demonstration
from jaxmtl.types import Example, InputError

_Item = TypeVar("_Item")


def stable_hash(*parts: object) -> int:
    """Hashes values to the same number in every process.

    Args:
      *parts: texts and numbers; their order and their boundaries matter.

    Returns:
      A number in 0 ... 2^64 - 1.
    """
    key = "\0".join(f"{len(text)}:{text}" for text in map(str, parts))
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def seeded_order(count: int, seed: int, task_name: str, purpose: str = "subset") -> list[int]:
    """Puts 0 ... count - 1 into a random order that depends only on the arguments.

    Args:
      count: how many indices.
      seed: the run's data seed.
      task_name: the task they belong to.
      purpose: what the order is for; two purposes give unrelated orders.

    Returns:
      All indices, shuffled.
    """
    return sorted(range(count), key=lambda index: (stable_hash(seed, task_name, purpose, index), index))


def seeded_subset(
    items: Sequence[_Item], limit: int | None, seed: int, task_name: str, purpose: str = "subset"
) -> tuple[_Item, ...]:
    """Draws at most `limit` items without replacement.

    Args:
      items: what to draw from.
      limit: how many at most; None for all.
      seed: the run's data seed.
      task_name: the task they belong to.
      purpose: what the subset is for; two purposes give unrelated subsets.

    Returns:
      The drawn items in drawn order; with a larger limit the same ones come first.

    Raises:
      InputError: if the limit is negative.
    """
    if limit is not None and limit < 0:
        raise InputError(f"limit of examples of task {task_name} is {limit}; expected 0 or more, or None for all")
    return tuple(items[index] for index in seeded_order(len(items), seed, task_name, purpose)[:limit])


def demonstrations(
    pool: Sequence[Example], example: Example, *, count: int, seed: int, task_name: str
) -> tuple[Demonstration, ...]:
    """Chooses demonstrations for one example out of a pool, in about `count` look-ups whatever the pool's size.

    The example itself, others with the same input, and repeats of a chosen input are left out. Depends only on the
    pool, the seed, the task and the example's id, so it does not change with batches or evaluation order.

    Args:
      pool: examples that may be shown; normally the training or few-shot split.
      example: the example that will be asked about.
      count: how many demonstrations.
      seed: the run's data seed.
      task_name: the task's name.

    Returns:
      `count` demonstrations, each with the example's first target as output.

    Raises:
      InputError: if the pool has fewer different examples than asked for.
    """
    chosen: list[Example] = []
    taken = {example.inputs}
    tries = 4 * count + 16  # enough by far unless the pool is tiny or full of repeats
    drawn = (stable_hash(seed, task_name, "shots", example.id, number) for number in range(tries if pool else 0))
    rest = seeded_order(len(pool), seed, task_name, f"shots {example.id}") if len(pool) <= tries else range(len(pool))
    for index in (index for source in (drawn, rest) for index in source):
        if len(chosen) == count:
            break
        other = pool[index % len(pool)]
        if other.inputs not in taken and other.id != example.id:
            taken.add(other.inputs)
            chosen.append(other)
    if len(chosen) < count:
        raise InputError(
            f"task {task_name}: {count} demonstrations asked for example {example.id!r}, but its pool of {len(pool)} "
            f"has only {len(chosen)} different ones; ask for fewer or give a larger pool"
        )
    return tuple(Demonstration(inputs=other.inputs, output=other.targets[0]) for other in chosen)


def task_demonstrations(
    pool: Sequence[Example], queries: Iterable[Example], *, count: int, seed: int, task_name: str
) -> tuple[Demonstration, ...]:
    """Chooses demonstrations that all queries of a task share, so that what a model makes of them can be kept.

    The queries themselves, others with their inputs, and repeats of a chosen input are left out. Depends only on the
    arguments; with a larger count the same ones come first.

    Args:
      pool: examples that may be shown; normally the training or few-shot split.
      queries: all examples that will be asked about.
      count: how many demonstrations.
      seed: the run's data seed.
      task_name: the task's name.

    Returns:
      `count` demonstrations, each with the example's first target as output.

    Raises:
      InputError: if the pool has fewer different examples than asked for, or the count is negative.
    """
    keys = lambda examples: [(example.id, example.inputs) for example in examples]
    chosen = [pool[index] for index in shown_rows(keys(pool), keys(queries), count, seed, task_name)]
    return tuple(Demonstration(inputs=other.inputs, output=other.targets[0]) for other in chosen)


def shown_rows(
    pool: Sequence[tuple[str, Hashable]],
    queries: Iterable[tuple[str, Hashable]],
    count: int,
    seed: int,
    task_name: str,
) -> list[int]:
    """Chooses demonstrations as `task_demonstrations` does, whatever inputs are (texts, token ids).

    Args:
      pool: id and input of each row that may be shown.
      queries: id and input of each row that will be asked about.
      count: how many demonstrations.
      seed: the run's data seed.
      task_name: the task's name.

    Returns:
      Indices into the pool.

    Raises:
      InputError: as `task_demonstrations`.
    """
    if count < 0:
        raise InputError(f"task {task_name}: {count} demonstrations asked for; expected 0 or more")
    asked = list(queries)
    ids, taken = {key for key, _ in asked}, {inputs for _, inputs in asked}
    chosen: list[int] = []
    for index in seeded_order(len(pool), seed, task_name, "task shots"):
        if len(chosen) == count:
            break
        key, inputs = pool[index]
        if inputs not in taken and key not in ids:
            taken.add(inputs)
            chosen.append(index)
    if len(chosen) < count:
        raise InputError(
            f"task {task_name}: {count} demonstrations asked for, but its pool of {len(pool)} has only {len(chosen)} "
            "different ones that are not asked about; ask for fewer or give a larger pool"
        )
    return chosen
