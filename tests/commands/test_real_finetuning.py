"""Small models of three families learn from real data on the command line: losses fall, scores rise."""

import json
import pathlib

import pytest

from jaxmtl.main import main

pytestmark = [pytest.mark.real_data, pytest.mark.long]

REAL_DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
VOCABULARIES = REAL_DATA / "tokenizers"
SNI_TASKS = (
    "task391_causal_relationship",
    "task1155_bard_analogical_reasoning_trash_or_treasure",
    "task1687_sentiment140_classification",
)


def run(verb, *files, **bindings):
    main([verb, *(f"--gin_file={name}.gin" for name in files), *(f"--gin.{k}={v}" for k, v in bindings.items())])


def learn(model, store, folder, steps, *files, **bindings):
    """Trains a model and returns its first and last training losses, nats per target."""
    how = dict(STEPS=steps, SAVE_EVERY=steps, LOG_EVERY=10, NUM_SHAPES=2, WARMUP_STEPS=10, BATCH_SIZE=8) | bindings
    run("train", model, "runs/train", *files, "mesh/cpu1", STORE=store, RUN_DIR=folder, **how)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    return losses[0], losses[-1]


def scores(folder):
    return json.loads((folder / "scores.json").read_text())


def before_and_after(model, store, trained, **how):
    """Scores a model before and after training, over all examples."""
    plain = trained.with_name("plain")
    run("evaluate", model, "runs/untrained", STORE=store, RUN_DIR=plain, **how)
    run("evaluate", "runs/evaluate", CHECKPOINT=trained, STORE=store, RUN_DIR=trained, **how)
    return [scores(folder)["overall"] for folder in (plain, trained)]


def test_bart_learns_dialogue_tasks(tmp_path):
    lines = (REAL_DATA / "instructdial" / "sample_text2text.jsonl").read_text().splitlines()
    rows = [{name: row[name] for name in ("input", "output")} for row in map(json.loads, lines)]
    file = tmp_path / "dialogue.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows if len(row["output"].split()) == 1))
    store, trained = tmp_path / "store", tmp_path / "trained"
    where = dict(DATA_DIR=file, VOCABULARY=VOCABULARIES / "roberta-base", MAX_INPUT_TOKENS=96)
    run("cache", "tasks/jsonl", STORE=store, NAME="real_dialogue", **where)
    first, last = learn("models/bart/tiny", store, trained, 130, LEARNING_RATE=3e-3)
    before, after = before_and_after("models/bart/tiny", store, trained, MAX_TOKENS=6)
    assert last < 0.5 * first and after["nll"] < 0.5 * before["nll"]
    assert before["exact_match"] == 0 < after["exact_match"]


def test_gpt2_learns_natural_instructions(tmp_path):
    tasks, store, trained = tmp_path / "sni" / "tasks", tmp_path / "store", tmp_path / "trained"
    tasks.mkdir(parents=True)
    for name in SNI_TASKS:
        (tasks / f"{name}.json").symlink_to(REAL_DATA / "sni" / "tasks" / f"{name}.json")
    (tasks.parent / "list.txt").write_text("\n".join(SNI_TASKS) + "\n")
    where = dict(DATA_DIR=tasks.parent, TASK_LIST="list.txt", VOCABULARY=VOCABULARIES / "gpt2", MAX_INPUT_TOKENS=192)
    run(
        "cache",
        "tasks/sni_train",
        STORE=store,
        NAME="real_sni",
        NUM_VALIDATION=20,
        SPLITS="('train', 'validation')",
        **where,
    )
    first, last = learn("models/gpt2/tiny", store, trained, 40, LEARNING_RATE=3e-3)
    before, after = before_and_after("models/gpt2/tiny", store, trained, SPLIT="validation", MAX_TOKENS=6)
    assert last < 0.5 * first and after["nll"] < 0.5 * before["nll"]
    assert before["exact_match"] == 0 < after["exact_match"]


def few_answers(folder):
    """Copies a few real examples of three kinds of tasks: so few that they can be learnt by heart."""
    for name, most in [("ner/wnut17/train.conll", 60), ("ner/wnut17/dev.conll", 20), ("ner/wnut17/test.conll", 20)]:
        sentences = (REAL_DATA / name).read_text().split("\n\n")
        tagged = [one for one in sentences if "B-" in one][:most]
        written(folder / name).write_text("\n\n".join(tagged) + "\n\n")
    for name, most in [("train.jsonl", 48), ("test.jsonl", 16), ("labels.json", 99)]:
        lines = (REAL_DATA / "glue_superglue" / "RTE" / name).read_text().splitlines()[:most]
        written(folder / "glue_superglue" / "RTE" / name).write_text("\n".join(lines) + "\n")
    content = json.loads((REAL_DATA / "qa" / "xquad" / "xquad.en.json").read_text())
    content["data"] = [dict(article, paragraphs=article["paragraphs"][:1]) for article in content["data"][:10]]
    written(folder / "qa" / "xquad" / "xquad.en.json").write_text(json.dumps(content))
    return folder


def written(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def test_heads_learn_tags_classes_and_answers_together(tmp_path):
    store, trained, plain = tmp_path / "store", tmp_path / "trained", tmp_path / "plain"
    where = dict(DATA_DIR=few_answers(tmp_path / "data"), VOCABULARY=VOCABULARIES / "roberta-base")
    run("cache", "tasks/transfer", STORE=store, TASKS="('wnut17', 'rte', 'xquad_en')", MAX_INPUT_TOKENS=192, **where)
    learning = dict(LEARNING_RATE=3e-3, EVALUATIONS="()", EARLY_STOPPING=None)
    first, last = learn("models/roberta/tiny", store, trained, 80, "runs/heads", **learning)
    run("evaluate", "models/roberta/tiny", "runs/untrained_heads", STORE=store, RUN_DIR=plain, SPLIT="train")
    run("evaluate", "runs/evaluate_heads", CHECKPOINT=trained, STORE=store, RUN_DIR=trained, SPLIT="train")
    before, after = (
        {name: one["score"] for name, one in scores(folder)["tasks"].items()} for folder in (plain, trained)
    )
    assert last < 0.5 * first
    assert len(after) == 3 and all(after[name] > before[name] + 10 for name in after), (before, after)
