"""A trained hypernetwork on disk: `hypernet.json` says what it is made of, `hypernet.safetensors` holds its parameters.

The run folder of a hypernetwork has `hypernet.json` too; its parameters, the model's with them, are in checkpoints.
A reader of instructions that is another model has its `config.json` in the folder `reader`.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmtl.adapters import hyper_config
from jaxmtl.adapters.hyper_config import GeneratorConfig, HyperConfig
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.hypernet import BASE, Hyper
from jaxmtl.adapters.lora import LoRA
from jaxmtl.files import explained, write_whole
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.trees import flat, nested
from jaxmtl.partitioning import shardings_on
from jaxmtl.types import InputError, unknown_name
from jaxmtl.weights import run_folder
from jaxmtl.weights.pretrained import Pretrained, module_of_config, tokenizer_in, write_config
from jaxmtl.weights.safetensors_io import read_file, write_file

CONFIG, PARAMS, READER = run_folder.HYPERNET, "hypernet.safetensors", "reader"
BASE_HASH = "base_hash"
"""Note beside the tensors: hash of the weights that the hypernetwork was trained on."""
KINDS: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        HyperConfig,
        GeneratorConfig,
        LoRA,
        hyper_config.PrefixOutput,
        hyper_config.BottleneckOutput,
        hyper_config.AttentionPooling,
        hyper_config.DecoderPooling,
        hyper_config.MeanPooling,
        hyper_config.TagiCodePooling,
    )
}
"""What a config may consist of, by name."""


def save_hyper(folder: str | os.PathLike, hyper: Hyper, pretrained: Pretrained) -> None:
    """Writes a hypernetwork that `load_hyper` loads; the model itself is not in it.

    Args:
      folder: where to write; made if missing.
      hyper: the hypernetwork.
      pretrained: the model that it was trained on.

    Raises:
      InputError: if its parameters do not fit its config, or a file cannot be written.
    """
    folder = pathlib.Path(folder)
    _check_shapes(hyper, pretrained, str(folder))
    tensors = {path: np.asarray(leaf) for path, leaf in flat(hyper.params).items()}
    with explained(folder / CONFIG):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)  # until all is written, the folder holds none that loads
    write_file(folder / PARAMS, tensors, {BASE_HASH: pretrained.hash})
    write_hyper_config(folder, hyper.config, hyper.reader)


def write_hyper_config(folder: str | os.PathLike, config: HyperConfig, reader: nn.Module | None) -> None:
    """Writes what a hypernetwork is made of.

    Args:
      folder: where to write; made if missing.
      config: of the hypernetwork.
      reader: the model whose encoder reads instructions, if that is another one.

    Raises:
      InputError: if a file cannot be written.
    """
    folder = pathlib.Path(folder)
    if reader is not None:
        own: Any = reader
        write_config(folder / READER, own.config)
    with explained(folder / CONFIG):
        write_whole(folder / CONFIG, json.dumps(to_json(config), indent=2).encode())


def load_hyper(folder: str | os.PathLike, pretrained: Pretrained) -> Hyper:
    """Loads what `save_hyper` wrote.

    Args:
      folder: holds `hypernet.json` and `hypernet.safetensors`.
      pretrained: the model that it was trained on.

    Returns:
      The hypernetwork.

    Raises:
      InputError: if a file is missing or damaged, or the hypernetwork is another model's.
    """
    folder = pathlib.Path(folder)
    config, reader = read_hyper_config(folder, dtype=pretrained.config.dtype)
    tensors, notes = read_file(folder / PARAMS)
    if notes.get(BASE_HASH, pretrained.hash) != pretrained.hash:
        raise InputError(
            f"{folder}: is a hypernetwork of weights with hash {notes[BASE_HASH][:16]!r}, this model's is "
            f"{pretrained.hash!r}; load the model that it was trained on"
        )
    params = nested({path: jnp.asarray(leaf) for path, leaf in tensors.items()})
    hyper = Hyper(config=config, params=params, reader=reader)
    _check_shapes(hyper, pretrained, str(folder))
    return hyper


def read_hyper_config(folder: str | os.PathLike, *, dtype: str = "float32") -> tuple[HyperConfig, nn.Module | None]:
    """Reads what a hypernetwork is made of.

    Args:
      folder: a run folder, or one that a hypernetwork was saved to.
      dtype: dtype of the reader's activations.

    Returns:
      Its config, and the model whose encoder reads instructions, if that is another one.

    Raises:
      InputError: if there is none, or it is damaged.
    """
    path = pathlib.Path(folder) / CONFIG
    if not path.exists():
        raise InputError(f"{folder}: holds no {CONFIG}; expected a run folder or one that a hypernetwork was saved to")
    with explained(path):
        text = path.read_text("utf-8")
    config = _parsed(text, str(path))
    own = config.encoder in ("frozen", "separate")
    return config, module_of_config(path.parent / READER, dtype=dtype) if own else None


def load_hyper_run(
    folder: str | os.PathLike, *, dtype: str = "float32", mesh: Mesh | None = None, step: int | None = None
) -> tuple[Pretrained, Hyper]:
    """Loads the run of a hypernetwork.

    Args:
      folder: the run folder.
      dtype: dtype of weights and activations.
      mesh: where to put the weights; on the default device if None.
      step: which checkpoint; the best if None.

    Returns:
      The model that it adapts, as the run left it, and the hypernetwork.

    Raises:
      InputError: if it is no such run, there is no complete checkpoint, or it is damaged.
    """
    folder = pathlib.Path(folder)
    config, reader = read_hyper_config(folder, dtype=dtype)
    base: Any = module_of_config(folder / run_folder.MODEL, dtype=dtype)
    boxed = abstract_params(HyperModel(config, base, reader))
    shardings = shardings_on(boxed, mesh)
    params = run_folder.read_params(folder, nn.unbox(boxed), shardings, dtype, step)
    pretrained = Pretrained(base.config, base, params[BASE], tokenizer_in(folder / run_folder.MODEL))
    own = {part: tree for part, tree in params.items() if part != BASE}
    return pretrained, Hyper(config=config, params=own, reader=reader)


def to_json(value: Any) -> Any:
    """Turns a config into what JSON can say: each part is a dictionary with its `kind`.

    Args:
      value: a config, a part of one, or a plain value.
    """
    if dataclasses.is_dataclass(value):
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    return [to_json(one) for one in value] if isinstance(value, tuple | list) else value


def from_json(value: Any) -> Any:
    """Undoes `to_json`.

    Args:
      value: what JSON said.

    Raises:
      InputError: if a part has fields that its kind does not have, or values that do not go together.
      UnknownNameError: if there is no such kind.
    """
    if isinstance(value, list):
        return tuple(from_json(one) for one in value)
    if not isinstance(value, dict):
        return value
    given = dict(value)
    name = given.pop("kind", None)
    if name not in KINDS:
        raise unknown_name("part of a hypernetwork", str(name), KINDS)
    known = [field.name for field in dataclasses.fields(KINDS[name])]
    for field in given:
        if field not in known:
            raise unknown_name(f"field of {name}", field, known)
    return KINDS[name](**{field: from_json(one) for field, one in given.items()})


def _parsed(text: str, where: str) -> HyperConfig:
    try:
        config = from_json(json.loads(text))
    except (json.JSONDecodeError, RecursionError, TypeError) as error:
        raise InputError(f"{where}: is damaged ({' '.join(str(error).split())[:120]}); save it again") from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if not isinstance(config, HyperConfig):
        raise InputError(f"{where}: holds a {type(config).__name__}; expected a HyperConfig")
    return config


def _check_shapes(hyper: Hyper, pretrained: Pretrained, where: str) -> None:
    """Refuses parameters that are not those of the config on this model."""
    module = HyperModel(hyper.config, pretrained.module, hyper.reader)
    known = {path: leaf.shape for path, leaf in flat(nn.unbox(abstract_params(module))).items()}
    found = {path: leaf.shape for path, leaf in flat(hyper.params).items()}
    wanted = {path: shape for path, shape in known.items() if not path.startswith(f"{BASE}/") or path in found}
    for path in sorted(set(wanted) | set(found)):
        if wanted.get(path) != found.get(path):
            raise InputError(
                f"{where}: {path} has shape {found.get(path)}, its config on this model asks for {wanted.get(path)}; "
                "is it another model's hypernetwork?"
            )
