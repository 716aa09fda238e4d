"""Few-shot transfer from a store: fitted on one split, scored on another, resumed, and kept in PEFT's form."""

import dataclasses
import json

import numpy as np
import pytest

from jaxmtl.adapters.lora import LoRA
from jaxmtl.evals import few_shot
from jaxmtl.evals.files import read_records
from jaxmtl.evals.per_task import Held, Setting, settings
from jaxmtl.evals.request_adapters import request_adapters
from jaxmtl.evals.scoring import token_losses
from jaxmtl.training.fitting import Schedule
from jaxmtl.types import InputError, UnknownNameError
from jaxmtl.weights import load_adapter

TASKS = ["task1_colour", "task2_wet"]
HOW = few_shot.FewShot(
    split="validation",
    settings=settings(shots=(0, 2), learning_rates=(3e-2,)),
    schedule=Schedule(epochs=8, batch_size=4, num_shapes=1),
)
LORA = LoRA(rank=2, alpha=4.0)
PLAIN, FITTED = (setting.label for setting in HOW.settings)


def run(pretrained, store, folder, how=HOW, **options):
    score = lambda *given, **more: few_shot.runner.evaluate(*given, max_tokens=2, **more)
    options = dict(lora=LORA, score=score, tasks=TASKS) | options
    return few_shot.evaluate(pretrained, store, "test", folder, few_shot=how, **options)


def test_every_setting_is_fitted_scored_and_kept(pretrained, store, tmp_path, monkeypatch):
    scores = run(pretrained, store, tmp_path)
    assert set(scores) == {f"{label} {task}" for label in (PLAIN, FITTED) for task in TASKS}
    for task in TASKS:
        assert scores[f"{FITTED} {task}"].metrics["nll"] < scores[f"{PLAIN} {task}"].metrics["nll"] - 0.5
        assert scores[f"{FITTED} {task}"].category == FITTED
        # What was saved is what was scored.
        adapter = load_adapter(tmp_path / FITTED / "adapters" / task, pretrained)
        inputs, targets = store.examples(task, "test").rows(range(len(store.examples(task, "test"))))
        adapters = request_adapters(pretrained, adapter, len(inputs))
        losses = [row.mean() for row in token_losses(pretrained, inputs, targets, adapters=adapters)]
        assert np.mean(losses) == pytest.approx(scores[f"{FITTED} {task}"].metrics["nll"], rel=1e-4)
    records = read_records(tmp_path / FITTED / "records.jsonl")
    assert {record.run for record in records} == {f"{tmp_path.name}/{FITTED}"}
    fits = json.loads((tmp_path / FITTED / "fits.json").read_text())["tasks"]
    assert [len(fits[task]["losses"]) for task in TASKS] == [8, 8]
    assert not (tmp_path / PLAIN / "adapters").exists()

    monkeypatch.setattr(few_shot, "fit_each", lambda module, params, fits, *given, **more: iter(fits))  # of none
    assert run(pretrained, store, tmp_path) == scores


@pytest.mark.long
def test_the_best_epoch_on_held_shots_is_kept_and_told(pretrained, store, tmp_path):
    held = dataclasses.replace(HOW, settings=HOW.settings[1:], held=Held(share=0.5))
    run(pretrained, store, tmp_path, dataclasses.replace(HOW, settings=HOW.settings[1:]))
    run(pretrained, store, tmp_path, held)  # other adapters in the same folder
    for fit in json.loads((tmp_path / FITTED / "fits.json").read_text())["tasks"].values():
        assert fit["num_examples"] == 1 and len(fit["held_losses"]) == 8
        assert fit["best_epoch"] == 1 + int(np.argmin(fit["held_losses"]))


@pytest.mark.long
def test_other_settings_are_fitted_anew(pretrained, store, tmp_path, monkeypatch):
    asked = []
    plain = few_shot.fit_each
    tell = lambda fits: asked.append(fits) if fits else None
    monkeypatch.setattr(few_shot, "fit_each", lambda *given, **more: tell(given[2]) or plain(*given, **more))
    once = dataclasses.replace(HOW, settings=HOW.settings[1:], schedule=Schedule(epochs=1, num_shapes=1))
    scores = run(pretrained, store, tmp_path, once)
    run(pretrained, store, tmp_path, once)
    assert len(asked) == 1
    # Only what is missing is fitted, and it becomes the same without its neighbour.
    file = tmp_path / FITTED / "fits.json"
    fits = json.loads(file.read_text())["tasks"]
    file.write_text(json.dumps({"tasks": {TASKS[0]: fits[TASKS[0]], TASKS[1]: {"key": "another"}}}))
    again = run(pretrained, store, tmp_path, once)
    assert [fit.name for fit in asked.pop()] == TASKS[1:]
    assert {name: one.metrics["nll"] for name, one in again.items()} == pytest.approx(
        {name: one.metrics["nll"] for name, one in scores.items()}, rel=1e-4
    )
    kept = json.loads(file.read_text())["tasks"]
    assert kept[TASKS[0]] == fits[TASKS[0]] and kept[TASKS[1]]["key"] == fits[TASKS[1]]["key"]
    run(pretrained, store, tmp_path, once, lora=LoRA(rank=1))
    assert len(asked) == 2 and [fit.name for fit in asked[1]] == TASKS


