"""The runs of the study on transfer during instruction tuning, by their gin files: what they draw; that they train."""

import itertools
import json
import pathlib

import numpy as np
import pytest

from jaxmtl.feed import interleave, stream
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.main import GinConfig, main
from jaxmtl.tasks import prompts
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.tokenizers import train_sentencepiece
from jaxmtl.types import Example

STUDY = pathlib.Path(__file__).parents[2] / "gin_configs" / "studies" / "transfer_matters"
SIZES = np.array([12, 40, 150, 700])
STEPS = 256
ROWS = 16 * STEPS
"""Rows drawn in that many steps of the study's batch size."""
TINY = [f"t5_config.T5Config.{name}" for name in ("embed_dim=16", "num_heads=2", "head_dim=8", "mlp_dim=32")]
SHORT = ["STEPS=8", "WARMUP_STEPS=1", "LOG_EVERY=1", "SAVE_EVERY=8", "NUM_SHAPES=1", "VOCAB_ROWS=128", *TINY]


def make_task(name, size):
    examples = [Example(id=f"{name}-{k}", inputs=f"{name} {k}", targets=(f"{k % 7}",)) for k in range(size)]
    return TaskSpec(
        name=name, category="Toy", definition="", examples=tuple(examples), splits={"train": tuple(range(size))}
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a store of tasks and of one of text."""
    folder = tmp_path_factory.mktemp("transfer")
    corpus = [f"task text {k} {k * 37}" for k in range(400)]
    tokenizer = train_sentencepiece(corpus, folder / "spiece.model", 60, 10)
    preprocessing = Preprocessing(prompt=prompts.bare, max_input_tokens=24, max_target_tokens=8)
    parts = {
        "tasks": [make_task(f"task{k}", size) for k, size in enumerate(SIZES.tolist())],
        "text": [make_task("text", 90)],
    }
    for name, tasks in parts.items():
        cache_tasks(tasks, ["train"], folder / name, preprocessing, tokenizer)
    return folder


def words(folders, name, *bindings):
    """Returns the gin files and bindings of one of the study's runs."""
    files = ["models/t5_1_1/tiny.gin", f"studies/transfer_matters/{name}.gin", "mesh/cpu1.gin"]
    places = [f"STORE={folders / 'tasks'}", f"RUN_DIR={folders / 'run'}", *bindings]
    return files, places + [f"TEXT_STORE={folders / 'text'}"] * (name == "with_text")


def make_stream(folders, name, *bindings):
    config = GinConfig(*words(folders, name, f"STEPS={STEPS}", *bindings))
    made = interleave.interleaved_stream if name == "with_text" else stream.train_stream
    return config.configured(made)(TokenStore(folders / "tasks"))


def drawn(batches, num_batches):
    """Counts the rows of each task in the next batches."""
    ids = [batch["task_ids"].ravel() for batch in itertools.islice(batches, num_batches)]
    return np.bincount(np.concatenate(ids)[np.concatenate(ids) >= 0], minlength=len(SIZES))


def assert_drawn(counts, weights):
    """Compares with a multinomial's standard deviation, five of which are never passed by chance."""
    shares = weights / weights.sum()
    deviations = np.sqrt(counts.sum() * shares * (1 - shares))
    assert np.all(np.abs(counts - counts.sum() * shares) < 5 * deviations + 2), (counts, counts.sum() * shares)


def annealed(last):
    """The mean of the shares over the steps: size ** (1 / temperature), the temperature rising evenly from 1."""
    temperatures = 1 + (last - 1) * np.arange(STEPS) / STEPS
    powers = SIZES ** (1 / temperatures[:, None])
    return (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0)


@pytest.mark.parametrize(
    "name, bindings, weights",
    [
        ("proportional", [], SIZES),
        ("uniform", [], np.ones(4)),
        ("reverse_annealing_100", [], annealed(100)),
        ("reverse_annealing_1000", [], annealed(1000)),
        *(("proportional", [f"LIMIT={limit}"], np.minimum(SIZES, limit)) for limit in (10, 50, 500, 5000)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_tasks_are_drawn_at_the_shares_of_the_study(folders, name, bindings, weights):
    assert_drawn(drawn(make_stream(folders, name, *bindings), STEPS), weights)


def test_a_limit_leaves_the_same_examples_of_a_task_for_a_whole_run(folders):
    batches = make_stream(folders, "uniform", "LIMIT=10")
    pairs = {(task, one) for batch in itertools.islice(batches, 64) for task, one in ids_of(batch)}
    assert [sum(task == k for task, _ in pairs) for k in range(4)] == [10, 10, 10, 10]


def ids_of(batch):
    return zip(batch["task_ids"].tolist(), batch["example_ids"].tolist(), strict=True)


def test_dynamic_weight_average_draws_what_learns_slowly_more_often(folders):
    batches = make_stream(folders, "dynamic_weight_average", "LOSS_PERIOD=32")
    ratios = np.array([0.5, 0.8, 1.0, 1.5])  # what a period's losses are of those of the period before
    counts = np.zeros(4)
    for step in range(4 * STEPS):
        seen = drawn(batches, 1)
        counts += seen * (step >= STEPS)  # losses of two periods are known by then
        batches.observe(seen * ratios ** (step // 32), seen)
    assert_drawn(counts, np.exp(ratios))


def test_all_target_tokens_of_a_window_weigh_the_same(folders):
    config = GinConfig(*words(folders, "proportional"))
    assert "loop.Run.normaliser = %NORMALISER" in config.text()
    assert "NORMALISER = @normalisers.window_tokens" in config.text()


@pytest.mark.parametrize("bindings, own", [([], SIZES), (["LIMIT=10"], np.full(4, 10))], ids=["all", "limited"])
def test_text_comes_after_three_steps_whatever_rates_and_limits_the_tasks_have(folders, bindings, own):
    batches = make_stream(folders, "with_text", *bindings)
    streams, counts, text = [], np.zeros(4), set()
    for batch in itertools.islice(batches, 4 * 80):
        streams.append(batches.stream_of(batch["task_ids"]))
        if streams[-1] == "text":
            text.update(batch["example_ids"].ravel().tolist())
        else:
            counts += np.bincount(batch["task_ids"].ravel(), minlength=4)
    assert streams == ["tasks", "tasks", "tasks", "text"] * 80
    assert len(text) == 90  # no limit binds the text
    assert_drawn(counts, own)


@pytest.mark.long
@pytest.mark.parametrize(
    "name, binding",
    [
        *((path.stem, "SEED=0") for path in sorted(STUDY.glob("*.gin"))),
        ("proportional", "LIMIT=10"),
    ],
)
def test_every_run_of_the_study_trains(folders, tmp_path, name, binding):
    files, bindings = words(folders, name, *SHORT, binding, f"RUN_DIR={tmp_path}")
    command = [*(f"--gin_file={file}" for file in files), *(f"--gin.{one}" for one in bindings)]
    assert main(["train", *command]) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 8 and losses[-1] < losses[0]
    counts = json.loads((tmp_path / "draws.json").read_text())
    assert ("text" in counts) == (name == "with_text")
    assert all(task["drawn"] > 0 for task in counts.values())
