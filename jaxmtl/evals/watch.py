"""Who watches an evaluation is told of its tasks: which there are, how large, and the scores of each when it has some.

Whatever an evaluation takes as `progress` may be such a watch besides; a plain function is told only of batches.
"""

import dataclasses
from typing import Protocol, runtime_checkable

from jaxmtl.types import Progress, Scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskState:
    """How far a task is.

    Attributes:
      task: the task's name.
      category: what it is shown under: its category, or a setting of few-shot runs.
      n: number of examples that are to be scored.
      scores: None until all of them are.
    """

    task: str
    category: str
    n: int
    scores: Scores | None = None


@runtime_checkable
class TaskWatch(Protocol):
    """A `Progress` that is told of tasks too."""

    def __call__(self, done: int, total: int, stage: str) -> None:
        """Takes what a `Progress` takes."""
        ...

    def task(self, state: TaskState) -> None:
        """Takes each task once before the first batch, and once more when it is scored."""
        ...


def tell(progress: Progress | None, state: TaskState) -> None:
    """Tells how far a task is to who wants to know.

    Args:
      progress: what an evaluation was given.
      state: how far the task is.
    """
    if isinstance(progress, TaskWatch):
        progress.task(state)


@dataclasses.dataclass(frozen=True)
class Within:
    """Shows the tasks of one part of an evaluation under the part's name.

    Attributes:
      progress: what the whole evaluation was given.
      category: name of the part.
    """

    progress: Progress | None
    category: str

    def __call__(self, done: int, total: int, stage: str) -> None:
        """Passes on how far the part is."""
        if self.progress is not None:
            self.progress(done, total, f"{self.category}: {stage}")

    def task(self, state: TaskState) -> None:
        """Passes a task on."""
        tell(self.progress, dataclasses.replace(state, category=self.category))
