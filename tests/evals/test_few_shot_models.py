"""A whole model for each task: fitted, scored, kept as a folder that loads, and not computed again."""

import json

import jax
import numpy as np
import pytest

from jaxmtl.evals import few_shot_models
from jaxmtl.evals.few_shot import FewShot
from jaxmtl.evals.per_task import settings
from jaxmtl.evals.scoring import token_losses
from jaxmtl.training.fits import Adafactor, AdamW
from jaxmtl.training.fitting import Schedule
from jaxmtl.weights import load_pretrained

TASKS = ["task1_colour", "task2_wet"]
HOW = FewShot(
    split="validation",
    settings=settings(shots=(0, 2), learning_rates=(1e-2,)),
    schedule=Schedule(epochs=6, batch_size=4, num_shapes=1),
)
PLAIN, FITTED = (setting.label for setting in HOW.settings)


def run(pretrained, store, folder, optimizer):
    score = lambda *given, **more: few_shot_models.runner.evaluate(*given, max_tokens=2, **more)
    options = dict(few_shot=HOW, score=score, tasks=TASKS, optimizer=optimizer)
    return few_shot_models.evaluate(pretrained, store, "test", folder, **options)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", [AdamW(), Adafactor()])
def test_every_task_gets_a_model_that_is_scored_and_kept(pretrained, store, tmp_path, monkeypatch, optimizer):
    before = jax.tree.map(np.array, pretrained.params)
    scores = run(pretrained, store, tmp_path, optimizer)
    for task in TASKS:
        assert scores[f"{FITTED} {task}"].metrics["nll"] < scores[f"{PLAIN} {task}"].metrics["nll"] - 0.1
        model = load_pretrained(tmp_path / FITTED / task / "model")
        rows = store.examples(task, "test").rows(range(len(store.examples(task, "test"))))
        losses = [row.mean() for row in token_losses(model, *rows)]
        assert np.mean(losses) == pytest.approx(scores[f"{FITTED} {task}"].metrics["nll"], rel=1e-4)
    fits = json.loads((tmp_path / FITTED / "fits.json").read_text())["tasks"]
    assert [len(fits[task]["losses"]) for task in TASKS] == [6, 6]
    for a, b in zip(jax.tree.leaves(pretrained.params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)

    monkeypatch.setattr(few_shot_models, "fit_each", lambda module, params, fits, *given, **more: iter(fits))
    assert run(pretrained, store, tmp_path, optimizer) == scores
