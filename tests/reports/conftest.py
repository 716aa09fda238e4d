import json

import pytest

from jaxmtl.evals import files, summary
from jaxmtl.types import Scores

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)> & \"quotes\""
TASKS = {"task_a": "Textual Entailment", "task_b": "Textual Entailment", "task_c": "Title <script> Generation"}
HEADLINES = {"task_a": "exact_match", "task_b": "exact_match", "task_c": "rouge_l"}
VALUES = {"task_a": [0.0, 1.0], "task_b": [1.0, 1.0, 1.0, 0.0], "task_c": [0.25, 0.75]}


def write_run(
    folder,
    steps,
    name="toy",
    curves=True,
    headlines=HEADLINES,
    scale=0.1,
    config="c",
    weights="w{}",
    split="test",
    adapters="",
):
    """Writes what training and evaluation leave behind; scores of step s are those in VALUES times s times scale."""
    for step in steps:
        scores = {}
        for task, category in TASKS.items():
            values = [value * step * scale for value in VALUES[task]]
            common = dict(key="k", inputs="x" * 3000 + HOSTILE, prediction=HOSTILE, references=[HOSTILE, "two"])
            lengths = dict(num_target_tokens=3, num_generated_tokens=4)
            rows = [
                dict(common, id=str(i), rouge_l=value, exact_match=value, nll=2 - value, **lengths)
                for i, value in enumerate(values)
            ]
            files.write_rows(files.prediction_file(folder, task), rows)
            mean = sum(values) / len(values)
            metrics = dict(rouge_l=100 * mean, exact_match=100 * mean, nll=2 - mean)
            what = dict(task=task, category=category, headline=headlines[task])
            scores[task] = Scores(n=len(values), metrics=metrics, **what)
        labels = summary.Labels(run=name, seed=1, step=step, config_hash=config, git_hash="g")
        settings = dict(split=split, decoding="greedy", max_tokens=8, metrics=["rouge_l"])
        settings["weights_hash"] = weights.format(step)
        if adapters:
            settings["weights_hashes"] = {task: f"{weights.format(step)}+{adapters}-{task}" for task in TASKS}
        files.write_whole(folder / "scores.json", summary.scores_json(scores, settings, labels))
        files.append_records(folder / "records.jsonl", summary.records(scores, settings, labels))
    if curves:
        lines = [{"step": step, "train/loss": 3.0 - step / 10, "train/task_loss/task_a": 1.0} for step in range(1, 11)]
        lines += [{"step": 5, "validation/loss": 2.75}, {"step": 10, "validation/loss": None}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def make_run(tmp_path):
    return lambda steps=(0, 5, 10), name="toy", **options: write_run(tmp_path / name, steps, name, **options)
