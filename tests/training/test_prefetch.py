import threading

import numpy as np
import pytest
from training_toy import ToyStream

from jaxmtl.partitioning import batch_sharding, make_mesh
from jaxmtl.training.prefetch import Prefetcher, fetch


def test_tokens_are_counted_by_the_mask_and_the_vocabularys_own_padding():
    inputs = np.array([[0, 7, 9, 9], [7, 0, 0, 9]], np.int32)
    mask = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    targets = np.array([[9, 0, 9], [0, 9, 9]], np.int32)
    batch = dict(inputs=inputs, targets=targets, loss_mask=mask, task_ids=np.array([0, 1]))
    stream = ToyStream(change=lambda *drawn: batch)
    fetched = fetch(stream, batch_sharding(make_mesh(data=2)), pad_id=9)
    assert fetched.num_tokens == 5 + 3
    np.testing.assert_array_equal(fetched.batch["inputs"], inputs)
    assert fetched.stream_state == {"index": 1}


def fail(index, batch):
    if index == 2:
        raise OSError("the disk is gone")
    return batch


def prefetchers():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_error_of_the_stream_reaches_the_reader_in_its_place_and_ends_the_thread():
    with Prefetcher(ToyStream(change=fail), batch_sharding(make_mesh(data=1)), pad_id=0) as batches:
        assert [next(batches).stream_state["index"] for _ in range(2)] == [1, 2]
        with pytest.raises(OSError, match="the disk is gone"):
            next(batches)
    assert not prefetchers()


def test_the_thread_ends_with_the_block_however_it_is_left_while_batches_wait():
    with pytest.raises(KeyboardInterrupt), Prefetcher(ToyStream(), batch_sharding(make_mesh(data=1)), 0) as batches:
        next(batches)
        assert len(prefetchers()) == 1
        raise KeyboardInterrupt
    assert not prefetchers()
