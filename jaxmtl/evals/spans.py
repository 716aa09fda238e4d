"""From logits of first and last tokens to one answer: the best span of all windows of a context.

Source: methods 5.2 (decoding). Letters in shapes: S input length.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxmtl.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanChoice:
    """Which spans are looked at.

    Attributes:
      n_best: so many of the best first tokens are paired with as many of the best last tokens, in each window.
      max_answer_length: most tokens of an answer.

    Raises:
      InputError: if one of them is below 1.
    """

    n_best: int = 20
    max_answer_length: int = 30

    def __post_init__(self) -> None:
        if min(self.n_best, self.max_answer_length) < 1:
            raise InputError(f"{self}: expected numbers of 1 or more")


def context_start(inputs: np.ndarray, eos_id: int) -> int:
    """Returns the place of the context's first token in `<s> question </s></s> context </s>`.

    Args:
      inputs: int32 [S], without padding.
      eos_id: id of `</s>`.
    """
    return int(np.flatnonzero(inputs == eos_id)[0]) + 2


def best_spans(
    logits: Sequence[np.ndarray], inputs: Sequence[np.ndarray], eos_id: int, choice: SpanChoice
) -> list[int]:
    """Chooses an example's answer: the span with the largest sum of logits in any of its windows.

    Args:
      logits: float32 [S, 2] of each window, as the first and as the last token.
      inputs: int32 [S] of each window, without padding.
      eos_id: id of `</s>`.
      choice: which spans are looked at.

    Returns:
      Token ids of the answer; none if no span is allowed. Of equally good ones the first.
    """
    best, answer = -np.inf, np.empty(0, np.int32)
    for scores, ids in zip(logits, inputs, strict=True):
        start, stop = context_start(ids, eos_id), len(ids) - 1
        firsts, lasts = (np.argsort(-column, kind="stable")[: choice.n_best] for column in scores.T)
        for first in firsts.tolist():
            for last in lasts.tolist():
                fits = start <= first <= last < stop and last - first < choice.max_answer_length
                total = float(scores[first, 0]) + float(scores[last, 1])
                if fits and total > best:
                    best, answer = total, ids[first : last + 1]
    return answer.tolist()
