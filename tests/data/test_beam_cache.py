import functools
import importlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import types

import pytest

from jaxmtl import tokenizers
from jaxmtl.commands import cache as cache_command
from jaxmtl.feed.tokenise import Preprocessing
from jaxmtl.main import main
from jaxmtl.tasks import prompts
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import Example, InputError

pytestmark = [
    pytest.mark.tf,
    pytest.mark.beam,
    pytest.mark.filterwarnings("default"),
]  # Beam's own warnings are none of ours
IN_MEMORY = ["--runner=FnApiRunner"]
nothing = lambda: None


@pytest.fixture(scope="module")
def data() -> types.SimpleNamespace:
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install 'jaxmtl[beam]'")
    names = ("beam_cache", "cache", "seqio_mixtures", "seqio_tasks")
    return types.SimpleNamespace(**{name: importlib.import_module(f"jaxmtl.data.{name}") for name in names})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    corpus = [" ".join(words) for words in itertools.permutations("the quick brown fox old dogs Answer".split(), 4)]
    return tokenizers.train_sentencepiece(corpus, tmp_path_factory.mktemp("vocabulary") / "spiece.model", 44, 10)


def make_task(name: str, texts: tuple[str, ...] = ("the fox", "old dogs é", "</s> quick")) -> TaskSpec:
    examples = tuple(Example(id=f"{name} {k}", inputs=x, targets=(x or "none", "fox")) for k, x in enumerate(texts))
    return TaskSpec(
        name=name,
        category="Toy",
        definition=f"Answer {name}.",
        examples=examples,
        splits={"train": (2, 0), "test": (1,)},
    )


@pytest.fixture(scope="module")
def mixture(data: types.SimpleNamespace, tokenizer: tokenizers.Tokenizer) -> functools.partial:
    how = Preprocessing(prompt=prompts.tk_instruct, max_input_tokens=48, max_target_tokens=12)

    def register(name: str, tasks: list[TaskSpec]) -> str:
        return data.seqio_mixtures.register(name, data.seqio_tasks.register(tasks, how, tokenizer, prefix=name))

    return functools.partial(register)


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_beam_writes_the_bytes_of_the_local_path(
    data: types.SimpleNamespace, mixture: functools.partial, tmp_path: pathlib.Path
) -> None:
    name = mixture("beam_same", [make_task(task) for task in ("task1-z", "a", "b.c")])
    told: list[tuple[int, int, str]] = []
    data.beam_cache.cache_mixture(
        name,
        ["train", "test"],
        tmp_path / "beam",
        options=IN_MEMORY,
        prepare=nothing,
        progress=lambda *news: told.append(news),
    )
    data.cache.cache_mixture(name, ["train", "test"], tmp_path / "local")
    assert files_of(tmp_path / "beam") == files_of(tmp_path / "local")
    assert told[-1][:2] == (6, 6)


