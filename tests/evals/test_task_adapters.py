"""Tasks that are scored with adapters of their own in one run: scores, records, and what a restart computes again."""

import dataclasses
import json

import pytest

from jaxmtl.adapters.lora import merge
from jaxmtl.evals import files, predictions, runner, task_adapters
from jaxmtl.evals.summary import Labels
from jaxmtl.types import InputError, UnknownNameError
from jaxmtl.weights.fingerprint import weights_hash

TASKS = ["task1_colour", "task2_wet", "task3_count"]


def evaluate(pretrained, store, folder, adapters, **options):
    options = dict(dict(max_tokens=4, labels=Labels(run="toy")), **options)
    return runner.evaluate(pretrained, store, "test", folder, adapters=adapters, **options)


@pytest.fixture(scope="module")
def adapters(pretrained, make_adapter):
    return {task: make_adapter(pretrained, seed, rank=seed + 1) for seed, task in enumerate(TASKS, 1)}


@pytest.fixture
def computed(monkeypatch):
    """Names of the tasks that are really computed, and predictions that need no model."""
    names = []

    def fake(pretrained, chunk, how, stage):
        names.extend(work.name for work in chunk)
        row = dict(nll=1.0, rouge_l=0.5, exact_match=0.0)
        return {
            work.name: [dict(row, key=work.key, split=work.split, id=i) for i in range(work.count)] for work in chunk
        }

    monkeypatch.setattr(predictions, "predict", fake)
    return names


@pytest.mark.long
def test_scores_are_those_of_separate_runs_with_merged_weights(pretrained, store, adapters, tmp_path):
    together = evaluate(pretrained, store, tmp_path / "together", adapters)
    for task in TASKS:
        merged = dataclasses.replace(pretrained, params=merge(pretrained.params, adapters[task]))
        alone = evaluate(merged, store, tmp_path / task, None)
        assert together[task].metrics == pytest.approx(alone[task].metrics, rel=1e-5)
        rows = [files.read_rows(files.prediction_file(tmp_path / run, task)) for run in ("together", task)]
        assert [row["prediction"] for row in rows[0]] == [row["prediction"] for row in rows[1]]
    plain = evaluate(pretrained, store, tmp_path / "plain", None)
    assert all(abs(plain[task].metrics["nll"] - together[task].metrics["nll"]) > 0.01 for task in TASKS)


def test_a_restart_computes_the_tasks_again_whose_adapter_is_another(
    pretrained, store, adapters, computed, make_adapter, tmp_path
):
    evaluate(pretrained, store, tmp_path, adapters)
    same = {task: dataclasses.replace(adapter) for task, adapter in adapters.items()}
    evaluate(pretrained, store, tmp_path, same)
    assert computed == TASKS
    evaluate(pretrained, store, tmp_path, adapters | {"task2_wet": make_adapter(pretrained, 9)})
    assert computed[3:] == ["task2_wet"]
    stronger = dataclasses.replace(adapters["task3_count"], alpha=4.0)
    evaluate(pretrained, store, tmp_path, adapters | {"task3_count": stronger})
    assert computed[4:] == ["task2_wet", "task3_count"]
    evaluate(pretrained, store, tmp_path, None)
    assert computed[6:] == TASKS


def test_records_say_which_adapter_a_task_was_scored_with(pretrained, store, adapters, computed, tmp_path):
    evaluate(pretrained, store, tmp_path, adapters)
    model = weights_hash(pretrained.params)
    expected = {task: f"{model}+{task_adapters.adapter_hash(adapters[task])}" for task in TASKS}
    assert {(one.task, one.weights_hash) for one in files.read_records(tmp_path / "records.jsonl")} == set(
        expected.items()
    )
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["weights_hash"], scores["weights_hashes"]) == (model, expected)


def test_a_model_with_one_adapter_for_all_tasks_is_another_model(pretrained, store, adapters, computed, tmp_path):
    evaluate(pretrained, store, tmp_path, adapters["task1_colour"])
    (found,) = {one.weights_hash for one in files.read_records(tmp_path / "records.jsonl")}
    assert found == json.loads((tmp_path / "scores.json").read_text())["weights_hash"]
    assert len(found) == 16 and found != weights_hash(pretrained.params)
    evaluate(pretrained, store, tmp_path, adapters)  # the first task has the same adapter as before
    assert computed == [*TASKS, *TASKS[1:]]


def test_the_hash_of_an_adapter_knows_its_factors_and_its_scale(pretrained, make_adapter):
    adapter = make_adapter(pretrained, 1)
    changed = [dataclasses.replace(adapter, alpha=4.0), make_adapter(pretrained, 2), dataclasses.replace(adapter)]
    hashes = [task_adapters.adapter_hash(one) for one in (adapter, *changed)]
    assert len(set(hashes)) == 3 and hashes[0] == hashes[3]
    twice = dataclasses.replace(adapter, alpha=2 * adapter.alpha, rank=2 * adapter.rank)  # the same scale
    assert task_adapters.adapter_hash(twice) == hashes[0]


def test_a_task_without_adapter_or_with_a_wrong_one_is_named_before_anything_is_computed(
    pretrained, decoder_only, store, adapters, computed, make_adapter, tmp_path
):
    few = {task: adapters[task] for task in TASKS if task != "task2_wet"}
    with pytest.raises(UnknownNameError, match="unknown adapter of task 'task2_wet'; closest: task3_count"):
        evaluate(pretrained, store, tmp_path, few)
    with pytest.raises(UnknownNameError, match="task task3_count: unknown layer of the adapter 'layers/"):
        evaluate(pretrained, store, tmp_path, adapters | {"task3_count": make_adapter(decoder_only, 1)})
    with pytest.raises(InputError, match="task task1_colour: the adapter is empty"):
        evaluate(pretrained, store, tmp_path, dataclasses.replace(adapters["task1_colour"], tree={}))
    assert computed == [] and not list(tmp_path.iterdir())
    assert list(evaluate(pretrained, store, tmp_path, few, tasks=["task3_count"])) == ["task3_count"]
