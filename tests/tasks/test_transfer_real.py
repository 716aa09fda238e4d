"""The real files of the transfer collection, counted and cut here by other means than the readers'."""

import ast
import collections
import csv
import json
import pathlib

import pytest

from jaxmtl.tasks import catalog
from jaxmtl.tasks.answers import answer_of

pytestmark = pytest.mark.real_data
DATA = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"

# Sentences that the data's own description counts; the sets that it only names are counted from their files below.
WNUT17, WIKIGOLD, ATIS = (3394, 1009, 1287), 1696, (4478, 500, 893)
CONLL2003, NCBI, WIKIANN = (14041, 3250, 3453), (5432, 923, 940), (20000, 10000, 10000)
DESCRIBED = {
    "wnut17": dict(zip(("train", "validation", "test"), WNUT17, strict=True)),
    "conll2003": dict(zip(("train", "validation", "test"), CONLL2003, strict=True)),
    "ncbi_disease": dict(zip(("train", "validation", "test"), NCBI, strict=True)),
    "wikiann_en": dict(zip(("train", "validation", "test"), WIKIANN, strict=True)),
    "atis": dict(zip(("train", "validation", "test"), ATIS, strict=True)),
    "anem": {"train": 2815, "test": 1882},
    "sec_filings": {"train": 1164, "test": 303},
}
TAG_FILES = {
    "wnut17": {"train": "wnut17/train.conll", "validation": "wnut17/dev.conll", "test": "wnut17/test.conll"},
    "anem": {"train": "anem/train.conll", "test": "anem/test.conll"},
    "sec_filings": {"train": "sec_filings/train.conll", "test": "sec_filings/test.conll"},
    "ncbi_disease": {
        split: f"ncbi_disease/{name}.tsv"
        for split, name in {"train": "train", "validation": "devel", "test": "test"}.items()
    },
    "wikiann_en": {"train": "wikiann_en/train", "validation": "wikiann_en/dev", "test": "wikiann_en/test"},
    **{
        ("" if domain == "conll2003" else "crossner_") + domain: {
            split: f"crossner/{domain}/{name}.txt"
            for split, name in {"train": "train", "validation": "dev", "test": "test"}.items()
        }
        for domain in ("conll2003", "ai", "literature", "music", "politics", "science")
    },
}
PAIR_FOLDERS = {
    "rte": "RTE",
    "mnli": "MNLI",
    "cb": "CB",
    "qqp": "QQP",
    "sst2": "SST-2",
    "boolq": "BoolQA",
    "wic": "WiC",
    "copa": "COPA",
    "multirc": "MultiRC",
}
FIELD_NAMES = ("sentence 1: ", "sentence 2: ", "first sentence: ", "second sentence: ", "Text: ", "question: ")
FIELD_NAMES += ("passage: ", "word: ", "paragraph: ", "candidate answer: ")
FIELD_NAMES += ("Choose one between A and B.",)


@pytest.fixture(scope="module")
def tasks():
    """All tasks that are there."""
    return catalog.load("transfer", DATA)


def words_and_tags(path, prefix=""):
    """Sentences as lists of (first column, last column): what stands between blank lines, document marks left out."""
    blocks = [block.strip("\n").split("\n") for block in path.read_text("utf-8").split("\n\n")]
    kept = [[line for line in block if line and not line.startswith("-DOCSTART-")] for block in blocks]
    columns = lambda line: (line.split()[0].removeprefix(prefix), line.split()[-1])
    return [[columns(line) for line in block] for block in kept if block]


def as_read(examples):
    return [list(zip(one.texts, one.answer, strict=True)) for one in examples]


@pytest.mark.parametrize("name", TAG_FILES)
def test_sentences_in_columns_are_those_of_the_files(tasks, name):
    task, seen = tasks[name], set()
    assert set(task.splits) == set(TAG_FILES[name])
    for split, file in TAG_FILES[name].items():
        expected = words_and_tags(DATA / "ner" / file, "en:" if name == "wikiann_en" else "")
        assert as_read(task.split(split)) == expected
        assert len(expected) == DESCRIBED.get(name, {}).get(split, len(expected))
        seen |= {tag for sentence in expected for _, tag in sentence}
    assert answer_of(task).labels == tuple(sorted(seen)) and "O" in seen


def test_rows_of_tags_are_as_one_reads_them_in_the_file(tasks):
    first = tasks["wnut17"].split("train")[0]
    assert " ".join(first.texts).startswith("@paulwalk It 's the view from where I 'm living for two weeks .")
    entity = [(word, tag) for word, tag in zip(first.texts, first.answer, strict=True) if tag != "O"]
    assert entity == [
        ("Empire", "B-location"),
        ("State", "I-location"),
        ("Building", "I-location"),
        ("ESB", "B-location"),
    ]
    assert tasks["wikiann_en"].split("train")[0].texts[:3] == ("R.H.", "Saunders", "(")
    assert tasks["anem"].split("train")[0].answer[:2] == ("B-Multi-tissue_structure", "O")


def test_a_set_without_splits_is_split_whole(tasks):
    parts = [tasks["wikigold"].split(split) for split in ("train", "validation")]
    expected = words_and_tags(DATA / "ner" / "wikigold" / "wikigold.conll")
    assert len(expected) == WIKIGOLD
    both = collections.Counter(map(tuple, as_read([*parts[0], *parts[1]])))
    assert both == collections.Counter(map(tuple, expected))
    assert not {one.inputs for one in parts[0]} & {one.inputs for one in parts[1]}
    assert len(parts[1]) / len(expected) == pytest.approx(0.2, abs=0.01)


