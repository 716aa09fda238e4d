"""Tasks with answer choices: two templates of one data set and one of another, with demonstrations to show."""

from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.tasks.choices import ChoiceExample
from jaxmtl.tasks.prompts import bare
from jaxmtl.tasks.spec import TaskSpec

ROWS = {
    "wet_a": ("wet", [("is water wet?", ["yes", "no"], 0), ("is the dog wet?", ["yes", "no", "one dog"], 1)]),
    "wet_b": ("wet", [("say yes or no: is water wet?", ["no", "yes"], 1), ("is the cat wet?", ["no", "yes"], 0)]),
    "count_a": ("count", [("count the birds", ["one two", "six", "one"], 0)]),
}
SHOWN = [("is water wet?", "no"), ("is the ball green?", "yes"), ("a dog ran", "no"), ("is the hill wet?", "yes")]


def choice_tasks():
    """Makes the tasks: split "test" as in ROWS, split "fewshot" as in SHOWN."""
    tasks = []
    for name, (category, rows) in ROWS.items():
        examples = [
            ChoiceExample(id=f"test-{k}", inputs=inputs, targets=(choices[right],), choices=tuple(choices))
            for k, (inputs, choices, right) in enumerate(rows)
        ]
        examples += [
            ChoiceExample(id=f"shown-{k}", inputs=inputs, targets=(answer,), choices=("yes", "no"))
            for k, (inputs, answer) in enumerate(SHOWN)
        ]
        count = len(rows)
        splits = {"test": tuple(range(count)), "fewshot": tuple(range(count, count + len(SHOWN)))}
        what = dict(name=name, category=category, metric="accuracy", definition="")
        tasks.append(TaskSpec(examples=tuple(examples), splits=splits, **what))
    return tasks


def choice_store(folder, tokenizer, **options):
    """Caches the tasks, with inputs that end as the tokenizer ends them unless told otherwise."""
    return cache_tasks(choice_tasks(), ["test", "fewshot"], folder, Preprocessing(prompt=bare, **options), tokenizer)
