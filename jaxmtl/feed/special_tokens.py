"""The special tokens around the ids of a text: what a vocabulary adds, and the ids without it."""

from collections.abc import Sequence

import numpy as np

from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import InputError


def around_texts(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Finds the special tokens that a tokenizer puts before and behind a text.

    Args:
      tokenizer: the tokenizer.

    Returns:
      Both.

    Raises:
      InputError: if it changes the text between them.
    """
    framed, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    raise InputError(f"vocabulary {tokenizer.source}: a text has other ids between special tokens than without them")


def without_special(ids: Sequence[int] | np.ndarray, start: Sequence[int], eos_token_id: int) -> list[int]:
    """Takes the special tokens off the ids of a text, where they are there.

    Args:
      ids: token ids of a text, with the special tokens of inputs or targets, or cut in the middle.
      start: what `around_texts` gives before a text.
      eos_token_id: the id that ends a text.

    Returns:
      The ids between them.
    """
    row = [int(token) for token in ids]
    row = row[len(start) :] if start and row[: len(start)] == list(start) else row
    return row[:-1] if row[-1:] == [eos_token_id] else row
