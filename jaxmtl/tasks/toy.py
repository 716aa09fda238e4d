"""The embedded default collection: small text tasks that this code makes itself, with three held-out categories.

They have the form of Super-NaturalInstructions (definition, positive and negative demonstrations with explanations),
short texts and mostly closed answers, so that a small model learns many of them in minutes. The unseen tasks ask for
skills of training tasks in a new form: entailment (reading questions), analogies (opposites, plurals, kinds), and
data to text.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from jaxmtl.tasks import metrics, toy_numbers, toy_sentences, toy_words
from jaxmtl.tasks.fewshot import stable_hash
from jaxmtl.tasks.spec import Demonstration, TaskSpec
from jaxmtl.tasks.toy_lexicon import Item, ToyTask
from jaxmtl.types import Example, InputError

TRAIN_TASKS = (*toy_sentences.TASKS, *toy_words.TASKS, *toy_numbers.TASKS)
UNSEEN_TASKS = (*toy_sentences.UNSEEN_TASKS, *toy_words.UNSEEN_TASKS)
NUM_POSITIVE = 3
NUM_NEGATIVE = 2
MIN_EXAMPLES = 10
_MAX_REPEATS = 2000  # draws in a row that bring nothing new before a task counts as exhausted


def load(data_dir: str | Path | None = None, *, num_examples: int = 200, seed: int = 0) -> dict[str, TaskSpec]:
    """Makes the toy tasks; the same arguments give the same tasks in every process.

    Training tasks get the splits "train" (8 of 10 examples), "validation" and "test" (1 of 10 each); unseen tasks
    "test" (4 of 5) and "fewshot" (1 of 5). No input comes twice in a task, demonstrations included.

    Args:
      data_dir: must be None, as there are no files; there because every reader has it.
      num_examples: examples of each task, demonstrations not counted.
      seed: seed of the examples; demonstrations change with it too.

    Returns:
      Task name to task: first the training tasks, then the unseen ones.

    Raises:
      InputError: if `num_examples` is below 10 or above what a task can give, or a folder is given.
    """
    if data_dir is not None:
        raise InputError(
            f"toy collection with folder {str(data_dir)!r}; its tasks are made by code, leave the folder out"
        )
    if num_examples < MIN_EXAMPLES:
        raise InputError(f"toy collection with {num_examples} examples a task; expected at least {MIN_EXAMPLES}")
    tenth, fifth = num_examples // 10, num_examples // 5
    seen = _ranges(train=num_examples - 2 * tenth, validation=tenth, test=tenth)
    unseen = _ranges(test=num_examples - fifth, fewshot=fifth)
    plans = [(task, seen, False) for task in TRAIN_TASKS] + [(task, unseen, True) for task in UNSEEN_TASKS]
    return {task.name: _generate(task, splits, num_examples, seed, held_out) for task, splits, held_out in plans}


def _ranges(**sizes: int) -> dict[str, tuple[int, ...]]:
    splits, start = {}, 0
    for name, size in sizes.items():
        splits[name] = tuple(range(start, start + size))
        start += size
    return splits


def _generate(
    task: ToyTask, splits: dict[str, tuple[int, ...]], num_examples: int, seed: int, held_out: bool
) -> TaskSpec:
    items = _distinct(task, seed)
    positive = tuple(_right(next(items)) for _ in range(NUM_POSITIVE))
    negative = tuple(_wrong(next(items)) for _ in range(NUM_NEGATIVE))
    pairs = zip(range(num_examples), items, strict=False)
    examples = tuple(
        Example(id=f"{task.name}-{index}", inputs=item.inputs, targets=item.outputs) for index, item in pairs
    )
    if len(examples) < num_examples:
        raise InputError(f"task {task.name} can make {len(examples)} examples, not {num_examples}; ask for fewer")
    return TaskSpec(
        name=task.name,
        category=task.category,
        definition=task.definition,
        positive=positive,
        negative=negative,
        examples=examples,
        metric="rouge_l" if metrics.category_key(task.category) == "data_to_text" else "exact_match",
        splits=splits,
        metadata={"categories": (task.category,), "held_out": held_out},
    )


def _distinct(task: ToyTask, seed: int) -> Iterator[Item]:
    draw = random.Random(stable_hash("toy", seed, task.name))
    seen: set[str] = set()
    repeats = 0
    while repeats < _MAX_REPEATS:
        item = task.make(draw)
        repeats = repeats + 1 if item.inputs in seen else 0
        if not repeats:
            seen.add(item.inputs)
            yield item


def _right(item: Item) -> Demonstration:
    return Demonstration(inputs=item.inputs, output=item.outputs[0], explanation=item.why)


def _wrong(item: Item) -> Demonstration:
    why = f"The right output is {item.outputs[0]!r}. {item.why}"
    return Demonstration(inputs=item.inputs, output=item.wrong, explanation=why)
