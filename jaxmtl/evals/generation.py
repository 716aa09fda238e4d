"""Texts that a model writes: inputs of any length in, generated texts out, in the order of the inputs."""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from jaxmtl.evals import requests
from jaxmtl.evals.requests import BATCH_SIZE, MAX_INPUT_TOKENS, Ids, OnBatch
from jaxmtl.models import decoding
from jaxmtl.types import InputError, unknown_name
from jaxmtl.weights import Pretrained

METHODS: Mapping[str, Callable[..., jax.Array]] = {"greedy": decoding.greedy}
"""Ways to choose the next token, by name: functions of (module, params, inputs int32 [B, S], input_mask bool [B, S],
max_tokens=, num_tokens=) that give int32 [B, T]."""


def generate(
    pretrained: Pretrained,
    inputs: Sequence[str],
    *,
    max_tokens: int,
    method: str = "greedy",
    batch_size: int = BATCH_SIZE,
    max_input_tokens: int = MAX_INPUT_TOKENS,
) -> list[str]:
    """Generates one text for each input; no token is forced and no penalty applied.

    Args:
      pretrained: the model, with a tokenizer.
      inputs: [n] input texts; longer ones keep their first max_input_tokens - 1 tokens and the end token.
      max_tokens: most tokens of a generated text, the end token included.
      method: a key of `METHODS`.
      batch_size: inputs decoded at once; the result does not depend on it.
      max_input_tokens: most tokens of an input.

    Returns:
      [n] texts without special tokens.

    Raises:
      InputError: if `inputs` is not a list of texts, the model has no tokenizer, or an option is out of range.
      UnknownNameError: if there is no such method.
    """
    ids = requests.encode_texts(pretrained, inputs, max_input_tokens)
    generated = generate_ids(pretrained, ids, max_tokens=max_tokens, method=method, batch_size=batch_size)
    return decode_texts(pretrained, generated)


def decode_texts(pretrained: Pretrained, rows: Sequence[Ids]) -> list[str]:
    """Turns rows of token ids into texts without special tokens.

    Args:
      pretrained: the model; its tokenizer is used.
      rows: token ids of each text.

    Returns:
      The texts.

    Raises:
      InputError: if the model has no tokenizer.
    """
    if pretrained.tokenizer is None:
        raise InputError("the model has no tokenizer; put spiece.model or tokenizer.json beside its config.json")
    return [pretrained.tokenizer.decode([int(index) for index in row]) for row in rows]


def generate_ids(
    pretrained: Pretrained,
    inputs: Sequence[Ids],
    *,
    max_tokens: int,
    method: str = "greedy",
    batch_size: int = BATCH_SIZE,
    on_batch: OnBatch | None = None,
) -> list[np.ndarray]:
    """Generates token ids from token ids; ids of padding rows of the embedding are never generated.

    Args:
      pretrained: the model; it needs no tokenizer.
      inputs: [n] rows of token ids, special tokens included.
      max_tokens: most tokens generated for each.
      method: a key of `METHODS`.
      batch_size: inputs decoded at once.
      on_batch: told after each batch how many inputs it decoded.

    Returns:
      [n] arrays int32, the generated ids before the end token.

    Raises:
      InputError: if max_tokens is below 1, or an input is empty or holds an id that is no token's.
      UnknownNameError: if there is no such method.
    """
    if method not in METHODS:
        raise unknown_name("decoding method", method, METHODS)
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; expected at least 1")
    requests.check_ids(pretrained, inputs, "input")
    config, mesh = pretrained.config, requests.mesh_of(pretrained.params)
    options = dict(max_tokens=max_tokens, num_tokens=requests.num_tokens(pretrained))
    results: list[np.ndarray] = [np.zeros(0, np.int32)] * len(inputs)
    with requests.on_mesh(mesh):
        for rows in requests.plan([(len(ids),) for ids in inputs], batch_size):
            num_rows = requests.padded_rows(len(rows), batch_size, mesh)
            batch = requests.pad([inputs[row] for row in rows], num_rows, config.pad_id)
            mask = requests.mask_of([inputs[row] for row in rows], batch.shape)
            placed = (requests.place(array, mesh) for array in (batch, mask))
            tokens = METHODS[method](pretrained.module, pretrained.params, *placed, **options)
            for row, line in zip(rows, requests.fetch(tokens), strict=False):
                results[row] = _before_end(line, config.eos_id)
            if on_batch is not None:
                on_batch(len(rows))
    return results


def _before_end(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    ends = np.flatnonzero(tokens == eos_id)
    return tokens[: ends[0]] if ends.size else tokens
