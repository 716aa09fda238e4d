"""`jaxmtl cache`: tokenises a mixture once, into the token store that training and evaluation read."""

import argparse
import functools
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.commands.progress import shown
from jaxmtl.types import UsageError

if TYPE_CHECKING:
    from jaxmtl.feed.store import TokenStore

HELP = "tokenise a mixture of tasks into a token store"
TAKES_GIN = True
BEAM_OPTIONS = {
    # FnApiRunner is what DirectRunner ends at; DirectRunner first tries to download another one.
    "direct": (
        "--runner=FnApiRunner",
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=0",
        "--default_sdk_harness_log_level=WARNING",
    ),
    "beam": (),
}
"""Runner to the pipeline options that it begins with."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds where to run; gin files say all else (runs/cache.gin and a tasks/ file)."""
    parser.add_argument(
        "--runner",
        choices=("local", *BEAM_OPTIONS),
        default="local",
        help="local: this process; direct: Apache Beam on all cores of this machine; beam: the runner of "
        "--beam_options. All write the same bytes",
    )
    parser.add_argument(
        "--beam_options",
        default="",
        metavar="OPTIONS",
        help="Apache Beam's pipeline options, such as '--runner=DataflowRunner --project=P'; all workers must see the "
        "data, the vocabulary and the store under the same absolute paths",
    )


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
        raise UsageError("cache needs gin files, such as: jaxmtl cache --gin_file=tasks/toy.gin --gin.STORE=runs/store")
    if arguments.runner == "local":
        if arguments.beam_options:
            raise UsageError("--beam_options tells nothing without --runner=direct or --runner=beam")
        store = config.configured(cache)()
    else:
        options = beam_options(arguments.runner, arguments.beam_options)
        store = config.configured(cache_on_beam)(options, functools.partial(register_again, config.rebuild()))
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


def cache_on_beam(
    options: Sequence[str], prepare: Callable[[], object], *, write: Callable[..., "TokenStore"]
) -> "TokenStore":
    """Writes a token store on Apache Beam, with a progress bar.

    Args:
      options: Beam's pipeline options.
      prepare: registers the tasks in a worker.
      write: `data.beam_cache.cache_mixture` with name, splits and folder bound.

    Returns:
      The store.
    """
    with shown("caching") as update:
        return write(options=options, prepare=prepare, progress=update)


def register_again(rebuild: Callable[[], Any]) -> None:
    """Registers the tasks of a gin config in a worker.

    Args:
      rebuild: makes the gin config, see `GinConfig.rebuild`.
    """
    rebuild().configured(registered)()


def registered(*, mixture: str) -> str:
    """Returns the name of a mixture that gin registers in order to pass it.

    Args:
      mixture: the name; gin binds `@seqio_mixtures.register()`.

    Returns:
      The name.
    """
    return mixture


def beam_options(runner: str, words: str) -> list[str]:
    """Puts together what Apache Beam is told.

    Args:
      runner: a key of `BEAM_OPTIONS`.
      words: further options as on a command line; they override.

    Returns:
      Beam's pipeline options.

    Raises:
      InputError: if no runner is named, or a quote is never closed.
    """
    try:
        options = [*BEAM_OPTIONS[runner], *shlex.split(words)]
    except ValueError as error:
        raise UsageError(f"--beam_options {words!r}: {error}") from error
    if not any(option.startswith("--runner=") for option in options):
        raise UsageError("--runner=beam needs Beam's own runner: --beam_options='--runner=FlinkRunner ...'")
    return options


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
