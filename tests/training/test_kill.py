"""Kills training with SIGKILL at random steps, in a process of its own, and compares with the unbroken run by bits."""

import json
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest

NUM_STEPS = 40

CHILD = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from training_toy import ToyStream, toy_run
from jaxmtl.checkpoints import CheckpointPolicy
from jaxmtl.training.loop import train
from jaxmtl.writers import JsonLinesWriter
import jax, numpy, time

def slow(index, batch):
    time.sleep(0.03)
    return batch

folder = pathlib.Path(sys.argv[2])
result = train(
    toy_run(
        folder,
        num_steps=int(sys.argv[3]),
        stream=ToyStream(change=slow),
        checkpoints=CheckpointPolicy(every=3),
        log_every=1,
        writer=JsonLinesWriter(folder / "metrics.jsonl"),
    )
)
leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(result.params)}
numpy.savez(folder / "params.npz", **jax.device_get(leaves))
"""


def start(folder):
    toy = pathlib.Path(__file__).parent
    return subprocess.Popen([sys.executable, "-c", CHILD, str(toy), str(folder), str(NUM_STEPS)])


def lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.long
def test_a_run_killed_three_times_ends_with_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    for step in sorted(random.Random().sample(range(2, NUM_STEPS - 4), 3)):
        child = start(killed)
        while len(lines(killed)) < step and child.poll() is None:
            time.sleep(0.005)
        assert child.poll() is None, "it ended before it was killed"
        child.kill()
        child.wait()
    assert start(killed).wait() == 0
    ours, theirs = np.load(killed / "params.npz"), np.load(whole / "params.npz")
    assert ours.files == theirs.files
    for name in ours.files:
        np.testing.assert_array_equal(ours[name], theirs[name])
    without_clock = lambda line: {k: v for k, v in json.loads(line).items() if not k.startswith("speed/")}
    assert [without_clock(line) for line in lines(killed)] == [without_clock(line) for line in lines(whole)]
