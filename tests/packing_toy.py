"""Packs examples into rows by hand, for the tests of packed batches."""

import numpy as np


def pad(rows, width, dtype=np.int32):
    """Stacks sequences of different length, filled up with 0."""
    return np.stack([np.pad(np.asarray(row, dtype), (0, width - len(row))) for row in rows])


def examples(rng, lengths, vocab_size):
    """Draws (inputs, targets, task) for pairs of lengths."""
    draw = lambda length: rng.integers(2, vocab_size, length)
    return [(draw(source), draw(target), rng.integers(0, 3)) for source, target in lengths]


def plain_batch(examples, source, target):
    """One row for each example."""
    targets = pad([example[1] for example in examples], target)
    return {
        "inputs": pad([example[0] for example in examples], source),
        "targets": targets,
        "loss_mask": (targets != 0).astype(np.float32),
        "task_ids": np.array([example[2] for example in examples], np.int32),
        "example_ids": np.arange(len(examples), dtype=np.int32),
    }


def packed_batch(rows, source, target):
    """One row for each list of examples."""
    batch = {}
    for side, (name, column, width) in {"input": ("inputs", 0, source), "target": ("targets", 1, target)}.items():
        parts = [[example[column] for example in row] for row in rows]
        joined = lambda values, parts=parts, width=width: pad(
            [np.concatenate([[], *(values(k, part) for k, part in enumerate(row))]) for row in parts], width
        )
        batch[name] = joined(lambda _, part: part)
        batch[f"{side}_segments"] = joined(lambda k, part: np.full(len(part), k + 1))
        batch[f"{side}_positions"] = joined(lambda _, part: np.arange(len(part)))
    tasks = [np.concatenate([[], *(np.full(len(example[1]), example[2]) for example in row)]) for row in rows]
    return batch | {"loss_mask": (batch["targets"] != 0).astype(np.float32), "task_ids": pad(tasks, target)}
