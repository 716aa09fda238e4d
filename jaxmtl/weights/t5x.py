"""Models to T5X checkpoints, in each of the forms T5X has, and what is not read of one."""

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from jaxmtl.models.t5_config import T5Config
from jaxmtl.types import InputError
from jaxmtl.weights import key_table, t5x_io, t5x_map
from jaxmtl.weights.pretrained import Pretrained, write_config
from jaxmtl.weights.t5x_layers import scanned

Arrays = Callable[[key_table.Table, Mapping], Iterator[tuple[str, np.ndarray]]]
Write = Callable[[pathlib.Path, Iterator[tuple[str, np.ndarray]], int], None]

FORMS: Mapping[str, tuple[Arrays, Write]] = {
    "t5x": (key_table.to_theirs, t5x_io.write_folder),
    "t5x_scanned": (scanned, t5x_io.write_folder),
    "t5x_file": (key_table.to_theirs, t5x_io.write_file),
}
"""A folder with an array per layer, a folder with an array per stack (T5X's scanned layers), one file."""


def save_t5x(folder: str | os.PathLike, pretrained: Pretrained, *, step: int = 0, form: str = "t5x") -> None:
    """Writes `checkpoint_STEP` as T5X does, without optimizer, and beside it `config.json` and the tokenizer's files.

    Args:
      folder: where to write; made if missing.
      pretrained: a T5.
      step: the step of the weights.
      form: a key of `FORMS`.

    Raises:
      InputError: if the model is no T5, the folder already holds safetensors, or something cannot be written.
    """
    folder = pathlib.Path(folder)
    if not isinstance(pretrained.config, T5Config):
        raise InputError(f"{folder}: T5X checkpoints hold T5s, this is a {type(pretrained.module).__name__}")
    if any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: holds safetensors, which would hide a checkpoint beside them; give another folder")
    arrays, write = FORMS[form]
    write(folder / f"checkpoint_{step}", arrays(t5x_map.key_table(pretrained.config), pretrained.params), step)
    write_config(folder, pretrained.config)
    if pretrained.tokenizer is not None:
        pretrained.tokenizer.save(folder)


def unread(path: str | os.PathLike) -> str:
    """Says what of a T5X checkpoint `load_pretrained` leaves aside.

    Args:
      path: as in `load_pretrained`.

    Returns:
      A line; empty if nothing is left aside, or it is no T5X checkpoint.

    Raises:
      InputError: if the checkpoint is damaged.
    """
    location = t5x_io.find(pathlib.Path(path))
    ignored = 0 if location is None else t5x_io.T5XArrays(location).num_ignored
    return f"{ignored} arrays of the optimizer's state were not read" if ignored else ""
