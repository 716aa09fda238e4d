"""What a token store is made of: task splits, described before they are made."""

import dataclasses
import hashlib
import json

from jaxmtl.tasks.spec import TaskSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One task split, before it is made.

    Attributes:
      task: name of the task.
      split: name of the split.
      category: the task's category.
      metric: the task's headline metric.
      origin: SHA-256 of all that its rows may depend on, but for vocabulary and preprocessing.
    """

    task: str
    split: str
    category: str
    metric: str
    origin: str

    @classmethod
    def of(cls, task: TaskSpec, split: str) -> "Part":
        """Describes one split of a task spec."""
        return cls(task=task.name, split=split, category=task.category, metric=task.metric, origin=origin(task, split))


def origin(task: TaskSpec, split: str) -> str:
    """Hashes everything of a task that its rows may depend on.

    Args:
      task: the task.
      split: one of its splits.

    Returns:
      SHA-256, hex.
    """
    head = dataclasses.replace(task, examples=(), splits={}, metadata={})
    digest = hashlib.sha256(f"[{json.dumps(dataclasses.asdict(head))}, [".encode())
    for place, index in enumerate(task.splits[split]):  # one by one: there may be more than memory holds
        text = json.dumps(dataclasses.astuple(task.examples[index]))
        digest.update(f"{', ' if place else ''}{text}".encode())
    digest.update(b"]]")
    return digest.hexdigest()
