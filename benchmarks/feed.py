"""Feeding speed: jaxmtl's sampler and batches over a token store against SeqIO's live mixture of the same examples.

Real tasks are copied under new names until there are enough of them; for fewer tasks several are joined to one, so that
ours reads as many examples whatever their number. All are read at the rates of their sizes. Ours reads the store in the
layout that a training run takes; SeqIO reads the first of the tasks that are not joined, either examples that are
tokenised beforehand (`ratio`: examples per second once its rate rises no more) or text that it tokenises
(`start_ratio`: seconds to the first batch). Each count of tasks runs in a process of its own, which tells its memory;
our counts are measured in turns and by the median of these, since `flatness` is about a few percent. Only files of
many megabytes can be mapped in huge pages, which makes them faster to read; for our side that is switched off, so that
the number of tasks is compared and not the size of their files.
What each layout pads and costs on the real tasks is printed as a table (`layouts`).

Without arguments: few tasks and seconds. With --full: 10, 100, 400 and 1,600 tasks; takes many minutes and gigabytes.
"""

import argparse
import contextlib
import ctypes
import functools
import itertools
import json
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import measuring
import workload

QUICK = dict(ours=(10, 200), seqio=(10, 40), seconds=3.0, turns=1, examples=26, warm=6.0)
FULL = dict(ours=(10, 100, 400, 1600), seqio=(10, 100, 400), seconds=10.0, turns=6, examples=100, warm=120.0)
LIMITS = (1024, 128)
MOST_PERIODS = 24
NO_HUGE_PAGES = 41
"""Linux's PR_SET_THP_DISABLE."""


def main() -> None:
    parser = workload.make_parser(__doc__)
    arguments = parser.parse_args()
    workload.check(parser, arguments)
    measuring.use_same_settings(arguments.threads)
    sizes = argparse.Namespace(**(FULL if arguments.full else QUICK), batch_size=arguments.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        store = workload.make_store(arguments, pathlib.Path(folder), "train", sizes.examples, LIMITS)
        layouts = compared_layouts(store, sizes)
        most = max(*sizes.ours, *sizes.seqio)
        stores = {
            count: copied(store, pathlib.Path(folder) / f"{count}_tasks", count, most) for count in {*sizes.ours, most}
        }
        mine = ours_in_turns({count: stores[count] for count in sizes.ours}, sizes)
        cached = {
            n: one_side(f"SeqIO from tokens, {n} tasks", seqio_tokens, stores[most], n, sizes) for n in sizes.seqio
        }
        text = {n: one_side(f"SeqIO from text, {n} tasks", seqio_text, stores[most], n, sizes) for n in sizes.seqio}
    measuring.print_result("feed", figures(mine, cached, text) | {"layouts": layouts, "sizes": vars(sizes)}, arguments)


def figures(mine: dict, cached: dict, text: dict) -> dict[str, Any]:
    """Compares the largest counts of each side; `flatness` is our slowest over our fastest count."""
    ours_most, peer_most, text_most = mine[max(mine)], cached[max(cached)], text[max(text)]
    speeds = [side["examples_per_second"] for side in mine.values()]
    return {
        "ratio": ours_most["examples_per_second"] / peer_most["examples_per_second"],
        "start_ratio": text_most["start_seconds"] / ours_most["start_seconds"],
        "flatness": min(speeds) / max(speeds),
        "memory_growth": max(s["own_gigabytes"] for s in mine.values())
        / min(s["own_gigabytes"] for s in mine.values()),
        "ours": mine,
        "seqio_from_tokens": cached,
        "seqio_from_text": text,
    }


def ours_in_turns(stores: dict[int, pathlib.Path], sizes: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Measures our side for every count of tasks: starts one after the other, then steady periods in turns.

    What is compared is a few percent, less than the machine's speed changes from one minute to the next.
    """
    with contextlib.ExitStack() as stack:
        sides, ready = {}, {}
        for count, store in stores.items():
            sides[str(count)] = stack.enter_context(measuring.side(ours, store, sizes))
            ready[str(count)] = sides[str(count)].ready()
        answers = measuring.in_turns({name: side.ask for name, side in sides.items()}, ["steady"] * sizes.turns)
        found = {name: facts(sides[name], ready[name], median_rate(answers[name])) for name in sides}
    for name, figures_of_one in found.items():
        print(f"ours, {name} tasks: {figures_of_one}", flush=True)
    return {int(name): figures_of_one for name, figures_of_one in found.items()}


def one_side(name: str, make: Callable[..., Any], *args: Any) -> dict[str, float]:
    """Runs one side for one count of tasks and prints what it took."""
    with measuring.side(make, *args) as side:
        ready = side.ready()
        found = facts(side, ready, measuring.rate([side.ask("steady")]))
    print(f"{name}: {found}", flush=True)
    return found


def median_rate(answers: list[measuring.Answer]) -> float:
    return statistics.median(answer.value / answer.seconds for answer in answers)


def facts(side: measuring.Side, ready: measuring.Answer, speed: float) -> dict[str, float]:
    """Collects what is known of a side: how it started, how fast it is, and its memory."""
    return {
        "start_seconds": round(ready.value["start_seconds"], 3),
        "examples_per_second": round(speed, 1),
        "own_gigabytes": round(side.ask("memory").value / 1e9, 3),
        "peak_gigabytes": round(side.peak_memory() / 1e9, 3),
        **{name: value for name, value in ready.value.items() if name != "start_seconds"},
    }


def compared_layouts(store: pathlib.Path, sizes: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Prints padding and GFLOP of the forward pass per example of each layout, and returns them."""
    from rich import console

    from jaxmtl.commands.mixture_tables import layout_table
    from jaxmtl.feed import grouping, packing, preview

    stream = training_stream(store, sizes)
    layouts = {"grouped": grouping.grouped, "packed": packing.packed}
    found = preview.preview(stream, sizes.batch_size, cost=forward_cost(), layouts=layouts)
    console.Console(highlight=False, width=120).print(layout_table(found))
    return {
        name: {
            "padding": round(one.padding, 3),
            "gflop_per_example": round(one.cost / 1e9, 2),
            "tasks_per_batch": round(one.tasks_per_batch, 1),
        }
        for name, one in found.layouts.items()
    }


def training_stream(store: pathlib.Path, sizes: argparse.Namespace) -> Any:
    """Makes the stream of a run that trains T5 v1.1 small in the layout that costs it the least."""
    from jaxmtl.feed import layout_choice
    from jaxmtl.feed.store import TokenStore
    from jaxmtl.feed.stream import train_stream

    layout = layout_choice.cheapest
    return train_stream(TokenStore(store), batch_size=sizes.batch_size, layout=layout, cost=forward_cost())


def forward_cost() -> Callable[..., Any]:
    from jaxmtl.models.flops import forward
    from jaxmtl.models.t5_config import named_config

    return functools.partial(forward, named_config("t5-v1.1-small", vocab_size=workload.VOCABULARY_ROWS))


def copied(store: pathlib.Path, folder: pathlib.Path, count: int, most: int) -> pathlib.Path:
    """Makes a store of `count` tasks of the examples of `most`: those of another store, again and again.

    All stores hold as many examples, so that only the number of tasks differs.
    """
    manifest = json.loads((store / "manifest.json").read_text())
    sources = list(itertools.islice(itertools.cycle(manifest["splits"]["train"].items()), most))
    (folder / "train").mkdir(parents=True)
    entries = {}
    for number in range(count):
        parts = [entry for _, entry in sources[number::count]]
        copy = f"{number:04d}_{sources[number][0]}".replace("-", "_")  # SeqIO allows no hyphens
        entries[copy] = joined(store, parts, folder, f"train/{copy}.arrow")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"splits": {"train": entries}}))
    shutil.copytree(store / "tokenizer", folder / "tokenizer")
    return folder


