"""From requests of any length to few shapes on the devices and back: tokenise, check, sort, cut, pad, place, fetch.

A result may depend on nothing but its own request: rows are padded with copies of a real row, lengths are rounded up to
buckets, and what is padding is never read.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from jaxmtl.feed.tokenise import cut, ended
from jaxmtl.partitioning import batch_sharding, use_mesh
from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained

Ids = Sequence[int] | np.ndarray
OnBatch = Callable[[int], None]
"""Told after each batch how many requests it finished."""

BUCKETS = (
    1,
    2,
    4,
    8,
    16,
    24,
    32,
    48,
    64,
    96,
    112,
    128,
    160,
    192,
    224,
    256,
    288,
    320,
    352,
    384,
    416,
    448,
    480,
    512,
    640,
    768,
    896,
    1024,
    1536,
    2048,
)
BATCH_SIZE = 32
MAX_INPUT_TOKENS = 1024


def encode_inputs(pretrained: Pretrained, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
    """Tokenises inputs with the tokenizer's own special tokens (T5's end token, none of GPT-2).

    Args:
      pretrained: the model; its tokenizer is used.
      texts: any texts; an empty one gives only the special tokens.
      max_tokens: longer results keep their first max_tokens - 1 ids and their end token, or if they have none their
        first max_tokens ids; None cuts nothing.

    Returns:
      Token ids of each text.

    Raises:
      InputError: if the model has no tokenizer, `texts` is one string or holds something else than strings.
    """
    tokenizer = tokenizer_of(pretrained)
    rows = tokenizer.encode_batch(checked_texts(texts))
    return rows if max_tokens is None else [cut(ids, max_tokens, tokenizer.eos_token_id) for ids in rows]


def encode_targets(pretrained: Pretrained, texts: Sequence[str]) -> list[list[int]]:
    """Tokenises targets with the tokenizer's own special tokens and, whatever it does, an end token.

    Args:
      pretrained: the model; its tokenizer is used.
      texts: any texts.

    Returns:
      Token ids of each text.

    Raises:
      InputError: as in `encode_inputs`.
    """
    tokenizer = tokenizer_of(pretrained)
    return [ended(ids, tokenizer.eos_token_id) for ids in tokenizer.encode_batch(checked_texts(texts))]


def tokenizer_of(pretrained: Pretrained) -> Tokenizer:
    """Returns the model's tokenizer.

    Args:
      pretrained: the model.

    Raises:
      InputError: if it has none.
    """
    if pretrained.tokenizer is None:
        raise InputError("the model has no tokenizer; put spiece.model or tokenizer.json beside its config.json")
    return pretrained.tokenizer


def checked_texts(texts: Sequence[str]) -> list[str]:
    """Returns the texts as a list.

    Args:
      texts: what should be texts.

    Raises:
      InputError: if it is one string or holds something else than strings.
    """
    if isinstance(texts, str):
        raise InputError(f"found one text {texts[:40]!r} where a list of texts was expected; write [text]")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {number} is a {type(text).__name__}; expected str")
    return list(texts)


def check_ids(pretrained: Pretrained, rows: Iterable[Ids], what: str) -> None:
    """Checks that rows hold only ids of real tokens: rows of the embedding past the tokenizer's are padding.

    Args:
      pretrained: the model.
      rows: token ids of each request.
      what: what a row is ("input", "target"), for the message.

    Raises:
      InputError: if a row is empty, or holds an id outside the vocabulary.
    """
    limit = num_tokens(pretrained)
    for number, ids in enumerate(rows):
        if len(ids) == 0:
            raise InputError(f"{what} {number} has no token; expected at least the end token")
        low, high = int(np.min(ids)), int(np.max(ids))
        if low < 0 or high >= limit:
            bad = low if low < 0 else high
            raise InputError(f"{what} {number} holds token id {bad}; the vocabulary has ids 0 to {limit - 1}")


def num_tokens(pretrained: Pretrained) -> int:
    """Counts the rows of the embedding that stand for tokens; those behind them are padding.

    Args:
      pretrained: the model.

    Returns:
      The size of its tokenizer; the number of all rows without a tokenizer.
    """
    rows = pretrained.config.vocab_size
    return rows if pretrained.tokenizer is None else min(rows, pretrained.tokenizer.vocab_size)


def bucket(length: int) -> int:
    """Rounds a length up to one of few values, so that few shapes are compiled.

    Args:
      length: number of tokens, 1 or more.

    Returns:
      The next of `BUCKETS`; beyond the last, the next multiple of it.
    """
    for size in BUCKETS:
        if length <= size:
            return size
    return -(-length // BUCKETS[-1]) * BUCKETS[-1]


def plan(keys: Sequence[tuple[int, ...]], batch_size: int) -> list[np.ndarray]:
    """Cuts requests into batches of similar ones, largest first, so that lack of memory shows at once.

    Args:
      keys: one sort key for each request, the costliest length first.
      batch_size: most requests in a batch.

    Returns:
      Indices of the requests of each batch; each request is in exactly one.

    Raises:
      InputError: if the batch size is below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected at least 1")
    order = np.array(sorted(range(len(keys)), key=lambda i: keys[i], reverse=True), dtype=np.int64)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pad(rows: Sequence[Ids], num_rows: int, pad_id: int) -> np.ndarray:
    """Stacks rows, padded to a bucket; missing rows repeat the first, because a row without tokens has no meaning.

    Args:
      rows: at least one row of token ids.
      num_rows: rows B of the result.
      pad_id: id put behind each row.

    Returns:
      int32 [B, S].
    """
    result = np.full((num_rows, bucket(max(len(row) for row in rows))), pad_id, np.int32)
    for target, row in zip(result, rows, strict=False):
        target[: len(row)] = row
    result[len(rows) :] = result[0]
    return result


