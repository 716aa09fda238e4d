"""`jaxmtl cache`: tokenises a mixture once, into the token store that training and evaluation read."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxmtl.commands.progress import shown
from jaxmtl.types import InputError

if TYPE_CHECKING:
    from jaxmtl.feed.store import TokenStore

HELP = "tokenise a mixture of tasks into a token store"
TAKES_GIN = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: gin files say everything (runs/cache.gin and a tasks/ file)."""


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Caches as the gin files say and prints what the store holds.

    Args:
      arguments: the flags.
      config: the gin config.

    Returns:
      0.

    Raises:
      InputError: if there is no gin file, or for any reason that caching has.
    """
    if config is None:
        raise InputError("cache needs gin files, such as: jaxmtl cache --gin_file=tasks/toy.gin --gin.STORE=runs/store")
    store = config.configured(cache)()
    print(describe(store))
    print(f"store: {store.folder}; train on it with: jaxmtl train --gin.STORE={store.folder} ...")
    return 0


def cache(*, write: Callable[..., "TokenStore"]) -> "TokenStore":
    """Writes a token store with a progress bar.

    Args:
      write: `data.cache.cache_mixture` or `feed.tokenise.cache_tasks` with all arguments but `progress` bound.

    Returns:
      The store.
    """
    with shown("caching") as update:
        return write(progress=update)


def describe(store: "TokenStore") -> str:
    """Describes what a store holds.

    Args:
      store: the store.

    Returns:
      One line per split: tasks, examples and tokens.
    """
    lines = []
    for split in store.manifest.splits:
        inputs, targets = store.lengths(split)
        lines.append(
            f"{split}: {len(store.task_names(split))} tasks, {len(inputs)} examples, "
            f"{inputs.sum()} input and {targets.sum()} target tokens (longest {inputs.max()} and {targets.max()})"
        )
    return "\n".join(lines)
