import gzip
import itertools
import json
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxmtl.tasks import catalog, text
from jaxmtl.tasks.documents import Document, HubDataset, LocalFiles, articles, paragraphs, whole
from jaxmtl.tasks.mapped_examples import mapped_examples
from jaxmtl.types import Example, InputError, UnknownNameError

WIKITEXT = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data" / "text" / "wikitext-2"
WIKI = """ 
 = First thing = 
 
 It is = one = of them . 
 
 = = Parts = = 
 
 It has two . 
 They differ . 
 
 = Second thing = 
 
 Short . 
"""


def numbered(content: str) -> list[tuple[int, str]]:
    return list(enumerate(content.splitlines(), start=1))


def write_c4(file: pathlib.Path, texts: list[str], **more: object) -> pathlib.Path:
    content = "".join(json.dumps({"text": one, "url": "http://example.org", **more}) + "\n" for one in texts)
    file.write_bytes(gzip.compress(content.encode()) if file.name.endswith(".gz") else content.encode())
    return file


def texts_of(task: object) -> list[str]:
    return [example.targets[0] for example in task.examples]


def test_articles_begin_at_titles_only() -> None:
    found = list(articles(numbered(WIKI)))
    assert [number for number, _ in found] == [2, 11]
    assert found[0][1].startswith(" = First thing = \n") and "They differ" in found[0][1]
    assert found[1][1] == " = Second thing = \n \n Short . "


def test_text_before_the_first_title_is_a_document_of_its_own() -> None:
    assert [number for number, _ in articles([(1, "Before ."), *((n + 1, line) for n, line in numbered(WIKI))])] == [
        1,
        3,
        12,
    ]


def test_paragraphs_take_the_headings_before_them() -> None:
    found = list(paragraphs(numbered(WIKI)))
    assert [number for number, _ in found] == [2, 6, 9, 11]
    assert found[1][1] == " = = Parts = = \n It has two . " and found[2][1] == " They differ . "


@pytest.mark.parametrize("cut", [articles, paragraphs, whole])
@hypothesis.given(st.lists(st.sampled_from([" = A = ", " ", "", " = = B = = ", "x", " y z ", " = c"]), max_size=20))
def test_no_cut_loses_a_line_with_text(cut: object, lines: list[str]) -> None:
    lines = ["", " = T = ", "", *lines]
    found = "\n".join(document for _, document in cut(enumerate(lines, start=1)))
    assert [line for line in found.split("\n") if line.strip()] == [line for line in lines if line.strip()]


def test_shards_are_read_in_order_and_by_their_endings(tmp_path: pathlib.Path) -> None:
    write_c4(tmp_path / "c4-train.00001-of-00002.json.gz", ["three é"])
    write_c4(tmp_path / "c4-train.00000-of-00002.json.gz", ["one", "two\nlines "])
    (tmp_path / ".hidden").write_text("no")
    [task] = catalog.load("text", tmp_path).values()
    assert texts_of(task) == ["one", "two\nlines", "three é"]
    assert [example.id for example in task.examples][1:] == [
        "c4-train.00000-of-00002.json.gz:2",
        "c4-train.00001-of-00002.json.gz:1",
    ]
    assert all(example.inputs == "" for example in task.examples)
    assert (task.name, task.category, task.metadata["num_blank"]) == ("text", "Text", 0)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz"])
def test_one_file_is_a_collection_too(tmp_path: pathlib.Path, name: str) -> None:
    file = write_c4(tmp_path / name, ["x", "y"])
    write_c4(tmp_path / "other.json", ["z"])
    [task] = text.load(file, name="mine").values()
    assert texts_of(task) == ["x", "y"] and task.name == "mine"


def test_reading_stops_at_the_limit(tmp_path: pathlib.Path) -> None:
    file = write_c4(tmp_path / "a.jsonl", ["x", " ", "y", "z"])
    file.write_bytes(file.read_bytes() + b"broken")
    assert texts_of(text.load(file, max_documents=2)["text"]) == ["x", "y"]
    with pytest.raises(InputError, match="line 5: not JSON"):
        text.load(file, max_documents=4)


def test_blank_documents_are_counted_and_logged(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    task = text.load(write_c4(tmp_path / "a.jsonl", ["x", "", " \n", "y"]))["text"]
    assert texts_of(task) == ["x", "y"] and task.metadata["num_blank"] == 2
    assert "2 documents without text are left out, 2 stay" in caplog.text


def test_splits_depend_on_seed_and_text_only(tmp_path: pathlib.Path) -> None:
    many = [f"document {number}" for number in range(2000)]
    split = text.HashSplit(validation=0.2, seed=1)

    def validation(texts: list[str], split: text.Split) -> set[str]:
        task = text.load(write_c4(tmp_path / "a.jsonl", texts), split=split)["text"]
        assert len(task.splits["train"]) + len(task.splits["validation"]) == len(texts)
        return {example.targets[0] for example in task.split("validation")}

    found = validation(many, split)
    assert 320 < len(found) < 480  # 400 +- 4.5 standard deviations
    assert validation(many[::-1] + ["document 0"], split) == found
    assert validation(many[:500], split) == found & set(many[:500])
    assert validation(many, text.HashSplit(validation=0.2, seed=2)) != found


def test_no_validation_leaves_one_split(tmp_path: pathlib.Path) -> None:
    task = text.load(write_c4(tmp_path / "a.jsonl", ["x"]), split=text.HashSplit(validation=0.0))["text"]
    assert task.splits == {"train": (0,)}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("c4-train.00000-of-01024.json.gz", "train"),
        ("c4-validation.00000-of-00008.json.gz", "validation"),
        ("valid.txt", "validation"),
        ("wiki.dev.txt", "validation"),
        ("test", "test"),
    ],
)
def test_names_of_files_tell_the_split(name: str, split: str) -> None:
    assert text.split_of_file(Document("x", "x", name)) == split


