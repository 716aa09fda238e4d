"""What a mixture will draw, as tables for the terminal and as JSON lines."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jaxmtl.feed.preview import DRAWN, FIXED, USED, LayoutPreview, MixturePreview, TaskPreview

if TYPE_CHECKING:
    from rich.table import Table

_LAYOUTS = {FIXED: "fixed: padded to the longest of all", DRAWN: "as drawn, padded to the longest of the batch"}
_MAX_SHAPES = 12
_PIPE_WIDTH = 190  # columns where nobody's terminal says how many


def json_lines(previews: Mapping[str, MixturePreview]) -> Iterator[str]:
    """Yields one JSON object for each task of each stream.

    Args:
      previews: name of the stream to what it will draw.
    """
    for stream, preview in previews.items():
        for task in preview.tasks:
            yield json.dumps(dict(stream=stream, **dataclasses.asdict(task), epochs=task.epochs), ensure_ascii=False)


def show(previews: Mapping[str, MixturePreview]) -> None:
    """Prints tables of tasks and layouts and the totals.

    Args:
      previews: name of the stream to what it will draw.
    """
    from rich import console

    terminal = console.Console(highlight=False)
    if not terminal.is_terminal:
        terminal = console.Console(highlight=False, width=_PIPE_WIDTH)
    for stream, preview in previews.items():
        terminal.print(_tasks(stream if len(previews) > 1 else "mixture", preview))
        terminal.print(layout_table(preview))
        for line in totals(preview):
            terminal.print(line, markup=False, soft_wrap=True)


def totals(preview: MixturePreview) -> list[str]:
    """Sums up a preview.

    Args:
      preview: what a stream will draw.

    Returns:
      Lines: what there is, what will be drawn of it, the shapes that are compiled.
    """
    tasks, used = preview.tasks, preview.layouts[USED]
    num_examples, rows = sum(task.examples for task in tasks), sum(task.rows for task in tasks)
    held = _tokens({task: task.examples for task in tasks})
    drawn = _tokens({task: task.rows for task in tasks})
    epochs = [task.epochs for task in tasks if task.examples]
    shapes = ", ".join(f"{s}x{t} ({size} rows)" for s, t, size in used.shapes[:_MAX_SHAPES])
    more = f" and {len(used.shapes) - _MAX_SHAPES} more" if len(used.shapes) > _MAX_SHAPES else ""
    lines = [
        f"all: {len(tasks)} tasks, {num_examples} examples, {held}",
        f"{preview.num_steps} steps: {rows:.0f} examples ({rows / num_examples:.2f} epochs; {min(epochs):.2f} to "
        f"{max(epochs):.2f} of a task), {drawn}, {3 * used.cost * rows / 1e15:.3g} PFLOP of training",
        f"shapes, input x target tokens: {shapes}{more}",
    ]
    if preview.follows_losses:
        lines.append(
            "the rates follow the tasks' losses: the shares are those of a start, later ones are not known yet"
        )
    return lines


def _tokens(counts: Mapping[TaskPreview, float]) -> str:
    inputs = sum(task.mean_input_tokens * count for task, count in counts.items())
    targets = sum(task.mean_target_tokens * count for task, count in counts.items())
    return f"{inputs:.0f} input and {targets:.0f} target tokens"


def _tasks(name: str, preview: MixturePreview) -> "Table":
    """Lists tasks, those that are drawn the most first."""
    from rich import table as rich_table

    tasks = sorted(preview.tasks, key=lambda task: -task.rows)
    num_categories = len({task.category for task in tasks})
    title = f"{name}: {len(tasks)} tasks in {num_categories} categories over {preview.num_steps} steps"
    table = rich_table.Table(title=title)
    for heading in ("task", "category"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis", min_width=12)
    headings = "size|share, start|share, end|rows|epochs|input mean|input p99|target mean|target p99"
    for heading in headings.split("|"):
        table.add_column(heading, justify="right")
    for task in tasks:
        table.add_row(*map(_escaped, (task.name, task.category)), *_numbers(task))
    return table


def _numbers(task: TaskPreview) -> tuple[str, ...]:
    return (
        str(task.examples),
        f"{task.first_share:.3%}",
        f"{task.last_share:.3%}",
        f"{task.rows:.1f}",
        f"{task.epochs:.2f}",
        f"{task.mean_input_tokens:.1f}",
        str(task.long_input_tokens),
        f"{task.mean_target_tokens:.1f}",
        str(task.long_target_tokens),
    )


def layout_table(preview: MixturePreview) -> "Table":
    """Makes the table of what layouts pad and cost.

    Args:
      preview: what a stream will draw.

    Returns:
      A row for each layout, the stream's own in bold.
    """
    from rich import table as rich_table

    table = rich_table.Table(title="layouts (GFLOP of the forward pass)")
    table.add_column("layout", no_wrap=True)
    for heading in ("shapes", "examples per batch", "tasks per batch", "padding", "GFLOP per example"):
        table.add_column(heading, justify="right")
    for name, layout in preview.layouts.items():
        label = f"{USED}: {layout.kind}" if name == USED else _LAYOUTS.get(name, name)
        table.add_row(label, *_costs(layout), style="bold" if name == USED else "")
    return table


def _costs(layout: LayoutPreview) -> tuple[str, ...]:
    if not layout.examples_per_batch:
        return ("-",) * 5
    shapes = str(len(layout.shapes)) if layout.shapes else "any"
    counts = f"{layout.examples_per_batch:.1f}", f"{layout.tasks_per_batch:.1f}"
    return shapes, *counts, f"{layout.padding:.1%}", f"{layout.cost / 1e9:.2f}"


def _escaped(text: str) -> Any:
    from rich import text as rich_text

    return rich_text.Text(text)
