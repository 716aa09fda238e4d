"""Chooses between layouts by what an example costs in each."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxmtl.feed.grouping import grouped
from jaxmtl.feed.layout import Cost, Layout, num_tokens
from jaxmtl.feed.packing import packed

MakeLayout = Callable[..., Layout]
"""`grouping.grouped`, `packing.packed` or `cheapest`: called with lengths, `batch_size=`, `multiple=`, `cost=`."""
_SAMPLE = 4096
_MARGIN = 0.03
"""Costs that differ by no more than this part are alike: a sample of rows tells no finer."""


def cheapest(
    inputs: np.ndarray,
    targets: np.ndarray,
    *,
    batch_size: int,
    multiple: int = 1,
    cost: Cost = num_tokens,
    layouts: Sequence[MakeLayout] = (grouped, packed),
) -> Layout:
    """Makes the layout in which an example costs the least.

    Args:
      inputs: int [M], input lengths of the rows to come.
      targets: int [M], their target lengths.
      batch_size: examples of a batch.
      multiple: what has to divide the rows of every batch.
      cost: of a row padded to a shape.
      layouts: what to choose from; the first of those that are about equally cheap.

    Returns:
      The layout.
    """
    made = [make(inputs, targets, batch_size=batch_size, multiple=multiple, cost=cost) for make in layouts]
    costs = [cost_per_example(layout, inputs, targets, cost) for layout in made]
    return next(layout for layout, one in zip(made, costs, strict=True) if one <= min(costs) * (1 + _MARGIN))


def cost_per_example(layout: Layout, inputs: np.ndarray, targets: np.ndarray, cost: Cost) -> float:
    """Arranges evenly chosen rows to see what one costs.

    Args:
      layout: how rows become batches.
      inputs: int [M], input lengths.
      targets: int [M], target lengths.
      cost: of a row padded to a shape.

    Returns:
      The cost of all batches over the number of examples in them; infinity if they do not fill a batch.
    """
    chosen = np.random.default_rng(0).integers(0, len(inputs), _SAMPLE)
    batches, _ = layout.arrange(inputs[chosen], targets[chosen])
    if not batches:
        return float("inf")
    total = sum(batch.num_rows * float(cost(*np.array(batch.shape, np.float64))) for batch in batches)
    return total / sum(len(batch.members) for batch in batches)
