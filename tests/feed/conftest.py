import functools
import pathlib
import random
import sys

import pytest

from jaxmtl import tokenizers
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.tasks import prompts
from jaxmtl.tasks.spec import Demonstration, TaskSpec
from jaxmtl.types import Example

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for batches

WORDS = "the quick brown fox jumps over lazy dogs and cats while seven birds sing old songs".split()


def make_task(name: str, size: int, seed: int = 0, **splits: tuple[int, ...]) -> TaskSpec:
    generator = random.Random(f"{name} {seed}")

    def text(longest: int) -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(1, longest)))

    return TaskSpec(
        name=name,
        category="Toy",
        definition=f"Answer for {text(9)}.",
        positive=tuple(Demonstration(inputs=text(5), output=text(3)) for _ in range(2)),
        examples=tuple(
            Example(id=f"{name}-{k}", inputs=text(40), targets=tuple(text(24) for _ in range(1 + k % 3)))
            for k in range(size)
        ),
        splits={"train": tuple(range(size))} | splits,
    )


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    generator = random.Random(0)
    corpus = [" ".join(generator.choices(WORDS, k=12)) + " Definition: Input: Output: example -" for _ in range(400)]
    return tokenizers.train_sentencepiece(corpus, tmp_path_factory.mktemp("vocabulary") / "spiece.model", 80, 10)


@pytest.fixture(scope="session")
def preprocessing() -> Preprocessing:
    prompt = functools.partial(prompts.tk_instruct, num_positive=1, max_tokens=96)
    return Preprocessing(prompt=prompt, max_input_tokens=96, max_target_tokens=16)


@pytest.fixture(scope="session")
def tasks() -> list[TaskSpec]:
    return [
        make_task("task001_first", 40, test=(0, 3, 5)),
        make_task("task002-second", 7),
        make_task("task003.third", 1, test=(0,)),
        make_task("a", 90, test=tuple(range(20))),
    ]


@pytest.fixture(scope="session")
def store(
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tokenizer: tokenizers.Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> TokenStore:
    folder: pathlib.Path = tmp_path_factory.mktemp("stores") / "store"
    return cache_tasks(tasks, ["train", "test"], folder, preprocessing, tokenizer)
