"""Entity F1 against seqeval, where it is installed (its source package does not build with every setuptools)."""

import random
import warnings

import pytest

from jaxmtl.tasks.answer_metrics import entities, entity_f1

pytestmark = pytest.mark.torch

TAGS = ("O", "B-a", "I-a", "B-b", "I-b", "I-c-d")


@pytest.mark.parametrize("seed", range(50))
def test_entities_and_f1_are_those_of_seqeval(seed):
    labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    draw = random.Random(seed)
    references = [draw.choices(TAGS, k=draw.randint(1, 12)) for _ in range(5)]
    predictions = [[draw.choice((tag, draw.choice(TAGS))) for tag in sentence] for sentence in references]
    for sentence in (*references, *predictions):
        assert entities(sentence) == set(labeling.get_entities(sentence))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns where nothing is predicted
        expected = labeling.f1_score(references, predictions)
    assert entity_f1(predictions, references) == pytest.approx(expected)
