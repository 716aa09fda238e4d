"""The few shapes that batches are padded to, chosen so that few are compiled and little is computed in vain."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxmtl.feed.layout import Cost, num_tokens
from jaxmtl.types import Batch, InputError

NUM_SHAPES = 8
_MULTIPLE = 8  # accelerators like lengths that are multiples of this
_MAX_INPUTS, _MAX_TARGETS = 96, 24  # candidate lengths: the search below looks at all their pairs
_ROUNDS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Shapes that rows are padded to, the cheapest first.

    Attributes:
      pairs: (input, target) lengths in tokens; the last one holds what any other holds.

    Raises:
      InputError: if there is none, a length is below 1, or the last does not hold the others.
    """

    pairs: Sequence[tuple[int, int]]

    def __post_init__(self) -> None:
        pairs = tuple((int(source), int(target)) for source, target in self.pairs)
        object.__setattr__(self, "pairs", pairs)  # lists from configuration files are fine
        if not pairs or np.min(pairs) < 1 or tuple(np.max(pairs, axis=0)) != pairs[-1]:
            raise InputError(
                f"shapes are {pairs}; expected pairs of input and target lengths above 0, the cheapest first, the last "
                "at least as long as all others"
            )

    def fit(self, input_length: int, target_length: int) -> tuple[int, int]:
        """Returns the cheapest shape (S, T) that holds both lengths.

        Args:
          input_length: tokens of the longest input.
          target_length: tokens of the longest target.

        Returns:
          One of `pairs`.

        Raises:
          InputError: if none holds them.
        """
        for source, target in self.pairs:
            if source >= input_length and target >= target_length:
                return source, target
        raise InputError(
            f"a row has {input_length} input and {target_length} target tokens, but the largest shape is "
            f"{self.pairs[-1]}; add a larger one or cache with lower limits"
        )

    def holds(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Says which shapes hold which rows.

        Args:
          inputs: int64 [M], input lengths.
          targets: int64 [M], target lengths.

        Returns:
          bool [M, number of pairs].
        """
        pairs = np.array(self.pairs)
        return (inputs[:, None] <= pairs[:, 0]) & (targets[:, None] <= pairs[:, 1])


def cheapest_shapes(
    inputs: np.ndarray, targets: np.ndarray, *, num_shapes: int = NUM_SHAPES, cost: Cost = num_tokens
) -> Shapes:
    """Chooses the shapes that cost the least when each row is padded to the cheapest one that holds it.

    Starts from the largest shape, adds the one that saves the most until there are enough, then moves one at a time
    while that saves anything.

    Args:
      inputs: int [M], input lengths.
      targets: int [M], target lengths.
      num_shapes: most shapes.
      cost: of a row padded to a shape.

    Returns:
      The shapes, lengths multiples of 8; the largest holds the longest rows.

    Raises:
      InputError: if there are no rows or the number of shapes is below 1.
    """
    if len(inputs) == 0 or num_shapes < 1:
        raise InputError(f"cannot choose {num_shapes} shapes for {len(inputs)} rows; expected at least one of each")
    sources, source_of = _candidates(inputs, _MAX_INPUTS)
    lengths, length_of = _candidates(targets, _MAX_TARGETS)
    counts = np.zeros((len(sources), len(lengths)))
    np.add.at(counts, (source_of, length_of), 1)
    costs = np.broadcast_to(cost(sources[:, None].astype(float), lengths.astype(float)), counts.shape)
    chosen = _choose(counts, costs, num_shapes)
    pairs = sorted((costs[i, j], int(sources[i]), int(lengths[j])) for i, j in chosen)
    return Shapes(pairs=[(source, target) for _, source, target in pairs])


def useful_share(batch: Batch, pad_id: int = 0) -> float:
    """Measures how much of a batch is text.

    Args:
      batch: at least `inputs` [B, S] and `loss_mask` [B, T].
      pad_id: the id that fills up inputs.

    Returns:
      Tokens over cells, inputs and targets together, 0 ... 1; 1 means that nothing is padding.
    """
    inputs, mask = batch["inputs"], batch["loss_mask"]
    return float((np.count_nonzero(inputs != pad_id) + mask.sum()) / (inputs.size + mask.size))


def _candidates(lengths: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `most` lengths that hold about equally many rows each, and for each row its place among them."""
    rounded = -(-np.maximum(lengths, 1) // _MULTIPLE) * _MULTIPLE
    found = np.unique(rounded)
    if len(found) > most:
        found = np.unique(np.quantile(rounded, np.linspace(0, 1, most), method="higher"))
    return found, np.searchsorted(found, lengths)


def _choose(counts: np.ndarray, costs: np.ndarray, num_shapes: int) -> set[tuple[int, int]]:
    """Chooses grid points; the last one is always there."""
    rows = np.argwhere(counts > 0)
    shapes = np.argwhere(np.ones_like(counts, bool))
    fits = (rows[:, None] <= shapes).all(axis=-1)
    table = np.where(fits, costs.ravel(), np.inf)  # [rows, shapes]
    weights = counts[counts > 0]
    best = lambda others: int((weights @ np.minimum(others[:, None], table)).argmin())
    chosen = [len(shapes) - 1]
    while len(chosen) < min(num_shapes, len(shapes)):
        chosen.append(best(table[:, chosen].min(axis=1)))
    total = weights @ table[:, chosen].min(axis=1)
    for _ in range(_ROUNDS):
        before = total
        for place in range(1, len(chosen)):
            others = table[:, chosen[:place] + chosen[place + 1 :]].min(axis=1)
            chosen[place] = best(others)
        total = weights @ table[:, chosen].min(axis=1)
        if total >= before:
            break
    return {(int(i), int(j)) for i, j in shapes[chosen]}
