import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from matplotlib import image

from jaxmtl.feed import preview
from jaxmtl.reports import figures, mixture_figure, sources, tables


def pixels(content):
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return image.imread(io.BytesIO(content), format="png")[..., :3]


def has_color(content, color):
    wanted = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return bool((np.abs(pixels(content) - wanted).max(axis=-1) < 0.02).any())


@pytest.fixture
def run(make_run):
    return sources.read_run(make_run())


def test_loss_curves_draw_training_and_validation_but_not_tasks(run):
    content = figures.loss_curves(run.curves, "toy $x$")
    assert has_color(content, figures.BLUE) and has_color(content, figures.VERMILION)
    assert not has_color(content, figures.GREEN)


def test_no_logged_loss_gives_no_picture():
    assert figures.loss_curves({"train/grad_norm": ([1], [2.0])}, "toy") is None


def test_bars_and_dots_show_both_columns(run):
    columns = tables.compared([run])
    columns[0] = dataclasses.replace(run.columns[1], label="step 5")
    bars = figures.category_bars(tables.category_table(columns), columns)
    dots = figures.task_dots(tables.task_table(columns), columns)
    for content in (bars, dots):
        assert has_color(content, figures.BLUE) and has_color(content, figures.GREY)


def test_the_same_data_give_the_same_bytes(run):
    columns = tables.compared([run])
    table = tables.task_table(columns)
    assert figures.task_dots(table, columns) == figures.task_dots(table, columns)


def test_very_many_tasks_are_drawn_without_names_in_a_bounded_picture(run):
    column = tables.compared([run])[-1]
    scores = {f"task{i:04d}": dataclasses.replace(column.scores["task_a"], task=f"task{i:04d}") for i in range(400)}
    columns = [dataclasses.replace(column, scores=scores, examples={})]
    assert pixels(figures.task_dots(tables.task_table(columns), columns)).shape[0] < 2000


def test_scores_in_nats_alone_can_be_drawn(run):
    columns = [
        dataclasses.replace(
            column,
            examples={},
            scores={n: dataclasses.replace(s, metrics={"nll": s.metrics["nll"]}) for n, s in column.scores.items()},
        )
        for column in tables.compared([run])
    ]
    assert pixels(figures.category_bars(tables.category_table(columns), columns)).size
    assert pixels(figures.task_dots(tables.task_table(columns), columns)).size


def test_draws_are_dots_over_a_band_and_need_something_that_was_asked_for():
    table = pd.DataFrame(
        [dict(task="a", drawn=9, asked=8.0, ratio=1.125), dict(task="b", drawn=0, asked=0.0, ratio=np.nan)]
    )
    assert has_color(figures.draw_ratios(table), figures.BLUE)
    assert figures.draw_ratios(table[1:]) is None


def test_a_mixture_has_four_plots_for_each_stream():
    tasks = [
        preview.TaskPreview(
            name=f"task{k}",
            category=f"category {k} $x$",
            examples=k,
            first_share=k / 780,
            last_share=1 / 40,
            rows=10.0 * k,
            mean_input_tokens=5.0,
            long_input_tokens=9,
            mean_target_tokens=1.0,
            long_target_tokens=2,
        )
        for k in range(40)
    ]
    costs = dict(examples_per_batch=4.0, padding=0.25, cost=1e9, tasks_per_batch=3.0)
    grouped = preview.LayoutPreview(kind="grouped", shapes=((8, 8, 4),), **costs)
    empty = dataclasses.replace(grouped, examples_per_batch=0.0, cost=0.0)
    layouts = {preview.FIXED: empty, preview.USED: grouped}
    seen = dict(num_steps=10, batch_size=4, layouts=layouts, follows_losses=False)
    one = preview.MixturePreview(tasks=tuple(tasks), **seen)
    few = preview.MixturePreview(tasks=tuple(tasks[1:2]), **seen)
    heights = [len(pixels(mixture_figure.mixture_figure(parts))) for parts in ({"a": one}, {"a": one, "b": few})]
    assert heights[1] == 2 * heights[0]
    content = mixture_figure.mixture_figure({"tasks": one})
    assert has_color(content, figures.BLUE) and has_color(content, figures.VERMILION)