def joined(store: pathlib.Path, parts: list[dict[str, Any]], folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Writes the examples of several files into one, and returns its entry in the manifest."""
    import pyarrow as pa

    if len(parts) == 1:
        (folder / name).hardlink_to(store / parts[0]["file"])
        return parts[0] | {"file": name}
    tables = [pa.ipc.open_file(str(store / part["file"])).read_all() for part in parts]
    (batch,) = pa.concat_tables(tables).combine_chunks().to_batches()
    with pa.ipc.new_file(str(folder / name), batch.schema) as writer:
        writer.write_batch(batch)
    sums = {field: sum(part[field] for part in parts) for field in parts[0] if field.startswith("num_")}
    largest = {field: max(part[field] for part in parts) for field in parts[0] if field.startswith("max_")}
    return parts[0] | sums | largest | {"file": name, "bytes": (folder / name).stat().st_size}


def ours(store: pathlib.Path, sizes: argparse.Namespace) -> tuple[Callable[[Any], Any], Any]:
    import jaxmtl.feed.layout_choice
    import jaxmtl.feed.stream  # loading code is not feeding
    import jaxmtl.models.flops
    import jaxmtl.models.t5_config  # noqa: F401

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(NO_HUGE_PAGES, 1, 0, 0, 0)
    began = time.perf_counter()
    stream = training_stream(store, sizes)
    next(stream)
    start = time.perf_counter() - began
    return answers((len(batch["inputs"]) for batch in stream), sizes), {"start_seconds": start}


def answers(counts: Iterator[int], sizes: argparse.Namespace) -> Callable[[Any], int]:
    """Returns what answers the requests "steady" and "memory" of a side with batches of so many examples."""
    known = {"steady": functools.partial(steady, counts, sizes), "memory": own_memory}
    return lambda request: known[request]()


def own_memory() -> int:
    """Returns the bytes of this process that are no pages of files."""
    lines = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def steady(batches: Iterator[int], sizes: argparse.Namespace) -> int:
    """Counts the examples of some seconds' batches."""
    ends, examples = time.perf_counter() + sizes.seconds, 0
    while time.perf_counter() < ends:
        examples += next(batches)
    return examples


def warm_up(counts: Iterator[int], sizes: argparse.Namespace) -> float:
    """Reads until the rate rises by less than a tenth, as it does when all shuffle buffers are full.

    While they fill it is as low all the time, so it has to be asked for some time first. Returns the seconds that took,
    or minus the seconds after which it still rose.
    """
    before = steady(counts, sizes)
    for periods in range(2, MOST_PERIODS + 1):
        now = steady(counts, sizes)
        if now <= 1.1 * before and periods * sizes.seconds >= sizes.warm:
            return periods * sizes.seconds
        before = now
    return -MOST_PERIODS * sizes.seconds


def seqio_tokens(store: pathlib.Path, count: int, sizes: argparse.Namespace) -> tuple[Callable[[Any], Any], Any]:
    """SeqIO's mixture of examples that are tokenised already, as `seqio_cache_tasks` leaves them: TFRecord files."""
    return _seqio(store, count, sizes, _records)


def seqio_text(store: pathlib.Path, count: int, sizes: argparse.Namespace) -> tuple[Callable[[Any], Any], Any]:
    """SeqIO's mixture of texts that it tokenises itself."""
    return _seqio(store, count, sizes, _texts)


def _seqio(
    store: pathlib.Path, count: int, sizes: argparse.Namespace, source: Callable[..., Any]
) -> tuple[Callable[[Any], Any], Any]:
    import seqio

    from jaxmtl.data.vocabularies import vocabulary as vocabulary_of
    from jaxmtl.feed.store import TokenStore

    tokens = TokenStore(store)
    vocabulary = vocabulary_of(tokens.tokenizer()) if source is _texts else seqio.PassThroughVocabulary(32128)
    feature = seqio.Feature(vocabulary, add_eos=False)
    names = tokens.task_names("train")[:count]
    prepared = [source(seqio, tokens, name, store) for name in names]
    began = time.perf_counter()
    for name, (data_source, preprocessors) in zip(names, prepared, strict=True):
        features = {"inputs": feature, "targets": feature}
        seqio.TaskRegistry.add(
            name, source=data_source, preprocessors=preprocessors, output_features=features, metric_fns=[]
        )
    seqio.MixtureRegistry.add("all", [(name, float(tokens.entry(name, "train").num_examples)) for name in names])
    lengths: dict[str, int] = dict(zip(("inputs", "targets"), LIMITS, strict=True))
    mixture = seqio.get_mixture_or_task("all").get_dataset(lengths, "train", shuffle=True, seed=0)
    batches = iter(mixture.padded_batch(sizes.batch_size).as_numpy_iterator())
    next(batches)
    start = time.perf_counter() - began
    counts = (len(batch["inputs"]) for batch in batches)
    return answers(counts, sizes), {"start_seconds": start, "warm_seconds": warm_up(counts, sizes)}


def _records(seqio: Any, tokens: Any, name: str, folder: pathlib.Path) -> tuple[Any, list]:
    import tensorflow as tf

    file = folder / f"{name}.tfrecord"
    rows = tokens.examples(name, "train")
    if not file.exists():
        ints = lambda values: tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        with tf.io.TFRecordWriter(str(file)) as writer:
            for inputs, targets in (rows.row(k) for k in range(len(rows))):
                features = tf.train.Features(feature={"inputs": ints(inputs), "targets": ints(targets)})
                writer.write(tf.train.Example(features=features).SerializeToString())
    spec = {key: tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True) for key in ("inputs", "targets")}
    return seqio.TFExampleDataSource({"train": str(file)}, spec, num_input_examples={"train": len(rows)}), [_as_int32]


def _as_int32(dataset: Any) -> Any:
    import tensorflow as tf

    return dataset.map(lambda example: {name: tf.cast(ids, tf.int32) for name, ids in example.items()})


def _texts(seqio: Any, tokens: Any, name: str, folder: pathlib.Path) -> tuple[Any, list]:
    tokenizer = tokens.tokenizer()
    file = folder / f"{name}.tsv"
    rows = tokens.examples(name, "train")
    decode = lambda ids: " ".join(tokenizer.decode(ids.tolist()).split())
    if not file.exists():
        pairs = (rows.row(k) for k in range(len(rows)))
        file.write_text("".join(f"{decode(inputs)}\t{decode(targets)}\n" for inputs, targets in pairs))
    source = seqio.TextLineDataSource({"train": str(file)}, num_input_examples={"train": len(rows)})
    return source, [_parse_lines, seqio.preprocessors.tokenize]


def _parse_lines(dataset: Any) -> Any:
    import tensorflow as tf

    def one(line: Any) -> dict[str, Any]:
        fields = tf.strings.split(line, "\t")
        return {"inputs": fields[0], "targets": fields[1]}

    return dataset.map(one)


if __name__ == "__main__":
    main()