def test_finished_task_splits_are_not_made_again(
    data: types.SimpleNamespace, mixture: functools.partial, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = mixture("beam_resume", [make_task(task) for task in "abc"])

    def stop(done: int, total: int, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.cache.cache_mixture(name, ["train"], tmp_path / "store", progress=stop)
    asked: list[str] = []
    run = data.beam_cache._run
    monkeypatch.setattr(
        data.beam_cache,
        "_run",
        lambda beam, work, *rest: asked.extend(task for task, _ in work) or run(beam, work, *rest),
    )
    cache = functools.partial(data.beam_cache.cache_mixture, name, ["train"], options=IN_MEMORY, prepare=nothing)
    cache(tmp_path / "store")
    assert asked == ["beam_resume:c"]
    cache(tmp_path / "store")
    assert asked == ["beam_resume:c"]
    data.cache.cache_mixture(name, ["train"], tmp_path / "local")
    assert files_of(tmp_path / "store") == files_of(tmp_path / "local")


def test_an_error_names_its_task_and_the_others_are_finished(
    data: types.SimpleNamespace, mixture: functools.partial, tmp_path: pathlib.Path
) -> None:
    name = mixture("beam_error", [make_task("a"), make_task("b", ("\ud800", "fine", "fine")), make_task("c")])
    for _ in range(2):  # the first failure leaves nothing behind that changes the second
        with pytest.raises(InputError, match="beam_error:b, split 'train': its pipeline failed") as caught:
            data.beam_cache.cache_mixture(name, ["train"], tmp_path / "s", options=IN_MEMORY, prepare=nothing)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()
    assert {path.name for path in (tmp_path / ".s.unfinished" / "train").glob("*.arrow")} == {"a.arrow", "c.arrow"}


def test_a_worker_that_would_write_something_else_is_an_error(
    data: types.SimpleNamespace, mixture: functools.partial, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = mixture("beam_other", [make_task("a")])
    others = mixture("beam_others", [make_task("a", ("x", "fox", "fox"))])
    source_of = data.beam_cache.source_of
    monkeypatch.setattr(data.beam_cache, "source_of", lambda task: source_of(f"{others}:a"))
    with pytest.raises(InputError, match="task a, split 'train': a worker reads other examples"):
        data.beam_cache.cache_mixture(name, ["train"], tmp_path / "s", options=IN_MEMORY, prepare=nothing)
    monkeypatch.undo()
    monkeypatch.setattr(data.beam_cache.UnfinishedParts, "was_begun", lambda self: False)
    with pytest.raises(InputError, match="another vocabulary, prompt or limit"):
        data.beam_cache.cache_mixture(name, ["train"], tmp_path / "s", options=IN_MEMORY, prepare=nothing)


def test_a_worker_that_does_not_see_the_folder_says_so(data: types.SimpleNamespace, tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="filesystem that all workers see"):
        data.beam_cache.write_part(("t", None), str(tmp_path / "none"), nothing)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_rebuilds_tasks_in_other_processes(tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path) -> None:
    rows = [
        {"task": name, "input": f"{text} {name}", "output": text, "definition": "Say it.", "split": "train"}
        for name in ("first", "second", "third")
        for text in ("the fox", "old dogs é", "quick fox")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [
        "--gin_file=tasks/jsonl.gin",
        f"--gin.DATA_DIR={tmp_path / 'rows.jsonl'}",
        "--gin.SPLITS=('train',)",
        f"--gin.VOCABULARY={tokenizer.source}",
    ]
    assert main(["cache", *words, f"--gin.STORE={tmp_path / 'local'}"]) == 0
    root = str(pathlib.Path(__file__).parents[2])
    beam = ["--runner=direct", "--beam_options=--direct_num_workers=2", f"--gin.STORE={tmp_path / 'beam'}"]
    command = [sys.executable, "-m", "jaxmtl.main", "cache", *words, *beam]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert files_of(tmp_path / "beam") == files_of(tmp_path / "local")
    assert len(json.loads((tmp_path / "beam" / "manifest.json").read_text())["splits"]["train"]) == 3


def test_without_beam_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    beam_cache = importlib.import_module("jaxmtl.data.beam_cache")
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(InputError, match=r"pip install 'jaxmtl\[beam\]'"):
        beam_cache.cache_mixture("any", ["train"], tmp_path, options=IN_MEMORY, prepare=nothing)


def test_bad_options_are_one_line_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for runner, words, message in (
        ("beam", "--project=p", "needs Beam's own runner"),
        ("direct", "'--a", "No closing quotation"),
    ):
        with pytest.raises(InputError, match=message):
            cache_command.beam_options(runner, words)
    assert cache_command.beam_options("direct", "--direct_num_workers=2")[-1] == "--direct_num_workers=2"
    assert main(["cache", "--gin_file=tasks/toy.gin", "--gin.STORE=s", "--gin.VOCABULARY=v", "--beam_options=x"]) == 2
    assert "without --runner" in capsys.readouterr().err
