"""Writes what seqeval finds in tag sequences drawn at random, which tests/tasks/test_answer_metrics.py compares with.

Run where seqeval 1.2.2 is installed: python tests/golden/make_seqeval.py
"""

import json
import pathlib
import random
import warnings

from seqeval.metrics import sequence_labeling

TAGS = ("O", "B-a", "I-a", "B-b", "I-b", "I-c-d")


def case(seed):
    draw = random.Random(seed)
    references = [draw.choices(TAGS, k=draw.randint(1, 12)) for _ in range(5)]
    predictions = [[draw.choice((tag, draw.choice(TAGS))) for tag in sentence] for sentence in references]
    entities = [sequence_labeling.get_entities(sentence) for sentence in (*references, *predictions)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns where nothing is predicted
        f1 = sequence_labeling.f1_score(references, predictions)
    return {"references": references, "predictions": predictions, "entities": entities, "f1": float(f1)}


if __name__ == "__main__":
    rows = "\n".join(json.dumps(case(seed)) for seed in range(50))
    pathlib.Path(__file__).with_name("seqeval.jsonl").write_text(rows + "\n", encoding="utf-8")
