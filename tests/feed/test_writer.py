import dataclasses
import pathlib
import subprocess
import sys
import textwrap

import pytest

from jaxmtl import tokenizers
from jaxmtl.feed import tokenise
from jaxmtl.feed.packing import packed
from jaxmtl.feed.parts import Part
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.stream import train_stream
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks, describe
from jaxmtl.feed.writer import Rows, StoreWriter
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import InputError


def rows(count: int = 3) -> Rows:
    return Rows(
        ids=[f"e{k}" for k in range(count)],
        inputs=[[5 + k, 6, 1] for k in range(count)],
        targets=[[9, 1]] * count,
        references=[["a", "b"]] * count,
    )


def part(task: str = "a", split: str = "train", origin: str = "o") -> Part:
    return Part(task=task, split=split, category="c", metric="rouge_l", origin=origin)


def test_a_stopped_run_is_resumed_and_ends_in_the_same_store(
    store: TokenStore,
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tokenizer: tokenizers.Tokenizer,
    tmp_path: pathlib.Path,
) -> None:
    folder = tmp_path / "store"

    def stop(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_tasks(tasks, ["train", "test"], folder, preprocessing, tokenizer, progress=stop)
    assert not folder.exists()
    unfinished = tmp_path / ".store.unfinished"
    written = {path: path.stat().st_mtime_ns for path in unfinished.rglob("*.arrow")}
    assert len(written) == 3
    (unfinished / "train" / "a.arrow").write_bytes(b"half a file")
    made: list[str] = []

    def make_rows(part: Part) -> Rows:
        made.append(f"{part.split}/{part.task}")
        task = next(task for task in tasks if task.name == part.task)
        return tokenise.tokenise(task, part.split, preprocessing, tokenizer)

    parts = [Part.of(task, split) for task, split in tokenise.task_splits(tasks, ["train", "test"])]
    tokenise.cache_parts(parts, make_rows, folder, describe(preprocessing, tokenizer), tokenizer)
    assert made == ["train/a", "test/task001_first", "test/task003.third", "test/a"]
    assert (folder / "manifest.json").read_bytes() == (store.folder / "manifest.json").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "test", "tokenizer", "train"]
    assert not unfinished.exists()


def test_a_stopped_run_with_other_settings_is_not_resumed(
    tasks: list[TaskSpec], preprocessing: Preprocessing, tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path
) -> None:
    def unfinished(how: Preprocessing) -> StoreWriter:
        return StoreWriter(tmp_path / "store", tokenizer, describe(how, tokenizer))

    with unfinished(preprocessing) as writer:
        writer.add(part(), rows())
    with unfinished(preprocessing) as writer:
        assert writer.reuse(part())
        assert not writer.reuse(part(origin="other texts"))
    with unfinished(dataclasses.replace(preprocessing, max_input_tokens=50)) as writer:
        assert not writer.reuse(part())


def test_two_writers_of_one_store_are_refused(tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path) -> None:
    with StoreWriter(tmp_path / "store", tokenizer, {}):
        with pytest.raises(InputError, match="another process is writing"):
            with StoreWriter(tmp_path / "store", tokenizer, {}):
                pass


