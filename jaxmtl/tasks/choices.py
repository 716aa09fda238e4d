"""Examples with answer choices, among which a model's answer is the likeliest one."""

import dataclasses
from collections.abc import Sequence

from jaxmtl.types import Example, InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceExample(Example):
    """An example with answer choices; examples of a task may have different ones, and different numbers of them.

    Attributes:
      choices: texts to choose from, in the order in which the first of several equally likely ones wins.

    Raises:
      InputError: if there is no choice, or the first target is none of them.
    """

    choices: tuple[str, ...]

    def __post_init__(self) -> None:
        answer = self.targets[0] if self.targets else ""
        if answer not in self.choices:
            shown = ", ".join(repr(text[:40]) for text in self.choices) or "nothing"
            raise InputError(f"example {self.id!r}: the answer {answer[:40]!r} is none of the choices {shown}")


def choices_of(examples: Sequence[Example]) -> list[tuple[str, ...]] | None:
    """Returns the choices of each example.

    Args:
      examples: examples of one task.

    Returns:
      The choices, in the examples' order; None if any example has none.
    """
    found = [example.choices for example in examples if isinstance(example, ChoiceExample)]
    return found if found and len(found) == len(examples) else None
