"""A model with its weights and its tokenizer, from and to a folder."""

import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmtl.files import write_whole
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.trees import flat
from jaxmtl.partitioning import shardings_on
from jaxmtl.tokenizers import Tokenizer, load_tokenizer
from jaxmtl.types import InputError, unknown_name
from jaxmtl.weights import bart_map, gpt2_map, key_table, opt_map, roberta_map, run_folder, t5_map, t5x_io, t5x_map
from jaxmtl.weights.fingerprint import weights_hash
from jaxmtl.weights.json_file import read_object
from jaxmtl.weights.refusals import reason
from jaxmtl.weights.safetensors_io import TensorFolder, write_tensors
from jaxmtl.weights.t5x_layers import UnscannedArrays
from jaxmtl.weights.torch_pickles import PICKLE_FILES, PickleFolder, has_only_pickles

FAMILIES: Mapping[str, ModuleType] = {
    **{family.MODEL_TYPE: family for family in (t5_map, bart_map, gpt2_map, opt_map)},
    **dict.fromkeys(roberta_map.MODEL_TYPES, roberta_map),
}
"""Key tables by `model_type`."""

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json")
HUB_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer_config.json",
    "merges.txt",
    *TOKENIZER_FILES,
)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model ready to use.

    Attributes:
      config: the family's config.
      module: the linen module; `module.apply({"params": params}, inputs=[B, S], decoder_inputs=[B, T])` gives float32
        logits [B, T, V].
      params: the parameter tree, without boxes.
      tokenizer: None where the folder has none.
    """

    config: Any
    module: nn.Module
    params: Any
    tokenizer: Tokenizer | None

    @functools.cached_property
    def hash(self) -> str:
        """Hash of the weights, see `fingerprint.weights_hash`."""
        return weights_hash(self.params)

    @functools.cached_property
    def rounded_hash(self) -> str:
        """Hash of the weights rounded to bfloat16."""
        return weights_hash(self.params, "bfloat16")


def load_pretrained(
    path: str | os.PathLike, *, dtype: str = "float32", mesh: Mesh | None = None, step: int | None = None
) -> Pretrained:
    """Loads a model from a Hugging Face folder, a hub id, a T5X checkpoint, or a run folder of jaxmtl.

    Args:
      path: a folder with `config.json` and safetensors, or `.bin` files, which torch then reads; a folder with
        `config.json` beside T5X's `checkpoint_STEP` (the newest is taken) or one of these itself; a run folder (its
        best checkpoint, else its latest); or a model's id on the hub, which is fetched into the hub's own cache.
      dtype: dtype of weights and activations, "float32" or "bfloat16".
      mesh: where to put the weights, split by the family's logical axes; on the default device if None.
      step: which checkpoint of a run folder, instead of its best.

    Returns:
      The model.

    Raises:
      InputError: if nothing is found at `path`, or what is found is damaged or does not fit together.
    """
    folder = _find(path)
    is_run = run_folder.is_run(folder)
    if run_folder.has_hypernetwork(folder):
        raise InputError(
            f"{path}: is the run of a hypernetwork, not of a model; give it to jaxmtl evaluate, to jaxmtl "
            "generate_adapter or as HYPERNET"
        )
    if step is not None and not is_run:
        raise InputError(f"{path}: step {step} was asked for, but this is no run folder; give the folder of a run")
    stored = None if is_run else _open(folder)
    family, config = _config_of_run(folder, dtype) if stored is None else _config_of(stored, dtype)
    module = family.MODULE(config)
    boxed = abstract_params(module)
    shardings = shardings_on(boxed, mesh)
    if stored is None:
        params = run_folder.read_params(folder, nn.unbox(boxed), shardings, dtype, step)
        return _with_tokenizer(config, module, params, folder / run_folder.MODEL)
    table = family.key_table(config)
    ignored = family.IGNORED | ({family.HEAD} if config.tied_head else set())
    key_table.check_names(table, stored.tensors.names(), ignored, str(folder))
    place = _placer(shardings, dtype)
    params = key_table.to_ours(table, stored.tensors.read, nn.unbox(boxed), place, str(folder))
    return _with_tokenizer(config, module, params, stored.home)


def load_module(path: str | os.PathLike, *, dtype: str = "float32") -> nn.Module:
    """Loads only what a model is, not its weights.

    Args:
      path: as in `load_pretrained`.
      dtype: dtype of activations.

    Returns:
      The module that fits the weights.

    Raises:
      InputError: as in `load_pretrained`.
    """
    folder = _find(path)
    is_run = run_folder.is_run(folder)
    family, config = _config_of_run(folder, dtype) if is_run else _config_of(_open(folder), dtype)
    return family.MODULE(config)


def module_of_config(folder: pathlib.Path, *, dtype: str = "float32") -> nn.Module:
    """Builds what `write_config` wrote of, without any weights.

    Args:
      folder: holds `config.json`.
      dtype: dtype of activations.

    Returns:
      The module.

    Raises:
      InputError: if the file is missing or says of no model that is known here.
    """
    raw = _raw_config(folder)
    family = _family_named(raw, folder)
    return family.MODULE(family.config_from_hf(raw, str(folder), dtype))


def tokenizer_of(path: str | os.PathLike) -> Tokenizer | None:
    """Loads only a model's tokenizer.

    Args:
      path: as in `load_pretrained`.

    Returns:
      The tokenizer, None where the folder has none.

    Raises:
      InputError: if nothing is found at `path`, or the tokenizer is damaged.
    """
    return tokenizer_in(home_of(path))


def home_of(path: str | os.PathLike) -> pathlib.Path:
    """Finds the folder with a model's `config.json` and what lies beside it: tokenizer and `generation_config.json`.

    Args:
      path: as in `load_pretrained`; a hub id is fetched.

    Returns:
      The folder: of a run its `model/`, of a T5X checkpoint the one that it lies in.

    Raises:
      InputError: if nothing is found at `path`.
    """
    folder = _find(path)
    if run_folder.is_run(folder):
        return folder / run_folder.MODEL
    location = t5x_io.find(folder)
    return folder if location is None else location.home


def save_pretrained(folder: str | os.PathLike, pretrained: Pretrained) -> None:
    """Writes a folder that `transformers` and `load_pretrained` load: config, safetensors, tokenizer files.

    Args:
      folder: where to write; files of an earlier save are replaced one by one, each only when it is complete.
      pretrained: the model.

    Raises:
      InputError: if a file cannot be written.
    """
    folder = pathlib.Path(folder)
    family = family_of(pretrained.config)
    table = family.key_table(pretrained.config)
    sizes = _sizes(table, pretrained.params)
    write_tensors(folder, sizes, key_table.to_theirs(table, pretrained.params))
    write_config(folder, pretrained.config)
    if pretrained.tokenizer is not None:
        pretrained.tokenizer.save(folder)


def write_config(folder: str | os.PathLike, config: Any) -> None:
    """Writes `config.json` in Hugging Face's form.

    Args:
      folder: where to write; made if missing.
      config: a family's config.

    Raises:
      InputError: if it cannot be written.
    """
    text = json.dumps(family_of(config).config_to_hf(config), indent=2, sort_keys=True)
    write_whole(pathlib.Path(folder) / "config.json", text + "\n")


def family_of(config: Any) -> ModuleType:
    """Finds the key tables of a model.

    Args:
      config: a family's config.

    Returns:
      The family's module, one of `FAMILIES`.

    Raises:
      InputError: if the config is of no family.
    """
    for family in FAMILIES.values():
        if isinstance(config, family.CONFIG):
            return family
    raise InputError(f"no family has configs of type {type(config).__name__}; known: {', '.join(FAMILIES)}")


def resize_vocabulary(pretrained: Pretrained, rows: int) -> Pretrained:
    """Changes the number of embedding rows, such as T5's 32100 to its padded 32128.

    Rows beyond the tokenizer's vocabulary are padding: new ones are zero, and only such rows may be cut; without a
    tokenizer nobody knows which these are, and none may.

    Args:
      pretrained: the model.
      rows: rows wanted.

    Returns:
      The model with that many rows in embedding and head.

    Raises:
      InputError: if rows of real tokens would be cut, or of a model without tokenizer any, or none would be left.
    """
    config, params = pretrained.config, pretrained.params
    if rows < 1:
        raise InputError(f"{rows} embedding rows were asked for; expected 1 or more")
    if pretrained.tokenizer is not None and rows < pretrained.tokenizer.vocab_size:
        raise InputError(f"{rows} rows would cut tokens: the tokenizer has {pretrained.tokenizer.vocab_size}")
    if pretrained.tokenizer is None and rows < config.vocab_size:
        raise InputError(
            f"{rows} rows would cut some of the model's {config.vocab_size}, and without a tokenizer nothing tells"
            " which are padding; put the tokenizer's files beside the weights first"
        )

    def fit(boxed: nn.LogicallyPartitioned, leaf: jax.Array) -> jax.Array:
        for axis in (axis for axis, name in enumerate(boxed.names) if name == "vocab"):
            leaf = jax.lax.slice_in_dim(leaf, 0, min(rows, leaf.shape[axis]), axis=axis)
            leaf = jnp.pad(leaf, [(0, rows - leaf.shape[axis] if a == axis else 0) for a in range(leaf.ndim)])
        return leaf

    is_boxed = lambda node: isinstance(node, nn.LogicallyPartitioned)
    params = jax.tree.map(fit, abstract_params(pretrained.module), params, is_leaf=is_boxed)
    config = dataclasses.replace(config, vocab_size=rows)
    return Pretrained(config, family_of(config).MODULE(config), params, pretrained.tokenizer)


def _find(path: str | os.PathLike) -> pathlib.Path:
    folder = pathlib.Path(path)
    if folder.exists():
        return folder
    if not HUB_ID.fullmatch(str(path)):
        raise InputError(f"{path}: no such folder; expected a folder with config.json, a run folder or a hub id")
    import huggingface_hub  # only a hub id needs it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    fetch = lambda files: pathlib.Path(huggingface_hub.snapshot_download(str(path), allow_patterns=list(files)))
    try:
        folder = fetch(HUB_FILES)
        return folder if any(folder.glob("*.safetensors")) else fetch([*HUB_FILES, *PICKLE_FILES])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{path}: no such folder, and the hub did not give a model of this name ({reason(error)})"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Weights that are not a run's.

    Attributes:
      family: the key tables for what the tensors are called there.
      tensors: the tensors.
      home: the folder with `config.json` and the tokenizer's files.
    """

    family: ModuleType
    tensors: key_table.Tensors
    home: pathlib.Path


