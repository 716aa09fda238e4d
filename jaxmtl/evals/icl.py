"""In-context learning: answers of a model that has seen demonstrations, in three ways.

- Concat-ICL: the encoder reads all demonstrations and the query as one text.
- FiD-ICL: the encoder reads each demonstration alone, once for all queries, and the query alone; the decoder looks at
  the states of all of them.
- Ensemble-ICL: Concat-ICL with one demonstration at a time; losses are averaged over the demonstrations.

Without demonstrations all three are what `scoring` gives for the query. Source: FiD-ICL, methods 3.6.
"""

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxmtl.evals import requests, scoring
from jaxmtl.evals.icl_format import FID_ICL, Format, encode_demonstrations, encode_queries
from jaxmtl.evals.icl_memory import read_demonstrations, reader_after
from jaxmtl.evals.requests import BATCH_SIZE, Ids
from jaxmtl.tasks.spec import Demonstration
from jaxmtl.weights import Pretrained


class Way(Protocol):
    """Any of `concat_losses`, `fid_losses` and `ensemble_losses`."""

    def __call__(
        self,
        pretrained: Pretrained,
        demonstrations: Sequence[Ids],
        queries: Sequence[Ids],
        choices: Sequence[Sequence[Ids]],
        *,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[np.ndarray]]:
        """Returns for each query and each of its choices [T], nats."""
        ...


def concat_losses(
    pretrained: Pretrained,
    demonstrations: Sequence[Ids],
    queries: Sequence[Ids],
    choices: Sequence[Sequence[Ids]],
    *,
    batch_size: int = BATCH_SIZE,
) -> list[list[np.ndarray]]:
    """Measures token NLLs after one text of all demonstrations and the query.

    Args:
      pretrained: the model.
      demonstrations: [k] rows of token ids; there may be none, and rows may be empty.
      queries: [n] rows of token ids.
      choices: [n] lists of rows of token ids.
      batch_size: queries scored at once; the result does not depend on it.

    Returns:
      For each query and each of its choices float32 [T], nats.

    Raises:
      InputError: as `scoring.choice_losses`.
    """
    before = [int(token) for ids in demonstrations for token in ids]
    return scoring.choice_losses(pretrained, [[*before, *ids] for ids in queries], choices, batch_size=batch_size)


def fid_losses(
    pretrained: Pretrained,
    demonstrations: Sequence[Ids],
    queries: Sequence[Ids],
    choices: Sequence[Sequence[Ids]],
    *,
    batch_size: int = BATCH_SIZE,
) -> list[list[np.ndarray]]:
    """Measures token NLLs given the states of demonstrations and query, each encoded alone.

    Args:
      pretrained: an encoder-decoder.
      demonstrations: as in `concat_losses`, as the rest.
      queries: [n] rows of token ids.
      choices: [n] lists of rows of token ids.
      batch_size: queries scored at once.

    Returns:
      As `concat_losses`.

    Raises:
      InputError: as `scoring.choice_losses` and `icl_memory.read_demonstrations`.
    """
    reader = reader_after(read_demonstrations(pretrained, demonstrations, batch_size=batch_size))
    return scoring.choice_losses(pretrained, queries, choices, reader=reader, batch_size=batch_size)


def ensemble_losses(
    pretrained: Pretrained,
    demonstrations: Sequence[Ids],
    queries: Sequence[Ids],
    choices: Sequence[Sequence[Ids]],
    *,
    batch_size: int = BATCH_SIZE,
) -> list[list[np.ndarray]]:
    """Measures token NLLs after one demonstration and the query, averaged over the demonstrations.

    Args:
      pretrained: the model.
      demonstrations: as in `concat_losses`, as the rest.
      queries: [n] rows of token ids.
      choices: [n] lists of rows of token ids.
      batch_size: inputs, a demonstration and a query each, scored at once.

    Returns:
      For each query and each of its choices float64 [T], nats; sums of them are means of the demonstrations' sums.

    Raises:
      InputError: as `scoring.choice_losses`.
    """
    shown = [list(map(int, ids)) for ids in demonstrations] or [[]]
    inputs = [[*before, *ids] for ids in queries for before in shown]
    repeated = [row for row in choices for _ in shown]
    losses = scoring.choice_losses(pretrained, inputs, repeated, batch_size=batch_size)
    parts = (losses[start : start + len(shown)] for start in range(0, len(losses), len(shown)))
    return [[np.stack(one).astype(np.float64).mean(axis=0) for one in zip(*part, strict=True)] for part in parts]


def score_choices(
    pretrained: Pretrained,
    demonstrations: Sequence[Demonstration],
    inputs: Sequence[str],
    choices: Sequence[Sequence[str]],
    *,
    way: Way,
    form: Format = FID_ICL,
    normalise: bool = False,
    batch_size: int = BATCH_SIZE,
) -> list[np.ndarray]:
    """Scores answer choices after demonstrations; `np.argmax` of a row is the answer, the first one among equals.

    Args:
      pretrained: the model, with a tokenizer.
      demonstrations: [k] demonstrations, shown in this order; see `fewshot.task_demonstrations`.
      inputs: [n] texts of queries.
      choices: [n] lists of at least one choice; their numbers may differ.
      way: how demonstrations are shown.
      form: how demonstrations and queries are written.
      normalise: divides each sum by the choice's number of tokens, the end token included.
      batch_size: queries scored at once; the result does not depend on it.

    Returns:
      [n] arrays float64 [C], nats summed over tokens (end token included); higher is likelier.

    Raises:
      InputError: as the way; if the lists differ in length, hold something else than texts, or an input has no choice.
    """
    shown = encode_demonstrations(pretrained, demonstrations, form)
    queries = encode_queries(pretrained, inputs, form)
    losses = way(pretrained, shown, queries, scoring.encode_choices(pretrained, choices), batch_size=batch_size)
    return scoring.scores_of(losses, normalise=normalise)


concat_scores = functools.partial(score_choices, way=concat_losses)
"""Scores answer choices with Concat-ICL, see `score_choices`."""

fid_scores = functools.partial(score_choices, way=fid_losses)
"""Scores answer choices with FiD-ICL, see `score_choices`."""

ensemble_scores = functools.partial(score_choices, way=ensemble_losses)
"""Scores answer choices with Ensemble-ICL, see `score_choices`."""


def loss(
    pretrained: Pretrained,
    demonstrations: Sequence[Demonstration],
    inputs: Sequence[str],
    targets: Sequence[str],
    *,
    way: Way,
    form: Format = FID_ICL,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Measures how unlikely targets are after demonstrations.

    Args:
      pretrained: the model, with a tokenizer.
      demonstrations: [k] demonstrations, shown in this order.
      inputs: [n] texts of queries.
      targets: [n] target texts; never cut.
      way: how demonstrations are shown.
      form: how demonstrations and queries are written.
      batch_size: queries scored at once; the result does not depend on it.

    Returns:
      float64 [n], nats per target token, the end token included.

    Raises:
      InputError: as `score_choices`.
    """
    shown = encode_demonstrations(pretrained, demonstrations, form)
    queries = encode_queries(pretrained, inputs, form)
    single = [[row] for row in requests.encode_targets(pretrained, targets)]
    losses = way(pretrained, shown, queries, single, batch_size=batch_size)
    return np.array([np.mean(rows[0], dtype=np.float64) for rows in losses], np.float64)