def test_a_taken_folder_is_left_alone(tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is there already"):
        with StoreWriter(tmp_path, tokenizer, {}):
            pass
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("name", ["../evil", "/etc/x", "", ".hidden", "a/b", "x" * 300, "nul\0"])
def test_unsafe_names_are_refused(tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path, name: str) -> None:
    with StoreWriter(tmp_path / "s" / "store", tokenizer, {}) as writer:
        for task, split in ((name, "train"), ("a", name)):
            with pytest.raises(InputError, match="no task name"):
                writer.add(part(task, split), rows())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_bad_rows_are_input_errors(tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path) -> None:
    bad = {
        "has no examples": rows(0),
        "input ids from 1 to 80; expected 0 to 79": dataclasses.replace(rows(1), inputs=[[80, 1]]),
        "target ids from -1 to 1": dataclasses.replace(rows(1), targets=[[-1, 1]]),
        "has targets without any token": dataclasses.replace(rows(1), targets=[[]]),
        "has instructions without any token": dataclasses.replace(rows(1), instructions=[[]]),
        "instruction ids from 80 to 80": dataclasses.replace(rows(1), instructions=[[80]]),
        "no Unicode text": dataclasses.replace(rows(1), references=[["a", "\ud800"]]),
        "reference or choice is no Unicode text": dataclasses.replace(rows(1), choices=[["\ud800"]]),
        r"\[1, 2\] ids, references, inputs": dataclasses.replace(rows(2), choices=[["a"]]),
        "expected as many of each": dataclasses.replace(rows(2), references=[["a"]]),
    }
    with StoreWriter(tmp_path / "store", tokenizer, {}) as writer:
        for message, wrong in bad.items():
            with pytest.raises(InputError, match=message):
                writer.add(part(), wrong)
        with pytest.raises(InputError, match="would be empty"):
            writer.finish()


def test_splits_that_would_be_left_out_silently_are_input_errors(tasks: list[TaskSpec]) -> None:
    empty = dataclasses.replace(tasks[1], splits={"train": ()})
    for use, splits, message in (
        ([empty], ["train"], "split 'train' is empty"),
        (tasks, ["test"], "unknown split of task task002-second"),
        (tasks, ["train", "tset"], "unknown split 'tset'"),
        ([tasks[0], tasks[0]], ["train"], "two tasks are called"),
    ):
        with pytest.raises(InputError, match=message):
            tokenise.task_splits(use, splits)


def test_a_full_disk_is_one_line_and_leaves_no_store(tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path) -> None:
    # A limit on the size of files stands in for a full disk: the operating system fails the write half-way.
    script = textwrap.dedent(
        """
        import resource, sys
        from jaxmtl.feed.parts import Part
        from jaxmtl.feed.writer import Rows, StoreWriter
        from jaxmtl.tokenizers import load_tokenizer
        from jaxmtl.types import InputError
        with StoreWriter(sys.argv[1], load_tokenizer(sys.argv[2]), {}) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            many = Rows(ids=list("abc"), inputs=[[5] * 9000] * 3, targets=[[1]] * 3, references=[["x"]] * 3)
            try:
                writer.add(Part(task="a", split="train", category="", metric="", origin=""), many)
            except InputError as error:
                print(error)
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path / "store"), str(tokenizer.source)]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert "cannot be written (File too large)" in done.stdout and done.stdout.count("\n") == 1
    assert not (tmp_path / "store").exists()
    assert not list((tmp_path / ".store.unfinished").rglob("*.arrow*"))


def test_1600_tasks_open_lazily_and_all_at_once(tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path) -> None:
    with StoreWriter(tmp_path / "store", tokenizer, {}) as writer:
        writer.add(part("t0"), rows())
        entry = writer._entries["train"]["t0"]
        for number in range(1, 1600):  # links, so that the test does not wait for 1,600 writes to reach the disk
            file = writer.unfinished / "train" / f"t{number}.arrow"
            file.hardlink_to(writer.unfinished / entry.file)
            writer._entries["train"][f"t{number}"] = dataclasses.replace(entry, file=f"train/t{number}.arrow")
        writer.finish()
    store = TokenStore(tmp_path / "store")
    assert len(store.task_names("train")) == 1600 and store._opened == {}
    for name in store.task_names("train"):  # more than a process may have open files
        assert len(store.examples(name, "train").row(0)[0]) > 0


def test_instructions_are_a_third_column_of_ids(tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path) -> None:
    instructions = [[7, 8, 1], [9, 1], [3] * 5]
    with StoreWriter(tmp_path / "store", tokenizer, {}) as writer:
        entry = writer.add(part("a"), dataclasses.replace(rows(), instructions=instructions))
        writer.add(part("plain", "other"), rows())
        store = writer.finish()
    assert (entry.num_instruction_tokens, entry.max_instruction_tokens) == (10, 5)
    assert [store.examples("a", "train").instruction(k).tolist() for k in range(3)] == instructions
    assert store.examples("a", "train").row(1)[0].tolist() == rows().inputs[1]
    assert not store.examples("plain", "other").has_instructions
    batch = next(train_stream(store, batch_size=3, window=1))
    padded = [ids + [tokenizer.pad_token_id] * (5 - len(ids)) for ids in instructions]
    assert batch["instructions"].tolist() == [padded[example] for example in batch["example_ids"]]
    assert batch["inputs"][:, 0].tolist() == [5 + example for example in batch["example_ids"]]
    assert "instructions" not in next(train_stream(store, "other", batch_size=3, window=1))
    with pytest.raises(InputError, match="packed rows have none"):
        next(train_stream(store, batch_size=3, layout=packed))


def test_choices_are_texts_beside_the_references(tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path) -> None:
    choices = [["a", "b"], ["b", "c", ""], ["a"]]
    with StoreWriter(tmp_path / "store", tokenizer, {}) as writer:
        writer.add(part("a"), dataclasses.replace(rows(), choices=choices))
        writer.add(part("both"), dataclasses.replace(rows(), choices=choices, instructions=[[7, 1]] * 3))
        writer.add(part("open"), rows())
        store = writer.finish()
    assert store.examples("a", "train").choices == store.examples("both", "train").choices == choices
    assert store.examples("both", "train").instruction(2).tolist() == [7, 1]
    assert store.examples("open", "train").choices is None
    assert store.examples("a", "train").references == [list(texts) for texts in rows().references]


def test_tasks_with_and_without_instructions_are_not_mixed(
    tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path
) -> None:
    with StoreWriter(tmp_path / "store", tokenizer, {}) as writer:
        writer.add(part("a"), dataclasses.replace(rows(1), instructions=[[7]]))
        writer.add(part("b"), rows())
        store = writer.finish()
    with pytest.raises(InputError, match="1 of 2 tasks have no instructions, such as b"):
        train_stream(store, batch_size=1)
    assert next(train_stream(store, batch_size=1, tasks=["b"]))["inputs"].shape[0] == 1
