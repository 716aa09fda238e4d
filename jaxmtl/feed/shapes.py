"""The few lengths that batches are padded to, so that few shapes are compiled."""

import dataclasses

import numpy as np

from jaxmtl.types import Batch, InputError

NUM_INPUT_LENGTHS = 10
NUM_TARGET_LENGTHS = 2
"""Targets are short: more lengths save less than the batches that hold a mixture of two lengths then lose."""
_MULTIPLE = 8  # accelerators like lengths that are multiples of this
_MAX_CELLS = 256  # the search below is quadratic in the number of candidate lengths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Lengths that batches are padded to.

    Attributes:
      inputs: tokens, ascending; the last one holds the longest input.
      targets: tokens, ascending; the last one holds the longest target.

    Raises:
      InputError: if a list is empty, not ascending or does not start above 0.
    """

    inputs: tuple[int, ...]
    targets: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            lengths = tuple(getattr(self, name))
            object.__setattr__(self, name, lengths)  # lists from configuration files are fine
            if not lengths or any(low >= high for low, high in zip((0, *lengths), lengths, strict=False)):
                raise InputError(f"shape lengths of {name} are {lengths}; expected ascending numbers above 0")

    def fit(self, input_length: int, target_length: int) -> tuple[int, int]:
        """Returns the smallest shape (S, T) that holds both lengths.

        Args:
          input_length: tokens of the longest input.
          target_length: tokens of the longest target.

        Returns:
          One of `inputs` and one of `targets`.

        Raises:
          InputError: if a length is above the largest.
        """
        return _at_least(self.inputs, input_length, "input"), _at_least(self.targets, target_length, "target")

    def target_bucket(self, lengths: np.ndarray) -> np.ndarray:
        """Finds which of the target lengths each target is padded to.

        Args:
          lengths: int [M], tokens of each target.

        Returns:
          int64 [M], indices into `targets`.
        """
        return np.searchsorted(self.targets, lengths)


def fitted_shapes(
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    num_inputs: int = NUM_INPUT_LENGTHS,
    num_targets: int = NUM_TARGET_LENGTHS,
) -> Shapes:
    """Chooses the lengths that cost the least padding when each row is padded to the next one.

    Args:
      input_lengths: int [M], tokens of each input.
      target_lengths: int [M], tokens of each target.
      num_inputs: most input lengths.
      num_targets: most target lengths.

    Returns:
      The shapes, multiples of 8; the largest hold the longest rows.

    Raises:
      InputError: if there are no rows or a number of lengths is below 1.
    """
    return Shapes(inputs=_least_padding(input_lengths, num_inputs), targets=_least_padding(target_lengths, num_targets))


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


def _at_least(lengths: tuple[int, ...], length: int, what: str) -> int:
    index = int(np.searchsorted(lengths, length))
    if index == len(lengths):
        raise InputError(
            f"an {what} has {length} tokens, but the largest {what} length is {lengths[-1]}; add a larger one or "
            "cache with a lower limit"
        )
    return lengths[index]


def _least_padding(lengths: np.ndarray, count: int) -> tuple[int, ...]:
    """Finds by dynamic programming the `count` lengths with the fewest cells over all rows."""
    if len(lengths) == 0 or count < 1:
        raise InputError(f"cannot choose {count} lengths for {len(lengths)} rows; expected at least one of each")
    step = _MULTIPLE * -(-int(lengths.max()) // (_MULTIPLE * _MAX_CELLS))
    rows = np.cumsum(np.bincount(np.maximum(-(-lengths // step), 1)))  # rows that fit into k steps
    last = len(rows) - 1
    cells = np.where(np.arange(last + 1) == 0, 0.0, np.inf)  # fewest cells for the rows that fit into k steps
    choices: list[np.ndarray] = []
    for _ in range(min(count, last)):
        # Row k, column j: the rows above j and up to k steps are padded to k, the others are settled before.
        totals = cells + (rows[:, None] - rows) * np.arange(last + 1)[:, None]
        totals[np.triu_indices(last + 1)] = np.inf
        totals[0, 0] = 0.0
        choices.append(totals.argmin(axis=1))
        cells = totals.min(axis=1)
    found = [last]
    for before in reversed(choices):
        found.append(int(before[found[-1]]))
    return tuple(sorted({steps * step for steps in found if steps}))
