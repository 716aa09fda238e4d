"""Text metrics and their means: ROUGE-L and exact match by Tk-Instruct's rules, per task, per category, overall.

Source: Super-NaturalInstructions (Wang et al. 2022), section 4 and its public scoring rules.
"""

import functools
import string
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmtl.types import InputError, Scores, unknown_name

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_HEADLINES = {
    "textual_entailment": "exact_match",
    "cause_effect_classification": "exact_match",
    "coreference_resolution": "exact_match",
    "dialogue_act_recognition": "exact_match",
    "answerability_classification": "exact_match",
    "word_analogy": "exact_match",
    "overlap_extraction": "rouge_l",
    "keyword_tagging": "rouge_l",
    "question_rewriting": "rouge_l",
    "title_generation": "rouge_l",
    "data_to_text": "rouge_l",
    "grammar_error_correction": "rouge_l",
}


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Scores a prediction by ROUGE-L with Porter stemming against the reference it fits best.

    Args:
      prediction: the generated text.
      references: one or more acceptable texts.

    Returns:
      The largest F-measure over the references, 0 ... 1; what rouge-score gives with `use_stemmer=True`.

    Raises:
      InputError: if there is no reference.
    """
    return max(_rouge_pair(reference, prediction) for reference in _checked(references))


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Tells whether a prediction equals a reference but for case, ASCII punctuation and spacing.

    Args:
      prediction: the generated text.
      references: one or more acceptable texts.

    Returns:
      True if any reference matches. Articles count, unlike in SQuAD.

    Raises:
      InputError: if there is no reference.
    """
    answer = _normalise(prediction)
    return any(answer == _normalise(reference) for reference in _checked(references))


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {"rouge_l": rouge_l, "exact_match": exact_match}
"""Metric name to its function of (prediction, references), 0 ... 1."""


def category_key(category: str) -> str:
    """Returns a category as it names a group of scores: lower case, spaces as underscores."""
    return category.lower().replace(" ", "_")


def headline_metric(category: str) -> str:
    """Returns the name of the metric that stands for a category: exact match where answers are closed.

    Args:
      category: the category, as written in the task file or as a key.

    Returns:
      A key of `METRICS`; "rouge_l" for a category outside Tk-Instruct's twelve.
    """
    return _HEADLINES.get(category_key(category), "rouge_l")


def score(
    predictions: Sequence[str], references: Sequence[Sequence[str]], metrics: Iterable[str] = tuple(METRICS)
) -> dict[str, np.ndarray]:
    """Scores predictions one by one.

    Args:
      predictions: [n] generated texts.
      references: [n] lists of acceptable texts.
      metrics: names out of `METRICS`.

    Returns:
      Metric name to float64 [n], 0 ... 1.

    Raises:
      InputError: if the lengths differ, a prediction has no reference, or a metric is unknown.
    """
    if len(predictions) != len(references):
        raise InputError(f"{len(predictions)} predictions but {len(references)} lists of references; expected as many")
    values = {}
    for name in metrics:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS)
        pairs = zip(predictions, references, strict=True)
        values[name] = np.array([METRICS[name](*pair) for pair in pairs], dtype=np.float64)
    return values


def task_scores(task: str, category: str, values: Mapping[str, Any]) -> Scores:
    """Averages one task's values.

    Args:
      task: task name.
      category: the task's category.
      values: metric name to [n] values in 0 ... 1.

    Returns:
      Their means in percent (0 ... 100), not rounded.

    Raises:
      InputError: if there is no value or the metrics have different numbers of them.
    """
    lengths = {len(column) for column in values.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"task {task}: metrics have {sorted(lengths)} values; expected the same number, above 0")
    means = {name: 100.0 * float(np.mean(column)) for name, column in values.items()}
    return Scores(task=task, category=category, n=lengths.pop(), metrics=means)


def overall(scores: Iterable[Scores], name: str = "all", category: str = "all") -> Scores:
    """Averages tasks over their examples, as the published tables do: a task counts by its number of examples.

    Args:
      scores: the tasks' scores.
      name: task name of the result.
      category: category of the result.

    Returns:
      Means of the metrics that all tasks have; n is the number of all examples, the headline that of the tasks if they
      agree, else the category's.

    Raises:
      InputError: if there is no task.
    """
    scores = list(scores)
    total = sum(item.n for item in scores)
    if not total:
        raise InputError("no scored example to average; expected at least one task with predictions")
    shared = [metric for metric in scores[0].metrics if all(metric in item.metrics for item in scores)]
    means = {metric: sum(item.metrics[metric] * item.n for item in scores) / total for metric in shared}
    headlines = {item.headline for item in scores}
    headline = headlines.pop() if len(headlines) == 1 else headline_metric(category)
    return Scores(task=name, category=category, n=total, metrics=means, headline=headline)


def per_category(scores: Iterable[Scores]) -> dict[str, Scores]:
    """Averages the tasks of each category over their examples.

    Args:
      scores: the tasks' scores.

    Returns:
      Category key to its means, sorted by key.
    """
    groups: dict[str, list[Scores]] = defaultdict(list)
    for item in scores:
        groups[category_key(item.category)].append(item)
    return {key: overall(groups[key], key, groups[key][0].category) for key in sorted(groups)}


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, confidence: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Gives a percentile bootstrap interval of a mean.

    Args:
      values: [n] values, one per example.
      confidence: probability inside the interval, between 0 and 1.
      num_resamples: how many resamples of size n are drawn.
      seed: seed of the resampling.

    Returns:
      (low, high), in the unit of the values.

    Raises:
      InputError: if there is no value, or an option is out of range.

    Source: Efron 1979.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or not 0 < confidence < 1 or num_resamples < 1:
        raise InputError(
            f"bootstrap of {values.size} values, confidence {confidence}, {num_resamples} resamples; expected at "
            "least one value, a confidence between 0 and 1 and at least one resample"
        )
    rng = np.random.Generator(np.random.Philox(seed))
    means = [values[rng.integers(values.size, size=values.size)].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _checked(references: Sequence[str]) -> Sequence[str]:
    if isinstance(references, str) or not references:
        raise InputError(f"references are {references!r}; expected a list of at least one text")
    return references


@functools.lru_cache(maxsize=1 << 16)
def _normalise(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())


@functools.lru_cache(maxsize=1 << 16)
def _rouge_pair(reference: str, prediction: str) -> float:
    return _scorer().score(reference, prediction)["rougeL"].fmeasure


class _CachedWords:
    """The library's default tokeniser, which remembers texts (references come back) and stems of words."""

    def __init__(self) -> None:
        from nltk.stem import porter

        self.stem = functools.lru_cache(maxsize=1 << 16)(porter.PorterStemmer().stem)
        self.tokenize = functools.lru_cache(maxsize=1 << 14)(self._tokenize)

    def _tokenize(self, text: str) -> list[str]:
        from rouge_score import tokenize

        return tokenize.tokenize(text, self)


@functools.cache
def _scorer() -> Any:
    # Imported on first use: the library takes seconds to import, and `jaxmtl --help` must not wait for it.
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_CachedWords())
