"""What a mixture will draw, as a picture: sizes and shares, epochs, categories, what layouts cost."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmtl.feed.preview import USED, MixturePreview
from jaxmtl.reports.figures import BLUE, GREY, VERMILION, new_figure, plain_numbers, png, shortened, tidy

_MAX_CATEGORIES = 30
_WIDE = 20  # values that differ by a larger factor are drawn on a logarithmic scale


def mixture_figure(previews: Mapping[str, MixturePreview]) -> bytes:
    """Draws what streams will draw, four plots for each.

    Args:
      previews: name of the stream to its preview.

    Returns:
      PNG.
    """
    figure = new_figure(11.0, 8.0 * len(previews))
    parts = figure.subfigures(len(previews), 1, squeeze=False)[:, 0]
    for part, (name, preview) in zip(parts, previews.items(), strict=True):
        title = f"{len(preview.tasks)} tasks over {preview.num_steps} steps of {preview.batch_size} rows"
        part.suptitle(f"{shortened(name, 40)}: {title}" if len(previews) > 1 else title)
        axes = part.subplots(2, 2)
        for one, draw in zip(axes.ravel(), (_shares, _epochs, _categories, _layouts), strict=True):
            tidy(one)
            draw(one, preview)
    return png(figure)


def _shares(axes: Any, preview: MixturePreview) -> None:
    tasks = [task for task in preview.tasks if task.examples]
    sizes = [task.examples for task in tasks]
    start, end = [100 * task.first_share for task in tasks], [100 * task.last_share for task in tasks]
    axes.scatter(sizes, start, s=22, marker="D", facecolors="none", edgecolors=VERMILION, label="first step")
    axes.scatter(sizes, end, s=12, color=BLUE, label="last step", zorder=3)
    if max(sizes) > _WIDE * min(sizes):
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
    _scale(axes, [*start, *end])
    axes.set(xlabel="examples of the task", ylabel="share of the draws, %", title="Share of each task by its size")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left")


def _epochs(axes: Any, preview: MixturePreview) -> None:
    epochs = sorted((task.epochs for task in preview.tasks if task.examples), reverse=True)
    axes.plot(range(1, len(epochs) + 1), epochs, color=BLUE, marker="." if len(epochs) < 300 else "", linewidth=1.4)
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
    _scale(axes, [*epochs, 1.0])
    axes.set(xlabel="tasks, most repeated first", ylabel="epochs", title="Expected epochs of each task")
    axes.grid(alpha=0.3)


def _scale(axes: Any, values: Sequence[float]) -> None:
    """Makes differences of all values visible, from 0 where that is possible."""
    if max(values) > _WIDE * min(values) > 0:
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
    else:
        axes.set_ylim(0, 1.1 * max(values))


def _categories(axes: Any, preview: MixturePreview) -> None:
    shares: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for task in preview.tasks:
        shares[task.category] += 100 * np.array([task.first_share, task.last_share])
    shown = sorted(shares.items(), key=lambda item: -item[1].sum())[:_MAX_CATEGORIES]
    places, values = np.arange(len(shown)), np.array([values for _, values in shown])
    axes.barh(places - 0.2, values[:, 0], 0.38, color=VERMILION, label="first step")
    axes.barh(places + 0.2, values[:, 1], 0.38, color=BLUE, label="last step")
    axes.set_yticks(places, [shortened(name, 32) for name, _ in shown], fontsize=7)
    title = "Categories" if len(shown) == len(shares) else f"The {len(shown)} largest of {len(shares)} categories"
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set(xlabel="share of the draws, %", title=title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, loc="lower right")


def _layouts(axes: Any, preview: MixturePreview) -> None:
    shown = {name: layout for name, layout in preview.layouts.items() if layout.examples_per_batch}
    costs = [layout.cost / 1e9 for layout in shown.values()]
    axes.barh(range(len(shown)), costs, 0.7, color=[BLUE if name == USED else GREY for name in shown])
    for place, (cost, layout) in enumerate(zip(costs, shown.values(), strict=True)):
        axes.text(cost, place, f" {cost:.3g}, {layout.padding:.0%} padding", va="center", fontsize=8)
    names = [f"{USED}: {layout.kind}" if name == USED else name for name, layout in shown.items()]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 1.45 * max(costs, default=1.0))
    axes.set(xlabel="GFLOP per example, forward pass", title="Layouts")
