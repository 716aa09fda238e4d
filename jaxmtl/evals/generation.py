"""Texts that a model writes: inputs of any length in, generated texts out, in the order of the inputs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmtl.adapters.adaptation import Instructed
from jaxmtl.adapters.lora import Adapter
from jaxmtl.evals import requests
from jaxmtl.evals.decoding import Decoding
from jaxmtl.evals.reading import InputBatch, in_batches
from jaxmtl.evals.request_adapters import Requested, check_count, request_adapters
from jaxmtl.evals.requests import BATCH_SIZE, MAX_INPUT_TOKENS, Ids, OnBatch
from jaxmtl.models.decoding import generate as generate_tokens
from jaxmtl.models.lengths import check_room
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
    check_count(adapters, len(inputs))
    requests.check_ids(pretrained, inputs, "input")
    answer = generator_of(pretrained, inputs, max_tokens, decoding, streams)
    plan = requests.plan([(len(ids),) for ids in inputs], batch_size)
    options: dict[str, Any] = dict(adapters=adapters, batch_size=batch_size, on_batch=on_batch)
    return in_batches(answer, pretrained, inputs, plan, **options)


def generator_of(
    pretrained: Pretrained,
    inputs: Sequence[Ids],
    max_tokens: int,
    decoding: Decoding,
    streams: Sequence[int] | None,
) -> Callable[..., list[np.ndarray]]:
    """Makes what generates the texts of a batch.

    Args:
      pretrained: the model.
      inputs: [n] rows of token ids that were checked.
      max_tokens: most tokens generated for each.
      decoding: method and rules.
      streams: as in `generate_ids`.

    Returns:
      A function of an `InputBatch` and, where it was read before, of the memory, to what `generate_ids` gives of it.

    Raises:
      InputError: if max_tokens is below 1, the options force an id that is no token's, or the model has no room for an
        input and max_tokens more.
    """
    forced = [[token] for token in (decoding.forced_first_id, decoding.forced_last_id) if token is not None]
    options: dict[str, Any] = dict(how=decoding.generation(max_tokens), num_tokens=requests.num_tokens(pretrained))
    requests.check_ids(pretrained, forced, "forced token")
    check_room(pretrained.config, map(len, inputs), [max_tokens] * len(inputs), "inputs")
    all_streams = np.array(range(len(inputs)) if streams is None else streams, np.uint32)
    mesh = requests.mesh_of(pretrained.params)

    def generate_batch(batch: InputBatch, memory: Any = None) -> list[np.ndarray]:
        lines = np.pad(all_streams[batch.rows], (0, batch.num_rows - len(batch.rows)), mode="edge")
        given = (batch.module, batch.variables, batch.inputs, batch.mask, requests.place(lines, mesh))
        tokens = requests.fetch(generate_tokens(*given, memory=memory, **options))
        return [_before_end(line, pretrained.config.eos_id) for line in tokens[: len(batch.rows)]]

    return generate_batch


def _before_end(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    ends = np.flatnonzero(tokens == eos_id)
    return tokens[: ends[0]] if ends.size else tokens
