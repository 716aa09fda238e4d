import json

import pytest

from jaxmtl.tasks import catalog
from jaxmtl.tasks.answers import Answer, AnsweredExample, answer_of
from jaxmtl.tasks.toy import load as toy
from jaxmtl.types import InputError, UnknownNameError

SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": f"Room {n} has {n + 1} doors.",
                    "qas": [
                        {
                            "id": f"q{n}-{k}",
                            "question": " How many doors?",
                            "answers": [{"answer_start": 11, "text": str(n + 1)}],
                        }
                        for k in range(2)
                    ],
                }
                for n in range(5)
            ]
        }
    ]
}
HEADER = "question,review,human_ans_indices,human_ans_spans,q_review_id\n"


@pytest.fixture
def folder(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    write("ner/wnut17/train.conll", "Ann\tB-person\nsings\tO\n\n\nin\tO\nNew York\tB-location\n")
    write("ner/wnut17/dev.conll", "-DOCSTART-\tO\n\nBob\tB-person\n\n")
    write("ner/anem/train.conll", "the\t0\t3\tO\nhand\t4\t8\tB-Organ\n")
    write("ner/sec_filings/train.conll", "-DOCSTART- -X- O O\n\nJohn NNP - I-PER\n")
    write("ner/wikiann_en/train", "en:to\tO\nen:India\tB-LOC\n")
    write("ner/wikigold/wikigold.conll", "".join(f"w{k} I-ORG\n\n" for k in range(10)))
    write("ner/slots_atis/train/seq.in", "to Rome\n")
    write("ner/slots_atis/train/seq.out", "O B-city\n")
    write("glue_superglue/RTE/labels.json", '["no", "yes"]')
    rows = [
        {"sentence": f"sentence 1: A\nB{k}.\nsentence 2: C.", "label": label} for k, label in enumerate(["yes", "-"])
    ]
    write("glue_superglue/RTE/train.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    write("glue_superglue/WiC/labels.json", '["True", "False"]')
    write("glue_superglue/WiC/train.jsonl", json.dumps({"sentence": "word: call\nA call.\nCall me.", "label": "True"}))
    write("glue_superglue/COPA/labels.json", '["A", "B"]')
    copa = 'Which is the cause of "x."? Choose one between A and B.\nA: y.\nB: z.'
    write("glue_superglue/COPA/test.jsonl", json.dumps({"sentence": copa, "label": "B"}))
    write("qa/xquad/xquad.en.json", json.dumps(SQUAD))
    qed = dict(example_id=-7, question_text="who", paragraph_text="It was Ann , not Bob .")
    spans = [[{"start": 7, "end": 10, "string": "Ann"}], [{"start": 0, "end": 10, "string": "It was Ann"}]]
    write("qa/qed/qed-dev.jsonlines", json.dumps(qed | {"original_nq_answers": spans}))
    review = "Good, but loud. ANSWERNOTFOUND"
    lines = [f'Loud?,"{review}","(10, 14)",loud,r1', f'Loud?,"{review}","(0, 4)",Good,r1']
    lines.append(f'Big?,"{review}","(16, 30)",ANSWERNOTFOUND,r2')
    write("qa/subjqa/books/dev.csv", HEADER + "\n".join(lines) + "\n")
    return tmp_path


def test_words_and_tags_are_read_from_columns(folder):
    tasks = catalog.load("transfer", folder)
    wnut = tasks["wnut17"]
    assert [one.texts for one in wnut.split("train")] == [("Ann", "sings"), ("in", "New York")]
    assert wnut.split("train")[0].answer == ("B-person", "O")
    assert wnut.split("train")[0].targets == ("B-person O",)
    assert [one.texts for one in wnut.split("validation")] == [("Bob",)]
    assert answer_of(wnut) == Answer(kind="tags", labels=("B-location", "B-person", "O"))
    assert tasks["anem"].examples[0].answer == ("O", "B-Organ")
    assert tasks["sec_filings"].examples[0].texts == ("John",)
    assert tasks["wikiann_en"].examples[0].texts == ("to", "India")
    assert tasks["atis"].examples[0].answer == ("O", "B-city")


def test_texts_and_labels_are_read_from_rows(folder):
    tasks = catalog.load("transfer", folder, names=["rte", "wic", "copa"])
    assert list(tasks) == ["rte", "wic", "copa"]
    (example,) = tasks["rte"].examples
    assert (example.texts, example.answer, example.targets) == (("A\nB0.", "C."), "yes", ("yes",))
    assert tasks["rte"].metadata["num_left_out"] == 1
    assert tasks["wic"].examples[0].texts == ("call: A call.", "Call me.")
    assert tasks["copa"].split("validation")[0].texts == ('Which is the cause of "x."?', "A: y. B: z.")


def test_questions_are_read_with_where_their_answers_stand(folder):
    tasks = catalog.load("transfer", folder)
    example = tasks["xquad_en"].examples[0]
    assert example.texts[0] == "How many doors?"
    assert example.texts[1][example.answer[0] :].startswith(example.targets[0])
    qed = tasks["qed"].examples[0]
    assert (qed.id, qed.targets, qed.answer) == ("-7", ("Ann", "It was Ann"), (7, 0))
    loud, big = tasks["subjqa_books"].split("validation")
    assert (loud.targets, loud.answer) == (("loud", "Good"), (10, 0))
    assert big.targets == ("ANSWERNOTFOUND",)


def test_sets_without_splits_are_split_by_context_and_seed(folder):
    splits = [catalog.load("transfer", folder, seed=seed)["xquad_en"] for seed in (0, 0, 1)]
    for task in splits:
        contexts = {name: {one.texts[1] for one in task.split(name)} for name in task.splits}
        assert len(contexts["validation"]) == 1 and len(contexts["train"]) == 4
        assert not contexts["validation"] & contexts["train"]
    held = [{one.id for one in task.split("validation")} for task in splits]
    assert held[0] == held[1]
    sizes = {name: len(part) for name, part in catalog.load("transfer", folder)["wikigold"].splits.items()}
    assert sizes == {"train": 8, "validation": 2}


@pytest.mark.parametrize(
    "file, text, message",
    [
        (
            "ner/wnut17/train.conll",
            "Ann\tB-person\nBob\n",
            "line 2: 'Bob'; expected a word and, last, a tag",
        ),
        ("ner/wnut17/train.conll", "Ann\tperson\n", "line 1: 'Ann.tperson'; expected a word"),
        ("ner/slots_atis/train/seq.out", "O\n", "seq.in, line 1: 2 words and 1 tags"),
        ("glue_superglue/RTE/train.jsonl", "{", "train.jsonl, line 1: no JSON"),
        ("glue_superglue/RTE/train.jsonl", '{"sentence": "x"}', "line 1: has no 'label'"),
        ("glue_superglue/RTE/train.jsonl", '{"sentence": "x", "label": "yes"}', "line 1: 'x'; expected the form"),
        (
            "glue_superglue/RTE/train.jsonl",
            '{"sentence": "sentence 1: a\\nsentence 2: b", "label": "maybe"}',
            "label 'maybe'; expected one of no, yes",
        ),
        ("glue_superglue/RTE/labels.json", "{", "labels.json: cannot be read"),
        ("qa/xquad/xquad.en.json", '{"data": [{}]}', "is not in the form of SQuAD 1.1 .KeyError: 'paragraphs'"),
        ("qa/xquad/xquad.en.json", json.dumps(SQUAD).replace("11,", "12,"), "answer '1' of q0-0 does not stand at"),
        ("qa/subjqa/books/dev.csv", HEADER + "a,b,c,d,e\n", "dev.csv, row 2: expected q_review_id"),
        ("qa/qed/qed-dev.jsonlines", '{"example_id": 1}', "has no 'question_text'"),
    ],
)
def test_bad_files_are_named_with_the_line(folder, file, text, message):
    (folder / file).write_text(text)
    with pytest.raises(InputError, match=message):
        catalog.load("transfer", folder)


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown task 'rtee'; closest: rte"):
        catalog.load("transfer", folder, names=["rtee", "rte"])
    with pytest.raises(InputError, match="no such folder; expected one with ner, glue_superglue, qa"):
        catalog.load("transfer", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds none of the sets"):
        catalog.load("transfer", tmp_path / "empty")


def test_text_tasks_have_no_typed_answers(folder):
    with pytest.raises(InputError, match="has texts as answers"):
        answer_of(toy(None, num_examples=10)["toy_mood"])
    example = catalog.load("transfer", folder)["rte"].examples[0]
    assert isinstance(example, AnsweredExample)
