import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest
from rouge_score import rouge_scorer

from jaxmtl.evals import files, generation, predictions, runner, scoring
from jaxmtl.evals.decoding import Decoding
from jaxmtl.evals.summary import Labels
from jaxmtl.types import InputError, UnknownNameError

LABELS = Labels(run="toy", seed=3, step=20, config_hash="c", git_hash="g")
COUNTS = {"task1_colour": 2, "task2_wet": 3, "task3_count": 1}


def evaluate(pretrained, store, folder, **options):
    return runner.evaluate(pretrained, store, "test", folder, **dict(dict(max_tokens=5, labels=LABELS), **options))


@pytest.fixture(scope="module")
def folder(pretrained, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    evaluate(pretrained, store, folder)
    return folder


@pytest.fixture
def calls(monkeypatch):
    """Names of the tasks that are really computed, and predictions that need no model."""
    names = []

    def fake(pretrained, chunk, how, stage):
        names.extend(work.name for work in chunk)
        row = dict(nll=1.0, rouge_l=0.5, exact_match=0.0, prediction="x")
        return {
            work.name: [dict(row, key=work.key, split=work.split, id=i) for i in range(work.count)] for work in chunk
        }

    monkeypatch.setattr(predictions, "predict", fake)
    return names


def test_predictions_hold_what_model_and_metrics_give(folder, pretrained, store):
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    for task in COUNTS:
        rows = files.read_rows(files.prediction_file(folder, task))
        examples = store.examples(task, "test")
        prompts = [pretrained.tokenizer.decode(examples.row(i)[0]) for i in range(len(examples))]
        assert [row["inputs"] for row in rows] == prompts
        assert {row["split"] for row in rows} == {"test"}
        assert [row["id"] for row in rows] == [f"{task}-{i}" for i in range(COUNTS[task])]
        assert [row["prediction"] for row in rows] == generation.generate(pretrained, prompts, max_tokens=5)
        first = [row["references"][0] for row in rows]
        # Different batches may round differently in float32.
        np.testing.assert_allclose([row["nll"] for row in rows], scoring.loss(pretrained, prompts, first), atol=1e-5)
        for row in rows:
            best = max(scorer.score(text, row["prediction"])["rougeL"].fmeasure for text in row["references"])
            assert row["rouge_l"] == pytest.approx(best)
            assert row["num_target_tokens"] == len(pretrained.tokenizer.encode(row["references"][0]))
            assert row["num_generated_tokens"] <= 5


def test_scores_are_means_over_examples_in_percent(folder):
    scores = json.loads((folder / "scores.json").read_text())
    rows = {task: files.read_rows(files.prediction_file(folder, task)) for task in COUNTS}
    for metric, factor in (("rouge_l", 100), ("exact_match", 100), ("nll", 1)):
        values = [row[metric] for task in COUNTS for row in rows[task]]
        assert scores["overall"][metric] == pytest.approx(factor * np.mean(values), abs=1e-4)
        values = [row[metric] for row in rows["task2_wet"]]
        assert scores["tasks"]["task2_wet"][metric] == pytest.approx(factor * np.mean(values), abs=1e-4)
    entailment = scores["categories"]["textual_entailment"]
    assert (entailment["n"], entailment["score"]) == (3, entailment["rouge_l"])
    assert (scores["overall"]["n"], scores["step"], scores["split"], scores["max_tokens"]) == (6, 20, "test", 5)


def test_the_metric_that_a_task_declares_stands_for_it(folder):
    declared = {"task1_colour": "exact_match", "task2_wet": "rouge_l", "task3_count": "rouge_l"}
    scores = json.loads((folder / "scores.json").read_text())
    assert {task: entry["headline"] for task, entry in scores["tasks"].items()} == declared
    categories = dict(word_analogy="exact_match", textual_entailment="rouge_l", title_generation="rouge_l")
    assert {category: entry["headline"] for category, entry in scores["categories"].items()} == categories
    records = files.read_records(folder / "records.jsonl")
    assert {record.task: record.headline for record in records} == declared


def test_records_hold_one_line_for_each_task_and_metric(folder, pretrained, store):
    records = files.read_records(folder / "records.jsonl")
    assert {(r.task, r.metric) for r in records} == {(t, m) for t in COUNTS for m in ("rouge_l", "exact_match", "nll")}
    assert len(records) == 9
    assert {(r.run, r.split, r.seed, r.step, r.config_hash) for r in records} == {("toy", "test", 3, 20, "c")}
    assert all(r.n == COUNTS[r.task] for r in records)
    assert {r.decoding for r in records} == {"greedy max_tokens=5"}


def test_a_restart_computes_nothing_again_and_gives_the_same(folder, pretrained, store, calls):
    before = (folder / "records.jsonl").read_text(), (folder / "scores.json").read_text()
    scores = evaluate(pretrained, store, folder)
    assert calls == []
    assert ((folder / "records.jsonl").read_text(), (folder / "scores.json").read_text()) == before
    assert list(scores) == list(COUNTS)


@pytest.mark.parametrize("change", ["weights", "max_tokens", "decoding", "max_examples", "metrics", "split file"])
def test_anything_that_changes_predictions_computes_them_again(pretrained, store, calls, tmp_path, change):
    evaluate(pretrained, store, tmp_path)
    options = {
        "max_tokens": dict(max_tokens=6),
        "decoding": dict(decoding=Decoding(min_tokens=2)),
        "max_examples": dict(max_examples=1),
        "metrics": dict(metrics=["rouge_l"]),
    }
    if change == "weights":
        pretrained = dataclasses.replace(pretrained, params=jax.tree.map(lambda leaf: leaf * 1.01, pretrained.params))
    if change == "split file":
        entry = store.entry
        changed = types.SimpleNamespace(**{name: getattr(store, name) for name in dir(store) if name[0] != "_"})
        changed.entry = lambda task, split: dataclasses.replace(entry(task, split), sha256="other")
        store = changed
    del calls[:]
    evaluate(pretrained, store, tmp_path, **options.get(change, {}))
    # The third task has one example, so its predictions are the same with at most one.
    assert calls == list(COUNTS)[: 2 if change == "max_examples" else 3]


def test_batch_and_chunk_size_do_not_make_predictions_stale(pretrained, store, calls, tmp_path):
    evaluate(pretrained, store, tmp_path)
    evaluate(pretrained, store, tmp_path, batch_size=1, chunk_size=1)
    assert calls == list(COUNTS)


@pytest.mark.parametrize("damage", ["cut", "fewer", "empty", "other key"])
def test_damaged_predictions_are_computed_again(pretrained, store, calls, tmp_path, damage):
    evaluate(pretrained, store, tmp_path)
    path = files.prediction_file(tmp_path, "task2_wet")
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    broken = {
        "cut": text[:-20],
        "fewer": "".join(lines[:-1]),
        "empty": "",
        "other key": text.replace('"key": "', '"key": "0'),
    }
    path.write_text(broken[damage])
    del calls[:]
    evaluate(pretrained, store, tmp_path)
    assert calls == ["task2_wet"]
    assert len(files.read_rows(path)) == 3


def test_finished_tasks_survive_a_kill_and_are_not_repeated(pretrained, store, calls, tmp_path, monkeypatch):
    plain = files.os.replace

    def kill(source, target):
        if "task2" in str(target):
            raise KeyboardInterrupt
        plain(source, target)

    monkeypatch.setattr(files.os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        evaluate(pretrained, store, tmp_path, chunk_size=1)
    assert [path.name for path in (tmp_path / "predictions").glob("*.jsonl")] == ["task1_colour.jsonl"]
    assert not (tmp_path / "scores.json").exists()
    monkeypatch.setattr(files.os, "replace", plain)
    del calls[:]
    evaluate(pretrained, store, tmp_path)
    assert calls == ["task2_wet", "task3_count"]
    assert len(files.read_records(tmp_path / "records.jsonl")) == 9


@pytest.mark.parametrize("gone", ["nothing", "records.jsonl", "predictions"])
def test_results_of_two_splits_do_not_share_a_folder(pretrained, store, calls, tmp_path, gone):
    evaluate(pretrained, store, tmp_path)
    if gone == "predictions":
        shutil.rmtree(tmp_path / gone)
    elif gone != "nothing":
        (tmp_path / gone).unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    del calls[:]
    with pytest.raises(InputError, match="holds results of split 'test'; evaluate split 'validation' into another RUN"):
        runner.evaluate(pretrained, store, "validation", tmp_path)
    assert calls == [] and before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_chunks_hold_several_tasks_and_every_task_once(pretrained, store, tmp_path, monkeypatch):
    chunks = []
    plain = predictions.predict
    monkeypatch.setattr(predictions, "predict", lambda p, c, *a: chunks.append([w.name for w in c]) or plain(p, c, *a))
    evaluate(pretrained, store, tmp_path, chunk_size=5, max_tokens=2)
    assert chunks == [["task1_colour", "task2_wet"], ["task3_count"]]


class Watch:
    """Writes down what it is told."""

    def __init__(self):
        self.batches, self.tasks = [], []

    def __call__(self, *args):
        self.batches.append(args)

    def task(self, state):
        self.tasks.append((state.task, state.n, state.scores is not None))


def test_progress_ends_at_the_number_of_examples(pretrained, store, tmp_path):
    watch = Watch()
    evaluate(pretrained, store, tmp_path, batch_size=2, max_tokens=2, progress=watch)
    seen, sizes = watch.batches, {"task1_colour": 2, "task2_wet": 3, "task3_count": 1}
    # All tasks at first, then each with its scores.
    assert watch.tasks == [(task, n, done) for done in (False, True) for task, n in sizes.items()]
    evaluate(pretrained, store, tmp_path, max_tokens=2, progress=watch)  # nothing is left to do
    assert watch.tasks[6:] == [(task, n, True) for task, n in sizes.items()]
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][:2] == (6, 6)
    assert {stage for _, _, stage in seen} == {"score and generate"}


def test_chosen_tasks_alone_are_scored(pretrained, store, calls, tmp_path):
    assert list(evaluate(pretrained, store, tmp_path, tasks=["task3_count", "task1_colour"])) == [
        "task3_count",
        "task1_colour",
    ]


def test_wrong_requests_are_named_before_anything_is_computed(pretrained, store, calls, tmp_path):
    with pytest.raises(UnknownNameError, match="task2_wet"):
        evaluate(pretrained, store, tmp_path, tasks=["task2_wat"])
    with pytest.raises(UnknownNameError, match="split"):
        runner.evaluate(pretrained, store, "tset", tmp_path)
    with pytest.raises(UnknownNameError, match="metric 'rouge'; closest: rouge_l"):
        evaluate(pretrained, store, tmp_path, metrics=["rouge"])
    with pytest.raises(InputError, match="max_examples is 0"):
        evaluate(pretrained, store, tmp_path, max_examples=0)
    with pytest.raises(InputError, match="no task to evaluate"):
        evaluate(pretrained, store, tmp_path, tasks=[])
    other = dataclasses.replace(pretrained.tokenizer, fingerprint="other")
    with pytest.raises(InputError, match="vocabulary"):
        evaluate(dataclasses.replace(pretrained, tokenizer=other), store, tmp_path)
    assert calls == [] and not list(tmp_path.iterdir())


def test_an_empty_split_is_an_error_that_names_the_task(pretrained, store, calls, tmp_path, monkeypatch):
    entry = dataclasses.replace(store.entry("task2_wet", "test"), num_examples=0)
    monkeypatch.setattr(store, "entry", lambda task, split: entry)
    with pytest.raises(InputError, match="task task2_wet: split 'test' is empty"):
        evaluate(pretrained, store, tmp_path, tasks=["task2_wet"])


def test_weights_that_are_not_finite_are_an_error_that_names_the_task(pretrained, store, tmp_path):
    params = jax.tree.map(lambda leaf: leaf * np.nan, pretrained.params)
    with pytest.raises(InputError, match="task task1_colour, example 'task1_colour-0': the NLL is nan"):
        evaluate(dataclasses.replace(pretrained, params=params), store, tmp_path, max_tokens=2)
    assert not list(tmp_path.iterdir())


def test_a_model_without_tokenizer_takes_the_store_s(folder, pretrained, store, tmp_path):
    evaluate(dataclasses.replace(pretrained, tokenizer=None), store, tmp_path)
    for task in COUNTS:
        assert files.prediction_file(tmp_path, task).read_text() == files.prediction_file(folder, task).read_text()
