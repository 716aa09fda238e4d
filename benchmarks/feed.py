"""Feeding speed: jaxmtl's sampler and batches over a token store against SeqIO's live mixture of the same examples.

Real tasks are copied under new names until there are enough of them; all are read at the rates of their sizes. Ours
reads the store; SeqIO reads either examples that are tokenised beforehand (`ratio`: examples per second once buffers
are full) or text that it tokenises (`start_ratio`: seconds to the first batch). Each count of tasks runs in a process
of its own, which tells its peak memory.

Without arguments: few tasks and seconds. With --full: 10, 100, 400 and 1,600 tasks; takes many minutes and gigabytes.
"""

import argparse
import functools
import itertools
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import measuring
import workload

QUICK = dict(ours=(10, 200), seqio=(10, 40), seconds=3.0, examples=26)
FULL = dict(ours=(10, 100, 400, 1600), seqio=(10, 100, 400), seconds=20.0, examples=100)
LIMITS = (512, 128)


def main() -> None:
    parser = workload.make_parser(__doc__)
    arguments = parser.parse_args()
    workload.check(parser, arguments)
    measuring.use_same_settings(arguments.threads)
    sizes = argparse.Namespace(**(FULL if arguments.full else QUICK), batch_size=arguments.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        store = workload.make_store(arguments, pathlib.Path(folder), "train", sizes.examples, LIMITS)
        most = max(*sizes.ours, *sizes.seqio)
        stores = {count: copied(store, pathlib.Path(folder) / f"{count}_tasks", count) for count in {*sizes.ours, most}}
        mine = {count: one_side(f"ours, {count} tasks", ours, stores[count], sizes) for count in sizes.ours}
        cached = {
            n: one_side(f"SeqIO from tokens, {n} tasks", seqio_tokens, stores[most], n, sizes) for n in sizes.seqio
        }
        text = {n: one_side(f"SeqIO from text, {n} tasks", seqio_text, stores[most], n, sizes) for n in sizes.seqio}
    measuring.print_result("feed", figures(mine, cached, text) | {"sizes": vars(sizes)}, arguments)


def figures(mine: dict, cached: dict, text: dict) -> dict[str, Any]:
    """Compares the largest counts of each side; `flatness` is our slowest over our fastest count."""
    ours_most, peer_most, text_most = mine[max(mine)], cached[max(cached)], text[max(text)]
    speeds = [side["examples_per_second"] for side in mine.values()]
    return {
        "ratio": ours_most["examples_per_second"] / peer_most["examples_per_second"],
        "start_ratio": text_most["start_seconds"] / ours_most["start_seconds"],
        "flatness": min(speeds) / max(speeds),
        "memory_growth": max(s["peak_gigabytes"] for s in mine.values())
        / min(s["peak_gigabytes"] for s in mine.values()),
        "ours": mine,
        "seqio_from_tokens": cached,
        "seqio_from_text": text,
    }


def one_side(name: str, make: Callable[..., Any], *args: Any) -> dict[str, float]:
    """Runs one side for one count of tasks and prints what it took."""
    with measuring.side(make, *args) as side:
        ready = side.ready()
        answer = side.ask("steady")
        found = {
            "start_seconds": round(ready.value["start_seconds"], 3),
            "examples_per_second": round(answer.value / answer.seconds, 1),
            "peak_gigabytes": round(side.peak_memory() / 1e9, 3),
        }
    print(f"{name}: {found}", flush=True)
    return found


def copied(store: pathlib.Path, folder: pathlib.Path, count: int) -> pathlib.Path:
    """Makes a store of `count` tasks: those of another store, again and again under new names."""
    manifest = json.loads((store / "manifest.json").read_text())
    tasks = list(itertools.islice(itertools.cycle(manifest["splits"]["train"].items()), count))
    (folder / "train").mkdir(parents=True)
    entries = {}
    for number, (name, entry) in enumerate(tasks):
        copy = f"{number:04d}_{name}".replace("-", "_")  # SeqIO allows no hyphens
        (folder / "train" / f"{copy}.arrow").hardlink_to(store / entry["file"])
        entries[copy] = entry | {"file": f"train/{copy}.arrow"}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"splits": {"train": entries}}))
    shutil.copytree(store / "tokenizer", folder / "tokenizer")
    return folder


def ours(store: pathlib.Path, sizes: argparse.Namespace) -> tuple[Callable[[Any], Any], Any]:
    import jaxmtl.feed.stream  # loading code is not feeding
    from jaxmtl.feed.store import TokenStore

    began = time.perf_counter()
    stream = jaxmtl.feed.stream.train_stream(TokenStore(store), batch_size=sizes.batch_size)
    next(stream)
    start = time.perf_counter() - began
    return functools.partial(steady, (len(batch["inputs"]) for batch in stream), sizes), {"start_seconds": start}


def steady(batches: Iterator[int], sizes: argparse.Namespace, _: Any) -> int:
    """Counts the examples of some seconds' batches."""
    ends, examples = time.perf_counter() + sizes.seconds, 0
    while time.perf_counter() < ends:
        examples += next(batches)
    return examples


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
    lengths = dict(zip(("inputs", "targets"), LIMITS, strict=True))
    mixture = seqio.get_mixture_or_task("all").get_dataset(lengths, "train", shuffle=True, seed=0)
    batches = iter(mixture.padded_batch(sizes.batch_size).as_numpy_iterator())
    next(batches)
    start = time.perf_counter() - began
    warm = time.perf_counter() + sizes.seconds  # shuffle buffers fill
    while time.perf_counter() < warm:
        next(batches)
    return functools.partial(steady, (len(batch["inputs"]) for batch in batches), sizes), {"start_seconds": start}


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
