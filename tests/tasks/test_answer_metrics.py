import json
import pathlib

import pytest

from jaxmtl.tasks.answer_metrics import accuracy, entities, entity_f1, macro_f1, squad_exact, squad_f1
from jaxmtl.types import InputError

SEQEVAL = pathlib.Path(__file__).parents[1] / "golden" / "seqeval.jsonl"


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("O B-PER I-PER O", {("PER", 1, 2)}),
        ("B-PER B-PER I-PER", {("PER", 0, 0), ("PER", 1, 2)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 0), ("LOC", 1, 2)}),
        ("I-LOC I-LOC O I-LOC", {("LOC", 0, 1), ("LOC", 3, 3)}),  # IOB1
        ("I-LOC B-LOC", {("LOC", 0, 0), ("LOC", 1, 1)}),  # IOB1: neighbours of one type
        ("B-creative-work I-creative-work", {("creative-work", 0, 1)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities_by_hand(tags, expected):
    assert entities(tags.split()) == expected


def test_entity_f1_counts_whole_entities_over_all_sentences():
    references = ["B-PER I-PER O".split(), "B-LOC O".split()]
    # By hand: 3 predicted, 2 right, 1 in common (the place): 2 x 1 / 5. A half-found person and a wrong type are wrong.
    predictions = ["B-PER O B-LOC".split(), "B-LOC O".split()]
    assert entity_f1(predictions, references) == pytest.approx(0.4)
    assert entity_f1(references, references) == 1.0
    assert entity_f1([["O"]], [["O"]]) == 0.0


@pytest.mark.parametrize("line", SEQEVAL.read_text(encoding="utf-8").splitlines(), ids=lambda line: f"{len(line)}")
def test_entities_and_f1_are_those_of_seqeval(line):
    case = json.loads(line)
    sentences = [*case["references"], *case["predictions"]]
    assert len(sentences) == len(case["entities"])
    for sentence, found in zip(sentences, case["entities"], strict=True):
        assert entities(sentence) == {tuple(entity) for entity in found}
    assert entity_f1(case["predictions"], case["references"]) == pytest.approx(case["f1"])


def test_macro_f1_averages_labels_whatever_their_number():
    # By hand: a: 2 of 3 predicted right, all 2 found: F1 0.8; b: 0 of 1 found: 0; c: all right: 1.
    assert macro_f1(list("aaac"), list("aabc")) == pytest.approx((0.8 + 0.0 + 1.0) / 3)
    assert accuracy(list("aaac"), list("aabc")) == 0.75


@pytest.mark.parametrize(
    "prediction, references, f1, exact",
    [
        ("The cat!", ["cat"], 1.0, True),
        ("a black cat", ["the cat", "dog"], 2 / 3, False),  # 1 of 2 words shared, all 1 found
        ("cat cat", ["cat"], 2 / 3, False),
        ("dog", ["cat"], 0.0, False),
        ("", ["cat"], 0.0, False),
        ("308", ["more", "308"], 1.0, True),
        ("an anthem", ["anthem"], 1.0, True),
    ],
)
def test_squad_scores_by_hand(prediction, references, f1, exact):
    assert squad_f1(prediction, references) == pytest.approx(f1)
    assert squad_exact(prediction, references) is exact


def test_other_numbers_of_predictions_are_refused():
    with pytest.raises(InputError, match="1 predictions for 2 references"):
        accuracy(["a"], ["a", "b"])
    with pytest.raises(InputError, match="2 predictions for 1 references"):
        entity_f1([["O", "O"]], [["O"]])
