import io

import pandas as pd
import pytest

from jaxmtl.reports import sources, tables
from jaxmtl.types import InputError


@pytest.fixture
def columns(make_run):
    return tables.compared([sources.read_run(make_run())])


def test_first_and_last_step_stand_side_by_side(columns):
    assert [column.label for column in columns] == ["before training", "step 10"]


def test_a_run_that_was_not_trained_here_has_no_step_before_training(make_run):
    run = sources.read_run(make_run(steps=(0,), curves=False))
    assert [column.label for column in tables.compared([run])] == ["step 0"]


def test_task_table_holds_every_task_sorted_by_category(columns):
    table = tables.task_table(columns)
    assert list(table["task"]) == ["task_a", "task_b", "task_c"]
    assert list(table["metric"]) == ["exact_match", "exact_match", "rouge_l"]
    assert list(table["rouge_l (step 10)"]) == pytest.approx([50, 75, 50])
    assert list(table["nll (before training)"]) == pytest.approx([2, 2, 2])


def test_a_task_is_headed_by_its_own_metric_and_a_category_by_that_of_its_tasks_if_they_agree(make_run):
    headlines = dict(task_a="rouge_l", task_b="exact_match", task_c="exact_match")
    columns = tables.compared([sources.read_run(make_run(headlines=headlines))])
    assert list(tables.task_table(columns)["metric"]) == ["rouge_l", "exact_match", "exact_match"]
    # Textual entailment is headed by exact match where its tasks disagree, all tasks together by ROUGE-L.
    assert list(tables.category_table(columns)["metric"]) == ["exact_match", "exact_match", "rouge_l"]
    agreed = tables.compared([sources.read_run(make_run(name="other", headlines=dict.fromkeys(headlines, "rouge_l")))])
    assert set(tables.category_table(agreed)["metric"]) == {"rouge_l"}


def test_category_table_weighs_tasks_by_their_examples(columns):
    table = tables.category_table(columns).set_index("category")
    # (0 + 1 + 1 + 1 + 1 + 0) of 6 examples are right, not the mean of 50% and 75%.
    assert table.loc["Textual Entailment", "step 10"] == pytest.approx(100 * 4 / 6)
    assert (table.loc["Textual Entailment", "n"], table.loc["Textual Entailment", "tasks"]) == (6, 2)
    assert table.loc["all", "step 10"] == pytest.approx(100 * 5 / 8)
    assert table.loc["all", "metric"] == "rouge_l"


def test_intervals_hold_the_mean_and_are_empty_without_predictions(columns):
    table = tables.category_table(columns)
    assert ((table["step 10 low"] <= table["step 10"]) & (table["step 10"] <= table["step 10 high"])).all()
    assert (table["step 10 low"] >= 0).all() and (table["step 10 high"] <= 100).all()
    assert table["before training low"].isna().all()


def test_overall_table_holds_every_step_of_every_run(make_run):
    runs = [sources.read_run(make_run(name=name)) for name in ("one", "two")]
    table = tables.overall_table(runs)
    assert list(zip(table["run"], table["step"], strict=True)) == [(r, s) for r in ("one", "two") for s in (0, 5, 10)]
    assert list(table["rouge_l"][:3]) == pytest.approx([0, 31.25, 62.5])


def test_runs_are_told_apart_by_name(make_run):
    runs = [sources.read_run(make_run(name=name)) for name in ("one", "two")]
    labels = [column.label for column in tables.compared(runs)]
    assert labels == ["one, before training", "one, step 10", "two, before training", "two, step 10"]
    with pytest.raises(InputError, match="compared with itself"):
        tables.compared([runs[0], runs[0]])


def test_runs_of_the_same_name_are_told_apart_by_their_folders(make_run, tmp_path):
    one = make_run(steps=(10,)).rename(tmp_path / "one")
    runs = [sources.read_run(folder) for folder in (one, make_run(steps=(10,)))]
    assert [column.label for column in tables.compared(runs)] == [f"{one}, step 10", f"{tmp_path / 'toy'}, step 10"]
    assert list(tables.overall_table(runs)["run"]) == [str(one), str(tmp_path / "toy")]


def test_runs_evaluated_on_different_splits_are_not_compared(make_run):
    runs = [sources.read_run(make_run(name=split, split=split)) for split in ("test", "validation")]
    with pytest.raises(InputError, match="scores of split 'test', .*validation of split 'validation'; compare"):
        tables.compared(runs)


def test_csv_keeps_all_digits_and_markdown_has_a_line_for_each_row(make_run, tmp_path):
    runs = [sources.read_run(make_run())]
    written = {path.name: path for path in tables.write_tables(runs, tmp_path / "out")}
    assert set(written) == {f"{name}.{kind}" for name in ("overall", "categories", "tasks") for kind in ("csv", "md")}
    table = pd.read_csv(io.StringIO(written["categories.csv"].read_text()))
    pd.testing.assert_frame_equal(table, tables.category_table(tables.compared(runs)), check_dtype=False, rtol=1e-15)
    lines = written["categories.md"].read_text().splitlines()
    assert len(lines) == 2 + len(table)
    assert lines[1].startswith("| --- | ---: |")
    assert "66.67" in lines[2]


def test_markdown_cells_cannot_break_the_table():
    text = tables.to_markdown(pd.DataFrame([{"a|b": "x|y\nz", "v": None}]))
    assert text == "| a\\|b | v |\n| --- | --- |\n| x\\|y z |  |\n"


def test_a_task_without_the_text_metric_falls_back_to_its_nll(columns):
    stripped = [
        sources.dataclasses.replace(
            column,
            scores={
                name: sources.dataclasses.replace(scores, metrics={"nll": scores.metrics["nll"]})
                for name, scores in column.scores.items()
            },
        )
        for column in columns
    ]
    assert set(tables.category_table(stripped)["metric"]) == {"nll"}
