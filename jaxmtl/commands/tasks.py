"""`jaxmtl tasks`: lists a collection's tasks: names, categories, sizes per split."""

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmtl.tasks.spec import TaskSpec

HELP = "list the tasks of a collection"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the collection, its folder, and JSON output."""
    parser.add_argument("collection", help="toy, sni or jsonl")
    parser.add_argument("data_dir", nargs="?", help="folder (or .jsonl file) of the collection; none for toy")
    parser.add_argument("--task_list", help="sni: file with one task name a line")
    parser.add_argument("--json", action="store_true", help="one JSON object a task, a line each")


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Prints the list.

    Args:
      arguments: the flags.
      config: not used.

    Returns:
      0.
    """
    from jaxmtl.tasks import catalog

    options = {"task_list": arguments.task_list} if arguments.task_list else {}
    tasks = catalog.load(arguments.collection, arguments.data_dir, **options)
    if arguments.json:
        for task in tasks.values():
            print(json.dumps(row(task), ensure_ascii=False))
    else:
        _print_table(arguments.collection, tasks)
    return 0


def row(task: "TaskSpec") -> dict[str, Any]:
    """Returns what the list says of a task, JSON-able.

    Args:
      task: the task.
    """
    sizes = {split: len(indices) for split, indices in task.splits.items()}
    return dict(name=task.name, category=task.category, metric=task.metric, examples=len(task.examples), splits=sizes)


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