@pytest.mark.long
def test_adapters_that_were_saved_before_a_stop_are_kept(pretrained, store, tmp_path, monkeypatch):
    saved, plain = [], few_shot.save_adapter

    def save_one(path, *given):
        if saved:
            raise KeyboardInterrupt
        saved.append(path.name)
        plain(path, *given)

    once = dataclasses.replace(HOW, settings=HOW.settings[1:], schedule=Schedule(epochs=1, num_shapes=1))
    monkeypatch.setattr(few_shot, "save_adapter", save_one)
    with pytest.raises(KeyboardInterrupt):
        run(pretrained, store, tmp_path, once)
    monkeypatch.setattr(few_shot, "save_adapter", lambda path, *given: saved.append(path.name) or plain(path, *given))
    run(pretrained, store, tmp_path, once)
    assert sorted(saved) == TASKS


class Rows(list):
    def rows(self, places):
        return self, self


class Few:
    """Examples of one task in two splits."""

    def __init__(self, **splits):
        self.splits = splits

    def task_names(self, split):
        return ["task"]

    def examples(self, name, split):
        rows = [np.array(ids, np.int32) for ids in self.splits[split]]
        return Rows(rows)


def test_examples_whose_input_is_scored_are_not_learnt():
    store = Few(validation=[[5, 1], [6, 1], [7, 1], [6, 1]], test=[[6, 1], [8, 1]])
    how = dataclasses.replace(HOW, settings=settings(shots=(2,)))
    shots = few_shot.Shots(store=store, few_shot=how, scored="test")
    shots.check(["task"])
    assert sorted(ids.tolist() for ids in shots.fit("task", how.settings[0]).inputs) == [[5, 1], [7, 1]]
    more = dataclasses.replace(shots, few_shot=dataclasses.replace(how, settings=settings(shots=(3,))))
    with pytest.raises(InputError, match=r"whose input is not scored: task \(2\)"):
        more.check(["task"])
    every = dataclasses.replace(how, settings=settings(shots=(None,)))
    to_hold = dataclasses.replace(every, held=Held(split="dev"))
    spent = Few(validation=[[5, 1]], dev=[[6, 1]], test=[[6, 1]])
    with pytest.raises(InputError, match="1 of 1 tasks have no examples in split 'dev'"):
        few_shot.Shots(store=spent, few_shot=to_hold, scored="test").check(["task"])
    none_left = few_shot.Shots(store=Few(validation=[[6, 1]], test=[[6, 1]]), few_shot=every, scored="test")
    with pytest.raises(InputError, match=r"whose input is not scored: task \(0\)"):
        none_left.check(["task"])


def test_what_cannot_be_done_is_refused(pretrained, store, tmp_path):
    with pytest.raises(InputError, match="none twice"):
        few_shot.FewShot(split="validation", settings=[Setting(), Setting()])
    with pytest.raises(InputError, match=r"9 shots asked for, but \d of \d tasks have fewer .*task1_colour \(2\)"):
        run(pretrained, store, tmp_path, dataclasses.replace(HOW, settings=settings(shots=(9,))))
    with pytest.raises(UnknownNameError, match="fewshot"):
        run(pretrained, store, tmp_path, dataclasses.replace(HOW, split="fewshot"))
    for learnt, held in (("test", None), ("validation", "test"), ("validation", "validation")):
        with pytest.raises(InputError, match="give different splits, or scores would flatter"):
            how = dataclasses.replace(HOW, split=learnt, held=Held(split=held) if held else HOW.held)
            run(pretrained, store, tmp_path, how)
    with pytest.raises(InputError, match="give no ADAPTER"):
        run(pretrained, store, tmp_path, adapters="adapters")
    assert not (tmp_path / FITTED).exists()
