"""What a stream says of its windows: the mean number of target tokens of their batches."""

import functools

import numpy as np
import pytest

from jaxmtl.feed.grouping import grouped, same_cost
from jaxmtl.feed.packing import packed
from jaxmtl.feed.stream import train_stream

LAYOUTS = {
    "grouped": functools.partial(grouped, num_shapes=3),
    "same_cost": functools.partial(grouped, num_shapes=3, rows=same_cost),
    "packed": packed,
}


def windows(streams, num_windows):
    """Collects, window by window, the batches of hosts: lists of (rows of all hosts) of each batch."""
    found = []
    while len(found) <= num_windows:
        batches = [next(stream) for stream in streams]
        begun = streams[0].state()["batches"]
        if not found or found[-1][0] != begun:
            found.append((begun, []))
        found[-1][1].append(batches)
    return [batches for _, batches in found[:num_windows]]


@pytest.mark.parametrize("num_hosts", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_each_batch_tells_its_part_of_the_window(store, layout, num_hosts):
    make = functools.partial(train_stream, store, batch_size=8, window=12, layout=layout, multiple=2)
    streams = [make(host_index=host, num_hosts=num_hosts) for host in range(num_hosts)]
    counted = []
    for batches in windows(streams, 3):
        tokens = [sum(part["loss_mask"].sum() for part in parts) for parts in batches]
        told = [sum(part["expected_tokens"].sum() for part in parts) for parts in batches]
        np.testing.assert_allclose(told, np.mean(tokens), rtol=1e-5)  # float32 shares of a mean
        counted += tokens
    assert np.std(counted) > 0.05 * np.mean(counted)  # else the test would hold for a batch's own tokens too


def test_a_resumed_stream_tells_the_same(store):
    make = functools.partial(train_stream, store, batch_size=8, window=12)
    unbroken, resumed = make(), make()
    for _ in range(17):
        next(unbroken)
    resumed.restore(unbroken.state())
    for _ in range(20):
        np.testing.assert_array_equal(next(unbroken)["expected_tokens"], next(resumed)["expected_tokens"])
