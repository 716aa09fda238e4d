"""The rows that many small training sets need at a step, cut into batches of like length whatever set they belong to.

Letters in shapes: B rows of a batch, S input length, T target length.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from jaxmtl.feed.shapes import Shapes, cheapest_shapes
from jaxmtl.tasks.answers import IGNORED
from jaxmtl.tasks.fewshot import seeded_order
from jaxmtl.types import Batch, InputError

Ids = Sequence[int] | np.ndarray


def alike(targets: Ids) -> np.ndarray:
    """Gives every target token the weight 1."""
    return np.ones(len(targets))


def as_labels(targets: Ids) -> np.ndarray:
    """Gives the labels of an example weights that add up to 1; 0 where there is no label."""
    counted = np.asarray(targets) != IGNORED
    return counted / max(1, np.count_nonzero(counted))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """One training set, and how something is fitted to it.

    Attributes:
      name: what errors and progress call it; the order of its rows depends on it.
      inputs: token ids of each example.
      targets: token ids of each example.
      learning_rate: the rate of every step.
      seed: decides the start, the order of rows and dropout.
      held_inputs: token ids of examples that are not learnt: their loss after each epoch says which epoch is the best.
      held_targets: token ids of each of them.
      weigh: maps targets to what each counts: `alike` for token ids; `as_labels` for labels, whose examples count
        the same.

    Raises:
      InputError: if there are not as many inputs as targets.
    """

    name: str
    inputs: Sequence[Ids]
    targets: Sequence[Ids]
    learning_rate: float
    seed: int = 0
    held_inputs: Sequence[Ids] = ()
    held_targets: Sequence[Ids] = ()
    weigh: Callable[[Ids], np.ndarray] = alike

    def __post_init__(self) -> None:
        columns = dict(learnt=(self.inputs, self.targets), held=(self.held_inputs, self.held_targets))
        for kind, (inputs, targets) in columns.items():
            if len(inputs) != len(targets):
                raise InputError(
                    f"{self.name}: {len(inputs)} {kind} inputs but {len(targets)} targets; expected as many"
                )

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Returns input and target length of each example, learnt or held out."""
        inputs, targets = [*self.inputs, *self.held_inputs], [*self.targets, *self.held_targets]
        return [(len(source), len(target)) for source, target in zip(inputs, targets, strict=True)]

    def steps(self, epochs: int, batch_size: int) -> list[list[int]]:
        """Lists the examples of every step: in each epoch all of them once, the last batch as small as it is.

        Args:
          epochs: passes over the examples.
          batch_size: examples of a step.

        Returns:
          Places in `inputs` for each step; none without examples.
        """
        found = []
        for epoch in range(epochs):
            order = seeded_order(len(self.inputs), self.seed, self.name, f"epoch {epoch}")
            found += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        return found


@dataclasses.dataclass(frozen=True)
class Row:
    """An example at its place in a step.

    Attributes:
      slot: the place of its fit among those that are trained together.
      place: its place in the fit's batch.
      inputs: its token ids.
      targets: its target ids.
      weight: what each target counts, one number or float [t]: one over the target tokens of the fit's batch; see
        `Fit.weigh`.
    """

    slot: int
    place: int
    inputs: Ids
    targets: Ids
    weight: float | np.ndarray


def rows_of_step(fits: Sequence[Fit], steps: Sequence[Sequence[Sequence[int]]], step: int) -> list[Row]:
    """Lists the rows of all fits that have not ended before a step.

    Args:
      fits: those that are trained together.
      steps: what `Fit.steps` gave for each.
      step: the step, from 0.

    Returns:
      The rows.
    """
    rows = []
    for slot, (fit, own) in enumerate(zip(fits, steps, strict=True)):
        chosen = own[step] if step < len(own) else ()
        rows += _weighted(fit, slot, [(fit.inputs[index], fit.targets[index]) for index in chosen])
    return rows


def held_rows(fits: Sequence[Fit], slots: Iterable[int]) -> list[Row]:
    """Lists the examples that some fits hold out.

    Args:
      fits: those that are trained together.
      slots: places of those whose rows are wanted.

    Returns:
      The rows.
    """
    rows = []
    for slot in slots:
        rows += _weighted(fits[slot], slot, list(zip(fits[slot].held_inputs, fits[slot].held_targets, strict=True)))
    return rows


