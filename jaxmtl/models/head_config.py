"""What heads a model has: one per task, of one of three kinds.

A "class" head scores a label for the whole text, a "tags" head a label for each token, a "span" head each token as the
first and as the last of an answer.
"""

import dataclasses
from collections.abc import Sequence

from jaxmtl.tasks.answers import CLASS, SPAN, TAGS, Answer
from jaxmtl.types import InputError

CLASS_HEADS = ("dense_tanh", "linear")
"""Hugging Face's classification head (dense, tanh, linear), and one linear layer."""
SPAN_ENDS = 2
"""Logits of a span head: the first and the last token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The head of one task.

    Attributes:
      name: the task.
      kind: "class", "tags" or "span".
      labels: names of the labels, in the order of label ids; none for spans.

    Raises:
      InputError: if there is no such kind, or labels are missing, given twice, or given for spans.
    """

    name: str
    kind: str
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))  # as JSON and gin files may have them
        Answer(kind=self.kind, labels=self.labels)

    @property
    def num_labels(self) -> int:
        """Returns the number of logits; a span has a first and a last token."""
        return SPAN_ENDS if self.kind == SPAN else len(self.labels)


def checked_heads(heads: Sequence[Head]) -> tuple[Head, ...]:
    """Refuses heads that cannot be told apart.

    Args:
      heads: in the order of task ids.

    Returns:
      The heads.

    Raises:
      InputError: if two have the same name.
    """
    names = [head.name for head in heads]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two heads are for task {twice[0]!r}; expected one head per task")
    return tuple(heads)


@dataclasses.dataclass(frozen=True)
class Stack:
    """All heads of one kind, padded to one number of labels and stacked.

    Attributes:
      kind: their kind.
      sizes: number of labels of each head of the stack.
      slots: for each task, in the order of task ids, the place of its head in the stack; 0 for tasks of other kinds.
      members: for each task, whether its head is in the stack.
    """

    kind: str
    sizes: tuple[int, ...]
    slots: tuple[int, ...]
    members: tuple[bool, ...]

    @property
    def num_labels(self) -> int:
        """Returns the padded number of labels."""
        return max(self.sizes)


def stacks(heads: Sequence[Head]) -> dict[str, Stack]:
    """Sorts heads into stacks.

    Args:
      heads: in the order of task ids.

    Returns:
      Kind to its stack, for the kinds that some head has.
    """
    found = {}
    for kind in (CLASS, TAGS, SPAN):
        own = [head for head in heads if head.kind == kind]
        if own:
            slots = tuple(own.index(head) if head.kind == kind else 0 for head in heads)
            sizes = tuple(head.num_labels for head in own)
            found[kind] = Stack(kind, sizes, slots, tuple(head.kind == kind for head in heads))
    return found
