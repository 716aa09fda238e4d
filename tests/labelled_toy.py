"""A store with labels of all three kinds, its texts of very different lengths, for the tests of packed heads."""

import random

from roberta_like import roberta_like

from jaxmtl.feed.answers import Windows, cache_answers
from jaxmtl.tasks.answers import Answer, AnsweredExample, with_answer
from jaxmtl.tasks.spec import TaskSpec

LABELS, TAGS = ("no", "yes"), ("B-X", "I-X", "O")
WORDS = "the in thing tin hint night theme".split()


def text(generator, most):
    return " ".join(generator.choices(WORDS, k=generator.randint(1, most)))


def pair(generator):
    return (text(generator, 2), text(generator, 4)), generator.choice(LABELS), ("x",)


def tagged(generator):
    words = tuple(text(generator, 3).split())
    return words, tuple(generator.choices(TAGS, k=len(words))), ("x",)


def question(generator):
    before = text(generator, 4) + " "
    return ("what", f"{before}42 {text(generator, 2)}"), (len(before),), ("42",)


def task(name, answer, size, make):
    made = [make(random.Random(f"{name} {k}")) for k in range(size)]
    examples = tuple(
        AnsweredExample(id=str(k), inputs="x", targets=targets, texts=texts, answer=right)
        for k, (texts, right, targets) in enumerate(made)
    )
    options = dict(category="c", definition="", splits={"train": tuple(range(size))}, metadata=with_answer({}, answer))
    return TaskSpec(name=name, examples=examples, **options)


def labelled_store(folder):
    """Caches texts with labels, with tags, and questions."""
    tasks = [
        task("pairs", Answer(kind="class", labels=LABELS), 14, pair),
        task("names", Answer(kind="tags", labels=TAGS), 15, tagged),
        task("questions", Answer(kind="span"), 16, question),
    ]
    windows = Windows(max_input_tokens=48, stride=8)
    return cache_answers(tasks, ["train"], folder / "store", roberta_like(folder / "vocabulary"), windows=windows)
