"""How likely a model finds given texts: negative log-likelihoods (NLL) per token, per target, per answer choice.

Requests of all callers go the same way: sorted by length, cut into batches of few shapes, scored, put back in order.
The encoder runs once for an input, however many choices it has. The softmax runs over all rows of the embedding, as in
training and in Hugging Face's loss; ids of padding rows are refused as targets.
Letters in shapes: B inputs, C choices, S source length, T target length.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.adapters.adaptation import Instructed
from jaxmtl.adapters.lora import Adapter
from jaxmtl.evals import requests
from jaxmtl.evals.reading import InputBatch, Read, Reader, in_batches
from jaxmtl.evals.request_adapters import Requested, check_count, request_adapters
from jaxmtl.evals.requests import BATCH_SIZE, MAX_INPUT_TOKENS, Ids, OnBatch
from jaxmtl.models.lengths import check_room
from jaxmtl.models.shifting import shift_right
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained

MAX_TARGET_POSITIONS = 8192
"""Most target positions B·C·T in one step: 1 GB of float32 logits at 32128 rows."""


Measure = Callable[[jax.Array, jax.Array], jax.Array]
"""Measures tokens as `nll` does; compiled once, so give the same or an equal one each time."""


def nll(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Measures how unlikely tokens are.

    Args:
      logits: float32 [N, T, V].
      targets: int32 [N, T].

    Returns:
      float32 [N, T], nats.
    """
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def loss(
    pretrained: Pretrained,
    inputs: Sequence[str],
    targets: Sequence[str],
    *,
    adapter: Adapter | Sequence[Adapter] | Instructed | None = None,
    batch_size: int = BATCH_SIZE,
    max_input_tokens: int = MAX_INPUT_TOKENS,
) -> np.ndarray:
    """Measures how unlikely targets are.

    Args:
      pretrained: the model, with a tokenizer.
      inputs: [n] input texts; longer ones are cut, see `requests.encode_inputs`.
      targets: [n] target texts; never cut.
      adapter: one for all inputs, or [n] one for each, or what their instructions became; none if None.
      batch_size: inputs scored at once; the result does not depend on it.
      max_input_tokens: most tokens of an input.

    Returns:
      float64 [n], nats per target token, the end token included; empty for empty lists.

    Raises:
      InputError: if the lists differ in length or hold something else than texts, the model has no tokenizer, or an
        adapter does not fit it.
      UnknownNameError: if an adapter names a layer that the model does not have.
    """
    input_ids = requests.encode_inputs(pretrained, inputs, max_input_tokens)
    target_ids = requests.encode_targets(pretrained, targets)
    adapters = request_adapters(pretrained, adapter, len(input_ids))
    losses = token_losses(pretrained, input_ids, target_ids, adapters=adapters, batch_size=batch_size)
    return np.array([np.mean(row, dtype=np.float64) for row in losses], dtype=np.float64)


def score_choices(
    pretrained: Pretrained,
    inputs: Sequence[str],
    choices: Sequence[Sequence[str]],
    *,
    adapter: Adapter | Sequence[Adapter] | Instructed | None = None,
    normalise: bool = False,
    batch_size: int = BATCH_SIZE,
    max_input_tokens: int = MAX_INPUT_TOKENS,
) -> list[np.ndarray]:
    """Scores answer choices by their log-probability; `np.argmax` of a row is the answer, the first one among equals.

    Args:
      pretrained: the model, with a tokenizer.
      inputs: [n] input texts, cut as in `loss`.
      choices: [n] lists of at least one choice; their numbers may differ.
      adapter: as in `loss`.
      normalise: divides each sum by the choice's number of tokens, the end token included.
      batch_size: inputs scored at once; the result does not depend on it.
      max_input_tokens: most tokens of an input.

    Returns:
      [n] arrays float64 [C], nats summed over tokens (end token included); higher is likelier.

    Raises:
      InputError: as `loss`, or if an input has no choice.

    Source: rank classification of T0 (Sanh et al. 2022): sums, no length normalisation; methods 3.3.
    """
    input_ids = requests.encode_inputs(pretrained, inputs, max_input_tokens)
    choice_ids = encode_choices(pretrained, choices)
    adapters = request_adapters(pretrained, adapter, len(input_ids))
    losses = choice_losses(pretrained, input_ids, choice_ids, adapters=adapters, batch_size=batch_size)
    return scores_of(losses, normalise=normalise)


