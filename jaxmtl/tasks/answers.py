"""What a model with heads answers: a class of the whole text, a tag per word, or a span of the text.

The same tasks are text-to-text tasks too: an example's `inputs` and `targets` hold its texts and its answer as text.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import Example, InputError, unknown_name

CLASS, TAGS, SPAN = KINDS = ("class", "tags", "span")
IGNORED = -100
"""Stands among label ids where there is no label, as on sub-words that do not begin a word."""
ANSWER = "answer"
"""Where a task's metadata say what kind of answer its examples have; absent from tasks that are text-to-text only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The answers of a task.

    Attributes:
      kind: "class", "tags" or "span".
      labels: names of the labels, in the order of label ids; none for spans.

    Raises:
      InputError: if there is no such kind, or labels are missing, given twice, or given for spans.
    """

    kind: str
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("kind of answer", self.kind, KINDS)
        if (self.kind == SPAN) != (not self.labels) or len(set(self.labels)) != len(self.labels):
            raise InputError(
                f"answers of kind {self.kind!r} have the labels {self.labels}; expected "
                + ("none" if self.kind == SPAN else "at least one, none of them twice")
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnsweredExample(Example):
    """An example whose answer is more than text.

    Attributes:
      texts: what the model reads: one or two texts; the words of a text to tag; question and context of a span.
      answer: the label ("class"), the tags of the words ("tags"), or for each of `targets` the character of the context
        that it starts at ("span"; empty if the context holds no answer).
    """

    texts: tuple[str, ...]
    answer: str | tuple[str, ...] | tuple[int, ...]


def with_answer(metadata: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    """Returns a task's metadata that also say what its answers are."""
    return {**metadata, ANSWER: answer}


def answer_of(task: TaskSpec) -> Answer:
    """Returns what the answers of a task are.

    Args:
      task: the task.

    Returns:
      Kind and labels.

    Raises:
      InputError: if the task is text-to-text only.
    """
    answer = task.metadata.get(ANSWER)
    if not isinstance(answer, Answer) or not all(isinstance(one, AnsweredExample) for one in task.examples):
        raise InputError(
            f"task {task.name} has texts as answers, no labels, tags or spans; a model with heads needs tasks of the "
            "collection 'transfer'"
        )
    return answer