def _weighted(fit: Fit, slot: int, pairs: Sequence[tuple[Ids, Ids]]) -> list[Row]:
    """Makes rows whose weights add up to 1."""
    weights = [fit.weigh(targets) for _, targets in pairs]
    total = max(sum(float(own.sum()) for own in weights), 1e-9)  # examples without any label have none to divide
    return [Row(slot, place, *pair, own / total) for place, (pair, own) in enumerate(zip(pairs, weights, strict=True))]


@dataclasses.dataclass(frozen=True)
class RowBatches:
    """Cuts the rows of a step into batches of few shapes, the longest rows first.

    Attributes:
      shapes: lengths that rows are padded to.
      num_rows: rows of a batch on each device, one number for each shape.
      pad_id: id of padding.
    """

    shapes: Shapes
    num_rows: tuple[int, ...]
    pad_id: int

    def cut(self, shares: Sequence[Sequence[Row]]) -> Iterator[Batch]:
        """Cuts the rows of all devices alike.

        Args:
          shares: the rows of each device; a fit's rows are all on one.

        Yields:
          Batches of B rows, each device's rows together: `inputs` int32 [B, S], `targets` int32 [B, T], `loss_mask`
          float32 [B, T] with the rows' weights, `slots` and `places` int32 [B]. Rows that only fill a batch have the
          tokens of another and the weight 0.
        """
        waiting = [sorted(share, key=self._cost_order) for share in shares]
        while any(waiting):
            shape = max(self._shape([share[-1]]) for share in waiting if share)
            count = self.num_rows[shape]
            # What is taken may need a wider shape, whose batches may have fewer rows, but never gets more rows.
            while (wider := self._shape([row for share in waiting for row in share[-count:]])) != shape:
                shape, count = wider, min(count, self.num_rows[wider])
            yield self._padded([share[-count:] for share in waiting], self.num_rows[shape], self.shapes.pairs[shape])
            waiting = [share[:-count] for share in waiting]

    def _cost_order(self, row: Row) -> tuple[int, int, int]:
        return self._shape([row]), len(row.inputs), len(row.targets)

    def _shape(self, rows: Sequence[Row]) -> int:
        """Returns the place of the cheapest shape that holds all rows."""
        longest = max(len(row.inputs) for row in rows), max(len(row.targets) for row in rows)
        return self.shapes.pairs.index(self.shapes.fit(*longest))

    def _padded(self, block: Sequence[Sequence[Row]], count: int, shape: tuple[int, int]) -> Batch:
        size = len(block) * count
        batch = dict(
            inputs=np.full((size, shape[0]), self.pad_id, np.int32),
            targets=np.full((size, shape[1]), self.pad_id, np.int32),
            loss_mask=np.zeros((size, shape[1]), np.float32),
            slots=np.zeros(size, np.int32),
            places=np.zeros(size, np.int32),
        )
        filler = dataclasses.replace(next(row for rows in block for row in rows), slot=0, weight=0.0)
        filled = (row for rows in block for row in (*rows, *[filler] * (count - len(rows))))
        for at, row in enumerate(filled):
            batch["inputs"][at, : len(row.inputs)] = row.inputs
            batch["targets"][at, : len(row.targets)] = row.targets
            batch["loss_mask"][at, : len(row.targets)] = row.weight
            batch["slots"][at], batch["places"][at] = row.slot, row.place
        return batch


def row_batches(
    lengths: np.ndarray, *, tokens: int, most_rows: int, num_shapes: int, cost: Callable, pad_id: int
) -> RowBatches:
    """Chooses shapes and rows for given lengths.

    Args:
      lengths: int [M, 2], input and target lengths of all examples.
      tokens: most cells, padding included, of a batch on a device.
      most_rows: most rows that any step gives a device.
      num_shapes: most shapes, each of which is compiled once.
      cost: operations of a row padded to (S, T).
      pad_id: id of padding.

    Returns:
      What cuts the rows of steps.
    """
    shapes = cheapest_shapes(lengths[:, 0], lengths[:, 1], num_shapes=num_shapes, cost=cost)
    num_rows = tuple(max(1, min(most_rows, tokens // (source + target))) for source, target in shapes.pairs)
    return RowBatches(shapes, num_rows, pad_id)
