"""FiD-ICL's memory of demonstrations: each is encoded alone, once for all queries; padding does not stay.

Letters in shapes: k demonstrations, B queries, S tokens of a query, L states of all demonstrations, D embed.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxmtl.adapters.rows import variables
from jaxmtl.evals import reading, requests
from jaxmtl.evals.requests import BATCH_SIZE, Ids
from jaxmtl.models.encoder_decoder import EncoderDecoder
from jaxmtl.models.fusion import fuse
from jaxmtl.models.lengths import check_room
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained


class Memory(NamedTuple):
    """What an encoder made of demonstrations.

    Attributes:
      states: [L, D], in the demonstrations' order; padded to a bucket, or empty if there is no token.
      mask: bool [L], True on real states.
    """

    states: jax.Array
    mask: jax.Array


def read_demonstrations(
    pretrained: Pretrained, demonstrations: Sequence[Ids], *, batch_size: int = BATCH_SIZE
) -> Memory:
    """Encodes demonstrations, each alone.

    Args:
      pretrained: an encoder-decoder.
      demonstrations: [k] rows of token ids; there may be none, and rows may be empty.
      batch_size: demonstrations encoded at once; the result does not depend on it.

    Returns:
      The memory; use it for all queries of the task.

    Raises:
      InputError: if the model has no encoder, a row holds an id that is no token's, or one is too long for the model.
    """
    module, config = pretrained.module, pretrained.config
    if not isinstance(module, EncoderDecoder):
        raise InputError(f"{type(module).__name__} has no encoder to fuse demonstrations of; concatenate them instead")
    rows = [ids for ids in demonstrations if len(ids)]
    requests.check_ids(pretrained, rows, "demonstration")
    check_room(config, map(len, rows), [0] * len(rows), "demonstrations")
    states = _encode_alone(pretrained, rows, batch_size)
    packed = np.concatenate(states) if states else np.zeros((0, config.embed_dim), np.float32)
    missing = requests.bucket(len(packed)) - len(packed) if states else 0
    mask = np.pad(np.ones(len(packed), bool), (0, missing))
    return Memory(*_on_all_devices(pretrained, np.pad(packed, ((0, missing), (0, 0))), mask))


def reader_after(memory: Memory) -> reading.Reader:
    """Returns a reader of queries, for `scoring.choice_losses`, whose memory begins with demonstrations.

    Args:
      memory: the demonstrations.
    """
    return functools.partial(_read_after, memory.states, memory.mask)


def _encode_alone(pretrained: Pretrained, rows: Sequence[Ids], batch_size: int) -> list[np.ndarray]:
    """Returns the states [S, D] of each row, without padding."""
    mesh = requests.mesh_of(pretrained.params)
    states: list[np.ndarray] = [np.zeros(0)] * len(rows)
    with requests.on_mesh(mesh):
        for members in requests.plan([(len(ids),) for ids in rows], batch_size):
            num_rows = requests.padded_rows(len(members), batch_size, mesh)
            batch = requests.pad([rows[row] for row in members], num_rows, pretrained.config.pad_id)
            mask = requests.mask_of([rows[row] for row in members], batch.shape)
            placed = (requests.place(array, mesh) for array in (batch, mask))
            encoded = requests.fetch(
                reading.encode(pretrained.module, variables(pretrained.params, None), *placed).memory
            )
            for row, line in zip(members, encoded, strict=False):
                states[row] = line[: len(rows[row])]
    return states


def _on_all_devices(pretrained: Pretrained, *arrays: np.ndarray) -> Any:
    mesh = requests.mesh_of(pretrained.params)
    return jax.device_put(arrays, None if mesh is None else NamedSharding(mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnums=2)
def _read_after(
    states: jax.Array, mask: jax.Array, module: nn.Module, given: Any, inputs: jax.Array, input_mask: jax.Array
) -> reading.Read:
    """Reads queries [B, S]; the memory of each is [L + S, D]."""
    read = reading.encode(module, given, inputs, input_mask)
    memory, seen = fuse(states, mask, read.memory, read.mask)
    return reading.Read(memory=memory, first_tokens=read.first_tokens, mask=seen)
