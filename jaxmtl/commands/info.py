"""`jaxmtl info`: versions, devices and, for a folder, what it holds."""

import argparse
import importlib.metadata
import pathlib
import platform
from typing import Any

from jaxmtl.commands.progress import shown

HELP = "show versions and devices, or what a model folder or token store holds"
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "pyarrow", "tokenizers", "sentencepiece", "gin-config")
OPTIONAL = ("seqio", "tensorflow", "transformers", "torch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the optional folder."""
    parser.add_argument("folder", nargs="?", help="token store, run folder or Hugging Face folder")


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Prints the facts.

    Args:
      arguments: the flags.
      config: not used.

    Returns:
      0.
    """
    print("\n".join(describe(arguments.folder) if arguments.folder else versions()))
    return 0


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

    from jaxmtl.weights import load_module, step_of
    from jaxmtl.weights.pretrained import abstract_params

    module = load_module(folder)
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(module)))
    fields = ", ".join(f"{name} {value}" for name, value in vars(module.config).items() if not callable(value))
    step = step_of(folder)
    return [f"{type(module).__name__} of {count:,} parameters" + (f", step {step}" if step else ""), fields]


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