@pytest.mark.parametrize("name", ["a.txt", "training.txt", "train-test.txt"])
def test_names_of_files_that_tell_no_split_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}': expected exactly one of train"):
        text.split_of_file(Document("x", "x", name))


def test_a_hub_data_set_is_read_by_its_own_library(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_c4(tmp_path / "train.jsonl", ["one", "two"])
    write_c4(tmp_path / "validation.jsonl", ["three"])
    reader = HubDataset(splits=("train", "validation"))
    task = text.load(tmp_path, reader=reader, split=text.split_of_file)["text"]
    assert texts_of(task) == ["one", "two", "three"] and task.splits == {"train": (0, 1), "validation": (2,)}
    assert [example.id for example in task.examples] == ["train:0", "train:1", "validation:0"]
    for wrong, message in (
        (HubDataset(field="body"), "row 0: no field 'body'; found text, url"),
        (HubDataset(splits=("dev",)), "split 'dev' cannot be read"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            text.load(tmp_path, reader=wrong)
        assert "\n" not in str(caught.value)


def test_a_missing_library_is_explained(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match="needs the library `datasets`"):
        text.load("allenai/c4", reader=HubDataset(config="en"))


def broken_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    made = {
        name: folder / f"{number}{suffix}"
        for number, (name, suffix) in enumerate(
            [
                ("line 2: not JSON", ".jsonl"),
                ("line 1: found list", ".jsonl"),
                ("line 2: no field 'text'; found body", ".json"),
                ("line 1: field 'text': found int 3, expected a text", ".json"),
                ("half a surrogate pair", ".json"),
                ("is empty", ".jsonl"),
                ("line 3: cannot be read .*gzip-compressed", ".jsonl.gz"),
                ("line 1: cannot be read .*gzip-compressed", ".json.gz"),
                ("line 2: cannot be read .*text in UTF-8", ".txt"),
                ("no line such as ' = Title = '", ".txt"),
                ("ends in none of .txt", ".csv"),
            ]
        )
    }
    row, long = b'{"text": "x"}\n', gzip.compress(b'{"text": "x"}\n' * 2 + b'{"text": "' + b"y" * 99)
    contents = [row + b"{", b"[1]", row + b'{"body": 1}', b'{"text": 3}', b'{"text": "\\ud800"}', b"", long[:-8], row]
    contents += [b"a\n\xff\xfe\n", b"a\nb\n", b"a"]
    for file, content in zip(made.values(), contents, strict=True):
        file.write_bytes(content)
    return made


def test_broken_files_are_named_with_line_and_what_was_expected(tmp_path: pathlib.Path) -> None:
    for message, file in broken_files(tmp_path).items():
        with pytest.raises(InputError, match=message) as caught:
            text.load(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_bad_requests_are_one_line_input_errors(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    file = write_c4(tmp_path / "blank.jsonl", [" ", ""])
    calls = {
        "is not there": lambda: text.load(tmp_path / "none"),
        "'None' is not there": lambda: text.load(None),
        "has no file": lambda: text.load(tmp_path / "empty"),
        "2 documents, none of them with text": lambda: text.load(file),
        "limit of documents of .* is 0": lambda: text.load(file, max_documents=0),
        "share of documents for validation is 1.0": lambda: text.HashSplit(validation=1.0),
        "has no file 'x'": lambda: text.load(tmp_path, reader=LocalFiles(pattern="x")),
    }
    for message, call in calls.items():
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError, match="closest: max_documents"):
        catalog.load("text", file, max_document=3)


@hypothesis.given(st.lists(st.tuples(st.text("aé☃\n", max_size=3), st.integers(1, 3)), max_size=600), st.randoms())
@hypothesis.settings(max_examples=20)
def test_mapped_examples_are_the_examples(rows: list[tuple[str, int]], random: object) -> None:
    examples = [Example(id=f"{k}", inputs=word, targets=(word,) * count) for k, (word, count) in enumerate(rows)]
    mapped = mapped_examples(iter(examples))
    assert list(mapped) == examples and len(mapped) == len(examples)
    assert list(mapped[3:300:7]) == examples[3:300:7]
    for index in random.sample(range(-len(rows), len(rows)), min(9, len(rows))):
        assert mapped[index] == examples[index]
    with pytest.raises(IndexError):
        mapped[len(rows)]


def test_documents_are_not_in_memory(tmp_path: pathlib.Path) -> None:
    def own_memory() -> int:
        status = pathlib.Path("/proc/self/status")
        if not status.is_file():
            pytest.skip("no /proc/self/status on this machine")
        [line] = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
        return int(line.split()[1]) * 1024

    def rows() -> object:
        return (Example(id=f"{k}", inputs="", targets=("word " * 2000,)) for k in range(8000))

    mapped_examples(itertools.islice(rows(), 300))
    before = own_memory()
    mapped = mapped_examples(rows())
    assert own_memory() - before < 40e6 < 80e6 <= sum(len(one.targets[0]) for one in mapped)


@pytest.mark.real_data
def test_wikitext_2_has_the_published_number_of_articles() -> None:
    task = text.load(WIKITEXT, split=text.split_of_file)["text"]
    assert {split: len(rows) for split, rows in task.splits.items()} == {"test": 60, "validation": 60}
    titles = {example.targets[0].split("\n")[0].strip() for example in task.split("validation")}
    assert "= Homarus gammarus =" in titles
    content = (WIKITEXT / "valid.txt").read_text("utf-8")
    assert sum(len(example.targets[0].split()) for example in task.split("validation")) == len(content.split())
