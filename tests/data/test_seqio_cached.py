"""SeqIO's own `seqio_cache_tasks` makes the caches that are read here."""

import importlib.util
import itertools
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import types
from typing import Any

import pytest

from jaxmtl import tokenizers
from jaxmtl.feed.store import TokenStore
from jaxmtl.main import main
from jaxmtl.types import InputError, UnknownNameError

pytestmark = [pytest.mark.tf, pytest.mark.beam, pytest.mark.slow]
for package in ("apache_beam", "google_crc32c"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package}, with which SeqIO writes caches, is not installed", allow_module_level=True)
TEXTS = [("the quick fox", "old dogs"), ("é ☃ fox", "fox"), (" ".join(["quick"] * 30), "dogs " * 20), ("fox", "the")]


@pytest.fixture(scope="module")
def data() -> types.SimpleNamespace:
    return types.SimpleNamespace(seqio_cached=importlib.import_module("jaxmtl.data.seqio_cached"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    corpus = [" ".join(words) for words in itertools.permutations("the quick brown fox old dogs Answer".split(), 4)]
    return tokenizers.train_sentencepiece(corpus, tmp_path_factory.mktemp("vocabulary") / "spiece.model", 44, 10)


@pytest.fixture(scope="module")
def cached(tokenizer: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What SeqIO's own command writes; its process is another one because Beam leaves files open and warns of much."""
    root = tmp_path_factory.mktemp("cached")
    words = ["--module_import=seqio_toy", "--tasks=plain,made:ended", f"--output_cache_dir={root}", "--min_shards=3"]
    command = [
        sys.executable,
        "-m",
        "seqio.scripts.cache_tasks_main",
        *words,
        "--pipeline_options=--runner=FnApiRunner",
    ]
    toy = {"TOY_VOCABULARY": str(tokenizer.source), "PYTHONPATH": str(pathlib.Path(__file__).parent)}
    done = subprocess.run(command, env=os.environ | toy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return root


def rows_of(store: TokenStore, task: str) -> dict[str, tuple[list[int], list[int]]]:
    found = store.examples(task, "train")
    ids = [found.row(number) for number in range(len(found))]
    return {
        texts[0]: (inputs.tolist(), targets.tolist())
        for texts, (inputs, targets) in zip(found.references, ids, strict=True)
    }


def test_ids_are_those_that_seqio_cached_with_one_end_and_cut(
    data: types.SimpleNamespace, tokenizer: tokenizers.Tokenizer, cached: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    store = data.seqio_cached.cache_seqio_tasks(
        cached, ["train", "test"], tmp_path / "store", tokenizer, max_input_tokens=20, max_target_tokens=10
    )
    assert store.task_names("train") == ["made.ended", "plain"] and store.sizes("test").tolist() == [1, 1]
    short = lambda ids, limit: ids if len(ids) <= limit else [*ids[: limit - 1], 1]
    expected = {y: (short(tokenizer.encode(x), 20), short(tokenizer.encode(y), 10)) for x, y in TEXTS}
    assert rows_of(store, "plain") == rows_of(store, "made.ended") == expected


def test_inputs_may_stay_without_an_end(
    data: types.SimpleNamespace, tokenizer: tokenizers.Tokenizer, cached: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    store = data.seqio_cached.cache_seqio_tasks(
        cached, ["train"], tmp_path / "s", tokenizer, tasks=["plain"], end_inputs=data.seqio_cached.as_cached
    )
    expected = {y: (tokenizer.encode(x, add_special_tokens=False), tokenizer.encode(y)) for x, y in TEXTS}
    assert rows_of(store, "plain") == expected


def test_the_command_makes_the_same_store(
    data: types.SimpleNamespace, tokenizer: tokenizers.Tokenizer, cached: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = ["cache", "--gin_file=tasks/seqio_cache.gin", f"--gin.SEQIO_CACHE={cached}", "--gin.SPLITS=('train',)"]
    assert main([*words, f"--gin.VOCABULARY={tokenizer.source}", f"--gin.STORE={tmp_path / 'command'}"]) == 0
    data.seqio_cached.cache_seqio_tasks(cached, ["train"], tmp_path / "direct", tokenizer)
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("command", "direct")]
    assert manifests[0] == manifests[1]


def test_what_does_not_fit_is_refused(
    data: types.SimpleNamespace, tokenizer: tokenizers.Tokenizer, cached: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    smaller = tokenizers.train_sentencepiece(["a b c d e"] * 9, tmp_path / "small" / "spiece.model", 10, 1)
    own = tmp_path / "own"
    folder = pathlib.Path(shutil.copytree(cached / "plain", own / "broken"))
    use = lambda *rest, **more: data.seqio_cached.cache_seqio_tasks(*rest, **{"folder": tmp_path / "s", **more})

    def refused(message: str, kind: type[Exception] = InputError, **how: Any) -> None:
        arguments = {"cache_dir": own, "splits": ["train"], "tokenizer": tokenizer} | how
        with pytest.raises(kind, match=message) as caught:
            use(**arguments)
        assert "\n" not in str(caught.value)

    refused("the vocabulary has 0 to 9: give the one", tokenizer=smaller)
    refused("unknown task cached in .* 'brokn'; closest: broken", UnknownNameError, tasks=["brokn"])
    refused("unknown split of cached task broken 'dev'", UnknownNameError, splits=["dev"])
    refused("holds no task", cache_dir=tmp_path / "small")
    shard = next(file for file in sorted(folder.glob("train.tfrecord-*")) if file.stat().st_size)
    content = shard.read_bytes()
    shard.write_bytes(content[:-3])
    refused("a shard is damaged")
    shard.write_bytes(b"")
    refused("examples in its shards, 4 in its stats file")
    shard.unlink()
    refused("1 of 3 shards are missing")
    shard.write_bytes(content)
    (folder / "info.train.json").write_text("{")
    refused("info.train.json cannot be read")
    (folder / "COMPLETED").rename(folder / "not")
    refused("is not complete", cache_dir=_with_another(own), tasks=["broken"])
    assert not (tmp_path / "s").exists()


def _with_another(root: pathlib.Path) -> pathlib.Path:
    (root / "other").mkdir()
    (root / "other" / "COMPLETED").write_text("")
    return root


def test_another_vocabulary_of_the_same_size_is_warned_of(
    data: types.SimpleNamespace,
    cached: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    corpus = [" ".join(words) for words in itertools.permutations("fox dogs lazy birds sing".split(), 3)]
    other = tokenizers.train_sentencepiece(corpus, tmp_path / "spiece.model", 44, 21)
    with caplog.at_level(logging.WARNING):
        data.seqio_cached.cache_seqio_tasks(cached, ["train"], tmp_path / "s", other, tasks=["plain"])
    assert "other ids than this vocabulary gives their text" in caplog.text
