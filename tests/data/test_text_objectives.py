import dataclasses
import functools
import importlib
import itertools
import pathlib
import random
import types
from collections.abc import Mapping

import numpy as np
import pytest
import tokenizers as hf_tokenizers

from jaxmtl import tokenizers
from jaxmtl.feed import corruption, segments
from jaxmtl.feed.interleave import interleaved_stream
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.stream import train_stream
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.tasks import catalog, prompts, text
from jaxmtl.tasks.fewshot import stable_hash
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import Example, InputError, UnknownNameError

pytestmark = pytest.mark.tf
DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
WORDS = "the quick brown fox jumps over lazy dogs and cats while seven birds sing old songs".split()


@pytest.fixture(scope="module")
def data() -> types.SimpleNamespace:
    names = ("cache", "seqio_mixtures", "seqio_tasks", "text_objectives", "text_pipeline")
    parts = {name: importlib.import_module(f"jaxmtl.data.{name}") for name in names}
    return types.SimpleNamespace(
        seqio=importlib.import_module("seqio"), tf=importlib.import_module("tensorflow"), **parts
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    generator = random.Random(0)
    corpus = [" ".join(generator.choices(WORDS, k=12)) for _ in range(400)]
    return tokenizers.train_sentencepiece(corpus, tmp_path_factory.mktemp("vocabulary") / "spiece.model", 65, 20)


def word_level(folder: pathlib.Path, *, framed: bool) -> tokenizers.Tokenizer:
    """A vocabulary of words: framed like BART's, or bare like GPT-2's."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    pipeline = hf_tokenizers.Tokenizer(hf_tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    pipeline.pre_tokenizer = hf_tokenizers.pre_tokenizers.Whitespace()
    if framed:
        pipeline.post_processor = hf_tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    pipeline.add_special_tokens(special)
    pipeline.save(str(folder / "tokenizer.json"))
    return tokenizers.load_tokenizer(folder)


@pytest.fixture(scope="module")
def corpus() -> TaskSpec:
    generator = random.Random(1)
    texts = [" ".join(generator.choices(WORDS, k=count)) for count in (300, 1, 7, 64, 150, 31)]
    examples = tuple(Example(id=f"doc é {k}", inputs="", targets=(one,)) for k, one in enumerate(texts))
    return TaskSpec(
        name="corpus",
        category="Text",
        definition="",
        examples=examples,
        splits={"train": (0, 1, 2, 3, 4, 5), "test": (3,)},
    )


def limits(inputs: int = 32, targets: int = 32) -> Preprocessing:
    return Preprocessing(prompt=prompts.bare, max_input_tokens=inputs, max_target_tokens=targets)


def rows_of(
    data: types.SimpleNamespace,
    corpus: TaskSpec,
    tokenizer: tokenizers.Tokenizer,
    objective: object,
    lengths: Mapping[str, int],
    seed: int | None = 0,
    split: str = "train",
) -> list[dict[str, np.ndarray]]:
    prefix = f"rows{stable_hash(objective, tokenizer.fingerprint, lengths)}"
    how = limits(lengths["inputs"], lengths["targets"])
    [name] = data.seqio_tasks.register([corpus], how, tokenizer, prefix=prefix, objective=objective)
    dataset = data.seqio.get_mixture_or_task(name).get_dataset(dict(lengths), split, shuffle=False, seed=seed)
    return list(dataset.as_numpy_iterator())


def chunks_of(corpus: TaskSpec, tokenizer: tokenizers.Tokenizer, size: int, least: int) -> dict[str, list[int]]:
    """The chunks of all documents, made in plain Python."""
    found = {}
    for example in corpus.examples:
        ids = tokenizer.encode(example.targets[0], add_special_tokens=False)
        for number, start in enumerate(range(0, len(ids), size)):
            if len(ids[start : start + size]) >= least:
                found[f"{example.id}#{number}"] = ids[start : start + size]
    return found


def test_span_corruption_is_the_papers_on_every_chunk(
    data: types.SimpleNamespace, corpus: TaskSpec, tokenizer: tokenizers.Tokenizer
) -> None:
    rows = rows_of(data, corpus, tokenizer, data.text_objectives.SpanCorruption(), {"inputs": 32, "targets": 32})
    chunks = chunks_of(corpus, tokenizer, corruption.chunk_length(31, 0.15, 3.0), 2)
    assert [row["id"].decode() for row in rows] == list(chunks)
    sentinels = {tokenizer.vocab_size - 1 - number: number for number in range(tokenizer.num_extra_ids)}
    assert tokenizer.decode([64], skip_special_tokens=False) == "<extra_id_0>"
    for row, chunk in zip(rows, chunks.values(), strict=True):
        inputs, targets = row["inputs"].tolist(), row["targets"].tolist()
        assert inputs.pop() == targets.pop() == tokenizer.eos_token_id
        noise, spans = corruption.span_counts(len(chunk), 0.15, 3.0)
        assert (len(inputs), len(targets)) == (len(chunk) - noise + spans, noise + spans)
        said: list[list[int]] = []
        for token in targets:
            if token in sentinels:
                assert sentinels[token] == len(said)
                said.append([])
            else:
                said[-1].append(token)
        restored = [said[sentinels[token]] if token in sentinels else [token] for token in inputs]
        assert list(itertools.chain(*restored)) == chunk


def test_prefix_lm_cuts_every_chunk_in_two(
    data: types.SimpleNamespace, corpus: TaskSpec, tokenizer: tokenizers.Tokenizer
) -> None:
    for lengths, size in (({"inputs": 32, "targets": 32}, 31), ({"inputs": 32, "targets": 12}, 31)):
        rows = rows_of(data, corpus, tokenizer, data.text_objectives.PrefixLM(), lengths)
        chunks = chunks_of(corpus, tokenizer, size, 2)
        assert [row["id"].decode() for row in rows] == list(chunks)
        for row, chunk in zip(rows, chunks.values(), strict=True):
            assert [*row["inputs"][:-1], *row["targets"][:-1]] == chunk
            assert row["inputs"][-1] == row["targets"][-1] == 1
            assert all(2 <= len(row[name]) <= lengths[name] for name in lengths)
        assert len({len(row["inputs"]) for row in rows}) > 5


def test_a_language_model_says_the_whole_chunk(
    data: types.SimpleNamespace, corpus: TaskSpec, tokenizer: tokenizers.Tokenizer
) -> None:
    objective = data.text_objectives.LanguageModel(max_tokens=20)
    rows = rows_of(data, corpus, tokenizer, objective, {"inputs": 8, "targets": 32})
    chunks = chunks_of(corpus, tokenizer, 20, 1)
    assert {row["id"].decode(): row["targets"].tolist() for row in rows} == {k: [*v, 1] for k, v in chunks.items()}
    assert all(row["inputs"].tolist() == [1] for row in rows)


@pytest.mark.parametrize("framed", [True, False])
def test_other_vocabularies_keep_their_frame(
    data: types.SimpleNamespace, corpus: TaskSpec, tmp_path: pathlib.Path, framed: bool
) -> None:
    ours = word_level(tmp_path, framed=framed)
    start, end = ([0], [2]) if framed else ([], [])
    chunks = chunks_of(corpus, ours, 32 - len(start + end), 2)
    assert chunks["doc é 2#0"] == [4 + WORDS.index(word) for word in corpus.examples[2].targets[0].split()]
    rows = rows_of(data, corpus, ours, data.text_objectives.PrefixLM(), {"inputs": 32, "targets": 40})
    for row, chunk in zip(rows, chunks.values(), strict=True):
        inputs, targets = row["inputs"].tolist(), row["targets"].tolist()
        assert inputs[: len(start)] == targets[: len(start)] == start
        assert inputs[len(inputs) - len(end) :] == end and targets[-1] == 2
        assert inputs[len(start) : len(inputs) - len(end)] + targets[len(start) : -1] == chunk
    [first, *_] = rows_of(data, corpus, ours, data.text_objectives.LanguageModel(), {"inputs": 8, "targets": 16})
    assert first["inputs"].tolist() == ([0, 2] if framed else [2])
    assert len(first["targets"]) == 16
    with pytest.raises(InputError, match="needs 2 sentinels, the vocabulary has 0"):
        rows_of(data, corpus, ours, data.text_objectives.SpanCorruption(), {"inputs": 32, "targets": 40})


@pytest.mark.parametrize("layout", sorted(segments.LAYOUTS))
@pytest.mark.parametrize("rule", sorted(segments.RULES))
def test_segments_make_up_the_chunk(
    data: types.SimpleNamespace, corpus: TaskSpec, tokenizer: tokenizers.Tokenizer, layout: str, rule: str
) -> None:
    objective = data.text_objectives.Segmentation(layout=layout, rule=rule, seed=3)
    lengths = {"instructions": 48, "inputs": 40, "targets": 36}
    rows = rows_of(data, corpus, tokenizer, objective, lengths)
    size = segments.LAYOUTS[layout].max_tokens(48, 40, 36)
    chunks = chunks_of(corpus, tokenizer, size, segments.RULES[rule].shortest(segments.LAYOUTS[layout]))
    assert [row["id"].decode() for row in rows] == list(chunks)
    kinds = {"three_way": "aib", "four_way": "aiba", "six_way": "aiaiba"}[layout]
    for row, chunk in zip(rows, chunks.values(), strict=True):
        pieces = {}
        for name, kind in zip(("instructions", "inputs", "targets"), "aib", strict=True):
            assert row[name][-1] == 1 and len(row[name]) <= lengths[name]
            pieces[kind] = [list(group) for group in np.split(row[name], np.flatnonzero(row[name] == 1) + 1)[:-1]]
        parts = [pieces[kind].pop(0)[:-1] for kind in kinds]
        assert not any(pieces.values()) and list(itertools.chain(*parts)) == chunk


def test_segments_are_kept_in_a_store(
    data: types.SimpleNamespace, corpus: TaskSpec, tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path
) -> None:
    objective = data.text_objectives.Segmentation(layout="four_way", rule="hint")
    [name] = data.seqio_tasks.register([corpus], limits(40, 36), tokenizer, prefix="segmented", objective=objective)
    store = data.cache.cache_mixture(name, ["train"], tmp_path / "store")
    examples = store.examples(corpus.name, "train")
    rows = rows_of(data, corpus, tokenizer, objective, {"instructions": 40, "inputs": 40, "targets": 36})
    assert examples.ids == [row["id"].decode() for row in rows] and len(rows) > 3
    for index, row in enumerate(rows):
        stored = (examples.instruction(index), *examples.row(index))
        for ids, column in zip(stored, ("instructions", "inputs", "targets"), strict=True):
            assert ids.tolist() == row[column].tolist()


def hint_three_way(tf: types.ModuleType, length: int, seed: object) -> tuple[int, int]:
    """HINT's draws as the methods describe them, in TensorFlow: both from one seed, the bound T - 2 excluded."""
    draw = functools.partial(tf.random.stateless_uniform, (), seed=seed, dtype=tf.int32, maxval=length - 2)
    first = draw(minval=1)
    return int(first), int(draw(minval=first))


def test_hints_cuts_are_those_of_its_tensorflow_draws(data: types.SimpleNamespace) -> None:
    tf = data.tf
    three, six = segments.LAYOUTS["three_way"], segments.LAYOUTS["six_way"]
    for number in range(40):
        seeds = [(number, 7 * k) for k in range(5)]
        bits = [data.text_pipeline._bits([number + 9], seed).numpy()[0] for seed in seeds]
        length = 9 + number
        assert segments.hint_cuts(length, np.array(bits[:2]), three).tolist() == list(
            hint_three_way(tf, length, seeds[0])
        )
        cuts = [1]
        for seed, high in zip(seeds, (6, 5, 4, 3, 2), strict=True):
            bounds = {"minval": cuts[-1], "maxval": length - high, "dtype": tf.int32}
            cuts.append(int(tf.random.stateless_uniform((), seed=seed, **bounds)))
        assert segments.hint_cuts(length, np.array(bits), six).tolist() == cuts[1:]


def test_the_same_seed_gives_the_same_rows_and_another_does_not(
    data: types.SimpleNamespace, corpus: TaskSpec, tokenizer: tokenizers.Tokenizer
) -> None:
    def run(seed: int) -> list[list[int]]:
        rows = rows_of(
            data, corpus, tokenizer, data.text_objectives.SpanCorruption(), {"inputs": 32, "targets": 32}, seed
        )
        return [row["inputs"].tolist() for row in rows]

    assert run(0) == run(0) != run(1)


def test_a_store_holds_the_pipelines_rows_and_names_the_objective(
    data: types.SimpleNamespace, corpus: TaskSpec, tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path
) -> None:
    objective = data.text_objectives.SpanCorruption(noise_density=0.3, seed=4)
    rows = rows_of(data, corpus, tokenizer, objective, {"inputs": 32, "targets": 32}, seed=4)
    [name] = data.seqio_tasks.register([corpus], limits(), tokenizer, prefix="stored", objective=objective)
    store = data.cache.cache_mixture(name, ["train", "test"], tmp_path / "store")
    found = store.examples("corpus", "train")
    assert found.ids == [row["id"].decode() for row in rows]
    for number, row in enumerate(rows):
        inputs, targets = found.row(number)
        assert (inputs.tolist(), targets.tolist()) == (row["inputs"].tolist(), row["targets"].tolist())
        assert found.references[number] == [tokenizer.decode(row["targets"])]
    assert store.manifest.preprocessing["objective"] == {
        "name": "SpanCorruption",
        "arguments": {"noise_density": 0.3, "mean_span_length": 3.0, "seed": 4},
    }
    assert data.cache.cache_mixture(name, ["train", "test"], tmp_path / "store").folder == store.folder
    others = [dataclasses.replace(objective, seed=5), data.text_objectives.PrefixLM(), None]
    for number, other in enumerate(others):
        [name] = data.seqio_tasks.register([corpus], limits(), tokenizer, prefix=f"other{number}", objective=other)
        with pytest.raises(InputError, match="was made differently: preprocessing.objective"):
            data.cache.cache_mixture(name, ["train", "test"], tmp_path / "store")


def test_chunks_that_are_too_short_are_counted_and_logged(
    data: types.SimpleNamespace,
    corpus: TaskSpec,
    tokenizer: tokenizers.Tokenizer,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    every, enough = (chunks_of(corpus, tokenizer, 24, least) for least in (1, 24))
    objective = data.text_objectives.PrefixLM(max_tokens=24)
    object.__setattr__(objective, "chunk_lengths", lambda room: (24, 24))
    [name] = data.seqio_tasks.register([corpus], limits(), tokenizer, prefix="short", objective=objective)
    store = data.cache.cache_mixture(name, ["train"], tmp_path / "store")
    assert store.examples("corpus", "train").ids == list(enough)
    left_out = len(every) - len(enough)
    assert f"{left_out} chunks too short for the objective are left out, {len(enough)} stay" in caplog.text
    tiny = dataclasses.replace(corpus, name="tiny", splits={"train": (1,)})
    [name] = data.seqio_tasks.register([tiny], limits(), tokenizer, prefix="short", objective=objective)
    with pytest.raises(InputError, match="all 1 documents are too short for PrefixLM"):
        data.cache.cache_mixture(name, ["train"], tmp_path / "tiny")


def test_a_stream_of_tasks_takes_turns_with_a_store_of_text(
    data: types.SimpleNamespace, corpus: TaskSpec, tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path
) -> None:
    [name] = data.seqio_tasks.register(
        [corpus], limits(), tokenizer, prefix="turns", objective=data.text_objectives.PrefixLM()
    )
    texts = data.cache.cache_mixture(name, ["train"], tmp_path / "text")
    tasks = cache_tasks([dataclasses.replace(corpus, name="task")], ["train"], tmp_path / "task", limits(), tokenizer)
    make = functools.partial(train_stream, batch_size=2)
    stream = interleaved_stream(tasks, text_store=texts, make_main=make, make_text=make)
    sources = [stream.stream_of(batch["task_ids"]) for batch in itertools.islice(stream, 8)]
    assert sources == ["tasks", "tasks", "tasks", "text"] * 2 and list(stream.rows.names) == ["task", "corpus"]


def test_bad_requests_are_one_line_input_errors(
    data: types.SimpleNamespace, corpus: TaskSpec, tokenizer: tokenizers.Tokenizer, tmp_path: pathlib.Path
) -> None:
    objectives = data.text_objectives

    def register(objective: object, inputs: int = 32, targets: int = 32, prefix: str = "bad") -> str:
        return data.seqio_tasks.register(
            [corpus], limits(inputs, targets), tokenizer, prefix=prefix, objective=objective
        )[0]

    register(objectives.PrefixLM(), prefix="twice")
    calls = {
        "noise density 1.5": lambda: objectives.SpanCorruption(noise_density=1.5),
        "mean span length 0.5": lambda: objectives.SpanCorruption(mean_span_length=0.5),
        "targets that are 1 tokens longer than the limit": lambda: register(objectives.SpanCorruption(), 32, 7),
        "needs 25 sentinels, the vocabulary has 20": lambda: register(objectives.SpanCorruption(), 450, 128),
        "inputs of 1 tokens are too short": lambda: register(objectives.SpanCorruption(), 2, 32),
        "chunks of at most 63 tokens; expected 2 to 62": lambda: register(objectives.PrefixLM(max_tokens=63)),
        "chunks of at most 32 tokens; expected 1 to 31": lambda: register(objectives.LanguageModel(max_tokens=32)),
        "chunks of at most 3 tokens; expected 5 to": lambda: register(objectives.Segmentation(max_tokens=3)),
        "registered already": lambda: register(objectives.PrefixLM(seed=1), prefix="twice"),
    }
    for message, call in calls.items():
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    for names in ({"layout": "tree_way"}, {"rule": "hints"}):
        with pytest.raises(UnknownNameError, match="closest"):
            objectives.Segmentation(**names)
    assert not (tmp_path / "store").exists()


@pytest.mark.real_data
@pytest.mark.slow
def test_real_text_becomes_a_store(data: types.SimpleNamespace, tmp_path: pathlib.Path) -> None:
    t5 = tokenizers.load_tokenizer(DATA / "tokenizers" / "t5")
    specs = catalog.specs("text", DATA / "text" / "wikitext-2", split=text.split_of_file, max_documents=20)
    names = data.seqio_tasks.register(
        specs, limits(512, 114), t5, prefix="real", objective=data.text_objectives.SpanCorruption()
    )
    store: TokenStore = data.cache.cache_mixture(names[0], ["test"], tmp_path / "store")
    inputs, targets = store.lengths("test")
    assert (inputs.max(), targets.max()) == (512, 114)
    total = sum(len(t5.encode(example.targets[0], add_special_tokens=False)) for example in specs[0].examples)
    found = store.examples("text", "test")
    words = sum(int((row < 32000).sum()) - 1 for k in range(len(found)) for row in found.row(k))
    assert words == total
