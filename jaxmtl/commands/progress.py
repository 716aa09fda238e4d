"""A progress bar with rate and time left on a terminal, a line every few seconds elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

SECONDS_BETWEEN_LINES = 10.0

Progress = Callable[[int, int, str], None]
"""Called with (items done, items in all, what is being done)."""


@contextlib.contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Shows progress on standard error while the block runs.

    Args:
      title: what is going on.

    Yields:
      The function to call.
    """
    show = _bar(title) if sys.stderr.isatty() else _lines(title)
    with show as update:
        yield update


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich import console
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn(title),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[what]}", style="dim"),
    )
    with rich_progress.Progress(*columns, console=console.Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, rate="", what="")

        def update(done: int, total: int, what: str) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:.3g}/s" if speed else "", what=what[:40])

        yield update


@contextlib.contextmanager
def _lines(title: str) -> Iterator[Progress]:
    began = last = time.monotonic()

    def update(done: int, total: int, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES and done < total:
            return
        last = now
        rate = done / max(now - began, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        print(f"{title}: {done}/{total} ({rate:.3g}/s{left})", file=sys.stderr, flush=True)

    yield update
