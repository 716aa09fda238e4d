"""Rank classification from a store: what is written equals scores of texts one by one, and nothing is repeated."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from choice_toy import ROWS, choice_store
from hyper_toy import EVERYTHING, LORA, random_like

from jaxmtl.adapters.hyper_config import HyperConfig, MeanPooling
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.hypernet import Hyper, InstructionCache, adapters_of, read_tasks
from jaxmtl.evals import files, ranking, scoring
from jaxmtl.evals.instructed import ByInstruction
from jaxmtl.types import InputError


@pytest.fixture(scope="module")
def choices(tokenizer, tmp_path_factory):
    return choice_store(tmp_path_factory.mktemp("choices") / "store", tokenizer)


@pytest.fixture(scope="module")
def folder(pretrained, choices, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rank")
    ranking.evaluate(pretrained, choices, "test", folder, batch_size=2)
    return folder


def test_answers_are_the_likeliest_choices_by_sum_and_by_mean(pretrained, folder):
    for task, (_, examples) in ROWS.items():
        rows = files.read_rows(files.prediction_file(folder, task))
        for row, (inputs, texts, right) in zip(rows, examples, strict=True):
            # Each choice by itself, as a batch of one: sums of a few losses of size 4 in float32.
            losses = scoring.loss(pretrained, [inputs] * len(texts), texts)
            lengths = [len(pretrained.tokenizer.encode(text)) for text in texts]
            assert row["inputs"] == inputs and row["choices"] == texts and row["num_tokens"] == lengths
            np.testing.assert_allclose(row["sums"], -losses * lengths, rtol=1e-5)
            assert row["prediction"] == texts[int(np.argmin(losses * lengths))]
            assert row["prediction_mean"] == texts[int(np.argmin(losses))]
            assert row["accuracy"] == float(row["prediction"] == texts[right])
            assert row["accuracy_mean"] == float(row["prediction_mean"] == texts[right])
            assert row["nll"] == pytest.approx(losses[right], rel=1e-5)


def test_scores_hold_means_and_medians_over_templates(folder):
    content = json.loads((folder / "scores.json").read_text())
    of = lambda task: [row["accuracy"] for row in files.read_rows(files.prediction_file(folder, task))]
    means = {task: 100 * np.mean(of(task)) for task in ROWS}
    assert {task: entry["accuracy"] for task, entry in content["tasks"].items()} == pytest.approx(means)
    assert {entry["headline"] for entry in content["tasks"].values()} == {"accuracy"}
    found = content["variants"]["accuracy"]
    wet = found["data_sets"]["wet"]
    assert (wet["variants"], wet["mean"]) == (2, pytest.approx(np.mean([means["wet_a"], means["wet_b"]])))
    assert found["averages"]["mean over data sets"] == pytest.approx(np.mean([wet["mean"], means["count_a"]]))
    assert "MTest11" not in found["averages"]


def test_the_first_of_equal_choices_wins(pretrained, choices, tmp_path):
    params = jax.tree.map(np.zeros_like, pretrained.params)  # every token is as likely as any other
    ranking.evaluate(dataclasses.replace(pretrained, params=params), choices, "test", tmp_path)
    rows = files.read_rows(files.prediction_file(tmp_path, "wet_b"))
    assert [row["prediction_mean"] for row in rows] == ["no", "no"]


def test_a_restart_ranks_only_what_is_not_finished(pretrained, choices, folder, tmp_path, monkeypatch):
    asked = []
    plain = ranking.scoring.choice_losses
    told = lambda model, inputs, *given, **more: asked.append(len(inputs)) or plain(model, inputs, *given, **more)
    monkeypatch.setattr(ranking.scoring, "choice_losses", told)
    whole = ranking.evaluate(pretrained, choices, "test", tmp_path, chunk_size=1)
    assert asked == [2, 2, 1]
    files.prediction_file(tmp_path, "wet_b").unlink()
    assert ranking.evaluate(pretrained, choices, "test", tmp_path) == whole and asked == [2, 2, 1, 2]
    records = (tmp_path / "records.jsonl").read_text()
    assert ranking.evaluate(pretrained, choices, "test", tmp_path) == whole and len(asked) == 4
    assert (tmp_path / "records.jsonl").read_text() == records
    # Other batches round differently in float32, but no answer changes.
    assert {name: one.metrics["accuracy"] for name, one in whole.items()} == {
        name: entry["accuracy"] for name, entry in json.loads((folder / "scores.json").read_text())["tasks"].items()
    }


@pytest.mark.long
def test_adapters_of_tasks_share_batches(pretrained, choices, make_adapter, tmp_path):
    adapters = {name: make_adapter(pretrained, seed) for seed, name in enumerate(ROWS)}
    ranking.evaluate(pretrained, choices, "test", tmp_path, adapters=adapters)
    (row,) = files.read_rows(files.prediction_file(tmp_path, "count_a"))
    (inputs, texts, _) = ROWS["count_a"][1][0]
    expected = scoring.score_choices(pretrained, [inputs], [texts], adapter=adapters["count_a"])[0]
    np.testing.assert_allclose(row["sums"], expected, rtol=1e-5)


def test_a_hypernetwork_makes_what_each_task_is_ranked_with(pretrained, choices, tmp_path):
    config = HyperConfig(
        encoder="learned", tasks=tuple(ROWS), pooling=MeanPooling(), outputs=(LORA,), fusion="none", memory="input"
    )
    params = random_like(HyperModel(config, pretrained.module), seed=2, spread=0.2)
    hyper = Hyper(config=config, params={name: tree for name, tree in params.items() if name != "base"})
    ranking.evaluate(pretrained, choices, "test", tmp_path, adapters=ByInstruction(hyper=hyper))
    adapters = dict(zip(ROWS, adapters_of(config, read_tasks(hyper, pretrained, list(ROWS))), strict=True))
    for task, (_, examples) in ROWS.items():
        inputs, texts, _ = examples[0]
        expected = scoring.score_choices(pretrained, [inputs], [texts], adapter=adapters[task])[0]
        row = files.read_rows(files.prediction_file(tmp_path, task))[0]
        np.testing.assert_allclose(row["sums"], expected, rtol=1e-5)


@pytest.mark.long
def test_instructions_of_a_store_are_ranked_with(pretrained, choices, tokenizer, tmp_path):
    told = {task: f"say {task.replace('_', ' ')}" for task in ROWS}
    instruction = lambda task, example, **options: told.get(task.name, "say it")
    store = choice_store(tmp_path / "store", tokenizer, instruction=instruction)
    params = random_like(HyperModel(EVERYTHING, pretrained.module), seed=2, spread=0.2)
    hyper = Hyper(config=EVERYTHING, params={name: tree for name, tree in params.items() if name != "base"})
    ranking.evaluate(pretrained, store, "test", tmp_path / "run", adapters=ByInstruction(hyper=hyper))
    cache = InstructionCache(hyper, pretrained)
    for task, (_, examples) in ROWS.items():
        inputs, texts, _ = examples[0]
        expected = scoring.score_choices(pretrained, [inputs], [texts], adapter=cache.of([told[task]]))[0]
        row = files.read_rows(files.prediction_file(tmp_path / "run", task))[0]
        np.testing.assert_allclose(row["sums"], expected, rtol=1e-4)


def test_what_cannot_be_ranked_is_refused(pretrained, store, choices, tmp_path):
    with pytest.raises(InputError, match="task task1_colour has no answer choices to rank"):
        ranking.evaluate(pretrained, store, "test", tmp_path)
    params = jax.tree.map(lambda leaf: leaf * np.nan, pretrained.params)
    with pytest.raises(InputError, match="task wet_a, example 'test-0': the NLL of a choice is not finite"):
        ranking.evaluate(dataclasses.replace(pretrained, params=params), choices, "test", tmp_path)
    assert not list(tmp_path.iterdir())
