"""Chooses between layouts by what an example costs in each."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxmtl.feed.grouping import grouped
from jaxmtl.feed.layout import Cost, Layout, MakeContents, num_tokens
from jaxmtl.feed.packed_texts import texts
from jaxmtl.feed.packing import packed

MakeLayout = Callable[..., Layout]
"""`grouping.grouped`, `packing.packed` or `cheapest`: called with lengths, `batch_size=`, `multiple=`, `cost=`,
`contents=`."""
_SAMPLE, _BATCHES = 4096, 64
"""Rows that layouts are tried on: as many, or as many batches of them."""
_MARGIN = 0.03
"""Costs that differ by no more than this part are alike: a sample of rows tells no finer."""
_DIVISIBLE = 8
"""What divides the rows of every batch, so that up to 8 hosts or devices make the choice that one makes."""
_NEAR = 0.1
"""Batches may hold this part more or fewer examples than asked for: learning rates are chosen for a batch size."""


def cheapest(
    inputs: np.ndarray,
    targets: np.ndarray,
    *,
    batch_size: int,
    multiple: int = 1,
    cost: Cost = num_tokens,
    layouts: Sequence[MakeLayout] = (grouped, packed),
    contents: MakeContents = texts,
) -> Layout:
    """Makes the layout in which an example costs the least, of those whose batches hold about `batch_size` examples.

    Packed rows hold many examples: where batches are small and devices many, packing would give far larger batches.

    Args:
      inputs: int [M], input lengths of the rows to come.
      targets: int [M], their target lengths.
      batch_size: examples of a batch.
      multiple: what has to divide the rows of every batch.
      cost: of a row padded to a shape.
      layouts: what to choose from; the first of those that are about equally cheap.
      contents: how examples share packed rows.

    Returns:
      The layout.
    """
    divisor = math.lcm(multiple, _DIVISIBLE) if batch_size % _DIVISIBLE == 0 else multiple
    options = dict(batch_size=batch_size, multiple=divisor, cost=cost, contents=contents)
    made = [make(inputs, targets, **options) for make in layouts]
    tried = [(layout, trial(layout, inputs, targets, batch_size=batch_size, cost=cost)) for layout in made]
    fitting = [(layout, one) for layout, one in tried if abs(one.examples / batch_size - 1) <= _NEAR] or tried[:1]
    least = min(one.cost for _, one in fitting)
    return next(layout for layout, one in fitting if one.cost <= least * (1 + _MARGIN))


class Trial(NamedTuple):
    """What a layout came to.

    Attributes:
      cost: of an example, in the unit of the cost function; infinity if the rows filled no batch.
      examples: mean number of examples of a batch.
    """

    cost: float
    examples: float


def trial(layout: Layout, inputs: np.ndarray, targets: np.ndarray, *, batch_size: int, cost: Cost) -> Trial:
    """Arranges evenly chosen rows to see what one costs.

    Args:
      layout: how rows become batches.
      inputs: int [M], input lengths.
      targets: int [M], target lengths.
      batch_size: examples that a batch should hold; decides how many rows are tried.
      cost: of a row padded to a shape.

    Returns:
      The outcome.
    """
    chosen = np.random.default_rng(0).integers(0, len(inputs), max(_SAMPLE, _BATCHES * batch_size))
    batches, _ = layout.arrange(inputs[chosen], targets[chosen])
    if not batches:
        return Trial(float("inf"), 0.0)
    total = sum(batch.num_rows * float(cost(*np.array(batch.shape, np.float64))) for batch in batches)
    members = sum(len(batch.members) for batch in batches)
    return Trial(total / members, members / len(batches))
