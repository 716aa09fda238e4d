"""`jaxmtl info`: versions, devices and, for a folder, what it holds; for a training, what memory it will take."""

import argparse
import importlib.metadata
import pathlib
import platform
from typing import Any

from jaxmtl.commands.progress import shown
from jaxmtl.types import InputError, UsageError

HELP = "show versions and devices, what a model folder or token store holds, or what memory a training takes"
TAKES_GIN = True
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "pyarrow", "tokenizers", "sentencepiece", "gin-config")
DECODING_MACROS = {"early_stopping": "BEAM_STOPPING", "seed": "SAMPLING_SEED"}
"""Macros of runs/decoding.gin that are not called as their options."""
OPTIONAL = ("seqio", "tensorflow", "transformers", "torch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the optional folder, and what to plan the memory of a training for."""
    parser.add_argument("folder", nargs="?", help="token store, run folder or Hugging Face folder")
    parser.add_argument("--memory", action="store_true", help="with the gin files of a training: bytes on each device")
    parser.add_argument("--lengths", metavar="S,T", help="with --memory: compile a step for these lengths, or 'store'")
    parser.add_argument("--fit", metavar="BYTES", help="with --lengths: find the largest batch within, such as 16GB")
    parser.add_argument("--devices", type=int, help="with --memory: plan for as many devices as there are not")


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Prints the facts.

    Args:
      arguments: the flags.
      config: the gin config of a training whose memory is asked for, else None.

    Returns:
      0.

    Raises:
      InputError: if flags do not go together.
    """
    _check(arguments, config)
    if arguments.memory:
        from jaxmtl.commands import memory

        request = memory.requested(arguments.lengths, arguments.fit)
        memory.describe_devices(arguments.devices)
        print("\n".join(config.configured(memory.report)(request=request)))
        return 0
    print("\n".join(describe(arguments.folder) if arguments.folder else versions()))
    return 0


def _check(arguments: argparse.Namespace, config: Any) -> None:
    about_training = [f"--{name} {getattr(arguments, name)}" for name in ("lengths", "fit", "devices")]
    given = [flag for flag in about_training if not flag.endswith(" None")]
    given += [f"--gin.{binding}" for binding in arguments.gin_bindings] + ["gin files"] * (config is not None)
    if given and not arguments.memory:
        raise UsageError(f"{given[0]}: is about the memory of a training; give --memory too")
    if arguments.memory and arguments.folder:
        raise UsageError(f"{arguments.folder}: --memory is about a training, not a folder; give gin files instead")
    if arguments.memory and config is None:
        raise UsageError(
            "--memory needs the gin files of a training and runs/plan.gin, such as: jaxmtl info --memory --devices=256 "
            "--gin_file=models/t5_1_1/xxl.gin --gin_file=runs/train.gin --gin_file=mesh/pod.gin "
            "--gin_file=runs/plan.gin"
        )


def versions() -> list[str]:
    """Returns lines on packages and devices."""
    import jax

    import jaxmtl

    lines = [f"jaxmtl {jaxmtl.__version__}", f"python {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name} {_version(name)}" for name in (*PACKAGES, *OPTIONAL)]
    devices = jax.devices()
    lines.append(f"devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform})")
    return lines


def describe(folder: str) -> list[str]:
    """Returns lines on what a folder holds; reads all files of a token store to see whether they are whole.

    Args:
      folder: token store, run folder, Hugging Face folder or hub id.

    Returns:
      The lines.

    Raises:
      InputError: if the folder holds none of these, or something damaged.
    """
    if (pathlib.Path(folder) / "manifest.json").exists():
        return _describe_store(folder)
    import jax

    from jaxmtl.models.initial import abstract_params
    from jaxmtl.weights import load_module, step_of

    module = load_module(folder)
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(module)))
    fields = ", ".join(f"{name} {value}" for name, value in vars(module.config).items() if not callable(value))
    step = step_of(folder)
    first = f"{type(module).__name__} of {count:,} parameters" + (f", step {step}" if step else "")
    return [first, fields, *(_own_decoding(folder, module.config) if hasattr(module, "decode_step") else ())]


def _own_decoding(folder: str, config: Any) -> list[str]:
    """Returns the flags of what the model's files say about decoding, if anything: no run takes it over unasked."""
    from jaxmtl.evals.generation_config import read_decoding

    try:
        found = read_decoding(folder, config)
    except InputError as error:
        return [f"its own decoding cannot be stated here: {error}"]
    options = {DECODING_MACROS.get(name, name.upper()): value for name, value in found.decoding.changed().items()}
    options |= {} if found.max_tokens is None else {"MAX_TOKENS": found.max_tokens}
    quoted = {name: f'"{value!r}"' if isinstance(value, str) else value for name, value in options.items()}
    flags = " ".join(f"--gin.{name}={value}" for name, value in quoted.items())
    return [f"its own decoding, by {found.file.name}: {flags}"] if flags else []


def _describe_store(folder: str) -> list[str]:
    from jaxmtl.commands.cache import describe as describe_splits
    from jaxmtl.feed.store import TokenStore

    store = TokenStore(folder)
    with shown("checking") as update:
        store.verify(update)
    vocabulary = store.manifest.vocabulary
    return [
        f"token store of vocabulary {vocabulary.fingerprint[:12]}, {vocabulary.size} tokens",
        describe_splits(store),
        f"whole: {sum(map(len, store.manifest.splits.values()))} files have the checksums they were written with",
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
