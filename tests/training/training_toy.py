"""A tiny T5 and a checkpointable stream of random batches for the tests of training."""

import jax
import numpy as np

from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config

TASKS = ("copy", "reverse", "count")


def tiny_t5(**overrides):
    sizes = dict(vocab_size=64, embed_dim=16, num_heads=4, head_dim=4, mlp_dim=32)
    layers = dict(num_encoder_layers=2, num_decoder_layers=2, dropout_rate=0.1)
    return T5(T5Config(**(sizes | layers | overrides)))


def make_batch(index, *, rows=8, lengths=((10, 6), (7, 5)), seed=0):
    """Builds batch `index` of an endless stream; its shape alternates."""
    rng = np.random.default_rng((seed, index))
    source, target = lengths[index % len(lengths)]
    inputs = rng.integers(2, 64, (rows, source), dtype=np.int32)
    targets = rng.integers(2, 64, (rows, target), dtype=np.int32)
    real = rng.integers(1, target + 1, rows)
    mask = (np.arange(target) < real[:, None]).astype(np.float32)
    return {
        "inputs": np.where(np.arange(source) < rng.integers(2, source + 1, rows)[:, None], inputs, 0),
        "targets": np.where(mask > 0, targets, 0).astype(np.int32),
        "loss_mask": mask,
        "task_ids": rng.integers(0, len(TASKS), rows, dtype=np.int32),
        "example_ids": rng.integers(0, 1000, rows, dtype=np.int32),
    }


class ToyStream:
    """An endless stream whose state is the number of batches drawn."""

    def __init__(self, seed=0, change=lambda index, batch: batch, **options):
        self.index, self.seed, self.change, self.options = 0, seed, change, options

    def __iter__(self):
        return self

    def __next__(self):
        batch = self.change(self.index, make_batch(self.index, seed=self.seed, **self.options))
        self.index += 1
        return batch

    def state(self):
        return {"index": self.index}

    def restore(self, state):
        self.index = state["index"]


def assert_trees_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)
