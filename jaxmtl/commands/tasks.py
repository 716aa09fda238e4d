"""`jaxmtl tasks`: lists a collection's tasks, or shows what a training would draw of a token store's tasks.

`jaxmtl tasks COLLECTION` lists names, categories and sizes per split. The command line of a `jaxmtl train` with `tasks`
in place of `train` shows, before any step, shares, epochs and lengths of each task and what batches will cost.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from jaxmtl.types import UsageError

if TYPE_CHECKING:
    import flax.linen as nn

    from jaxmtl.feed.interleave import InterleavedStream
    from jaxmtl.feed.layout_choice import MakeLayout
    from jaxmtl.feed.preview import MixturePreview
    from jaxmtl.feed.store import TokenStore
    from jaxmtl.feed.stream import Stream
    from jaxmtl.tasks.spec import TaskSpec
    from jaxmtl.tokenizers import Tokenizer

HELP = "list the tasks of a collection, or show what a training would draw (give the flags of jaxmtl train)"
TAKES_GIN = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the collection, its folder, JSON output, and where to draw a figure."""
    parser.add_argument(
        "collection", nargs="?", help="toy, sni, p3, transfer or jsonl; none with the gin files of a training"
    )
    parser.add_argument("data_dir", nargs="?", help="folder (or .jsonl file) of the collection; none for toy")
    parser.add_argument("--task_list", help="sni: file with one task name a line")
    parser.add_argument("--json", action="store_true", help="one JSON object a task, a line each")
    parser.add_argument("--plot", metavar="FILE.png", help="with gin files: draw sizes, shares, epochs and layouts")


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Prints the list, or what a training would draw.

    Args:
      arguments: the flags.
      config: the gin config of a training; None to list a collection.

    Returns:
      0.

    Raises:
      InputError: if there is neither a collection nor a gin file, or both, or a flag that belongs to the other.
    """
    _check(arguments, config)
    if config is None:
        _list(arguments)
    else:
        _show(config.configured(preview)(), arguments)
    return 0


def preview(
    *,
    module: "nn.Module",
    store: "TokenStore",
    make_stream: "Callable[..., Stream | InterleavedStream]",
    num_steps: int,
    layouts: "Mapping[str, MakeLayout]",
    tokenizer: "Tokenizer | None" = None,
    multiple: int = 1,
) -> "dict[str, MixturePreview]":
    """Looks at what a training would draw, without devices, weights or compilation.

    Args:
      module: the model, whose sizes say what a batch costs.
      store: the tokenised examples.
      make_stream: what training makes its batches with.
      num_steps: steps of the training.
      layouts: name to layouts to compare.
      tokenizer: what the model was trained with before; None if it starts from random weights or has none.
      multiple: what has to divide the rows of every batch: the devices that share them. Only rows that a layout chooses
        itself depend on it.

    Returns:
      Name of each stream to what it will draw.

    Raises:
      InputError: if model, store and settings do not fit together.
    """
    from jaxmtl.feed import preview as ahead
    from jaxmtl.models import flops
    from jaxmtl.weights import check_reads

    config = module.config  # type: ignore[attr-defined]  (modules of jaxmtl have one)
    check_reads(config, tokenizer, store)
    cost = functools.partial(flops.forward, config)
    parts = make_stream(store, cost=cost, multiple=multiple).parts(num_steps)
    for part, _ in parts.values():
        ahead.check_rows(part)
    return {
        name: ahead.preview(cast("Stream", part), steps, cost=cost, layouts=layouts, multiple=multiple)
        for name, (part, steps) in parts.items()
        if steps
    }


def row(task: "TaskSpec") -> dict[str, Any]:
    """Returns what the list says of a task, JSON-able.

    Args:
      task: the task.
    """
    sizes = {split: len(indices) for split, indices in task.splits.items()}
    return dict(name=task.name, category=task.category, metric=task.metric, examples=len(task.examples), splits=sizes)


def _check(arguments: argparse.Namespace, config: Any) -> None:
    if config is None and arguments.collection is None:
        raise UsageError(
            "tasks needs a collection, such as: jaxmtl tasks toy; or the gin files of a training, such as: jaxmtl "
            "tasks --gin_file=models/t5_1_1/small.gin --gin_file=runs/train.gin --gin.STORE=STORE --gin.RUN_DIR=RUN_DIR"
        )
    of_training = [f"--plot {arguments.plot}"] * bool(arguments.plot)
    of_training += [f"--gin.{binding}" for binding in arguments.gin_bindings]
    if config is None and of_training:
        raise UsageError(
            f"{of_training[0]}: is about a training, not about a collection; give the training's gin files instead"
        )
    of_collection = arguments.collection or ("--task_list" if arguments.task_list else "")
    if config is not None and of_collection:
        raise UsageError(
            f"{of_collection}: with gin files the tasks are those of the token store; give one or the other"
        )
    if arguments.plot and pathlib.Path(arguments.plot).suffix != ".png":
        raise UsageError(f"--plot is {arguments.plot}; expected a file name that ends in .png")


def _list(arguments: argparse.Namespace) -> None:
    from jaxmtl.tasks import catalog

    options = {"task_list": arguments.task_list} if arguments.task_list else {}
    tasks = catalog.load(arguments.collection, arguments.data_dir, **options)
    if arguments.json:
        for task in tasks.values():
            print(json.dumps(row(task), ensure_ascii=False))
    else:
        _print_table(arguments.collection, tasks)


def _show(previews: "Mapping[str, MixturePreview]", arguments: argparse.Namespace) -> None:
    from jaxmtl.commands import mixture_tables

    if arguments.json:
        for line in mixture_tables.json_lines(previews):
            print(line)
    else:
        mixture_tables.show(previews)
    if arguments.plot:
        from jaxmtl.files import write_whole
        from jaxmtl.reports.mixture_figure import mixture_figure

        write_whole(pathlib.Path(arguments.plot), mixture_figure(previews))


def _print_table(title: str, tasks: "Mapping[str, TaskSpec]") -> None:
    from rich import console
    from rich import table as rich_table

    rows = [row(task) for task in tasks.values()]
    splits = list(dict.fromkeys(split for one in rows for split in one["splits"]))
    table = rich_table.Table(title=f"{title}: {len(rows)} tasks in {len({one['category'] for one in rows})} categories")
    for name in ("task", "category", "metric"):
        table.add_column(name)
    for name in ("examples", *splits):
        table.add_column(name, justify="right")
    for one in rows:
        sizes = (str(one["splits"].get(split, "")) for split in splits)
        table.add_row(one["name"], one["category"], one["metric"], str(one["examples"]), *sizes)
    console.Console().print(table)
