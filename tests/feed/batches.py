"""Looks into batches: which rows they hold, and whether those are the stored ones."""

import itertools

import numpy as np

from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import Draw
from jaxmtl.feed.store import TokenStore
from jaxmtl.types import Batch


def rows_of(batches: list[Batch]) -> list[tuple[int, int]]:
    pairs = [zip(batch["task_ids"].tolist(), batch["example_ids"].tolist(), strict=True) for batch in batches]
    return list(itertools.chain.from_iterable(pairs))


def row_of(rows: TaskRows, task: int, example: int) -> tuple[np.ndarray, np.ndarray]:
    (read,) = rows.read(Draw(np.array([task], np.int32), np.array([example])))
    return read[2:]


def check_rows(batch: Batch, store: TokenStore, split: str) -> None:
    names = store.task_names(split)
    for k, (task, example) in enumerate(rows_of([batch])):
        inputs, targets = store.examples(names[task], split).row(example)
        assert batch["inputs"][k].tolist() == inputs.tolist() + [0] * (batch["inputs"].shape[1] - len(inputs))
        assert batch["targets"][k].tolist() == targets.tolist() + [0] * (batch["targets"].shape[1] - len(targets))
        assert batch["loss_mask"][k].tolist() == [1.0] * len(targets) + [0.0] * (
            batch["targets"].shape[1] - len(targets)
        )


def equal(first: Batch, second: Batch) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