def mask_of(rows: Sequence[Ids], shape: tuple[int, ...]) -> np.ndarray:
    """Marks the real tokens of padded rows, by their number: a real token may have the id of padding.

    Args:
      rows: the rows of token ids that were padded.
      shape: [B, S], what `pad` made of them.

    Returns:
      bool [B, S], True on real tokens.
    """
    lengths = [len(row) for row in rows]
    lengths += lengths[:1] * (shape[0] - len(rows))
    return np.arange(shape[1]) < np.array(lengths)[:, None]


def mesh_of(params: Any) -> Mesh | None:
    """Finds the mesh that parameters are spread over.

    Args:
      params: the parameter tree.

    Returns:
      The mesh of the first parameter that has one; None if all are on one device.
    """
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def padded_rows(count: int, batch_size: int, mesh: Mesh | None) -> int:
    """Rounds a number of rows up, so that few shapes are compiled and every device gets as many rows.

    Args:
      count: rows that hold requests, 1 or more.
      batch_size: most rows that hold requests.
      mesh: devices; one device if None.

    Returns:
      The next power of two, at most the batch size, made a multiple of the mesh's shards of a batch.
    """
    rows = min(1 << (count - 1).bit_length(), batch_size)
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-rows // shards) * shards


def place(array: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """Puts a batch on the devices.

    Args:
      array: [B, ...], the same on every host; B is what `padded_rows` gave.
      mesh: devices to split the rows over; the default device if None.

    Returns:
      The array on its devices.
    """
    return jax.device_put(array) if mesh is None else jax.device_put(array, batch_sharding(mesh))


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[None]:
    """Returns the context in which functions of the model are called.

    Args:
      mesh: devices that the parameters are spread over, or None.
    """
    return contextlib.nullcontext() if mesh is None else use_mesh(mesh)


def fetch(array: jax.Array) -> np.ndarray:
    """Returns a device array whole on every host.

    Args:
      array: on any devices of any hosts.
    """
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
