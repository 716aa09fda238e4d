import dataclasses
import functools
import importlib
import itertools
import pathlib
import types

import numpy as np
import pytest

from jaxmtl import tokenizers
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.tasks import prompts
from jaxmtl.tasks.spec import Demonstration, TaskSpec
from jaxmtl.types import Example, InputError

pytestmark = pytest.mark.tf
TEXTS = ("the quick fox", "", "a<extra_id_0>b é ☃", "</s> fox\n dogs", " ".join(["quick"] * 60))
SPLITS = {"train": (4, 0, 1, 2), "test": (3,)}


def make_task(name: str, texts: tuple[str, ...] = TEXTS) -> TaskSpec:
    return TaskSpec(
        name=name,
        category="Toy",
        definition=f"Answer {name}.",
        positive=(Demonstration(inputs="old fox", output="dogs"),),
        examples=tuple(Example(id=f"{name} {k}", inputs=x, targets=(x or "none", "fox")) for k, x in enumerate(texts)),
        splits=SPLITS,
    )


@pytest.fixture(scope="module")
def data() -> types.SimpleNamespace:
    names = ("cache", "seqio_mixtures", "seqio_tasks", "shared_pipeline", "text_objectives")
    parts = {name: importlib.import_module(f"jaxmtl.data.{name}") for name in names}
    return types.SimpleNamespace(seqio=importlib.import_module("seqio"), **parts)


@pytest.fixture(scope="module")
def register(data: types.SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> functools.partial:
    corpus = [" ".join(words) for words in itertools.permutations("the quick brown fox old dogs Answer".split(), 4)]
    file = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    tokenizer = tokenizers.train_sentencepiece(corpus, file, 44, 10)
    prompt = functools.partial(prompts.tk_instruct, num_positive=1, max_tokens=48)
    how = Preprocessing(prompt=prompt, max_input_tokens=48, max_target_tokens=12)
    return functools.partial(data.seqio_tasks.register, preprocessing=how, tokenizer=tokenizer)


def test_stores_with_instructions_are_those_made_without_seqio(
    data: types.SimpleNamespace, register: functools.partial, tmp_path: pathlib.Path
) -> None:
    apart = functools.partial(prompts.tk_instruct, definition=False, max_tokens=48)
    reads = functools.partial(prompts.instruction_only, num_positive=1)
    own = register.keywords["preprocessing"]
    how = dataclasses.replace(own, prompt=apart, instruction=reads, max_instruction_tokens=24)
    tasks = [make_task(name) for name in "abc"]
    name = data.seqio_mixtures.register("instructed", register(tasks, preprocessing=how, prefix="instructed"))
    store = data.cache.cache_mixture(name, ("train", "test"), tmp_path / "seqio")
    plain = cache_tasks(tasks, ("train", "test"), tmp_path / "plain", how, register.keywords["tokenizer"])
    for split in SPLITS:
        for task in "abc":
            assert store.entry(task, split) == plain.entry(task, split)
            assert 1 < store.entry(task, split).max_instruction_tokens <= 24
    assert store.manifest.preprocessing == plain.manifest.preprocessing
    with pytest.raises(InputError, match="set INSTRUCTION to None"):
        register(tasks, preprocessing=how, prefix="text", objective=data.text_objectives.PrefixLM())


def test_rows_are_those_of_each_tasks_own_pipeline_in_whatever_order_they_are_asked_for(
    data: types.SimpleNamespace, register: functools.partial
) -> None:
    names = register([make_task(name) for name in "abc"], prefix="alike")
    parts = [(name, split) for split in SPLITS for name in names]
    shared = data.shared_pipeline.SharedPipeline(parts)
    for part in [*parts, parts[1], parts[4], parts[5], parts[0]]:
        own, found = data.cache.own_pipeline(*part), shared.run(*part)
        assert len(own) == len(found) == len(SPLITS[part[1]])
        for one, other in zip(own, found, strict=True):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[field], other[field]) for field in one)


def test_a_mixture_builds_one_pipeline(
    data: types.SimpleNamespace,
    register: functools.partial,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data.seqio_mixtures.register("once", register([make_task(name) for name in "abc"], prefix="once"))
    built: list[int] = []
    start = data.shared_pipeline.SharedPipeline._start
    monkeypatch.setattr(
        data.shared_pipeline.SharedPipeline,
        "_start",
        lambda self, parts: built.append(len(parts)) or start(self, parts),
    )
    store = data.cache.cache_mixture("once", ["train", "test"], tmp_path / "store")
    assert built == [6]
    assert store.sizes("train").tolist() == [4, 4, 4]


def test_an_error_names_the_task_that_it_is_in(
    data: types.SimpleNamespace, register: functools.partial, tmp_path: pathlib.Path
) -> None:
    broken = make_task("b", ("fine", "fine", "\ud800", "fine", "fine"))
    data.seqio_mixtures.register("named", register([make_task("a"), broken, make_task("c")], prefix="named"))
    told: list[str] = []
    with pytest.raises(InputError, match="seqio task named:b, split 'train': its pipeline failed"):
        data.cache.cache_mixture("named", ["train"], tmp_path / "s", progress=lambda *news: told.append(news[2]))
    assert told == ["a train"]


def test_tasks_with_preprocessors_of_their_own_keep_their_pipeline(
    data: types.SimpleNamespace, register: functools.partial, tmp_path: pathlib.Path
) -> None:
    [name, other] = register([make_task("a"), make_task("b")], prefix="own")
    task = data.seqio.TaskRegistry.get(name)
    short = lambda dataset: dataset.filter(lambda row: len(row["targets"]) < 9)
    data.seqio.TaskRegistry.remove(name)
    data.seqio.TaskRegistry.add(
        name,
        source=task.source,
        preprocessors=[data.seqio.preprocessors.tokenize, short, data.seqio.preprocessors.append_eos],
        output_features=task.output_features,
    )
    assert not data.shared_pipeline.can_share(name) and data.shared_pipeline.can_share(other)
    data.seqio_mixtures.register("own", [name, other])
    store = data.cache.cache_mixture("own", ["train"], tmp_path / "store")
    assert 0 < store.sizes("train")[0] < 4 and store.sizes("train")[1] == 4
    assert store.examples("b", "train").ids == ["b 4", "b 0", "b 1", "b 2"]