def encode_choices(pretrained: Pretrained, choices: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Tokenises the choices of each input as targets are.

    Args:
      pretrained: the model; its tokenizer is used.
      choices: [n] lists of at least one choice.

    Returns:
      Token ids of each input's choices.

    Raises:
      InputError: if an input has no choice or one that is no text, or the model has no tokenizer.
    """
    for number, row in enumerate(choices):
        if isinstance(row, str) or len(row) == 0:
            raise InputError(f"choices of input {number} are {row!r}; expected a list of at least one text")
    flat = iter(requests.encode_targets(pretrained, [text for row in choices for text in row]))
    return [[next(flat) for _ in row] for row in choices]


def scores_of(losses: Sequence[Sequence[np.ndarray]], *, normalise: bool = False) -> list[np.ndarray]:
    """Adds up the token losses of choices.

    Args:
      losses: for each input and each of its choices [T], nats.
      normalise: divides each sum by T.

    Returns:
      For each input float64 [C], nats; higher is likelier.
    """
    reduce = np.mean if normalise else np.sum
    return [np.array([-reduce(row, dtype=np.float64) for row in rows]) for rows in losses]


def token_losses(
    pretrained: Pretrained,
    inputs: Sequence[Ids],
    targets: Sequence[Ids],
    *,
    adapters: Requested | None = None,
    batch_size: int = BATCH_SIZE,
    on_batch: OnBatch | None = None,
) -> list[np.ndarray]:
    """Measures every target token's NLL, from token ids.

    Args:
      pretrained: the model; it needs no tokenizer.
      inputs: [n] rows of token ids, special tokens included.
      targets: [n] rows of token ids, special tokens included.
      adapters: of the inputs, what `request_adapters` gave; none if None.
      batch_size: inputs scored at once.
      on_batch: told after each batch how many targets it scored.

    Returns:
      [n] arrays float32 [T], nats.

    Raises:
      InputError: if the lists differ in length, a row is empty or holds an id that is no token's, or the model has no
        room for an input and its target.
    """
    single = [[row] for row in targets]
    options: dict[str, Any] = dict(adapters=adapters, batch_size=batch_size, on_batch=on_batch)
    return [rows[0] for rows in choice_losses(pretrained, inputs, single, **options)]


def choice_losses(
    pretrained: Pretrained,
    inputs: Sequence[Ids],
    choices: Sequence[Sequence[Ids]],
    *,
    adapters: Requested | None = None,
    reader: Reader | None = None,
    measure: Measure = nll,
    batch_size: int = BATCH_SIZE,
    on_batch: OnBatch | None = None,
) -> list[list[np.ndarray]]:
    """Measures every choice's token NLLs, from token ids; arguments and errors as in `token_losses`.

    Args:
      pretrained: the model.
      inputs: [n] rows of token ids.
      choices: [n] lists of rows of token ids.
      adapters: of the inputs; all choices of an input share its adapter.
      reader: reads the inputs of a batch; `encode` if None.
      measure: what is measured of each token.
      batch_size: inputs scored at once.
      on_batch: told after each batch how many inputs it scored.

    Returns:
      For each input and each of its choices float32 [T], nats; of another measure what it gives of each token.
    """
    check_choices(pretrained, inputs, choices, adapters)
    answer = lambda batch: batch_losses(pretrained, batch, batch.read(reader), choices, measure)
    options: dict[str, Any] = dict(adapters=adapters, batch_size=batch_size, on_batch=on_batch)
    return in_batches(answer, pretrained, inputs, plan_batches(inputs, choices, batch_size), **options)


def check_choices(
    pretrained: Pretrained, inputs: Sequence[Ids], choices: Sequence[Sequence[Ids]], adapters: Requested | None
) -> None:
    """Refuses what `choice_losses` refuses.

    Args:
      pretrained: the model.
      inputs: [n] rows of token ids.
      choices: [n] lists of rows of token ids.
      adapters: of the inputs; None for none.

    Raises:
      InputError: as `token_losses`.
    """
    if len(inputs) != len(choices):
        raise InputError(f"{len(inputs)} inputs but {len(choices)} targets; expected as many")
    check_count(adapters, len(inputs))
    requests.check_ids(pretrained, inputs, "input")
    requests.check_ids(pretrained, (ids for row in choices for ids in row), "target")
    longest = (max(map(len, row), default=0) for row in choices)
    check_room(pretrained.config, map(len, inputs), longest, "inputs and targets")


def batch_losses(
    pretrained: Pretrained, batch: InputBatch, read: Read, choices: Sequence[Sequence[Ids]], measure: Measure = nll
) -> list[list[np.ndarray]]:
    """Measures the choices of a batch of inputs that was read.

    Args:
      pretrained: the model.
      batch: the inputs.
      read: what became of them.
      choices: lists of rows of token ids, of all inputs.
      measure: what is measured of each token.

    Returns:
      For each input of the batch and each of its choices what `choice_losses` gives.
    """
    results: list[list[np.ndarray]] = [[] for _ in batch.rows]
    known: list[dict[tuple[int, ...], np.ndarray]] = [{} for _ in batch.rows]
    mesh, pad_id = requests.mesh_of(pretrained.params), pretrained.config.pad_id
    for part in _parts([choices[row] for row in batch.rows], batch.num_rows):
        targets = requests.place(_pad_choices(part, batch.num_rows, pad_id), mesh)
        found = requests.fetch(_measured(measure, pretrained.module, batch.variables, read, targets))
        for result, own, losses, kept in zip(results, known, found, part, strict=False):
            # Equal choices tie to the last bit, which steps of other shapes would not promise: the first one counts.
            result += [own.setdefault(tuple(ids), line[: len(ids)]) for line, ids in zip(losses, kept, strict=False)]
    return results


def plan_batches(inputs: Sequence[Ids], choices: Sequence[Sequence[Ids]], batch_size: int) -> list[np.ndarray]:
    """Groups inputs by their number of choices, and sorts each group by length: no row pads another's choices.

    Args:
      inputs: [n] rows of token ids.
      choices: [n] lists of rows of token ids.
      batch_size: most inputs of a batch.

    Returns:
      int64 [inputs of a batch] for each batch, the inputs' places.
    """
    groups: dict[int, list[int]] = {}
    for row, ids in enumerate(choices):
        groups.setdefault(_choice_bucket(len(ids)), []).append(row)
    batches = []
    for members in groups.values():
        lengths = [(len(inputs[row]), max(map(len, choices[row]))) for row in members]
        keys = [(requests.bucket(source), target, source) for source, target in lengths]
        batches += [np.array(members)[index] for index in requests.plan(keys, batch_size)]
    return batches


def _choice_bucket(count: int) -> int:
    """Rounds a number of choices up, but not the usual ones: there are few of them, and each choice costs time."""
    return count if count <= 8 else requests.bucket(count)


def _parts(choices: list[Sequence[Ids]], num_rows: int) -> list[list[Sequence[Ids]]]:
    """Cuts the choices of a batch into steps that fit `MAX_TARGET_POSITIONS`."""
    most = max(len(row) for row in choices)
    length = requests.bucket(max(len(ids) for row in choices for ids in row))
    width = max(1, MAX_TARGET_POSITIONS // (num_rows * length))
    return [[row[start : start + width] for row in choices] for start in range(0, most, width)]


def _pad_choices(choices: list[Sequence[Ids]], num_rows: int, pad_id: int) -> np.ndarray:
    """Stacks rows of choices to int32 [B, C, T], C and T rounded up to buckets."""
    length = requests.bucket(max(len(ids) for row in choices for ids in row))
    width = _choice_bucket(max(len(row) for row in choices))
    targets = np.full((num_rows, width, length), pad_id, np.int32)
    for row, texts in enumerate(choices):
        for choice, ids in enumerate(texts):
            targets[row, choice, : len(ids)] = ids
    return targets


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measured(measure: Measure, module: nn.Module, variables: Any, read: Read, targets: jax.Array) -> jax.Array:
    """Returns what is measured, [B, C, T, ...], of targets [B, C, T]."""
    num_inputs, num_choices, length = targets.shape
    rows = targets.reshape(num_inputs * num_choices, length)
    decoder_inputs = shift_right(rows, jnp.repeat(read.first_tokens, num_choices))
    logits: Any = module.apply(variables, decoder_inputs, read.memory, read.mask, method="decode")
    found = measure(logits, rows)
    return found.reshape(*targets.shape, *found.shape[2:])
