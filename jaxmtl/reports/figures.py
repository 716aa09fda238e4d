"""Pictures of a run as PNG: loss curves, categories as bars, tasks as dots. No window is opened, no state is kept.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; shapes differ as well.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.reports import tables
from jaxmtl.reports.sources import Column, Curve

if TYPE_CHECKING:
    import pandas as pd

BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#767676"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, GREY)
SHAPES = ("o", "D", "s", "^", "v", "P")
MAX_LABELLED_TASKS = 150
"""More tasks than this are drawn without their names, which nobody could read."""


def loss_curves(curves: Mapping[str, Curve], title: str) -> bytes | None:
    """Draws every loss that was logged, but for those of single tasks.

    Args:
      curves: name to curve, as in `RunData.curves`.
      title: what the run is called.

    Returns:
      PNG; None if no loss was logged.
    """
    names = [name for name in curves if name.count("/") == 1 and name.endswith(("/loss", "/nll"))]
    if not names:
        return None
    figure, axes = _canvas(7.2, 4.0)
    for color, name in zip(PALETTE, sorted(names, key=lambda name: name != "train/loss"), strict=False):
        steps, values = curves[name]
        # The training loss has many points, others few: their markers tell them apart without colour.
        marker = "" if name == "train/loss" and len(steps) > 40 else "o"
        axes.plot(steps, values, color=color, marker=marker, markersize=4, linewidth=1.6, label=_curve_name(name))
    axes.set(xlabel="optimiser step", ylabel="nats per target token", title=f"Loss of {title}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper right")
    return png(figure)


def category_bars(table: "pd.DataFrame", columns: Sequence[Column]) -> bytes:
    """Draws the headline score of each category, with 95% intervals where there are some.

    Args:
      table: what `tables.category_table` gives.
      columns: the columns it compares.

    Returns:
      PNG.
    """
    rows, unit = _of_one_unit(table)
    thickness = 0.8 / len(columns)
    figure, axes = _canvas(7.2, 1.3 + len(rows) * (0.2 + 0.17 * len(columns)))
    for number, (column, color) in enumerate(zip(columns, _colors(columns), strict=True)):
        centres = [place + (number - (len(columns) - 1) / 2) * thickness for place in range(len(rows))]
        values = [_zero_for_missing(row[column.label]) for row in rows]
        axes.barh(centres, values, thickness * 0.92, color=color, label=column.label)
        for centre, value, row in zip(centres, values, rows, strict=True):
            _draw_interval(axes, centre, value, row[f"{column.label} low"], row[f"{column.label} high"])
    names = [f"{row['category']} ({tables.NAMES.get(row['metric'], row['metric'])}, n={row['n']})" for row in rows]
    axes.set_yticks(range(len(rows)), [shortened(name, 60) for name in names])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(xlabel=f"mean over examples, {unit}", title="Scores by category")
    if unit == "%":
        axes.set_xlim(0, 100)
    axes.grid(axis="x", alpha=0.3)
    _legend_below(figure, axes, columns)
    return png(figure)


def task_dots(table: "pd.DataFrame", columns: Sequence[Column]) -> bytes:
    """Draws the headline score of each task, sorted by the last column.

    Args:
      table: what `tables.task_table` gives.
      columns: the columns it compares.

    Returns:
      PNG.
    """
    rows, unit = _of_one_unit(table)
    score = lambda row, column: row[f"{row['metric']} ({column.label})"]
    rows = sorted(rows, key=lambda row: _zero_for_missing(score(row, columns[-1])), reverse=unit == "%")
    labelled = len(rows) <= MAX_LABELLED_TASKS
    figure, axes = _canvas(7.2, 1.4 + (0.19 * len(rows) if labelled else 9.0))
    for number, (column, color) in enumerate(zip(columns, _colors(columns), strict=True)):
        values = [score(row, column) for row in rows]
        filled = number == len(columns) - 1
        style: dict[str, Any] = dict(color=color) if filled else dict(facecolors="none", edgecolors=color)
        shape = SHAPES[number % len(SHAPES)]
        axes.scatter(values, range(len(rows)), s=26, marker=shape, label=column.label, zorder=3, **style)
    names = [shortened(row["task"], 46) for row in rows] if labelled else []
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if unit == "%":
        axes.set_xlim(-2, 102)
    metrics = sorted({tables.NAMES.get(row["metric"], str(row["metric"])) for row in rows})
    axes.set(xlabel=f"{' or '.join(metrics)} (each task's headline metric), {unit}", title="Scores by task, best first")
    axes.grid(alpha=0.3)
    _legend_below(figure, axes, columns)
    return png(figure)


def step_curves(table: "pd.DataFrame", title: str) -> bytes | None:
    """Draws what a run's scores become while it is trained: percentages, and beside them the NLL.

    Args:
      table: what `tables.overall_table` gives of the run.
      title: what the run is called.

    Returns:
      PNG; None if fewer than two steps were evaluated.
    """
    points = table.drop_duplicates("step", keep="last").sort_values("step")
    if len(points) < 2:
        return None
    numbers = {name for name in tables.UNITS if name in points}
    panels = [names for names in (sorted(numbers - {"nll"}), sorted(numbers & {"nll"})) if names]
    figure = new_figure(3.8 * len(panels), 3.4)
    for number, names in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        tidy(axes)
        for name, color, shape in zip(names, PALETTE, SHAPES, strict=False):
            axes.plot(points["step"], points[name], color=color, marker=shape, markersize=4, label=tables.NAMES[name])
        axes.set(xlabel="optimiser step", ylabel=f"mean over examples, {tables.UNITS[names[0]]}")
        axes.grid(alpha=0.3)
        # Where curves end up elsewhere: percentages rise in training, the NLL falls.
        axes.legend(frameon=False, loc="upper right" if "nll" in names else "lower right")
    figure.suptitle(f"Scores of {shortened(title, 60)} by step")
    return png(figure)


def draw_ratios(table: "pd.DataFrame") -> bytes | None:
    """Draws how the rows that training drew of each task compare with what its share asked for.

    Args:
      table: what `tables.draws_table` gives.

    Returns:
      PNG; None if nothing was asked of any task.
    """
    rows = sorted((row for row in table.to_dict("records") if row["asked"] > 0), key=lambda row: row["asked"])
    if not rows:
        return None
    figure, axes = _canvas(7.2, 3.2)
    asked, ratios = [row["asked"] for row in rows], [row["ratio"] for row in rows]
    # Draws of a task are close to a Poisson number, whose standard deviation is the root of its mean.
    widths = [2 / math.sqrt(one) for one in asked]
    low, high = [max(1 - width, 0) for width in widths], [1 + width for width in widths]
    axes.fill_between(asked, low, high, color=GREY, alpha=0.2, linewidth=0, label="1 ± 2 sd of chance")
    axes.axhline(1, color=GREY, linewidth=1)
    axes.scatter(asked, ratios, s=16, color=BLUE, label="task", zorder=3)
    axes.set_xscale("log")
    plain_numbers(axes.xaxis)
    axes.set(xlabel="rows asked for", ylabel="drawn / asked", title="Draws of each task in training")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return png(figure)


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    """Returns a figure in inches with one plot."""
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    tidy(axes)
    return figure, axes


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure, made without pyplot, which would keep it alive.

    Args:
      width: in inches.
      height: in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Any) -> None:
    """Takes away the frame's upper and right line and puts the grid behind the data.

    Args:
      axes: a plot of a figure.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def plain_numbers(axis: Any) -> None:
    """Writes 20 instead of 2 x 10 to the power of 1 on a logarithmic axis.

    Args:
      axis: the x or y axis of a plot.
    """
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_formatter(ticker.NullFormatter())


