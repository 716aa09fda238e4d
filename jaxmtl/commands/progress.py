"""Shows how far something is: a bar with rate and time left on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from jaxmtl.types import Progress

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def shown(description: str, console: Any = None) -> Iterator[Progress]:
    """Shows progress on standard error while the block runs.

    Args:
      description: text before the bar.
      console: a rich console to draw on; standard error's if None.

    Yields:
      What caching and evaluation take as `progress`.
    """
    if console is None and not sys.stderr.isatty():
        yield lines(description)
        return
    from rich.console import Console

    with bar_of(console or Console(stderr=True)) as bar:
        yield update_of(bar, description)


def bar_of(console: Any) -> Any:
    """Makes a bar with rate and time left.

    Args:
      console: the rich console that it is drawn on.

    Returns:
      A rich progress display without a task.
    """
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=console)


def update_of(bar: Any, description: str) -> Progress:
    """Gives a bar its task.

    Args:
      bar: what `bar_of` made.
      description: text before the bar.

    Returns:
      A function that moves the bar.
    """
    task = bar.add_task(description, total=None, rate="")

    def update(done: int, total: int, stage: str) -> None:
        speed = bar.tasks[0].speed
        rate = f"{speed:.3g}/s" if speed else ""
        bar.update(task, completed=done, total=total, rate=rate, description=f"{description} ({stage})")

    return update


def lines(description: str, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Makes a progress function for logs and pipes.

    Args:
      description: first word of each line.
      file: where to print; standard error if None.
      clock: gives seconds.

    Returns:
      A function that prints a line at most every `SECONDS_BETWEEN_LINES` seconds, and at the end.
    """
    began = printed = told = clock()
    before, all_before = 0, 0

    def update(done: int, total: int, stage: str) -> None:
        nonlocal began, printed, told, before, all_before
        now = clock()
        if done < before or (before == all_before and total != all_before):
            began = told  # another count begins where the one before ended, so its rate counts from there
        told, before, all_before = now, done, total
        if done < total and now - printed < SECONDS_BETWEEN_LINES:
            return
        printed = now
        rate = done / (now - began) if now > began else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        print(f"{description} ({stage}): {done}/{total}, {rate:.3g}/s{left}", file=file or sys.stderr, flush=True)

    return update
