"""What a task is: its instruction, its demonstrations, its examples and how they are split. Readers make these."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmtl.types import Example, InputError, unknown_name

# Names of tasks and splits become file names (stores, predictions), so they may never lead out of their folder.
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
MAX_NAME_LENGTH = 200


def check_task_name(name: str, where: str) -> str:
    """Checks that a task name is safe as a file name.

    Args:
      name: the task's name.
      where: what the name comes from (file, line), for the message.

    Returns:
      The name.

    Raises:
      InputError: if it holds anything but letters, digits, "_", "." and "-", starts with "." or is too long.
    """
    if _SAFE_NAME.fullmatch(name) is None or len(name) > MAX_NAME_LENGTH:
        raise InputError(
            f"{where}: {name[:80]!r} is no task name; expected at most {MAX_NAME_LENGTH} letters, digits, '_', '-' "
            "and '.', not starting with '.'"
        )
    return name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One worked example that belongs to a task's instruction.

    Attributes:
      inputs: input text.
      output: output text; a wrong one in a negative demonstration.
      explanation: why the output is right (or wrong); None if the file gives none.
    """

    inputs: str
    output: str
    explanation: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task as text; nothing is tokenised and no example is left out.

    Attributes:
      name: identity of the task; safe as a file name.
      category: the kind of task it is.
      definition: the instruction in words; may be empty.
      positive: demonstrations of right outputs, in file order.
      negative: demonstrations of wrong outputs, in file order.
      examples: all examples, in file order: a tuple, or a sequence that reads them when they are looked at.
      metric: name of the headline metric, a key of `metrics.METRICS`.
      splits: split name to indices into `examples`.
      metadata: whatever else the reader knows.

    Raises:
      InputError: if a name is unsafe, two examples share an id, an example has no target, or a split names an
        example that is not there or names one twice.
    """

    name: str
    category: str
    definition: str
    examples: Sequence[Example]
    positive: tuple[Demonstration, ...] = ()
    negative: tuple[Demonstration, ...] = ()
    metric: str = "rouge_l"
    splits: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_task_name(self.name, "task")
        seen: set[str] = set()
        for example in self.examples:
            if example.id in seen:
                raise InputError(f"task {self.name}: two examples have the id {example.id!r}; ids must differ")
            if not example.targets:
                raise InputError(f"task {self.name}: example {example.id!r} has no target; expected at least one")
            seen.add(example.id)
        for split, indices in self.splits.items():
            self._check_split(split, indices)

    def _check_split(self, split: str, indices: tuple[int, ...]) -> None:
        if _SAFE_NAME.fullmatch(split) is None or len(split) > MAX_NAME_LENGTH:
            raise InputError(
                f"task {self.name}: {split[:80]!r} is no split name; expected letters, digits, '_', '-' and '.', "
                "not starting with '.'"
            )
        if len(set(indices)) != len(indices):
            raise InputError(f"task {self.name}: split {split!r} holds an example twice")
        if indices and not 0 <= min(indices) <= max(indices) < len(self.examples):
            raise InputError(
                f"task {self.name}: split {split!r} names examples {min(indices)} to {max(indices)}, "
                f"but there are {len(self.examples)}"
            )

    def split(self, name: str) -> tuple[Example, ...]:
        """Returns the examples of one split.

        Args:
          name: a key of `splits`.

        Returns:
          The examples in the split's order.

        Raises:
          UnknownNameError: if the task has no such split; names the closest ones.
        """
        if name not in self.splits:
            raise unknown_name(f"split of task {self.name}", name, self.splits)
        return tuple(self.examples[index] for index in self.splits[name])
