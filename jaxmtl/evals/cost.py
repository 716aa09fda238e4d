"""What an evaluation costs by 100 examples: operations, counted from real lengths, and seconds, measured."""

import json
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxmtl.adapters import hyper_flops
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.evals.predictions import Work
from jaxmtl.files import write_whole
from jaxmtl.models import flops
from jaxmtl.weights import Pretrained

COST = "cost.json"
PER = 100


class Stopwatch:
    """Adds up the seconds that an iterator takes to give its items."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, items: Iterable[Any]) -> Iterator[Any]:
        """Gives the items on; what is done with them does not count."""
        items, began = iter(items), time.monotonic()
        for item in items:
            self.seconds += time.monotonic() - began
            yield item
            began = time.monotonic()


def operations(pretrained: Pretrained, work: Sequence[Work]) -> float:
    """Counts the operations of reading instructions and scoring targets.

    An instruction that a hypernetwork reads counts once for each task, one that stands in the inputs for each example.
    LoRA adapters that tasks have count nothing, as if they were merged.

    Args:
      pretrained: the model.
      work: the tasks.

    Returns:
      Operations of all examples, a multiplication and an addition being two.

    Source: methods 1.10.
    """
    return sum(_of_task(pretrained, task) for task in work)


def _of_task(pretrained: Pretrained, task: Work) -> float:
    source, target = (lengths[: task.count] for lengths in task.examples.lengths())
    if task.instructions is None:
        return float(flops.forward(pretrained.config, source, target).sum())
    hyper = task.instructions.hyper
    module = HyperModel(hyper.config, pretrained.module, hyper.reader)
    own = np.array([len(ids) for ids in task.instructions.ids])
    distinct = np.array([len(ids) for ids in {ids.tobytes(): ids for ids in task.instructions.ids}.values()])
    answering = hyper_flops.answering(module, own, source, target)
    return float(hyper_flops.reading(module, distinct).sum() + answering.sum())


def write(run_dir: pathlib.Path, work: Sequence[Work], flops: float | None, timed: int, seconds: float) -> None:
    """Writes cost.json, on the first host.

    Args:
      run_dir: the run folder.
      work: all tasks.
      flops: operations of all of their examples; None if nobody has counted them.
      timed: number of examples that were predicted now, at least one; those that were there already took no time.
      seconds: what they took, compiling included.

    Raises:
      InputError: if the file cannot be written.
    """
    if jax.process_index() == 0:
        examples = sum(task.count for task in work)
        counted = {} if flops is None else {"flops_per_100_examples": PER * flops / examples}
        measured = dict(examples_timed=timed, seconds_per_100_examples=round(PER * seconds / timed, 3))
        write_whole(run_dir / COST, json.dumps(dict(examples=examples, **counted, **measured), indent=1) + "\n")
