"""The special tokens around the ids of a text: what a vocabulary adds, and the ids without it."""

from collections.abc import Sequence

import numpy as np

from jaxmtl.tokenizers import Tokenizer


def around_texts(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns the special tokens that a tokenizer puts before and behind a text.

    Args:
      tokenizer: the tokenizer.
    """
    framed, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    start = next(place for place in range(len(framed)) if framed[place : place + len(bare)] == bare)
    return framed[:start], framed[start + len(bare) :]


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
