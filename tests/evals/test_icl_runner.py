"""In-context learning from a store equals the Python interface on texts, shows no query, and repeats nothing."""

import numpy as np
import pytest
from choice_toy import ROWS, SHOWN, choice_store, choice_tasks

from jaxmtl.evals import files, icl, icl_runner
from jaxmtl.evals.icl_format import PLAIN_QUERY, Format
from jaxmtl.evals.icl_runner import WAYS, Setting, settings
from jaxmtl.evals.target_losses import TargetLosses
from jaxmtl.tasks.fewshot import task_demonstrations
from jaxmtl.types import InputError, UnknownNameError

FORM = Format(query_token="<extra_id_9>")


@pytest.fixture(scope="module")
def choices(tokenizer, tmp_path_factory):
    return choice_store(tmp_path_factory.mktemp("choices") / "store", tokenizer, input_ends=False)


def run(pretrained, store, folder, how, form=FORM, **options):
    return icl_runner.evaluate(pretrained, store, "test", folder, how=how, shown_split="fewshot", form=form, **options)


LONGER = [("concat", 2, PLAIN_QUERY), ("ensemble", 3, FORM)]


@pytest.mark.parametrize(
    "way, shots, form", [("fid", 2, FORM), *(pytest.param(*one, marks=pytest.mark.long) for one in LONGER)]
)
def test_scores_are_those_of_the_texts(pretrained, choices, tmp_path, way, shots, form):
    setting = Setting(way=way, shots=shots, seed=4)
    scores = run(pretrained, choices, tmp_path, [setting], form)
    assert list(scores) == [f"{setting.label} {task}" for task in ROWS]
    for task in choice_tasks():
        asked = task.split("test")
        shown = task_demonstrations(task.split("fewshot"), asked, count=shots, seed=4, task_name=task.name)
        assert {one.inputs for one in shown}.isdisjoint(one.inputs for one in asked)
        texts = [one.inputs for one in asked], [one.choices for one in asked]
        expected = icl.score_choices(pretrained, shown, *texts, way=WAYS[way], form=form)
        rows = files.read_rows(files.prediction_file(tmp_path / setting.label, task.name))
        for row, sums in zip(rows, expected, strict=True):
            np.testing.assert_allclose(row["sums"], sums, rtol=1e-5)
        assert scores[f"{setting.label} {task.name}"].category == setting.label


def test_losses_of_targets_are_those_of_the_texts_and_not_taken_for_rankings(pretrained, choices, tmp_path):
    setting = Setting(way="fid", shots=2, seed=4)
    run(pretrained, choices, tmp_path, [setting])
    scores = run(pretrained, choices, tmp_path, [setting], judge=TargetLosses)
    for task in choice_tasks():
        asked = task.split("test")
        shown = task_demonstrations(task.split("fewshot"), asked, count=2, seed=4, task_name=task.name)
        texts = [one.inputs for one in asked], [one.targets[0] for one in asked]
        expected = icl.loss(pretrained, shown, *texts, way=WAYS["fid"], form=FORM)
        rows = files.read_rows(files.prediction_file(tmp_path / setting.label, task.name))
        np.testing.assert_allclose([row["nll"] for row in rows], expected, rtol=1e-5)
        found = scores[f"{setting.label} {task.name}"]
        assert dict(found.metrics) == {"nll": pytest.approx(expected.mean(), rel=1e-5)} and found.headline == "nll"


def test_a_restart_repeats_nothing_unless_what_is_shown_changed(pretrained, choices, tmp_path, monkeypatch):
    calls = []
    ones = lambda choices: [[np.ones(len(ids)) for ids in row] for row in choices]
    told = lambda model, shown, queries, choices, **more: calls.append(len(queries)) or ones(choices)
    monkeypatch.setattr(icl_runner, "WAYS", {**WAYS, "concat": told})
    how = settings(ways=["concat"], shots=[0, 1])
    scores = run(pretrained, choices, tmp_path, how)
    assert calls == [2, 2, 1] * 2
    assert run(pretrained, choices, tmp_path, how) == scores and len(calls) == 6
    records = files.read_records(tmp_path / how[1].label / "records.jsonl")
    assert {record.run for record in records} == {f"{tmp_path.name}/{how[1].label}"}
    assert {record.category for record in records} == {"wet", "count"}
    run(pretrained, choices, tmp_path, how[1:], Format(query_token="<extra_id_9>", input_prefix="see"))
    assert len(calls) == 9


def test_what_cannot_be_done_is_refused(pretrained, choices, tmp_path):
    with pytest.raises(UnknownNameError, match="way of in-context learning 'fi'; closest: fid"):
        settings(ways=["fi"], shots=[1])
    with pytest.raises(InputError, match="none twice"):
        run(pretrained, choices, tmp_path, settings(ways=["fid"], shots=[1, 1]))
    with pytest.raises(InputError, match=f"4 demonstrations asked for, but its pool of {len(SHOWN)} has only 3"):
        run(pretrained, choices, tmp_path, settings(ways=["fid"], shots=[4]))
    with pytest.raises(InputError, match="give no ADAPTER"):
        run(pretrained, choices, tmp_path, settings(ways=["fid"], shots=[1]), adapters="adapters")
    with pytest.raises(InputError, match="split 'test' cannot be asked about and shown"):
        how = settings(ways=["fid"], shots=[1])
        icl_runner.evaluate(pretrained, choices, "test", tmp_path, how=how, shown_split="test")
    assert not list(tmp_path.iterdir())
