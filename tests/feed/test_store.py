import dataclasses
import errno
import functools
import json
import pathlib
import shutil

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from jaxmtl import tokenizers
from jaxmtl.feed import tokenise
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks, describe
from jaxmtl.tasks import prompts
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import Example, InputError, UnknownNameError


@pytest.fixture
def copy(store: TokenStore, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(store.folder, tmp_path / "copy"))


def test_rows_are_prompt_and_target_ids(
    store: TokenStore, tasks: list[TaskSpec], tokenizer: tokenizers.Tokenizer, preprocessing: Preprocessing
) -> None:
    for task in tasks:
        for split in task.splits:
            examples = store.examples(task.name, split)
            assert examples.ids == [example.id for example in task.split(split)]
            assert examples.references == [list(example.targets) for example in task.split(split)]
            for index, example in enumerate(task.split(split)):
                inputs, targets = examples.row(index)
                text = prompts.tk_instruct(task, example, num_positive=1, max_tokens=96, tokenizer=tokenizer)
                assert inputs.tolist() == tokenizer.encode(text)
                full = tokenizer.encode(example.targets[0])
                assert targets.tolist() == (full if len(full) <= 16 else [*full[:15], 1])
    assert any(len(tokenizer.encode(e.targets[0])) > 16 for e in tasks[0].examples)  # cutting did take part


def test_rows_are_views_of_the_file(store: TokenStore) -> None:
    inputs, targets = store.examples("a", "train").row(3)
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.base is not None and not inputs.flags.owndata and not inputs.flags.writeable
    many, _ = store.examples("a", "train").rows([3, 0])
    assert np.shares_memory(many[0], inputs)


def test_names_sizes_and_lengths(store: TokenStore, tasks: list[TaskSpec]) -> None:
    assert store.task_names("train") == [task.name for task in tasks]
    assert store.task_names("test") == ["task001_first", "task003.third", "a"]
    assert store.sizes("test").tolist() == [3, 1, 20] and store.sizes("test").dtype == np.int64
    examples = store.examples("a", "test")
    input_lengths, target_lengths = examples.lengths()
    for index in range(len(examples)):
        inputs, targets = examples.row(index)
        assert (input_lengths[index], target_lengths[index]) == (len(inputs), len(targets))
    entry = store.entry("a", "test")
    assert (entry.num_input_tokens, entry.max_target_tokens) == (input_lengths.sum(), target_lengths.max())
    assert store.lengths("test")[0].sum() == sum(e.num_input_tokens for e in store.manifest.splits["test"].values())


def test_unknown_names_are_input_errors(store: TokenStore) -> None:
    for call in (
        lambda: store.task_names("trian"),
        lambda: store.examples("b", "test"),
        lambda: store.examples("task002-second", "test"),
    ):
        with pytest.raises(UnknownNameError, match="closest"):
            call()


