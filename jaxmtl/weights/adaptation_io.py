"""All that an instruction does to a model, on disk: also what a plain adapter would leave out."""

import os
import pathlib

import jax.numpy as jnp
import numpy as np

from jaxmtl.adapters.adaptation import Adaptation
from jaxmtl.models.trees import flat, nested
from jaxmtl.types import InputError
from jaxmtl.weights.pretrained import Pretrained
from jaxmtl.weights.safetensors_io import read_file, write_file

FILE = "adaptation.safetensors"
GENERATED, FUSION, MEMORY, MASK = "generated", "fusion", "memory", "mask"
SCALE, BASE_HASH = "scale", "base_hash"
"""Notes beside the tensors: factor on low-rank products, and hash of the model's weights."""


def save_adaptation(folder: str | os.PathLike, adaptation: Adaptation, pretrained: Pretrained) -> None:
    """Writes what `load_adaptation` loads.

    Args:
      folder: where to write; made if missing.
      adaptation: of one instruction or more.
      pretrained: the model that it changes.

    Raises:
      InputError: if the file cannot be written.
    """
    tree = {GENERATED: adaptation.generated, MASK: adaptation.mask}
    tree |= {} if adaptation.fusion is None else {FUSION: adaptation.fusion}
    tree |= {} if adaptation.memory is None else {MEMORY: adaptation.memory}
    # bfloat16 would need a type that NumPy does not have; float32 holds it exactly.
    wide = lambda leaf: np.asarray(leaf, bool if leaf.dtype == bool else np.float32)
    tensors = {path: wide(leaf) for path, leaf in flat(tree).items()}
    write_file(pathlib.Path(folder) / FILE, tensors, {SCALE: repr(adaptation.scale), BASE_HASH: pretrained.hash})


def load_adaptation(folder: str | os.PathLike, pretrained: Pretrained) -> Adaptation:
    """Loads what `save_adaptation` wrote.

    Args:
      folder: holds `adaptation.safetensors`.
      pretrained: the model that it changes.

    Returns:
      The adaptation, float32.

    Raises:
      InputError: if the file is missing or damaged, or of another model.
    """
    path = pathlib.Path(folder) / FILE
    if not path.exists():
        raise InputError(f"{folder}: holds no {FILE}; expected a folder that an instruction was written to")
    tensors, notes = read_file(path)
    if MASK not in tensors or SCALE not in notes:
        raise InputError(f"{path}: lacks {MASK!r} or {SCALE!r}; generate it again")
    if notes.get(BASE_HASH) != pretrained.hash:
        raise InputError(f"{path}: changes weights of another hash than this model's; load the model it was made for")
    tree = nested({name: jnp.asarray(leaf) for name, leaf in tensors.items()})
    try:
        scale = float(notes[SCALE])
    except ValueError as error:
        raise InputError(f"{path}: {SCALE} is {notes[SCALE][:40]!r}, expected a number; generate it again") from error
    return Adaptation(
        generated=tree.get(GENERATED, {}),
        fusion=tree.get(FUSION),
        memory=tree.get(MEMORY),
        mask=tree[MASK],
        scale=scale,
    )
