import numpy as np
import pytest

from jaxmtl.reports import sources
from jaxmtl.training.draws import write_draws
from jaxmtl.types import InputError


def test_a_run_has_a_column_for_each_evaluated_step(make_run):
    run = sources.read_run(make_run())
    assert [(column.step, column.weights_hash) for column in run.columns] == [(0, "w0"), (5, "w5"), (10, "w10")]
    assert run.columns[1].scores["task_b"].metrics == pytest.approx(dict(rouge_l=37.5, exact_match=37.5, nll=1.625))
    assert run.columns[1].scores["task_b"].n == 4


def test_only_the_latest_step_has_its_examples(make_run):
    run = sources.read_run(make_run())
    assert run.columns[0].examples == {} and run.columns[1].examples == {}
    assert run.columns[2].examples["task_b"]["rouge_l"] == [100, 100, 100, 0]
    assert run.columns[2].examples["task_b"]["nll"] == [1, 1, 1, 2]


def test_the_later_of_two_records_of_the_same_thing_counts(make_run):
    folder = make_run(steps=(10,))
    text = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(text + text.replace('"value": 50.0', '"value": 60.0'))
    column = sources.read_run(folder).columns[0]
    assert column.scores["task_a"].metrics["rouge_l"] == 60.0


def test_other_weights_of_the_same_step_have_a_column_of_their_own(make_run):
    make_run(steps=(10,), weights="aaaaaaaaaa")
    run = sources.read_run(make_run(steps=(10,), weights="bbbbbbbbbb", scale=0.05, config="d"))
    assert [column.label for column in run.columns] == ["step 10, weights aaaaaaaa", "step 10, weights bbbbbbbb"]
    assert [column.scores["task_a"].metrics["rouge_l"] for column in run.columns] == [50, 25]
    assert [bool(column.examples) for column in run.columns] == [False, True]


def test_tasks_with_adapters_of_their_own_share_a_column_beside_the_plain_model(make_run):
    make_run(steps=(10,), weights="aaaaaaaaaa")
    for adapters, scale in (("one", 0.05), ("other", 0.08), ("one", 0.05)):
        run = sources.read_run(make_run(steps=(10,), weights="aaaaaaaaaa", scale=scale, adapters=adapters))
    assert [column.label for column in run.columns] == ["step 10, weights aaaaaaaa", "step 10, weights aaaaaaaa+"]
    # The last evaluation counts, though its records are older than those of the one before it.
    assert [column.scores["task_a"].metrics["rouge_l"] for column in run.columns] == [50, 25]
    assert [bool(column.examples) for column in run.columns] == [False, True]


def test_an_evaluation_done_once_more_counts_though_its_records_are_older(make_run):
    for config, scale in (("a", 0.1), ("b", 0.05), ("a", 0.1)):
        folder = make_run(steps=(10,), config=config, scale=scale)
    (column,) = sources.read_run(folder).columns
    assert column.scores["task_a"].metrics["rouge_l"] == 50
    assert column.examples["task_a"]["rouge_l"] == [0, 100]


def test_curves_leave_out_what_is_not_finite_and_the_line_being_written(make_run):
    folder = make_run()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "train/lo')
    curves = sources.read_curves(folder)
    assert curves["validation/loss"] == ([5], [2.75])
    assert curves["train/loss"][0] == list(range(1, 11))
    assert curves["train/loss"][1][-1] == pytest.approx(2.0)


def test_draws_are_those_that_training_wrote(make_run):
    folder = make_run()
    assert sources.read_run(folder).draws == {}
    write_draws(folder, ["task_a", "é"], np.array([3.0, 0.0]), np.array([2.5, 0.25]))
    assert sources.read_run(folder).draws == {"task_a": (3.0, 2.5), "é": (0.0, 0.25)}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("records.jsonl", "", "holds no record; run `jaxmtl evaluate`"),
        ("records.jsonl", '{"a": 1}\n', "records.jsonl, line 1: not a record.*evaluate again"),
        ("scores.json", None, "scores.json: cannot be read.*run `jaxmtl evaluate`"),
        ("scores.json", "[]", "scores.json: expected a JSON object with tasks"),
        ("predictions/task_b.jsonl", None, "task_b.jsonl: missing.*run `jaxmtl evaluate` again"),
        ("predictions/task_b.jsonl", '{"id": "0"}\n', "task_b.jsonl: a row lacks a score"),
        ("metrics.jsonl", '{"step": 1}\n{"loss"\n', "metrics.jsonl, line 2: expected a JSON object with a step"),
        ("draws.json", '{"task_a"', "draws.json: cannot be read.*delete it"),
        ("draws.json", "[1]", "draws.json: cannot be read.*delete it"),
        ("draws.json", '{"task_a": {"drawn": 1}}', "draws.json: cannot be read.*'asked'"),
        ("metrics.jsonl", '{"train/loss": 1}\n', "metrics.jsonl, line 1: expected a JSON object with a step"),
    ],
)
def test_what_is_missing_or_broken_is_named_with_what_to_do(make_run, file, content, message):
    folder = make_run()
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        sources.read_run(folder)
    assert "\n" not in str(error.value)


def test_a_folder_without_scores_and_losses_is_named(make_run):
    folder = make_run(curves=False)
    (folder / "records.jsonl").unlink()
    with pytest.raises(InputError, match="toy: holds neither records.jsonl nor metrics.jsonl.*run `jaxmtl train` or"):
        sources.read_run(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        sources.read_run(tmp_path / "nowhere")


def test_the_steps_of_a_trajectory_are_columns_of_one_run(make_run, tmp_path):
    for step in (10, 2):
        make_run(steps=(step,), name=f"all/step-{step}", curves=False)
    run = sources.read_run(tmp_path / "all")
    assert [(column.label, column.step) for column in run.columns] == [("step 2", 2), ("step 10", 10)]
    assert run.name == "all" and list(run.shown) == list(run.columns)
    assert run.settings["step"] == 10 and run.columns[0].examples  # each step has its predictions
    make_run(steps=(0, 5), name="all")  # scored in the run's own folder, where it was trained
    run = sources.read_run(tmp_path / "all")
    assert [column.step for column in run.columns] == [0, 2, 5, 10] and run.curves
    assert [column.step for column in run.shown] == [0, 10]


def test_settings_of_few_shot_runs_stand_side_by_side(make_run, tmp_path):
    labels = [f"{shots}-shots_seed-0_rate-0.001" for shots in (0, 5, 40)]
    for label in reversed(labels):
        make_run(steps=(10,), name=f"few/{label}", curves=False)
    run = sources.read_run(tmp_path / "few")
    assert [column.label for column in run.columns] == labels and list(run.shown) == list(run.columns)
    assert {column.run for column in run.columns} == {"few"}
    for step in (2, 10):
        make_run(steps=(step,), name=f"both/step-{step}/{labels[1]}", curves=False)
    run = sources.read_run(tmp_path / "both")
    assert [column.label for column in run.columns] == [f"step-{step}, {labels[1]}" for step in (2, 10)]


def test_parts_of_two_splits_are_no_run(make_run, tmp_path):
    make_run(steps=(2,), name="all/step-2", split="test")
    make_run(steps=(4,), name="all/step-4", split="validation")
    with pytest.raises(InputError, match="all: holds scores of splits 'test' and 'validation'"):
        sources.read_run(tmp_path / "all")
