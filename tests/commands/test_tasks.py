import json
import shutil

import numpy as np
import pytest
from short_runs import MODEL

from jaxmtl.feed.store import TokenStore
from jaxmtl.main import main
from jaxmtl.tasks import catalog

PREVIEW = ["--gin_file=models/t5_1_1/tiny.gin", "--gin_file=runs/train.gin", "--gin.STORE=/no/store", "--gin.RUN_DIR=x"]


def renamed_store(store, folder):
    """Copies a store, its tasks under other names."""
    shutil.copytree(store, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for split, entries in manifest["splits"].items():
        renamed = {f"text_{name}": entry | {"file": f"{split}/text_{name}.arrow"} for name, entry in entries.items()}
        for name, entry in renamed.items():
            (folder / entries[name.removeprefix("text_")]["file"]).rename(folder / entry["file"])
        manifest["splits"][split] = renamed
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def preview_words(store, *more):
    places = [f"--gin.STORE={store}", "--gin.RUN_DIR=/no/run", "--gin.BATCH_SIZE=8", "--gin.STEPS=30"]
    return ["tasks", *MODEL, "--gin_file=runs/train.gin", *places, *more]


def test_json_has_a_line_for_every_task(capsys):
    assert main(["tasks", "toy", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tasks = catalog.load("toy", None)
    assert [row["name"] for row in rows] == list(tasks)
    for row in rows:
        task = tasks[row["name"]]
        assert (row["category"], row["metric"]) == (task.category, task.metric)
        assert row["examples"] == len(task.examples)
        assert row["splits"] == {split: len(task.split(split)) for split in task.splits}


def test_the_table_shows_a_file_of_ones_own(tmp_path, capsys):
    rows = [dict(task="capitals", input=f"country {k}", output="town", definition="Name it.") for k in range(30)]
    rows += [dict(task="sums", input=f"{k} + 1", output=str(k + 1), definition="Add.") for k in range(20)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["tasks", "jsonl", str(path)]) == 0
    text = capsys.readouterr().out
    assert "jsonl: 2 tasks" in text and "capitals" in text
    assert [word for line in text.splitlines() if "sums" in line for word in line.split() if word.isdigit()][0] == "20"


@pytest.mark.parametrize(
    "words, code, hint",
    [
        (["tasks", "toyy"], 1, "unknown collection 'toyy'; closest: toy"),
        (["tasks", "jsonl", "/no/such.jsonl"], 1, "/no/such.jsonl"),
        (["tasks", "sni", "/no/such/folder"], 1, "/no/such/folder"),
        (["tasks", "sni"], 1, "'sni' needs its folder: give data_dir (jaxmtl tasks sni FOLDER"),
        (["tasks", "toy", "mine.jsonl"], 1, "'mine.jsonl'; its tasks are made by code"),
        (["tasks", "toy", "--task_list=x"], 1, "task_list"),
        (["tasks"], 2, "tasks needs a collection, such as: jaxmtl tasks toy; or the gin files of a training"),
        (["tasks", "toy", "--gin.STEPS=5"], 2, "--gin.STEPS=5: is about a training, not about a collection"),
        (["tasks", "toy", "--plot=a.png"], 2, "--plot a.png: is about a training, not about a collection"),
        (["tasks", "toy", *PREVIEW], 2, "toy: with gin files the tasks are those of the token store"),
        (["tasks", "--task_list=x", *PREVIEW], 2, "--task_list: with gin files the tasks are those of the token store"),
        (["tasks", "--plot=a.pdf", *PREVIEW], 2, "--plot is a.pdf; expected a file name that ends in .png"),
        (["tasks", *PREVIEW], 1, "/no/store"),
        (["tasks", "--gin_file=runs/evaluate.gin", "--gin.CHECKPOINT=x", *PREVIEW[2:]], 1, "missing 5 required"),
    ],
)
def test_what_cannot_be_listed_is_told_in_one_line(words, code, hint, capsys):
    assert main(words) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and hint in error
    assert "--traceback" not in error, "not told as a mistake of the user"


def test_a_training_is_previewed_with_its_own_flags(store, tmp_path, capsys):
    picture = tmp_path / "mixture.png"
    assert main(preview_words(store, "--plot", str(picture))) == 0
    text = capsys.readouterr().out
    assert picture.read_bytes()[:4] == b"\x89PNG"
    opened = TokenStore(store)
    sizes, lengths = opened.sizes("train"), opened.lengths("train")
    for name, size in zip(opened.task_names("train"), sizes, strict=True):
        (line,) = [line for line in text.splitlines() if line.startswith(f"│ {name} ")]
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells[2:4] == [str(size), f"{size / sizes.sum():.3%}"]
        assert cells[5] == f"{240 * size / sizes.sum():.1f}" and cells[6] == f"{240 / sizes.sum():.2f}"
    assert f"{sizes.sum()} examples, {lengths[0].sum()} input and {lengths[1].sum()} target tokens" in text
    assert "30 steps: 240 examples" in text and "this run: grouped" in text and "(8 rows)" in text


def test_rates_and_limits_of_the_training_are_those_of_the_preview(store, capsys):
    settings = ["--gin.RATE=@changing_rates.ReverseAnnealing()", "--gin.LIMIT=10"]
    assert main(preview_words(store, "--json", *settings)) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    sizes = np.minimum(TokenStore(store).sizes("train"), 10)
    assert [row["examples"] for row in rows] == sizes.tolist()
    assert [row["first_share"] for row in rows] == pytest.approx((sizes / sizes.sum()).tolist())
    last = sizes ** (1 / (1 + 999 * 29 / 30))
    assert [row["last_share"] for row in rows] == pytest.approx((last / last.sum()).tolist())
    assert {row["stream"] for row in rows} == {"tasks"}


def test_each_stream_of_an_interleaving_is_previewed(store, tmp_path, capsys):
    text = renamed_store(store, tmp_path / "text")
    more = ["--gin_file=runs/interleave.gin", f"--gin.TEXT_STORE={text}", "--json"]
    assert main(preview_words(store, *more)) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    # After every 3 batches of tasks one of text: 7 of 30.
    drawn = {stream: sum(row["rows"] for row in rows if row["stream"] == stream) for stream in ("tasks", "text")}
    assert drawn == pytest.approx({"tasks": 23 * 8, "text": 7 * 8})


def test_the_layout_of_the_training_is_that_of_the_preview(store, capsys):
    assert main(preview_words(store, "--gin.LAYOUT=@packing.packed", "--gin.PACKED_SHAPE=(128, 48)")) == 0
    text = capsys.readouterr().out
    assert "this run: packed" in text and "shapes, input x target tokens: 128x48 (" in text


def test_rates_that_follow_losses_are_said_to(store, capsys):
    assert main(preview_words(store, "--gin.RATE=@changing_rates.DynamicWeightAverage()")) == 0
    assert "the rates follow the tasks' losses" in capsys.readouterr().out
