import numpy as np
import pytest
from batches import check_rows, equal, rows_of

from jaxmtl.feed.eval_stream import EvalStream, eval_stream, unsort
from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.shapes import Shapes
from jaxmtl.feed.store import TokenStore
from jaxmtl.types import InputError


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8, 64])
def test_evaluation_sees_every_row_once(store: TokenStore, batch_size: int, hosts: int) -> None:
    parts = [
        eval_stream(store, "test", batch_size=batch_size, host_index=index, num_hosts=hosts) for index in range(hosts)
    ]
    seen = []
    for batches in zip(*parts, strict=True):
        batch = {name: np.concatenate([one[name] for one in batches]) for name in batches[0]}
        assert batch["inputs"].shape[0] == batch_size
        real = batch["example_ids"] >= 0
        seen += rows_of([{name: array[real] for name, array in batch.items()}])
        assert not batch["loss_mask"][~real].any()
        assert (batch["inputs"][~real] != 0).any(axis=1).all()
        check_rows({name: array[real] for name, array in batch.items()}, store, "test")
    assert sorted(seen) == [(task, k) for task, size in enumerate(store.sizes("test")) for k in range(size)]
    assert len(parts[0]) == -(-len(seen) // batch_size)


def test_evaluation_starts_with_the_longest_and_can_be_repeated(store: TokenStore) -> None:
    evaluation = eval_stream(store, "test", batch_size=4)
    first, second = list(evaluation), list(evaluation)
    assert all(equal(*pair) for pair in zip(first, second, strict=True))
    cells = [batch["inputs"].shape[1] + batch["targets"].shape[1] for batch in first]
    assert cells == sorted(cells, reverse=True)


def test_unsort_gives_results_in_task_and_example_order(store: TokenStore) -> None:
    evaluation = eval_stream(store, "test", batch_size=8)
    rows = [row for row in rows_of(list(evaluation)) if row[1] >= 0]
    assert unsort(rows, evaluation.order) == sorted(rows)
    with pytest.raises(InputError, match="25 results for 24 rows"):
        unsort([*rows, (0, 0)], evaluation.order)


def test_rows_that_do_not_fit_are_refused(store: TokenStore) -> None:
    with pytest.raises(InputError, match=r"but the largest shape is \(96, 8\)"):
        EvalStream(TaskRows(store, "test"), 4, shapes=Shapes(pairs=[(96, 8)]))
