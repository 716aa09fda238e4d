"""Scores of typed answers: entity F1 over tags, accuracy and macro F1 over labels, SQuAD's F1 over spans; in 0 ... 1.

Source: methods 5.4.
"""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np

from jaxmtl.types import InputError

OUTSIDE = "O"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Finds the entities of a sentence, as the CoNLL script and seqeval do.

    An entity begins at `B-`, and at `I-` after another type or no entity, which IOB1 writes so.

    Args:
      tags: IOB1 or IOB2 tags, one per word.

    Returns:
      (type, first word, last word) each.
    """
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, here = tag.partition("-") if tag != OUTSIDE else ("", "", "")
        if kind and (prefix == "B" or here != kind):
            found.add((kind, start, place - 1))
        if here and (prefix == "B" or here != kind):
            start = place
        kind = here
    return found


def entity_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Scores tags by the entities that agree in type and both ends, counted over all sentences.

    Args:
      predictions: tags of each sentence.
      references: the right tags of each sentence.

    Returns:
      Micro F1; 0 if there is no entity at all.

    Raises:
      InputError: if there are not as many of both.
    """
    _check_same_length(predictions, references)
    hits = predicted = right = 0
    for ours, theirs in zip(predictions, references, strict=True):
        _check_same_length(ours, theirs)
        found, wanted = entities(ours), entities(theirs)
        hits, predicted, right = hits + len(found & wanted), predicted + len(found), right + len(wanted)
    return 2 * hits / max(1, predicted + right)


def accuracy(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Returns the share of labels that are right.

    Args:
      predictions: labels.
      references: the right labels.

    Returns:
      0 ... 1.

    Raises:
      InputError: if there are not as many of both, or none.
    """
    _check_same_length(predictions, references)
    return float(np.mean([ours == theirs for ours, theirs in zip(predictions, references, strict=True)]))


def macro_f1(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Averages the F1 of all labels that are predicted or right somewhere, each label counting the same.

    Args:
      predictions: labels.
      references: the right labels.

    Returns:
      0 ... 1.

    Raises:
      InputError: if there are not as many of both, or none.
    """
    _check_same_length(predictions, references)
    scores = []
    for label in sorted({*predictions, *references}):
        ours, theirs = (np.array([one == label for one in column]) for column in (predictions, references))
        scores.append(2 * np.sum(ours & theirs) / (ours.sum() + theirs.sum()))
    return float(np.mean(scores))


def squad_f1(prediction: str, references: Sequence[str]) -> float:
    """Scores an answer by the words that it shares with the reference it fits best.

    Args:
      prediction: the answer.
      references: right answers, at least one.

    Returns:
      F1 of words, 0 ... 1; case, punctuation and articles do not count.
    """
    return max(_word_f1(_normalised(prediction), _normalised(reference)) for reference in references)


def squad_exact(prediction: str, references: Sequence[str]) -> bool:
    """Tells whether an answer equals a reference but for case, punctuation and articles.

    Args:
      prediction: the answer.
      references: right answers, at least one.

    Returns:
      True if any of them matches.
    """
    return any(_normalised(prediction) == _normalised(reference) for reference in references)


def _normalised(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _word_f1(ours: list[str], theirs: list[str]) -> float:
    shared = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * shared / (len(ours) + len(theirs))


def _check_same_length(ours: Sequence, theirs: Sequence) -> None:
    if len(ours) != len(theirs) or not len(ours):
        raise InputError(f"{len(ours)} predictions for {len(theirs)} references; expected as many, at least one")
