import functools
import importlib
import random
import types

import pytest
import tokenizers as hf_tokenizers
from task_toy import ODD_TEXTS, WORDS, make_task

from jaxmtl import tokenizers
from jaxmtl.feed.tokenise import Preprocessing
from jaxmtl.tasks import prompts
from jaxmtl.tasks.spec import TaskSpec


@pytest.fixture(scope="module")
def data() -> types.SimpleNamespace:
    names = ("cache", "features", "seqio_mixtures", "seqio_tasks", "vocabularies")
    parts = {name: importlib.import_module(f"jaxmtl.data.{name}") for name in names}
    return types.SimpleNamespace(seqio=importlib.import_module("seqio"), **parts)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    generator = random.Random(0)
    corpus = [" ".join(generator.choices(WORDS, k=12)) + " Definition: Input: Output: example -" for _ in range(400)]
    return tokenizers.train_sentencepiece(corpus, tmp_path_factory.mktemp("vocabulary") / "spiece.model", 80, 10)


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    words = ["<s>", "<pad>", "</s>", "<unk>", *WORDS, "Definition", "Input", "Output", ":", "."]
    pipeline = hf_tokenizers.Tokenizer(
        hf_tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    pipeline.pre_tokenizer = hf_tokenizers.pre_tokenizers.Whitespace()
    pipeline.post_processor = hf_tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    pipeline.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    folder = tmp_path_factory.mktemp("json")
    pipeline.save(str(folder / "tokenizer.json"))
    return tokenizers.load_tokenizer(folder)


@pytest.fixture(scope="module")
def preprocessing() -> Preprocessing:
    prompt = functools.partial(prompts.tk_instruct, num_positive=1, max_tokens=96)
    return Preprocessing(prompt=prompt, max_input_tokens=96, max_target_tokens=16)


@pytest.fixture(scope="module")
def tasks() -> list[TaskSpec]:
    return [make_task("task1-z", 12, tuple(ODD_TEXTS)), make_task("task2.b", 30), make_task("a", 5)]
