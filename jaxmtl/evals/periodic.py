"""Evaluation during training: every so many steps, generate for a split and give its scores to the training loop."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from jaxmtl.evals.decoding import Decoding
from jaxmtl.evals.requests import BATCH_SIZE
from jaxmtl.evals.runner import Labels, evaluate
from jaxmtl.feed.store import TokenStore
from jaxmtl.tasks import metrics as text_metrics
from jaxmtl.types import Progress
from jaxmtl.weights import Pretrained


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationEvaluation:
    """Scores generated texts of a split, and the NLL of its targets, from time to time.

    Attributes:
      name: prefix that the training loop puts before the metrics' names.
      every: number of optimiser steps between two evaluations.
      pretrained: the model; its parameters are replaced by those of the step.
      store: the tokenised examples.
      split: split to score.
      run_dir: where predictions, scores and records are written.
      tasks: names of tasks; all of the split if None.
      decoding: how texts are generated; greedily if None.
      max_tokens: most tokens of a generated text.
      batch_size: examples computed at once.
      max_examples: most examples of each task; all if None.
      labels: what the records say about the run; the step is filled in.
      progress: told after each batch how far it is.
    """

    name: str = "test"
    every: int
    pretrained: Pretrained
    store: TokenStore
    split: str = "test"
    run_dir: str | os.PathLike
    tasks: Sequence[str] | None = None
    decoding: Decoding | None = None
    max_tokens: int = 128
    batch_size: int = BATCH_SIZE
    max_examples: int | None = None
    labels: Labels = Labels()
    progress: Progress | None = None

    def run(self, params: Any, step: int) -> dict[str, float]:
        """Scores the weights of one step.

        Args:
          params: parameter tree of the model.
          step: optimiser step the parameters were taken at.

        Returns:
          Metric name to the mean over all examples: text metrics in percent, "nll" in nats per target token.

        Raises:
          InputError: as `runner.evaluate`.
        """
        scores = evaluate(
            dataclasses.replace(self.pretrained, params=params),
            self.store,
            self.split,
            self.run_dir,
            tasks=self.tasks,
            decoding=self.decoding,
            max_tokens=self.max_tokens,
            batch_size=self.batch_size,
            max_examples=self.max_examples,
            labels=dataclasses.replace(self.labels, step=step),
            progress=self.progress,
        )
        return dict(text_metrics.overall(scores.values()).metrics)
