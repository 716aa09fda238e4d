"""Texts that a model writes: inputs of any length in, generated texts out, in the order of the inputs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmtl.adapters.adaptation import Instructed
from jaxmtl.adapters.lora import Adapter
from jaxmtl.evals import requests
from jaxmtl.evals.decoding import Decoding
from jaxmtl.evals.request_adapters import Requested, batch_variables, check_count, request_adapters
from jaxmtl.evals.requests import BATCH_SIZE, MAX_INPUT_TOKENS, Ids, OnBatch
from jaxmtl.models.decoding import generate as generate_tokens
from jaxmtl.models.lengths import check_room
from jaxmtl.models.stack import unrolled_on_cpus
from jaxmtl.types import unknown_name
from jaxmtl.weights import Pretrained

GREEDY = Decoding()


def generate(
    pretrained: Pretrained,
    inputs: Sequence[str],
    *,
    adapter: Adapter | Sequence[Adapter] | Instructed | None = None,
    max_tokens: int,
    method: str = "greedy",
    batch_size: int = BATCH_SIZE,
    max_input_tokens: int = MAX_INPUT_TOKENS,
    **options: Any,
) -> list[str]:
    """Generates one text for each input; no token is forced and no penalty applied unless told to.

    Args:
      pretrained: the model, with a tokenizer.
      inputs: [n] input texts; longer ones are cut, see `requests.encode_inputs`.
      adapter: one for all inputs, or [n] one for each, or what their instructions became; none if None.
      max_tokens: most tokens of a generated text, the end token included.
      method: "greedy", "beam" or "sample".
      batch_size: inputs decoded at once; the result does not depend on it.
      max_input_tokens: most tokens of an input.
      **options: the other fields of `Decoding`: num_beams, length_penalty, temperature, min_tokens ...

    Returns:
      [n] texts without special tokens.

    Raises:
      InputError: if `inputs` is not a list of texts, the model has no tokenizer, an option is out of range, or an
        adapter does not fit the model.
      UnknownNameError: if there is no such method or option, or no layer that an adapter names.
    """
    known = [field.name for field in dataclasses.fields(Decoding)]
    for name in options:
        if name not in known:
            raise unknown_name("option of decoding", name, known)
    decoding = Decoding(method=method, **options)
    ids = requests.encode_inputs(pretrained, inputs, max_input_tokens)
    adapters = request_adapters(pretrained, adapter, len(ids))
    how: dict[str, Any] = dict(max_tokens=max_tokens, decoding=decoding, batch_size=batch_size)
    return decode_texts(pretrained, generate_ids(pretrained, ids, adapters=adapters, **how))


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
    tokenizer = requests.tokenizer_of(pretrained)
    return [tokenizer.decode([int(index) for index in row]) for row in rows]


def generate_ids(
    pretrained: Pretrained,
    inputs: Sequence[Ids],
    *,
    adapters: Requested | None = None,
    max_tokens: int,
    decoding: Decoding = GREEDY,
    streams: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
    on_batch: OnBatch | None = None,
) -> list[np.ndarray]:
    """Generates token ids from token ids; ids of padding rows of the embedding are never generated.

    Args:
      pretrained: the model; it needs no tokenizer.
      inputs: [n] rows of token ids, special tokens included.
      adapters: of the inputs, what `request_adapters` gave; none if None.
      max_tokens: most tokens generated for each.
      decoding: method and rules.
      streams: [n] numbers of each input's own stream of random numbers, below 2^32; what is drawn for an input depends
        on nothing else. Its place among the inputs if None.
      batch_size: inputs decoded at once.
      on_batch: told after each batch how many inputs it decoded.

    Returns:
      [n] arrays int32, the generated ids before the end token.

    Raises:
      InputError: if max_tokens is below 1, an input is empty or holds, or the options force, an id that is no token's,
        or the model has no room for an input and max_tokens more.
    """
    how = decoding.generation(max_tokens)
    forced = [[token] for token in (decoding.forced_first_id, decoding.forced_last_id) if token is not None]
    requests.check_ids(pretrained, forced, "forced token")
    requests.check_ids(pretrained, inputs, "input")
    check_count(adapters, len(inputs))
    config, mesh = pretrained.config, requests.mesh_of(pretrained.params)
    check_room(config, map(len, inputs), [max_tokens] * len(inputs), "inputs")
    all_streams = np.array(range(len(inputs)) if streams is None else streams, np.uint32)
    options = dict(how=how, num_tokens=requests.num_tokens(pretrained))
    module = unrolled_on_cpus(pretrained.module)
    results: list[np.ndarray] = [np.zeros(0, np.int32)] * len(inputs)
    with requests.on_mesh(mesh):
        for rows in requests.plan([(len(ids),) for ids in inputs], batch_size):
            num_rows = requests.padded_rows(len(rows), batch_size, mesh)
            batch = requests.pad([inputs[row] for row in rows], num_rows, config.pad_id)
            mask = requests.mask_of([inputs[row] for row in rows], batch.shape)
            lines = np.pad(all_streams[rows], (0, num_rows - len(rows)), mode="edge")
            placed = (requests.place(array, mesh) for array in (batch, mask, lines))
            variables = batch_variables(pretrained, adapters, rows, num_rows)
            tokens = generate_tokens(module, variables, *placed, **options)
            for row, line in zip(rows, requests.fetch(tokens), strict=False):
                results[row] = _before_end(line, config.eos_id)
            if on_batch is not None:
                on_batch(len(rows))
    return results


def _before_end(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    ends = np.flatnonzero(tokens == eos_id)
    return tokens[: ends[0]] if ends.size else tokens
