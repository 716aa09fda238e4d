import argparse
import importlib
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from jaxmtl.feed.store import TokenStore

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
MODEL = dict(model="t5-v1.1-small", dtype="float32")


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))  # the other process imports `sides` by name


@pytest.fixture
def measuring():
    return importlib.import_module("measuring")


@pytest.fixture
def sides():
    return importlib.import_module("sides")


@pytest.mark.parametrize("name", ["train", "fewshot", "decode", "rank", "start", "load", "feed", "adapter_inference"])
def test_help_is_printed_at_once(name):
    done = subprocess.run([sys.executable, BENCHMARKS / f"{name}.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--full" in done.stdout and not done.stderr


def test_make_runs_every_benchmark_and_no_other_file():
    makefile = (BENCHMARKS.parent / "Makefile").read_text("utf-8")
    listed = re.search(r"for name in ([\w ]+); do .*benchmarks/\$\$name\.py", makefile)[1].split()
    assert sorted(listed) == sorted(file.stem for file in BENCHMARKS.glob("*.py") if "__main__" in file.read_text())


def test_missing_data_is_bad_usage_with_a_way_out(monkeypatch, capsys, tmp_path):
    workload = importlib.import_module("workload")
    monkeypatch.setattr(workload.importlib.util, "find_spec", lambda package: package)
    parser = workload.make_parser("text")
    with pytest.raises(SystemExit) as ended:
        workload.check(parser, parser.parse_args(["--sni", str(tmp_path)]))
    assert ended.value.code == 2 and "--data toy" in capsys.readouterr().err
    workload.check(parser, parser.parse_args(["--sni", str(tmp_path), "--data", "toy"]))
    with pytest.raises(SystemExit):
        parser = workload.make_parser("text", "anli", tmp_path)
        workload.check(parser, parser.parse_args([]))
    assert "r1_dev.jsonl is not there; give --anli" in capsys.readouterr().err


def test_a_missing_peer_is_bad_usage(monkeypatch, capsys):
    workload = importlib.import_module("workload")
    monkeypatch.setattr(workload.importlib.util, "find_spec", lambda package: None)
    parser = workload.make_parser("text")
    with pytest.raises(SystemExit) as ended:
        workload.check(parser, parser.parse_args([]))
    assert ended.value.code == 2 and "torch" in capsys.readouterr().err


def test_a_side_prepares_answers_and_tells_its_memory(measuring, sides):
    with measuring.side(sides.echo, "a") as side:
        assert side.ready().value == "made a"
        answer = side.ask("b")
        assert answer.value == "ab" and answer.seconds >= 0
        assert 1e6 < side.peak_memory() < 1e11


@pytest.mark.parametrize(("kind", "message"), [("early", "broke while preparing"), ("late", "ZeroDivisionError")])
def test_an_error_of_a_side_reaches_the_caller(measuring, sides, kind, message):
    with pytest.raises(RuntimeError, match=message), measuring.side(sides.fail, kind) as side:
        side.ready()
        side.ask(1)


def test_sides_take_turns_and_each_is_first_once(measuring, capsys):
    asked = []

    def ask(name):
        return lambda request: asked.append((name, request)) or measuring.Answer(seconds=1.0, value=name)

    answers = measuring.in_turns({"x": ask("x"), "y": ask("y")}, [1, 2])
    assert asked == [("x", 1), ("y", 1), ("y", 2), ("x", 2)]
    assert [answer.value for answer in answers["x"]] == ["x", "x"]


def test_rate_is_work_over_time_not_a_mean_of_rates(measuring):
    answers = [measuring.Answer(seconds=1.0, value=10), measuring.Answer(seconds=3.0, value=2)]
    assert measuring.rate(answers) == 3.0
    assert measuring.rate(answers, lambda value: value / 2) == 1.5


def test_of_requests_put_several_times_the_median_time_counts(measuring):
    rounds = [(3.0, 10.0), (1.0, 30.0), (2.0, 20.0)]
    answers = [measuring.Answer(seconds=one, value=name) for row in rounds for name, one in zip("ab", row, strict=True)]
    found = measuring.medians(answers, repeats=3)
    assert [(answer.value, answer.seconds) for answer in found] == [("a", 2.0), ("b", 20.0)]


def test_the_last_line_is_one_json_object(measuring, capsys):
    arguments = argparse.Namespace(sni=pathlib.Path("folder"), full=False)
    measuring.print_result("train", {"ratio": 1.23456, "shapes": 3}, arguments)
    found = json.loads(capsys.readouterr().out)
    assert found["benchmark"] == "train" and found["ratio"] == 1.235 and found["shapes"] == 3
    assert found["settings"] == {"sni": "folder", "full": False} and "jax" in found["versions"]
    measuring.print_result("rank", {"max_difference": 1.23456e-6}, arguments)
    assert json.loads(capsys.readouterr().out)["max_difference"] == 1.23e-6


def test_both_sides_of_training_see_the_same_examples(tmp_path):
    workload, train = importlib.import_module("workload"), importlib.import_module("train")
    arguments = workload.make_parser("text").parse_args(["--data", "toy"])
    store = workload.make_store(arguments, tmp_path, "train", 20, (128, 32))
    sizes = argparse.Namespace(batch_size=4, steps=5, num_shapes=2, layers=1, **MODEL)
    grouped, drawn = (
        train.make_stream(store, sizes, window) for window in (sizes.steps, 1)
    )  # one window and all of it

    def seen(stream):
        batches = [next(stream) for _ in range(sizes.steps)]
        ids = [np.stack([batch["task_ids"], batch["example_ids"]], 1) for batch in batches]
        return sorted(map(tuple, np.concatenate(ids).tolist())), sum(train.num_tokens(batch) for batch in batches)

    assert seen(grouped) == seen(drawn)


def test_stores_of_fewer_tasks_hold_as_many_examples(tmp_path):
    workload, feed = importlib.import_module("workload"), importlib.import_module("feed")
    arguments = workload.make_parser("text").parse_args(["--data", "toy"])
    store = workload.make_store(arguments, tmp_path, "train", 20, (128, 32))
    sizes = argparse.Namespace(batch_size=8, seconds=0.05)
    found = {}
    for count in (2, 40):
        folder = feed.copied(store, tmp_path / f"{count}", count, 40)
        asked, facts = feed.ours(folder, sizes)
        opened = TokenStore(folder)
        tokens = [int(lengths.sum()) for lengths in opened.lengths("train")]
        found[count] = (int(opened.sizes("train").sum()), sorted(tokens))
        assert len(opened.task_names("train")) == count and facts["start_seconds"] > 0
        assert asked("steady") > 0 and 10**7 < asked("memory") < 10**11
    assert found[2] == found[40]


def test_prompts_to_decode_are_in_batches_longest_first(tmp_path):
    workload, decode = importlib.import_module("workload"), importlib.import_module("decode")
    arguments = workload.make_parser("text").parse_args(["--data", "toy"])
    store = workload.make_store(arguments, tmp_path, "test", 5, (128, 32))
    batches = decode.make_batches(store, 10, 4)
    lengths = [len(row) for batch in batches for row in batch]
    assert [len(batch) for batch in batches] == [4, 4, 2] and lengths == sorted(lengths, reverse=True)


def test_examples_to_rank_are_in_batches_longest_first(tmp_path):
    workload, rank = importlib.import_module("workload"), importlib.import_module("rank")
    arguments = workload.make_parser("text", "anli").parse_args(["--data", "toy", "--batch_size", "4"])
    batches = rank.make_batches(arguments, tmp_path, 10)
    lengths = [len(ids) for inputs, _ in batches for ids in inputs]
    assert [len(inputs) for inputs, _ in batches] == [4, 4, 2] and lengths == sorted(lengths, reverse=True)
    assert all(len(choices) == 3 and min(map(len, choices)) > 1 for _, rows in batches for choices in rows)


@pytest.mark.long
@pytest.mark.real_data
def test_the_default_layout_wastes_little_of_the_real_mixture(tmp_path):
    workload, feed = importlib.import_module("workload"), importlib.import_module("feed")
    arguments = workload.make_parser("text").parse_args([])
    sizes = argparse.Namespace(**feed.FULL, batch_size=16)
    store = workload.make_store(arguments, tmp_path, "train", sizes.examples, feed.LIMITS)
    stream = feed.training_stream(store, sizes)
    costs = {name: layout["gflop_per_example"] for name, layout in feed.compared_layouts(store, sizes).items()}
    default = next(cost for name, cost in costs.items() if name.startswith("this run"))
    assert stream.layout.identity()["layout"] == "grouped" and len(stream.layout.identity()["shapes"]) <= 8
    assert default <= 20 < next(cost for name, cost in costs.items() if name.startswith("as drawn"))
    # What a row of 1024 + 128 tokens costs, counted by hand from the sizes of the model.
    assert next(cost for name, cost in costs.items() if name.startswith("fixed")) == pytest.approx(69.6, abs=0.1)


@pytest.mark.real_data
def test_real_examples_to_rank_have_three_choices_and_no_end_token():
    workload, rank = importlib.import_module("workload"), importlib.import_module("rank")
    arguments = workload.make_parser("text", "anli", rank.ANLI).parse_args([])
    rows = rank.anli_rows(arguments, 5)
    assert len(rows) == 5
    assert all(ids[-1] != 1 and [row[-1] for row in choices] == [1, 1, 1] for ids, choices in rows)


def test_an_instruction_read_once_costs_less_than_one_read_always(tmp_path):
    workload, inference = importlib.import_module("workload"), importlib.import_module("adapter_inference")
    arguments = workload.make_parser("text").parse_args(["--data", "toy"])
    tasks, tokenizer = workload.tasks_and_tokenizer(arguments, tmp_path, "test", 10)
    work = inference.work_of(tasks[0], tokenizer)
    assert work.lengths.shape == (len(work.inputs), 3) and work.instruction.startswith("Definition: ")
    texts = [tokenizer.encode(work.instruction + text) for text in work.inputs]
    # The instruction's end token is one more; pieces do not cross the space between the two.
    assert [len(ids) for ids in texts] == [instruction + source - 1 for instruction, source, _ in work.lengths]
    ours, theirs = inference.flops_of(inference.module_of(1, "tagi"), work)
    assert 0 < ours < theirs


@pytest.mark.long
@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="only Linux tells peaks of memory")
def test_loading_holds_no_second_copy(tmp_path):
    load = importlib.import_module("load")
    sizes = {"embed_dim": 512, "num_heads": 8, "head_dim": 64, "mlp_dim": 2048, "vocab_size": 4096}
    figures = load.compare(tmp_path, sizes, 2, {"ratio": (1, "float32")})
    assert 0.08 < figures["gigabytes"] < 0.1
    assert 0.9 < figures["ratio"] < 1.3


@pytest.mark.torch
def test_training_is_compared_with_torch(tmp_path):
    workload, train = importlib.import_module("workload"), importlib.import_module("train")
    arguments = workload.make_parser("text").parse_args(["--data", "toy"])
    store = workload.make_store(arguments, tmp_path, "train", 20, (64, 16))
    figures = train.compare(store, argparse.Namespace(batch_size=2, steps=2, num_shapes=1, layers=1, window=2, **MODEL))
    # Float32 sums of two frameworks in another order.
    assert figures["ours_first_loss"] == pytest.approx(figures["hf_first_loss"], abs=1e-5)
    assert figures["ratio"] > 0 and figures["ratio_grouped"] > 0 and figures["ours_shapes_compiled"] >= 1


@pytest.mark.torch
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_generation_is_the_same_as_that_of_torch(tmp_path, family):
    workload, decode = importlib.import_module("workload"), importlib.import_module("decode")
    arguments = workload.make_parser("text").parse_args(["--data", "toy"])
    batches = decode.make_batches(workload.make_store(arguments, tmp_path, "test", 5, (64, 16)), 4, 2)
    sizes = argparse.Namespace(layers={family: 1}, repeats=2, max_new=8)
    cells = decode.compare(tmp_path / "model", family, sizes, batches, [1, 2])
    assert [*cells] == [f"{family}_greedy", f"{family}_beam2"]
    assert all(figures["identical"] == 1.0 and figures["ratio"] > 0 for figures in cells.values())


@pytest.mark.torch
def test_few_shot_fits_of_both_sides_score_alike(tmp_path):
    workload, fewshot = importlib.import_module("workload"), importlib.import_module("fewshot")
    arguments = workload.make_parser("text").parse_args(["--data", "toy"])
    sizes = argparse.Namespace(layers=1, tasks=2, shots=6, held_out=3, epochs=2, every=1, num_shapes=1, counts=(2,))
    store = workload.make_store(arguments, tmp_path, "test", 9, (64, 16), num_positive=0)
    figures = fewshot.compare(tmp_path / "model", fewshot.read_tasks(store, sizes), sizes)
    # Their adapters start from other random numbers; two steps move neither far from the model that they share.
    assert figures["ours_loss"] == pytest.approx(figures["peft_loss"], rel=0.01)
    assert figures["ratio"] > 0 and figures["ours_peak_gigabytes"] > 0
    assert 0 < figures["gigabytes_by_tasks"][2]["of_fits"] < figures["gigabytes_by_tasks"][2]["peak"]


@pytest.mark.torch
def test_choices_are_scored_as_by_torch(tmp_path):
    workload, rank = importlib.import_module("workload"), importlib.import_module("rank")
    arguments = workload.make_parser("text", "anli").parse_args(["--data", "toy", "--batch_size", "2"])
    figures = rank.compare(tmp_path / "model", 1, rank.make_batches(arguments, tmp_path, 4))
    assert figures["max_difference"] < rank.TOLERANCE
    assert figures["ratio"] > 0 and figures["ratio_reuse"] > 0
