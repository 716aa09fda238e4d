"""What a stream will draw, before any step: shares, epochs and lengths of each task, and what layouts cost.

Expected numbers only: rows are looked up in the store's lengths, none is read, and the stream does not move.
Letters: N tasks, M sampled rows.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxmtl.feed.grouping import Grouped
from jaxmtl.feed.layout import Cost, Layout, Placed
from jaxmtl.feed.layout_choice import MakeLayout
from jaxmtl.feed.packed_labels import contents_of
from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import AnySampler, Draw
from jaxmtl.feed.shapes import Shapes
from jaxmtl.feed.stream import Stream
from jaxmtl.types import InputError

FIXED, DRAWN, USED = "fixed", "as drawn", "this run"
_MAX_STEPS = 1000  # steps whose shares are looked at; rates of longer runs change slowly
_MIN_ROWS, _MIN_BATCHES = 8192, 64  # what layouts are tried on: as many rows, or what makes as many batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskPreview:
    """What training will see of a task.

    Attributes:
      name: name of the task.
      category: its category.
      examples: examples that can be drawn.
      first_share: part of the first step's rows.
      last_share: part of the last step's rows.
      rows: expected rows over all steps.
      mean_input_tokens: mean input length.
      long_input_tokens: 99 of 100 inputs are no longer than this.
      mean_target_tokens: mean target length.
      long_target_tokens: 99 of 100 targets are no longer than this.
    """

    name: str
    category: str
    examples: int
    first_share: float
    last_share: float
    rows: float
    mean_input_tokens: float
    long_input_tokens: int
    mean_target_tokens: float
    long_target_tokens: int

    @property
    def epochs(self) -> float:
        """Returns how often each example is seen, on average; 0 for a task without examples."""
        return self.rows / self.examples if self.examples else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayoutPreview:
    """What rows cost in a layout.

    Attributes:
      kind: what the layout calls itself.
      shapes: (S, T, rows) of its batches, the cheapest first; empty if every batch has its own.
      examples_per_batch: mean number of examples of a batch.
      padding: part of all cells that holds no token, 0 ... 1.
      cost: of an example, in the unit of the cost function.
      tasks_per_batch: mean number of different tasks in a batch: grouping by length brings rows of one task together.
    """

    kind: str
    shapes: tuple[tuple[int, int, int], ...]
    examples_per_batch: float
    padding: float
    cost: float
    tasks_per_batch: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixturePreview:
    """What a stream will draw.

    Attributes:
      num_steps: steps that are looked ahead.
      batch_size: rows that are drawn for a step.
      tasks: in the order of task ids.
      layouts: name to what rows cost in it, that of the stream under `USED`.
      follows_losses: the rates depend on losses, so that all shares are those of a start without any.
    """

    num_steps: int
    batch_size: int
    tasks: tuple[TaskPreview, ...]
    layouts: Mapping[str, LayoutPreview]
    follows_losses: bool


def preview(
    stream: Stream, num_steps: int, *, cost: Cost, layouts: Mapping[str, MakeLayout], multiple: int = 1
) -> MixturePreview:
    """Looks ahead.

    Args:
      stream: a stream that has not moved.
      num_steps: batches to look ahead.
      cost: of a row padded to a shape.
      layouts: name to layouts to compare with the stream's own; they are made for this batch size and cost.
      multiple: what has to divide the rows of every batch.

    Returns:
      The preview; `FIXED` and `DRAWN` are among its layouts: all rows padded to the longest of all, and batches of
      rows as they are drawn padded to their own longest. A layout that is the stream's own is not named twice.

    Raises:
      InputError: if the number of steps is below 1, or as for the layouts.
    """
    if num_steps < 1:
        raise InputError(f"a preview of {num_steps} steps; expected 1 or more")
    rows, sampler = stream.rows, stream.sampler
    lengths = task_lengths(rows)
    split = rows.split_lengths()
    options = dict(batch_size=sampler.batch_size, multiple=multiple, cost=cost, contents=contents_of(rows))
    made = {name: make(*split, **options) for name, make in layouts.items()}
    used = stream.layout.identity()
    made = {name: layout for name, layout in made.items() if layout.identity() != used}
    made = {FIXED: _fixed(rows, sampler.batch_size), USED: stream.layout, **made}
    num_tried = max(_MIN_ROWS, _MIN_BATCHES * sampler.batch_size)
    sample = _sampled(lengths, expected_shares(sampler, num_steps), num_tried)
    tried = _compared(made, sample, sampler.batch_size, stream.window, cost)
    # Batches of some layouts hold more or fewer examples than are drawn for a step.
    num_rows = num_steps * (tried[USED].examples_per_batch or sampler.batch_size)
    return MixturePreview(
        num_steps=num_steps,
        batch_size=sampler.batch_size,
        tasks=_tasks(rows, sampler, lengths, num_rows),
        layouts=tried,
        follows_losses=sampler.loss_period is not None,
    )


def check_rows(part: object) -> None:
    """Refuses a stream that is no mixture of rows, such as one of supports and queries.

    Args:
      part: one of `Stream.parts`.

    Raises:
      InputError: if it is another kind of stream.
    """
    if not isinstance(part, Stream):
        raise InputError(f"a {type(part).__name__} cannot be looked at ahead, only streams that draw rows of a mixture")


def expected_shares(sampler: AnySampler, num_steps: int) -> np.ndarray:
    """Averages the shares of some steps, without losses.

    Args:
      sampler: it does not move.
      num_steps: steps from the first on; of very many some are looked at.

    Returns:
      float64 [N], they add up to 1.
    """
    steps = np.linspace(0, num_steps - 1, min(num_steps, _MAX_STEPS)).round().astype(int)
    return np.mean([sampler.shares_at(step) for step in steps.tolist()], axis=0)


def task_lengths(rows: TaskRows) -> list[tuple[np.ndarray, np.ndarray]]:
    """Looks up how long the examples of each task are that can be drawn.

    Args:
      rows: N tasks.

    Returns:
      Input and target lengths of each task, int64 [examples] each.
    """
    every = (Draw(np.full(size, task, np.int32), np.arange(size)) for task, size in enumerate(rows.sizes.tolist()))
    return [rows.lengths(draw) for draw in every]


class Sample(NamedTuple):
    """Drawn rows.

    Attributes:
      inputs: int64 [M], input lengths.
      targets: int64 [M], target lengths.
      tasks: int [M], task ids.
    """

    inputs: np.ndarray
    targets: np.ndarray
    tasks: np.ndarray

    def take(self, members: np.ndarray) -> "Sample":
        """Chooses rows by place, int64 [m]."""
        return Sample(*(field[members] for field in self))


def try_layout(layout: Layout, sample: Sample, *, num_rows: int, cost: Cost) -> LayoutPreview:
    """Arranges rows to see what they cost.

    Args:
      layout: how rows become batches.
      sample: drawn rows.
      num_rows: rows that are arranged at once; those that fill no batch wait for the next ones, as in training.
      cost: of a row padded to a shape.

    Returns:
      What was found; examples per batch and the rest are 0 if the rows fill no batch.
    """
    waiting, found = np.empty(0, np.int64), _Sums()
    for start in range(0, len(sample.tasks), num_rows):
        members = np.concatenate([waiting, np.arange(start, min(start + num_rows, len(sample.tasks)))])
        window = sample.take(members)
        placed, left = layout.arrange(window.inputs, window.targets)
        found.add(placed, window, cost)
        waiting = members[left]
    identity = layout.identity()
    sizes = zip(identity["shapes"], identity["rows"], strict=True)
    return found.preview(identity["layout"], tuple((shape[0], shape[1], size) for shape, size in sizes))


class _Sums:
    """Sums over batches."""

    def __init__(self) -> None:
        self.batches, self.examples, self.tokens, self.cells, self.tasks, self.cost = 0, 0, 0, 0, 0, 0.0

    def add(self, placed: Sequence[Placed], sample: Sample, cost: Cost) -> None:
        for batch in placed:
            members = sample.take(batch.members)
            self.batches += 1
            self.examples += len(members.tasks)
            self.tokens += int(members.inputs.sum() + members.targets.sum())
            self.tasks += len(np.unique(members.tasks))
            self.cells += batch.num_cells
            self.cost += batch.num_rows * float(cost(*np.array(batch.shape, np.float64)))

    def preview(self, kind: str, shapes: tuple[tuple[int, int, int], ...]) -> LayoutPreview:
        return LayoutPreview(
            kind=kind,
            shapes=shapes,
            examples_per_batch=self.examples / max(self.batches, 1),
            padding=1 - self.tokens / self.cells if self.cells else 0.0,
            cost=self.cost / max(self.examples, 1),
            tasks_per_batch=self.tasks / max(self.batches, 1),
        )


def _compared(
    made: Mapping[str, Layout], sample: Sample, batch_size: int, window: int, cost: Cost
) -> dict[str, LayoutPreview]:
    num_rows = min(window * batch_size, len(sample.tasks))
    tried = {name: try_layout(layout, sample, num_rows=num_rows, cost=cost) for name, layout in made.items()}
    return {FIXED: tried.pop(FIXED), DRAWN: _as_drawn(sample, batch_size, cost), **tried}


def _fixed(rows: TaskRows, batch_size: int) -> Grouped:
    return Grouped(Shapes(pairs=[(rows.max_input_tokens, rows.max_target_tokens)]), (batch_size,))


def _as_drawn(sample: Sample, batch_size: int, cost: Cost) -> LayoutPreview:
    groups = np.arange(len(sample.tasks) - len(sample.tasks) % batch_size).reshape(-1, batch_size)
    longest = zip(*(lengths[groups].max(axis=1).tolist() for lengths in sample[:2]), strict=True)
    bins, found = np.arange(batch_size), _Sums()
    placed = [Placed(group, bins, batch_size, shape) for group, shape in zip(groups, longest, strict=True)]
    found.add(placed, sample, cost)
    return found.preview(DRAWN, ())


def _sampled(lengths: Sequence[tuple[np.ndarray, np.ndarray]], shares: np.ndarray, size: int) -> Sample:
    """Draws M rows by the shares of their tasks."""
    generator = np.random.default_rng(0)
    sizes = np.array([len(inputs) for inputs, _ in lengths])
    tasks = generator.choice(len(shares), size=size, p=shares / shares.sum())
    places = (np.cumsum(sizes) - sizes)[tasks] + (generator.random(size) * sizes[tasks]).astype(np.int64)
    inputs, targets = (np.concatenate(some)[places] for some in zip(*lengths, strict=True))
    return Sample(inputs, targets, tasks)


def _tasks(
    rows: TaskRows, sampler: AnySampler, lengths: Sequence[tuple[np.ndarray, np.ndarray]], num_rows: float
) -> tuple[TaskPreview, ...]:
    num_steps = max(1, math.ceil(num_rows / sampler.batch_size))
    first, last = sampler.shares_at(0), sampler.shares_at(num_steps - 1)
    expected = expected_shares(sampler, num_steps) * num_rows
    numbers = zip(rows.names, rows.categories, lengths, first, last, expected, strict=True)
    return tuple(
        TaskPreview(
            name=name,
            category=category,
            examples=len(inputs),
            first_share=float(start),
            last_share=float(end),
            rows=float(count),
            mean_input_tokens=_mean(inputs),
            long_input_tokens=_long(inputs),
            mean_target_tokens=_mean(targets),
            long_target_tokens=_long(targets),
        )
        for name, category, (inputs, targets), start, end, count in numbers
    )


def _mean(lengths: np.ndarray) -> float:
    return float(lengths.mean()) if len(lengths) else 0.0


def _long(lengths: np.ndarray) -> int:
    return int(np.quantile(lengths, 0.99, method="inverted_cdf")) if len(lengths) else 0