def png(figure: Any) -> bytes:
    """Returns a figure as PNG.

    Args:
      figure: a figure.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()


def _colors(columns: Sequence[Column]) -> list[str]:
    """Returns grey for what came before training, and a colour for each other column."""
    if len(columns) == 2:
        return [GREY, BLUE]
    return [PALETTE[number % len(PALETTE)] for number in range(len(columns))]


def _curve_name(name: str) -> str:
    group, metric = name.split("/")
    return {"train": "training", "validation": "validation"}.get(group, group) + (" NLL" if metric == "nll" else "")


def _of_one_unit(table: "pd.DataFrame") -> tuple[list[dict[Any, Any]], str]:
    """Returns the rows in percent and "%"; where there are none, all rows, which then are in nats, and their unit."""
    rows = table.to_dict("records")
    percent = [row for row in rows if row["metric"] != "nll"]
    return (percent, "%") if percent else (rows, "nats per target token")


def _draw_interval(axes: Any, centre: float, value: float, low: float, high: float) -> None:
    if math.isnan(low):
        return
    # A skewed resample could leave the mean outside; a bar cannot have a negative whisker.
    errors = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
    axes.errorbar(value, centre, xerr=errors, color="black", linewidth=1, capsize=2)


def _legend_below(figure: Any, axes: Any, columns: Sequence[Column]) -> None:
    if len(columns) > 1:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(columns)), frameon=False)


def _zero_for_missing(value: float) -> float:
    return 0.0 if math.isnan(value) else float(value)


def shortened(text: str, most: int) -> str:
    """Cuts a label for a figure.

    Args:
      text: any text.
      most: characters that are kept.

    Returns:
      The text as matplotlib writes it out.
    """
    # A dollar sign would begin a formula.
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text.replace("$", r"\$")
