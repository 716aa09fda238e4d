"""What the key tables of decoder-only families have in common."""

import dataclasses
from typing import TypeVar

import numpy as np

from jaxmtl.models.gpt_config import GPTConfig
from jaxmtl.weights.key_table import Tensors, embedding_rows

Config = TypeVar("Config", bound=GPTConfig)


def fit(config: Config, tensors: Tensors, where: str, embedding: str, head: str) -> Config:
    """Takes from the weights what `config.json` does not say reliably: embedding rows, and whether the head is tied.

    Args:
      config: the config that the file states.
      tensors: the model's tensors.
      where: the folder, for messages.
      embedding: name of the embedding.
      head: name of the output layer; a copy of the embedding under it is a tied head.

    Returns:
      The corrected config.

    Raises:
      InputError: if the embedding is missing, of another width, or has no row for one of the config's token ids.
    """
    rows = embedding_rows(tensors, embedding, config.token_dim, (config.pad_id, config.eos_id), where)
    is_tied = config.tied_head
    if head in tensors.names():
        is_tied = np.array_equal(tensors.read(head), tensors.read(embedding))
    return dataclasses.replace(config, vocab_size=rows, tied_head=is_tied)
