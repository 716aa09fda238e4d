"""Where numbers go while a run goes on: a JSON-lines file, the console, TensorBoard, Weights & Biases.

A writer is told the step it starts from, so that after a resume it can forget what the killed run wrote beyond it.
"""

import importlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TextIO

from jaxmtl.files import explained, write_whole
from jaxmtl.types import InputError


class Writer(Protocol):
    """Takes numbers by step."""

    def start(self, step: int, num_steps: int) -> None:
        """Begins at `step` of `num_steps`; what was written for later steps is forgotten where that is possible."""
        ...

    def advance(self, step: int) -> None:
        """Hears that a step is done; called at every step, so it must be cheap."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values by name, such as "train/loss"."""
        ...

    def note(self, text: str) -> None:
        """Writes a line for humans."""
        ...

    def close(self) -> None:
        """Flushes and ends."""
        ...


class JsonLinesWriter:
    """Appends one JSON object a line, `{"step": 10, "train/loss": 2.5}`, flushed at once; not finite becomes null."""

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = pathlib.Path(path)

    def start(self, step: int, num_steps: int) -> None:
        """Drops lines of later steps, and a last line that a kill cut off, so that the file is an unbroken run's."""
        with explained(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            kept = [line for line in self._path.read_text("utf-8").splitlines() if _is_line_up_to(line, step)]
            write_whole(self._path, "".join(line + "\n" for line in kept))

    def advance(self, step: int) -> None:
        """Does nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line."""
        clean = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        with explained(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": int(step), **clean}, ensure_ascii=False) + "\n")

    def note(self, text: str) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing; every line is flushed when written."""


class LinesWriter:
    """Prints plain lines, for logs and pipes."""

    def __init__(self, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file or sys.stderr, clock
        self._num_steps = self._first_step = 0
        self._began = clock()

    def start(self, step: int, num_steps: int) -> None:
        """Takes the time from here."""
        self._first_step, self._num_steps, self._began = step, num_steps, self._clock()

    def advance(self, step: int) -> None:
        """Does nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Prints step, values (those per task left out), rate and time left."""
        seconds = self._clock() - self._began
        rate = (step - self._first_step) / seconds if seconds > 0 else 0.0
        left = f", {_duration((self._num_steps - step) / rate)} left" if rate else ""
        self.note(f"step {step}/{self._num_steps}  {_summary(values)}  ({rate:.3g} steps/s{left})")

    def note(self, text: str) -> None:
        """Prints the line."""
        print(text, file=self._file, flush=True)

    def close(self) -> None:
        """Does nothing."""


class ConsoleWriter:
    """Shows a progress bar with rate and time left below the printed lines, for terminals."""

    def __init__(self, console: Any = None) -> None:
        from rich import console as rich_console
        from rich import progress

        columns = (
            progress.TextColumn("training"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
        )
        self._progress = progress.Progress(*columns, console=console or rich_console.Console(stderr=True))
        self._task: Any = None

    def start(self, step: int, num_steps: int) -> None:
        """Draws the bar."""
        self._task = self._progress.add_task("training", total=num_steps, completed=step, rate="")
        self._progress.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        speed = self._progress.tasks[0].speed
        self._progress.update(self._task, completed=step, rate=f"{speed:.3g} steps/s" if speed else "")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Prints the values (those per task left out) above the bar."""
        self.note(f"step {step}  {_summary(values)}")

    def note(self, text: str) -> None:
        """Prints the line above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Ends the bar."""
        self._progress.stop()


def console_writer() -> Writer:
    """Returns the writer that suits standard error: a bar on a terminal, plain lines elsewhere."""
    return ConsoleWriter() if sys.stderr.isatty() else LinesWriter()


class MultiWriter:
    """Passes everything on to several writers."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = tuple(writers)

    def start(self, step: int, num_steps: int) -> None:
        """Starts all."""
        for writer in self._writers:
            writer.start(step, num_steps)

    def advance(self, step: int) -> None:
        """Advances all."""
        for writer in self._writers:
            writer.advance(step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes to all."""
        for writer in self._writers:
            writer.scalars(step, values)

    def note(self, text: str) -> None:
        """Notes to all."""
        for writer in self._writers:
            writer.note(text)

    def close(self) -> None:
        """Closes all."""
        for writer in self._writers:
            writer.close()


class TensorBoardWriter:
    """Writes TensorBoard event files with tensorboardX, which does not bring TensorFlow along."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self._library = _optional("tensorboardX")
        self._folder = str(folder)
        self._events: Any = None

    def start(self, step: int, num_steps: int) -> None:
        """Opens the event file; TensorBoard hides what earlier files say from `step` on."""
        self._events = self._library.SummaryWriter(self._folder, purge_step=step + 1)

    def advance(self, step: int) -> None:
        """Does nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def note(self, text: str) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Closes the event file."""
        if self._events is not None:
            self._events.close()


class WandbWriter:
    """Writes to a Weights & Biases run whose files lie in the run folder; log in with `wandb login` beforehand."""

    def __init__(self, folder: str | os.PathLike, *, project: str, name: str | None = None) -> None:
        self._library = _optional("wandb")
        self._options = dict(dir=str(folder), project=project, name=name)
        self._run: Any = None

    def start(self, step: int, num_steps: int) -> None:
        """Opens the run; W&B itself ignores values of steps it has already seen."""
        self._run = self._library.init(**self._options)

    def advance(self, step: int) -> None:
        """Does nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values."""
        self._run.log(dict(values), step=step)

    def note(self, text: str) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Ends the run."""
        if self._run is not None:
            self._run.finish()


def _optional(package: str) -> Any:
    """Imports an optional package, or says how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"the package {package!r} is not installed; run `pip install {package}` or leave this writer out"
        ) from error


def _is_line_up_to(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError, TypeError):
        return False  # only a kill in the middle of a write leaves such a line


def _summary(values: Mapping[str, float]) -> str:
    """Returns the values in one line, without those per task (two slashes in the name)."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name.count("/") < 2)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