def _open(folder: pathlib.Path) -> _Stored:
    """Opens the weights of a T5X checkpoint or a Hugging Face folder."""
    location = t5x_io.find(folder)
    if location is None:
        family = _family_named(_raw_config(folder), folder)
        return _Stored(family, family.view(_tensors_in(folder)), folder)
    arrays = UnscannedArrays(t5x_io.T5XArrays(location))
    if not (location.home / "config.json").exists():
        suggestion = t5x_map.suggested_config(arrays) or "T5's sizes under their Hugging Face names"
        raise InputError(
            f"{location.home}: holds a T5X checkpoint but no config.json; put one there that says {suggestion}"
        )
    return _Stored(t5x_map, arrays, location.home)


def _tensors_in(folder: pathlib.Path) -> key_table.Tensors:
    """Opens safetensors, or torch's files where there are only such."""
    return PickleFolder(folder) if has_only_pickles(folder) else TensorFolder(folder)


def _raw_config(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise InputError(
            f"{folder}: holds no config.json; expected a Hugging Face folder, a T5X checkpoint or a run folder"
        )
    return read_object(path)


def _family_named(raw: Mapping[str, Any], folder: pathlib.Path) -> ModuleType:
    name = str(raw.get("model_type"))
    if name not in FAMILIES:
        raise InputError(f"{folder / 'config.json'}: {unknown_name('model_type', name, FAMILIES)}")
    return FAMILIES[name]


def _config_of(stored: _Stored, dtype: str) -> tuple[ModuleType, Any]:
    family, home = stored.family, stored.home
    config = family.config_from_hf(_raw_config(home), str(home), dtype)
    return family, family.fit_to_tensors(config, stored.tensors, str(home))


def _config_of_run(folder: pathlib.Path, dtype: str) -> tuple[ModuleType, Any]:
    home = folder / run_folder.MODEL
    raw = _raw_config(home)
    family = _family_named(raw, home)
    return family, family.config_from_hf(raw, str(home), dtype)


def _placer(shardings: Any, dtype: str) -> key_table.Place:
    """Casts a host array, puts it on its devices and waits, so that only one leaf at a time is held on the host."""
    of = flat(shardings)
    cast = lambda leaf: leaf.astype(jnp.dtype(dtype), copy=False)
    return lambda path, leaf: jax.block_until_ready(jax.device_put(cast(leaf), of[path]))


def _sizes(table: key_table.Table, params: Any) -> dict[str, int]:
    leaves = flat(params)
    size = lambda key: sum(leaves[path].nbytes for path in key.paths()) // (key.num_layers or 1)
    return {name: size(key) for key in table for name in key.names()}


def _with_tokenizer(config: Any, module: nn.Module, params: Any, folder: pathlib.Path) -> Pretrained:
    tokenizer = tokenizer_in(folder)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding only {config.vocab_size} rows;"
            " they do not belong together"
        )
    return Pretrained(config, module, params, tokenizer)


def tokenizer_in(folder: pathlib.Path) -> Tokenizer | None:
    """Returns the tokenizer whose files a folder holds, None if there are none."""
    return load_tokenizer(folder) if any((folder / file).exists() for file in TOKENIZER_FILES) else None
