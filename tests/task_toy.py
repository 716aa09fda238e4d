"""Small tasks, some of whose texts are odd."""

import random

from jaxmtl.tasks.spec import Demonstration, TaskSpec
from jaxmtl.types import Example

WORDS = "the quick brown fox jumps over lazy dogs and cats while seven birds sing old songs".split()
ODD_TEXTS = [
    "",
    " ",
    "fox\n dogs",
    "é ☃ fox",
    "a<extra_id_0>b",
    "<extra_id_3> fox",
    "fox </s> dogs <pad>",
    "<extra_id_",
]


def make_task(name: str, size: int, odd: tuple[str, ...] = ()) -> TaskSpec:
    generator = random.Random(name)
    texts = [*odd, *(" ".join(generator.choices(WORDS, k=generator.randint(1, 40))) for _ in range(size - len(odd)))]
    return TaskSpec(
        name=name,
        category="Toy",
        definition=f"Answer the {name} fox.",
        positive=(Demonstration(inputs="old fox", output="dogs"),),
        examples=tuple(
            Example(
                id=f"{name} {k} é", inputs=text, targets=(" ".join(text.split()[:30]) or "none", "fox", "☃")[k % 2 :]
            )
            for k, text in enumerate(texts)
        ),
        splits={"train": tuple(range(size)), "test": (1, 0)},
    )
