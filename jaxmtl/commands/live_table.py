"""How far an evaluation is, as a table on a terminal: tasks, examples and scores so far of each category, time left."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jaxmtl.commands.progress import bar_of, lines, update_of
from jaxmtl.evals.summary import headline
from jaxmtl.evals.watch import TaskState
from jaxmtl.tasks import metrics
from jaxmtl.types import Progress

LINES_AROUND = 8
"""Lines of a terminal that are left for the heading, the sum, the bar and what stands above."""
UPDATES_PER_SECOND = 4


@contextlib.contextmanager
def shown_tasks(description: str, console: Any = None) -> Iterator[Progress]:
    """Shows a table of tasks on standard error while the block runs; lines where that is no terminal.

    Args:
      description: text before the bar.
      console: a rich console to draw on; standard error's if None.

    Yields:
      What evaluations take as `progress`; on a terminal also a `TaskWatch`.
    """
    if console is None and not sys.stderr.isatty():
        yield lines(description)
        return
    from rich.console import Console
    from rich.live import Live

    console = console or Console(stderr=True)
    table = LiveTable(description, console)
    # The table goes when the scores are printed.
    with Live(table, console=console, refresh_per_second=UPDATES_PER_SECOND, transient=True):
        yield table


class LiveTable:
    """A table that changes with what it is told; a row is a category, or a task where there is one category.

    Args:
      description: text before the bar.
      console: the rich console that it is drawn on.
    """

    def __init__(self, description: str, console: Any) -> None:
        self.console, self.bar = console, bar_of(console)
        self.update = update_of(self.bar, description)
        self.states: dict[tuple[str, str], TaskState] = {}

    def __call__(self, done: int, total: int, stage: str) -> None:
        """Takes how far all batches are."""
        self.update(done, total, stage)

    def task(self, state: TaskState) -> None:
        """Takes how far a task is."""
        self.states = self.states | {(state.category, state.task): state}  # new, for it is drawn from another thread

    def __rich__(self) -> Any:
        """Draws the table, with the groups that are not done first if not all have room."""
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)
        for name, width in (("tasks", 7), ("examples", 11), ("score so far", 18)):
            table.add_column(name, justify="right", no_wrap=True, min_width=width)
        groups = _grouped(list(self.states.values()))
        room = max(self.console.height - LINES_AROUND, 1)
        chosen = sorted(groups, key=lambda name: _is_done(groups[name]))[:room]
        for name in (name for name in groups if name in chosen):
            table.add_row(name or "no category", *_cells(groups[name]), style="dim" if _is_done(groups[name]) else "")
        if len(groups) > len(chosen):
            table.add_row(f"and {len(groups) - len(chosen)} more", style="dim")
        if len(groups) > 1:
            table.add_row("all", *_cells(list(self.states.values()))[:2], "", style="bold")
        return Group(table, self.bar)


def _grouped(states: Sequence[TaskState]) -> dict[str, list[TaskState]]:
    """Returns the tasks of each category by its name; each task by itself if there is one category."""
    categories = {state.category for state in states}
    groups: dict[str, list[TaskState]] = {}
    for state in states:
        groups.setdefault(state.category if len(categories) > 1 else state.task, []).append(state)
    return groups


def _is_done(states: Sequence[TaskState]) -> bool:
    return all(state.scores is not None for state in states)


def _cells(states: Sequence[TaskState]) -> list[str]:
    """Returns tasks and examples, done of all, and the mean of the headline metric over the examples done."""
    done = [state.scores for state in states if state.scores is not None]
    counts = [f"{len(done)}/{len(states)}", f"{sum(one.n for one in done)}/{sum(state.n for state in states)}"]
    if not done:
        return [*counts, ""]
    total = metrics.overall(done)
    name = headline(total)
    value = f"{name} {total.metrics[name]:.2f}" if name in total.metrics else ""
    return [*counts, value]
