import numpy as np
from training_toy import ToyStream

from jaxmtl.partitioning import batch_sharding, make_mesh
from jaxmtl.training.prefetch import fetch


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
