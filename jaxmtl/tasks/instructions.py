"""Tasks with several instructions: each instruction becomes a task of its own, so that each is scored separately."""

import dataclasses
from collections.abc import Iterable

from jaxmtl.tasks.spec import TaskSpec

DEFINITIONS = "definitions"
"""Key of a task's metadata where readers put all of its instructions, texts in the order of the file."""


def each_instruction(specs: Iterable[TaskSpec]) -> list[TaskSpec]:
    """Makes a task of each instruction that a task has.

    Args:
      specs: tasks; those whose readers gave several definitions are taken apart, others have their one.

    Returns:
      For each task, in order, one for each of its instructions: named `TASK.instruction-1` and so on, with the task's
      own name as category, so that whatever is averaged over a category is averaged over the instructions of a task.

    Source: methods 4.3.
    """
    return [
        dataclasses.replace(spec, name=f"{spec.name}.instruction-{number}", category=spec.name, definition=definition)
        for spec in specs
        for number, definition in enumerate(spec.metadata.get(DEFINITIONS) or (spec.definition,), start=1)
    ]
