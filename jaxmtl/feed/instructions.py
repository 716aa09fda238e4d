"""Batches whose rows share instructions: each is held once, and rows name it by number.

Letters in shapes: B rows, U instructions, I instruction length.
"""

from typing import Any

import numpy as np

from jaxmtl.types import Batch, InputError


def joined_ids(instruction: np.ndarray, inputs: np.ndarray, end: int) -> np.ndarray:
    """Puts an instruction and an input together as one text, without an end token between them.

    Args:
      instruction: int32 [i].
      inputs: int32 [s].
      end: id that ends a text.

    Returns:
      int32 [i + s], or one less.
    """
    return np.concatenate([instruction[instruction != end], inputs])


def share_instructions(batch: Batch, *, multiple: int = 1) -> Batch:
    """Holds each instruction of a batch once, so that it is encoded once.

    Args:
      batch: with `instructions` int32 [B, I], one for each row.
      multiple: U is a power of two times this; give the number of devices that share the rows.

    Returns:
      The batch with `instructions` int32 [U, I], in the order of their first rows, and `instruction_index` int32 [B].
      U is one of few numbers, so that few shapes are compiled: instructions behind the last one repeat the first.

    Raises:
      InputError: if the batch has no instructions, or shares them already.
    """
    if "instructions" not in batch or "instruction_index" in batch:
        raise InputError(f"a batch has the fields {sorted(batch)}; expected 'instructions', one for each row")
    rows = batch["instructions"]
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    unique = rows[first[order]]
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    size = multiple
    while size < len(unique):
        size *= 2
    padded = np.concatenate([unique, np.repeat(unique[:1], size - len(unique), axis=0)])
    return {**batch, "instructions": padded, "instruction_index": number[inverse.reshape(-1)]}


class SharedInstructions:
    """A stream of batches whose rows have an instruction each, turned into one whose rows share them.

    For one process: a row names an instruction by its place among those of all devices.
    """

    def __init__(self, stream: Any, *, multiple: int = 1) -> None:
        """Wraps a stream.

        Args:
          stream: a training stream; all that is not its batches is left as it is.
          multiple: as in `share_instructions`.
        """
        self._stream, self._multiple = stream, multiple

    def __next__(self) -> Batch:
        """Returns the next batch."""
        return share_instructions(next(self._stream), multiple=self._multiple)

    def __getattr__(self, name: str) -> Any:
        """Returns the wrapped stream's own method."""
        return getattr(self._stream, name)


class NumberedTasks:
    """A stream of batches, with the number of each row's task as what a hypernetwork reads."""

    def __init__(self, stream: Any) -> None:
        """Wraps a stream.

        Args:
          stream: a training stream without instructions; all that is not its batches is left as it is.
        """
        self._stream = stream

    def __next__(self) -> Batch:
        """Returns the next batch, with `instructions` int32 [B, 1]."""
        batch = next(self._stream)
        return {**batch, "instructions": batch["task_ids"][:, None]}

    def __getattr__(self, name: str) -> Any:
        """Returns the wrapped stream's own method."""
        return getattr(self._stream, name)