def test_the_file_is_plain_arrow(store: TokenStore) -> None:
    with pa.memory_map(str(store.folder / "test" / "a.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.column_names == ["inputs", "targets", "id", "references"]
    assert table.column("inputs")[2].as_py() == store.examples("a", "test").row(2)[0].tolist()


def test_caching_twice_gives_the_same_bytes(
    store: TokenStore,
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tokenizer: tokenizers.Tokenizer,
    tmp_path: pathlib.Path,
) -> None:
    again = cache_tasks(tasks, ["train", "test"], tmp_path / "again", preprocessing, tokenizer)
    files = sorted(path.relative_to(store.folder) for path in store.folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again.folder) for path in again.folder.rglob("*") if path.is_file())
    assert all((store.folder / file).read_bytes() == (again.folder / file).read_bytes() for file in files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_an_existing_store_is_opened_only_if_it_holds_the_same(
    copy: pathlib.Path, tasks: list[TaskSpec], preprocessing: Preprocessing, tokenizer: tokenizers.Tokenizer
) -> None:
    def cache(use: list[TaskSpec], how: Preprocessing) -> TokenStore:
        return cache_tasks(use, ["train", "test"], copy, how, tokenizer)

    before = (copy / "manifest.json").stat().st_mtime_ns
    cache(tasks, preprocessing)
    assert (copy / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"max_target_tokens is 16, asked for 17"):
        cache(tasks, dataclasses.replace(preprocessing, max_target_tokens=17))
    with pytest.raises(InputError, match="other examples of task a"):
        cache(tasks[:-1], preprocessing)
    changed = dataclasses.replace(tasks[1], definition="Another one.")
    with pytest.raises(InputError, match="other examples of task task002-second"):
        cache([tasks[0], changed, *tasks[2:]], preprocessing)
    with pytest.raises(InputError, match="another order"):
        cache(tasks[::-1], preprocessing)


def test_check_names_each_field_that_differs(
    store: TokenStore, preprocessing: Preprocessing, tokenizer: tokenizers.Tokenizer
) -> None:
    store.check(vocabulary=tokenizer, preprocessing=describe(preprocessing, tokenizer))
    store.check()
    other = tokenizers.load_tokenizer(tokenizer.source, extra_ids=11)
    with pytest.raises(InputError, match=r"vocabulary.fingerprint is '.*'; vocabulary.size is 80, asked for 81"):
        store.check(vocabulary=other)
    prompt = functools.partial(prompts.tk_instruct, num_positive=2, max_tokens=96)
    asked = describe(dataclasses.replace(preprocessing, prompt=prompt), tokenizer)
    with pytest.raises(InputError, match=r"prompt.arguments.num_positive is 1, asked for 2") as caught:
        store.check(preprocessing=asked)
    assert "\n" not in str(caught.value)


def test_a_description_sees_settings_bound_out_of_sight(
    preprocessing: Preprocessing, tokenizer: tokenizers.Tokenizer
) -> None:
    def hidden(count: int) -> Preprocessing:
        def tk_instruct(task: TaskSpec, example: Example, *, tokenizer: tokenizers.Tokenizer) -> str:
            return prompts.tk_instruct(task, example, num_positive=count, tokenizer=tokenizer)

        return dataclasses.replace(preprocessing, prompt=tk_instruct)

    assert describe(hidden(1), tokenizer) == describe(hidden(1), tokenizer)
    assert describe(hidden(1), tokenizer) != describe(hidden(2), tokenizer)
    seeded = [functools.partial(tokenise.seeded_reference, seed=seed) for seed in (0, 1)]
    described = [describe(dataclasses.replace(preprocessing, reference=one), tokenizer) for one in seeded]
    assert described[0]["probe"] != described[1]["probe"]
    json.dumps(described)


def test_seeded_reference_is_one_of_them_and_all_are_reached(tasks: list[TaskSpec]) -> None:
    task = tasks[3]
    chosen = [tokenise.seeded_reference(task, example, seed=1) for example in task.examples]
    places = [example.targets.index(text) for example, text in zip(task.examples, chosen, strict=True)]
    assert {0, 1, 2} == set(places)
    assert chosen == [tokenise.seeded_reference(task, example, seed=1) for example in task.examples]


def test_the_stored_tokenizer_is_the_one_it_was_made_with(store: TokenStore, tokenizer: tokenizers.Tokenizer) -> None:
    assert store.tokenizer().fingerprint == tokenizer.fingerprint


def test_verify_finds_a_changed_byte(copy: pathlib.Path) -> None:
    told: list[tuple[int, int, str]] = []
    TokenStore(copy).verify(lambda *args: told.append(args))
    assert told[0] == (1, 7, "train/task001_first.arrow") and told[-1] == (7, 7, "test/a.arrow")
    file = copy / "train" / "a.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    store = TokenStore(copy)
    with pytest.raises(InputError, match=r"a\.arrow is damaged .*checksum.*remove .*`jaxmtl info STORE`"):
        store.verify()


def test_verify_names_a_file_that_cannot_be_read(copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TokenStore(copy)

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pathlib.Path, "open", fail)
    with pytest.raises(InputError, match=r"train/task001_first\.arrow is damaged or missing \(Input/output error\)"):
        store.verify()


def test_cut_or_missing_files_are_refused_at_opening(copy: pathlib.Path) -> None:
    file = copy / "train" / "a.arrow"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"a\.arrow is damaged or missing \(\d+ bytes, expected \d+\)"):
        TokenStore(copy)
    file.unlink()
    with pytest.raises(InputError, match="No such file"):
        TokenStore(copy)


@hypothesis.given(st.data())
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=40)
def test_damaged_files_give_input_errors_or_the_right_number_of_rows(copy: pathlib.Path, data: st.DataObject) -> None:
    file = copy / "test" / "a.arrow"
    good = file.read_bytes()
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        assert len(TokenStore(copy).examples("a", "test")) == 20
    except InputError:
        pass
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "does not describe a token store"),
        ({"version": 99}, "version 99, expected 1"),
        ({"vocabulary": {}}, "damaged"),
        ({"vocabulary": None}, "damaged"),
        ({"preprocessing": []}, "damaged"),
        ({"splits": []}, "damaged"),
        ({"splits": {"train": {"a": {}}}}, "damaged"),
        ({"splits": {"train": {"../a": {}}}}, "no task name"),
        ({"splits": {"../train": {}}}, "no task name"),
        ({"splits": {"tokenizer": {}}}, "may not be called"),
    ],
)
def test_bad_manifests_are_input_errors(copy: pathlib.Path, change: dict, message: str) -> None:
    file = copy / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        TokenStore(copy)


def test_a_manifest_cannot_lead_out_of_its_folder(copy: pathlib.Path) -> None:
    file = copy / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["splits"]["test"]["a"]["file"] = "../../etc/passwd"
    file.write_text(json.dumps(manifest))
    assert TokenStore(copy).entry("a", "test").file == "test/a.arrow"


def test_folders_that_are_no_store_are_input_errors(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        TokenStore(tmp_path / "none")
    with pytest.raises(InputError, match="no finished token store"):
        TokenStore(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        TokenStore(tmp_path)
