"""Batches whose rows share instructions: each is held once, and rows name it by number.

Letters in shapes: B rows, U instructions, I instruction length.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmtl.feed.special_tokens import without_special
from jaxmtl.feed.tokenise import cut
from jaxmtl.types import Batch, InputError


def joined_ids(instruction: np.ndarray, inputs: np.ndarray, start: Sequence[int], end: int, most: int) -> list[int]:
    """Puts an instruction and an input together as one text, without special tokens between them.

    If both are too long, the instruction loses its last tokens; only what is too long alone loses some of the input.

    Args:
      instruction: int32 [i].
      inputs: int32 [s].
      start: what `special_tokens.around_texts` gives before a text.
      end: id that ends a text.
      most: ids that there may be.

    Returns:
      At most i + s ids.
    """
    own = inputs.tolist()
    own = own[len(start) :] if own[: len(start)] == list(start) else own
    first = start if instruction[: len(start)].tolist() == list(start) else []
    told = [*first, *without_special(instruction, start, end)]
    return cut([*told[: max(most - len(own), 0)], *own], most, end)


LENGTHS = 3
"""Lengths that instructions of batches are padded to: the longest of all tasks, half of it, and a quarter."""

SHORTEST = 64
"""Tokens below which a shorter length is not worth a compilation."""


def share_instructions(batch: Batch, *, pad_id: int, multiple: int = 1) -> Batch:
    """Holds each instruction of a batch once, so that it is encoded once, with little padding.

    Args:
      batch: with `instructions` int32 [B, I], one for each row.
      pad_id: token id of padding.
      multiple: U is a power of two times this; give the number of devices that share the rows.

    Returns:
      The batch with `instructions` int32 [U, I'], in the order of their first rows, and `instruction_index` int32 [B].
      U and I' are of few numbers each, so that few shapes are compiled: instructions behind the last one repeat the
      first, and I' is one of `LENGTHS`.

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
    short = padded[:, : _width(padded, pad_id)]
    return {**batch, "instructions": short, "instruction_index": number[inverse.reshape(-1)]}


def _width(rows: np.ndarray, pad_id: int) -> int:
    """Halves the width of padded rows int32 [U, I] as long as the longest fits, at most twice."""
    used = np.flatnonzero((rows != pad_id).any(axis=0))
    longest, width = int(used[-1]) + 1 if len(used) else 1, rows.shape[1]
    for _ in range(LENGTHS - 1):
        half = -(-width // 2)
        width = half if half >= max(longest, SHORTEST) else width
    return width


class SharedInstructions:
    """A stream of batches whose rows have an instruction each, turned into one whose rows share them.

    For one process: a row names an instruction by its place among those of all devices.
    """

    def __init__(self, stream: Any, *, pad_id: int, multiple: int = 1) -> None:
        """Wraps a stream.

        Args:
          stream: a training stream; all that is not its batches is left as it is.
          pad_id: token id of padding.
          multiple: as in `share_instructions`.
        """
        self._stream, self._options = stream, dict(pad_id=pad_id, multiple=multiple)

    def __next__(self) -> Batch:
        """Returns the next batch."""
        return share_instructions(next(self._stream), **self._options)

    def __getattr__(self, name: str) -> Any:
        """Returns the wrapped stream's own method."""
        return getattr(self._stream, name)


class NumberedTasks:
    """A stream of batches, with the number of each row's task as what a hypernetwork reads."""

    def __init__(self, stream: Any, *, pad_id: int) -> None:
        """Wraps a stream.

        Args:
          stream: a training stream; all that is not its batches is left as it is.
          pad_id: token id of padding.
        """
        self._stream, self._pad_id = stream, pad_id

    def __next__(self) -> Batch:
        """Returns the next batch, with `instructions` int32 [B, 1].

        What stands in words, for teachers, is in `instruction_texts` int32 [B, I], padding alone where there is none.
        """
        batch = next(self._stream)
        numbers = batch["task_ids"][:, None]
        texts = batch.get("instructions", np.full_like(numbers, self._pad_id))
        return {**batch, "instructions": numbers, "instruction_texts": texts}

    def __getattr__(self, name: str) -> Any:
        """Returns the wrapped stream's own method."""
        return getattr(self._stream, name)
