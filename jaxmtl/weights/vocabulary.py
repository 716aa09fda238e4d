"""Whether a model reads the ids of a token store, and has room for its rows."""

from typing import Any

from jaxmtl.feed.manifest import Vocabulary
from jaxmtl.feed.store import TokenStore
from jaxmtl.models.lengths import Room, check_room, room
from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import InputError


def check_reads(config: Any, tokenizer: Tokenizer | None, store: TokenStore) -> None:
    """Refuses a store whose ids mean something else to a model.

    Args:
      config: the model's config, with `vocab_size`, `pad_id` and `eos_id`.
      tokenizer: what the model was trained with; None if nothing tells.
      store: the tokenised examples.

    Raises:
      InputError: if the store was made with another vocabulary, the model has fewer embedding rows than it has ids, the
        model has other ids for padding and for the end of a text, or it has too few positions for a row.
    """
    vocabulary = store.manifest.vocabulary
    if tokenizer is not None and Vocabulary.of(tokenizer) != vocabulary:
        raise InputError(
            f"token store {store.folder} was made with another vocabulary ({vocabulary.size} ids) than the model's, "
            f"{tokenizer.source} ({tokenizer.vocab_size} ids); cache the tasks with that one or choose another model"
        )
    if config.vocab_size < vocabulary.size:
        raise InputError(
            f"the model has {config.vocab_size} embedding rows, token store {store.folder} a vocabulary of "
            f"{vocabulary.size}; choose a model with more rows or cache with its own vocabulary"
        )
    if (config.pad_id, config.eos_id) != (vocabulary.pad, vocabulary.eos):
        raise InputError(
            f"the model has pad_id {config.pad_id} and eos_id {config.eos_id}, token store {store.folder} "
            f"{vocabulary.pad} and {vocabulary.eos}; give the model the store's ids or cache with its own vocabulary"
        )
    if room(config) != Room():
        for split in store.manifest.splits:
            check_room(config, *store.lengths(split), f"token store {store.folder}, split {split!r}")
