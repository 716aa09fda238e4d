import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from jaxmtl.tasks import metrics
from jaxmtl.types import InputError, Scores, UnknownNameError

LIBRARY = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
WORD = st.sampled_from(
    "the cat cats running ran Runs, a nation's national ties dying 3.5 \u00e9t\u00e9 \u0130 ( \u65e5".split()
)
TEXT = st.lists(WORD, max_size=9).map(" ".join) | st.text(max_size=20)


@settings(deadline=None)
@given(TEXT, st.lists(TEXT, min_size=1, max_size=4))
def test_rouge_l_equals_the_library(prediction, references):
    expected = max(LIBRARY.score(reference, prediction)["rougeL"].fmeasure for reference in references)
    assert metrics.rouge_l(prediction, references) == expected


def test_rouge_l_by_hand():
    # stems: the cat sat / the cat sit there; LCS "the cat", P = 2/3, R = 2/4, F = 4/7
    assert metrics.rouge_l("The cats sat", ["the cat sits there"]) == pytest.approx(4 / 7, abs=1e-15)
    assert metrics.rouge_l("a b", ["x", "b a"]) == 0.5
    assert metrics.rouge_l("", ["x"]) == metrics.rouge_l("x", [""]) == metrics.rouge_l("", [""]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("Yes.", ["yes"], True),
        ("  the   Cat\n", ["The cat!"], True),
        ("cat", ["the cat"], False),
        ("a-b", ["ab"], True),
        ("a - b", ["a b"], True),
        ("no", ["yes", "No"], True),
        ("\u201cyes\u201d", ["yes"], False),
        ("", ["."], True),
        ("A", ["B"], False),
    ],
)
def test_exact_match(prediction, references, expected):
    assert metrics.exact_match(prediction, references) is expected


@pytest.mark.parametrize("references", [[], (), "text"])
@pytest.mark.parametrize("metric", list(metrics.METRICS.values()))
def test_missing_references_are_refused(metric, references):
    with pytest.raises(InputError, match="at least one"):
        metric("x", references)


def test_headline_metrics():
    assert metrics.headline_metric("Textual Entailment") == metrics.headline_metric("word_analogy") == "exact_match"
    assert metrics.headline_metric("Data to Text") == metrics.headline_metric("Anything else") == "rouge_l"
    assert metrics.category_key("Cause Effect Classification") == "cause_effect_classification"


def test_scores_are_means_in_percent():
    values = metrics.score(["yes", "no", "a cat"], [["Yes"], ["yes"], ["the cat", "cat"]])
    np.testing.assert_array_equal(values["exact_match"], [1, 0, 0])
    np.testing.assert_allclose(values["rouge_l"], [1, 0, 2 / 3], rtol=1e-15)
    scores = metrics.task_scores("t", "A B", values)
    assert (scores.n, scores.metrics["exact_match"]) == (3, pytest.approx(100 / 3))


def test_groups_are_means_over_examples_not_over_tasks():
    tasks = [
        Scores(task="a", category="X Y", n=1, metrics={"rouge_l": 100.0, "exact_match": 0.0}),
        Scores(task="b", category="X Y", n=3, metrics={"rouge_l": 20.0}),
        Scores(task="c", category="Z", n=4, metrics={"rouge_l": 0.0}),
    ]
    everything = metrics.overall(tasks)
    assert (everything.n, dict(everything.metrics)) == (8, {"rouge_l": 20.0})
    groups = metrics.per_category(tasks)
    assert {key: (group.category, group.n, group.metrics["rouge_l"]) for key, group in groups.items()} == {
        "x_y": ("X Y", 4, 40.0),
        "z": ("Z", 4, 0.0),
    }


def test_bad_scoring_calls_are_refused():
    with pytest.raises(InputError, match="2 predictions but 1"):
        metrics.score(["a", "b"], [["a"]])
    with pytest.raises(UnknownNameError, match="closest: rouge_l"):
        metrics.score(["a"], [["a"]], ["rouge_L"])
    with pytest.raises(InputError, match="same number"):
        metrics.task_scores("t", "c", {"a": [1], "b": [1, 2]})
    with pytest.raises(InputError, match="at least one task"):
        metrics.overall([])


def test_bootstrap_interval_of_a_mean():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = metrics.bootstrap_interval(values)
    # The normal approximation; the bootstrap's own error with 1,000 resamples is about 0.01.
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.04) and high == pytest.approx(
        values.mean() + half, abs=0.04
    )
    assert metrics.bootstrap_interval(values) == (low, high) != metrics.bootstrap_interval(values, seed=1)
    assert metrics.bootstrap_interval([3.0, 3.0]) == (3.0, 3.0)


@pytest.mark.parametrize("options", [{"values": []}, {"confidence": 1.0}, {"num_resamples": 0}])
def test_senseless_bootstraps_are_refused(options):
    with pytest.raises(InputError, match="bootstrap"):
        metrics.bootstrap_interval(**({"values": [1.0]} | options))


def test_importing_tasks_does_not_load_the_slow_libraries():
    code = (
        "import sys, jaxmtl.tasks.catalog as c; print([m for m in ('nltk', 'jax', 'tensorflow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
