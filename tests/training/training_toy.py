"""A tiny model and a checkpointable stream of random batches for the tests of training."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.training import optim
from jaxmtl.training.loop import Run
from jaxmtl.training.schedules import constant

TASKS = ("copy", "reverse", "count")
V, D, L = 128, 16, 2


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    pad_id: int = 0
    decoder_start_id: int = 0
    dropout_rate: float = 0.1


class Tiny(nn.Module):
    """Compiles within a second: embeds, adds the mean of the inputs, applies stacked matrices, scores."""

    config: TinyConfig = TinyConfig()

    def first_tokens(self, inputs, input_mask=None):
        return jnp.full(inputs.shape[:1], self.config.decoder_start_id, jnp.int32)

    @nn.compact
    def __call__(self, inputs, decoder_inputs, *, train=False):
        named = lambda *axes: nn.with_logical_partitioning(nn.initializers.normal(0.3), axes)
        table = self.param("embedding", named("vocab", "embed"), (V, D))
        kernels = self.param("layers", named("layers", "embed", "mlp"), (L, D, D))
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("embed",)), (D,))
        mask = (inputs != 0)[..., None]
        context = (table[inputs] * mask).sum(1) / jnp.maximum(mask.sum(1), 1)
        x = table[decoder_inputs] + context[:, None]
        for index in range(L):
            x = x + jnp.tanh(x @ kernels[index]) * scale
        x = nn.Dropout(self.config.dropout_rate, deterministic=not train)(x)
        return nn.with_logical_constraint(x @ table.T, ("batch", "length", "vocab"))


def tiny_t5(**overrides):
    sizes = dict(vocab_size=V, embed_dim=16, num_heads=4, head_dim=4, mlp_dim=32)
    layers = dict(num_encoder_layers=2, num_decoder_layers=2, dropout_rate=0.1)
    return T5(T5Config(**(sizes | layers | overrides)))


def make_batch(index, *, rows=8, lengths=((10, 6),), seed=0):
    """Builds batch `index` of an endless stream; shapes alternate over `lengths`."""
    rng = np.random.default_rng((seed, index))
    source, target = lengths[index % len(lengths)]
    inputs = rng.integers(2, V, (rows, source), dtype=np.int32)
    targets = rng.integers(2, V, (rows, target), dtype=np.int32)
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
    """A stream whose state is the number of batches drawn; `change` may spoil batch `index`."""

    def __init__(self, change=lambda index, batch: batch, **options):
        self.index, self.change, self.options = 0, change, options

    def __next__(self):
        batch = self.change(self.index, make_batch(self.index, **self.options))
        self.index += 1
        return batch

    def state(self):
        return {"index": self.index}

    def restore(self, state, observed):
        self.index = state["index"]

    def observe(self, task_loss, task_tokens):
        pass

    def observed(self):
        return {}

    def counts(self):
        return np.full(len(TASKS), 4.0 * self.index), np.full(len(TASKS), 4.0 * self.index)

    def close(self):
        pass


class Recorder:
    """A writer that keeps what it is told."""

    def __init__(self):
        self.lines, self.notes, self.closed = [], [], False

    def start(self, step, num_steps):
        self.started = step, num_steps

    def advance(self, step):
        self.step = step

    def scalars(self, step, values):
        self.lines.append((step, dict(values)))

    def note(self, text):
        self.notes.append(text)

    def close(self):
        self.closed = True


def toy_run(run_dir, **overrides):
    """Builds a run of the tiny model on one device."""
    from jaxmtl.partitioning import make_mesh

    options = dict(
        module=Tiny(),
        stream=ToyStream(),
        task_names=TASKS,
        run_dir=run_dir,
        num_steps=6,
        optimizer=functools.partial(optim.adamw, weight_decay=0.01),
        learning_rate=constant(rate=0.01),
        mesh=make_mesh(data=1),
        log_every=2,
        writer=Recorder(),
    )
    return Run(**(options | overrides))


def assert_trees_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def broken_mask(index, batch, *, at):
    """Makes the loss infinite at batch `at`, where only task 1 occurs."""
    if index != at:
        return batch
    mask = np.where(batch["loss_mask"] > 0, np.float32(np.inf), 0)
    return batch | {"loss_mask": mask, "task_ids": np.ones_like(batch["task_ids"])}
