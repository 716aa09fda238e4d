"""How unlikely a model finds the targets of tasks: losses alone, of tasks with answer choices and of others."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmtl.evals.generation import decode_texts
from jaxmtl.evals.predictions import Row, Work, checked_nll
from jaxmtl.evals.ranking import Measured
from jaxmtl.evals.requests import OnBatch
from jaxmtl.evals.summary import NLL
from jaxmtl.feed.store import Examples
from jaxmtl.types import Scores
from jaxmtl.weights import Pretrained


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetLosses(Measured):
    """The loss of each example's target, a `task_runner.Way`: the stored target is measured as its only choice."""

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values that decide the predictions."""
        return {"target_losses": dict(self.described)}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the metrics of a task's scores."""
        return (NLL,)

    def of_task(self, name: str, examples: Examples) -> Mapping[str, Any]:
        """Returns what `task_identity` does: any examples will do."""
        return self.task_identity(name)

    def predict(
        self, pretrained: Pretrained, chunk: Sequence[Work], stage: Callable[[str], OnBatch]
    ) -> dict[str, list[Row]]:
        """Returns task name to rows: key, split, id, inputs, references, nll (nats per token), num_target_tokens."""
        targets = [ids for work in chunk for ids in work.examples.rows(range(work.count))[1]]
        losses = iter(self.measure(pretrained, chunk, [[ids.tolist()] for ids in targets], stage("score")))
        return {work.name: _rows(pretrained, work, [next(losses)[0] for _ in range(work.count)]) for work in chunk}

    def means(self, work: Work, rows: Sequence[Mapping[str, Any]]) -> Scores:
        """Returns the mean NLL in nats per token."""
        nll = float(np.mean([row[NLL] for row in rows], dtype=np.float64))
        return Scores(task=work.name, category=work.category, n=len(rows), metrics={NLL: nll}, headline=NLL)

    def extras(self, scores: Mapping[str, Scores]) -> dict[str, Any]:
        """Returns nothing."""
        return {}


def _rows(pretrained: Pretrained, work: Work, losses: Sequence[np.ndarray]) -> list[Row]:
    inputs = decode_texts(pretrained, work.examples.rows(range(work.count))[0])
    described = zip(work.examples.ids, inputs, work.examples.references, losses, strict=False)
    return [
        dict(
            key=work.key,
            split=work.split,
            id=example,
            inputs=text,
            references=list(references),
            nll=checked_nll(work, example, float(np.mean(tokens, dtype=np.float64))),
            num_target_tokens=len(tokens),
        )
        for example, text, references, tokens in described
    ]