def test_slots_are_those_of_both_files(tasks):
    for split, folder in {"train": "train", "validation": "valid", "test": "test"}.items():
        home = DATA / "ner" / "slots_atis" / folder
        texts, slots = ((home / name).read_text("utf-8").splitlines() for name in ("seq.in", "seq.out"))
        examples = tasks["atis"].split(split)
        assert len(examples) == len(texts) == DESCRIBED["atis"][split]
        assert [" ".join(one.texts) for one in examples] == [" ".join(text.split()) for text in texts]
        assert [" ".join(one.answer) for one in examples] == [" ".join(line.split()) for line in slots]


@pytest.mark.parametrize("name", PAIR_FOLDERS)
def test_rows_and_labels_are_those_of_the_json(tasks, name):
    task, home = tasks[name], DATA / "glue_superglue" / PAIR_FOLDERS[name]
    assert answer_of(task).labels == tuple(json.loads((home / "labels.json").read_text("utf-8")))
    files = {"train": home / "train.jsonl", "validation": home / "test.jsonl"}
    assert set(task.splits) == {split for split, path in files.items() if path.exists()}
    left_out = 0
    for split in task.splits:
        rows = [json.loads(line) for line in files[split].read_text("utf-8").splitlines()]
        kept = [row for row in rows if row["label"] != "-"]
        left_out += len(rows) - len(kept)
        examples = task.split(split)
        assert [one.answer for one in examples] == [row["label"] for row in kept]
        for example, row in zip(examples, kept, strict=True):
            assert letters(" ".join(example.texts)) == letters(without_names(row["sentence"]))
    assert task.metadata["num_left_out"] == left_out


def without_names(text):
    """Cuts what the files write in front of each text."""
    lines = []
    for line in text.split("\n"):
        for field in FIELD_NAMES:
            line = line.removeprefix(field)
            line = line.removesuffix(field)
        lines.append(line)
    return "\n".join(lines)


def letters(text):
    """The letters and digits of a text: how texts are joined may differ, not what they say."""
    return "".join(filter(str.isalnum, text))


def test_rows_of_pairs_are_as_one_reads_them_in_the_file(tasks):
    first = tasks["rte"].split("train")[0]
    assert first.texts[0].startswith("What is certain, however, is that around 120,000 years ago")
    assert (first.texts[1], first.answer) == ("Humans existed 10,000 years ago.", "entailment")
    assert [len(tasks["rte"].split(split)) for split in ("train", "validation")] == [2000, 277]
    assert [len(tasks["copa"].split(split)) for split in ("train", "validation")] == [400, 100]


def test_xquad_s_questions_are_all_there_and_contexts_on_one_side(tasks):
    content = json.loads((DATA / "qa" / "xquad" / "xquad.en.json").read_text("utf-8"))
    expected = {}
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for row in paragraph["qas"]:
                answers = tuple(one["text"] for one in row["answers"])
                expected[row["id"]] = (row["question"].strip(), paragraph["context"], answers)
    task = tasks["xquad_en"]
    found = {one.id: (*one.texts, one.targets) for one in task.examples}
    assert found == expected and len(task.examples) == 1190
    contexts = [{one.texts[1] for one in task.split(split)} for split in ("train", "validation")]
    assert not contexts[0] & contexts[1] and [len(part) for part in contexts] == [192, 48]


def test_qed_s_answers_are_pieces_of_its_paragraphs(tasks):
    lines = (DATA / "qa" / "qed" / "qed-dev.jsonlines").read_text("utf-8").splitlines()
    rows = {str(row["example_id"]): row for row in map(json.loads, lines)}
    examples = tasks["qed"].examples
    assert len(examples) == len(rows) == 1355
    for example in examples:
        row = rows[example.id]
        pieces = [piece for answer in row["original_nq_answers"] for piece in answer]
        assert example.texts == (row["question_text"].strip(), row["paragraph_text"])
        assert example.targets == tuple(piece["string"] for piece in pieces)
        assert example.answer == tuple(piece["start"] for piece in pieces)


@pytest.mark.parametrize("domain", ["books", "electronics", "grocery"])
def test_subjqa_s_answers_are_where_the_table_says(tasks, domain):
    task, home = tasks[f"subjqa_{domain}"], DATA / "qa" / "subjqa" / domain
    files = {"train": "train_first200.csv", "validation": "dev.csv", "test": "test_first200.csv"}
    assert set(task.splits) == {split for split, name in files.items() if (home / name).exists()}
    for split in task.splits:
        with (home / files[split]).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        spans = collections.defaultdict(set)
        for row in rows:
            start, end = ast.literal_eval(row["human_ans_indices"])
            spans[row["q_review_id"]].add((start, row["review"][start:end]))
        found = {one.id.removeprefix(f"{split}-"): one for one in task.split(split)}
        assert found.keys() == spans.keys() and len(found) == len(task.split(split))
        for key, example in found.items():
            assert set(zip(example.answer, example.targets, strict=True)) == spans[key]
        unanswered = [row for row in rows if row["human_ans_spans"] == "ANSWERNOTFOUND"]
        assert all("ANSWERNOTFOUND" in found[row["q_review_id"]].targets for row in unanswered) and unanswered
