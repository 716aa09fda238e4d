"""What a token store is made of: task splits, described before they are made."""

import dataclasses
import hashlib
import json

from jaxmtl.tasks.answers import answer_of
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
      answer: what its targets are: "" for token ids, or a kind of `jaxmtl.tasks.answers`.
      labels: names of the labels whose ids the targets hold; none for token ids and spans.
    """

    task: str
    split: str
    category: str
    metric: str
    origin: str
    answer: str = ""
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: TaskSpec, split: str) -> "Part":
        """Describes one split of a task spec."""
        return cls(task=task.name, split=split, category=task.category, metric=task.metric, origin=origin(task, split))

    @classmethod
    def of_answers(cls, task: TaskSpec, split: str) -> "Part":
        """Describes one split of a task spec whose targets will be labels, tags or spans."""
        part, answer = cls.of(task, split), answer_of(task)
        decides = json.dumps([part.origin, answer.kind, answer.labels])
        digest = hashlib.sha256(decides.encode()).hexdigest()
        return dataclasses.replace(part, origin=digest, answer=answer.kind, labels=answer.labels)


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
