import dataclasses
import functools
import itertools
import pathlib
import types

import numpy as np
import pytest
from task_toy import ODD_TEXTS, WORDS, make_task

from jaxmtl import tokenizers
from jaxmtl.feed import tokenise
from jaxmtl.feed.changing_rates import ReverseAnnealing
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.tasks import catalog, prompts, rates
from jaxmtl.tasks.choices import ChoiceExample
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import Example, InputError, UnknownNameError

pytestmark = pytest.mark.tf
DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"


def same_files(first: TokenStore, second: TokenStore) -> bool:
    def content(store: TokenStore) -> dict[pathlib.Path, bytes]:
        files = [path for path in store.folder.rglob("*") if path.is_file()]
        return {path.relative_to(store.folder): path.read_bytes() for path in files}

    return content(first) == content(second)


@pytest.mark.parametrize("kind", ["tokenizer", "framed"])
def test_vocabularies_give_the_tokenizers_ids(
    data: types.SimpleNamespace, kind: str, request: pytest.FixtureRequest
) -> None:
    ours: tokenizers.Tokenizer = request.getfixturevalue(kind)
    vocabulary = data.vocabularies.vocabulary(ours)
    assert isinstance(vocabulary, data.seqio.Vocabulary)
    assert (vocabulary.vocab_size, vocabulary.eos_id, vocabulary.unk_id, vocabulary.pad_id) == (
        ours.vocab_size,
        ours.eos_token_id,
        ours.unk_token_id,
        ours.pad_token_id,
    )
    for text in [*ODD_TEXTS, "the quick brown fox", *WORDS]:
        assert [*vocabulary.encode(text), ours.eos_token_id] == ours.encode(text)
        assert vocabulary.encode_tf(text).numpy().tolist() == list(vocabulary.encode(text))
    ids = ours.encode("quick brown fox")
    assert vocabulary.decode(ids) == "quick brown fox"
    assert vocabulary.decode_tf(np.array(ids, np.int32)).numpy().decode() == "quick brown fox"
    assert vocabulary == data.vocabularies.vocabulary(tokenizers.load_tokenizer(ours.source.parent))


def test_a_sentencepiece_vocabulary_is_seqios_own_kind(
    data: types.SimpleNamespace, tokenizer: tokenizers.Tokenizer
) -> None:
    vocabulary = data.vocabularies.vocabulary(tokenizer)
    assert isinstance(vocabulary, data.seqio.SentencePieceVocabulary)
    plain = data.seqio.SentencePieceVocabulary(str(tokenizer.source), extra_ids=tokenizer.num_extra_ids)
    for text in ["fox dogs", "the <extra_id_0> fox", "<extra_id_9>"]:
        assert list(vocabulary.encode(text)) == plain.encode(text)


@pytest.mark.parametrize("kind", ["tokenizer", "framed"])
@pytest.mark.parametrize("reference", [tokenise.first_reference, tokenise.seeded_reference])
def test_both_ways_write_the_same_bytes(
    data: types.SimpleNamespace,
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tmp_path: pathlib.Path,
    kind: str,
    reference: tokenise.Reference,
    request: pytest.FixtureRequest,
) -> None:
    ours = request.getfixturevalue(kind)
    how = dataclasses.replace(preprocessing, reference=reference)
    name = f"bytes_{kind}_{reference.__name__}"
    names = data.seqio_tasks.register(tasks, how, ours, prefix=name)
    data.seqio_mixtures.register(name, names, rates.uniform)
    told: list[tuple[int, int, str]] = []
    through_seqio = data.cache.cache_mixture(
        name, ["train", "test"], tmp_path / "seqio", progress=lambda *news: told.append(news)
    )
    assert same_files(through_seqio, cache_tasks(tasks, ["train", "test"], tmp_path / "direct", how, ours))
    assert told[-1] == (6, 6, "a test")


@pytest.mark.parametrize("kind", ["tokenizer", "framed"])
def test_both_ways_keep_choices_and_leave_inputs_open(
    data: types.SimpleNamespace,
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tmp_path: pathlib.Path,
    kind: str,
    request: pytest.FixtureRequest,
) -> None:
    ours, how = request.getfixturevalue(kind), dataclasses.replace(preprocessing, input_ends=False)
    closed = dict(choices=("yes", "no"), targets=("no",))
    examples = tuple(ChoiceExample(id=one.id, inputs=one.inputs, **closed) for one in tasks[0].examples)
    ranked = [dataclasses.replace(tasks[0], examples=examples), *tasks[1:]]
    names = data.seqio_tasks.register(ranked, how, ours, prefix=f"choices_{kind}")
    data.seqio_mixtures.register(f"choices_{kind}", names, rates.uniform)
    through_seqio = data.cache.cache_mixture(f"choices_{kind}", ["train", "test"], tmp_path / "seqio")
    direct = cache_tasks(ranked, ["train", "test"], tmp_path / "direct", how, ours)
    assert same_files(through_seqio, direct)
    first = direct.examples(ranked[0].name, "train")
    assert first.choices == [["yes", "no"]] * len(first)
    assert first.row(0)[0][-1] != ours.eos_token_id and first.row(0)[1][-1] == ours.eos_token_id
    with_ends = cache_tasks(ranked, ["train"], tmp_path / "ends", preprocessing, ours).examples(ranked[0].name, "train")
    assert with_ends.row(0)[0].tolist() == [*first.row(0)[0].tolist(), ours.eos_token_id]


def test_caching_goes_on_where_it_was_stopped(
    data: types.SimpleNamespace,
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tokenizer: tokenizers.Tokenizer,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = data.seqio_tasks.register(tasks, preprocessing, tokenizer, prefix="resume")
    data.seqio_mixtures.register("resume", names)

    def stop(done: int, total: int, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.cache.cache_mixture("resume", ["train"], tmp_path / "store", progress=stop)
    assert not (tmp_path / "store").exists()
    made: list[str] = []
    run = data.cache.SharedPipeline.run
    monkeypatch.setattr(data.cache.SharedPipeline, "run", lambda self, *part: made.append(part[0]) or run(self, *part))
    store = data.cache.cache_mixture("resume", ["train"], tmp_path / "store")
    assert made == ["resume:a"]
    assert store.sizes("train").tolist() == [12, 30, 5]


def test_registered_tasks_serve_ordinary_seqio_users(
    data: types.SimpleNamespace, tasks: list[TaskSpec], preprocessing: Preprocessing, tokenizer: tokenizers.Tokenizer
) -> None:
    names = data.seqio_tasks.register(tasks, preprocessing, tokenizer, prefix="user")
    assert names == ["user:task1#z", "user:task2.b", "user:a"]
    task = data.seqio.get_mixture_or_task("user:task2.b")
    assert task.num_input_examples("train") == 30
    lengths = {"inputs": 40, "targets": 6}
    rows = list(task.get_dataset(lengths, "test", shuffle=False).as_numpy_iterator())
    for row, example in zip(rows, tasks[1].split("test"), strict=True):
        text = prompts.tk_instruct(tasks[1], example, num_positive=1, max_tokens=96, tokenizer=tokenizer)
        full = tokenizer.encode(text)
        assert row["inputs"].tolist() == (full if len(full) <= 40 else [*full[:39], 1])
        assert row["inputs_pretokenized"].decode() == text
        assert (row["id"].decode(), row["task"].decode()) == (example.id, "task2.b")
        assert [one.decode() for one in row["references"]] == list(example.targets)
    data.seqio_mixtures.register("user_mixture", names)
    mixed = data.seqio.get_mixture_or_task("user_mixture").get_dataset(lengths, "train", shuffle=True, seed=0)
    first = list(itertools.islice(mixed.as_numpy_iterator(), 20))
    assert all(len(row["inputs"]) <= 40 and row["targets"][-1] == 1 for row in first)
    shards = [
        task.get_dataset(lengths, "train", shuffle=False, shard_info=data.seqio.ShardInfo(index, 3))
        for index in range(3)
    ]
    ids = [row["id"] for shard in shards for row in shard.as_numpy_iterator()]
    assert len(ids) == len(set(ids)) == 30


def test_seqio_scores_predictions_with_our_metrics(
    data: types.SimpleNamespace, tasks: list[TaskSpec], preprocessing: Preprocessing, tokenizer: tokenizers.Tokenizer
) -> None:
    [name] = data.seqio_tasks.register(tasks[1:2], preprocessing, tokenizer, prefix="score")
    task = data.seqio.TaskRegistry.get(name)
    example = {"references": np.array([b"the fox", b"old dogs"], object)}
    target = task.postprocess_fn("the fox", example=example, is_target=True)
    assert target == ["the fox", "old dogs"]
    predictions = [task.postprocess_fn(text, example=example, is_target=False) for text in ("Old dogs.", "cats")]
    scores = {k: v for metric in task.metric_fns for k, v in metric([target, target], predictions).items()}
    assert scores == {"rouge_l": 0.5, "exact_match": 0.5}


def test_registering_again_is_fine_only_if_nothing_changed(
    data: types.SimpleNamespace, tasks: list[TaskSpec], preprocessing: Preprocessing, tokenizer: tokenizers.Tokenizer
) -> None:
    def register(use: list[TaskSpec], how: Preprocessing) -> list[str]:
        return data.seqio_tasks.register(use, how, tokenizer, prefix="again")

    names = register(tasks, preprocessing)
    assert register(tasks, dataclasses.replace(preprocessing)) == names
    with pytest.raises(InputError, match="registered already with other examples, another prompt"):
        register(tasks, dataclasses.replace(preprocessing, max_input_tokens=95))
    with pytest.raises(InputError, match="again:a is registered already"):
        register([dataclasses.replace(tasks[2], definition="Other.")], preprocessing)
    data.seqio_mixtures.register("again_mixture", names, rates.uniform)
    data.seqio_mixtures.register("again_mixture", names, rates.uniform)
    for use, rate in ((names[:2], rates.uniform), (names, rates.proportional)):
        with pytest.raises(InputError, match="other tasks or rates"):
            data.seqio_mixtures.register("again_mixture", use, rate)


def test_a_task_without_the_split_is_in_the_mixture_and_never_drawn(
    data: types.SimpleNamespace,
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tokenizer: tokenizers.Tokenizer,
) -> None:
    unseen = dataclasses.replace(tasks[0], name="unseen", splits={"test": (0,)})
    names = data.seqio_tasks.register([*tasks, unseen], preprocessing, tokenizer, prefix="held")
    data.seqio_mixtures.register("held_mixture", names)
    shares = data.seqio_mixtures.shares("held_mixture")
    assert shares["held:unseen"] == 0 and sum(shares.values()) == pytest.approx(1.0)


def test_bad_requests_are_one_line_input_errors(
    data: types.SimpleNamespace,
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tokenizer: tokenizers.Tokenizer,
    tmp_path: pathlib.Path,
) -> None:
    names = data.seqio_tasks.register(tasks, preprocessing, tokenizer, prefix="bad")
    other = dataclasses.replace(preprocessing, max_input_tokens=50)
    more = data.seqio_tasks.register([make_task("b", 4)], other, tokenizer, prefix="bad")
    data.seqio_mixtures.register("bad_mixed", [*names, *more])
    half = (Example(id="x", inputs="\ud800", targets=("y",)),)
    broken = dataclasses.replace(tasks[2], name="broken", examples=half, splits={"train": (0,)})
    data.seqio_tasks.register([broken], preprocessing, tokenizer, prefix="bad")
    calls = {
        "prefix of seqio tasks is 'a/b'": lambda: data.seqio_tasks.register(
            tasks, preprocessing, tokenizer, prefix="a/b"
        ),
        "2 tasks, 1 of them different": lambda: data.seqio_mixtures.register("m", names[:1] * 2),
        "0 tasks": lambda: data.seqio_mixtures.register("m", []),
        "weigh 0 by their split 'dev'": lambda: data.seqio_mixtures.register("m", names, split="dev"),
        "limit of examples of a task is 0": lambda: data.seqio_mixtures.register("m", names, limit=0),
        "rates that never change only": lambda: data.seqio_mixtures.register(
            "m", names, ReverseAnnealing(last_temperature=9, num_steps=9)
        ),
        "all tasks weigh 0": lambda: data.seqio_mixtures.register("m", names, lambda sizes: 0.0 * sizes),
        "another prompt or limit": lambda: data.cache.cache_mixture("bad_mixed", ["train"], tmp_path / "s"),
        "unknown split 'dev'": lambda: data.cache.cache_mixture(names[0], ["train", "dev"], tmp_path / "s"),
        "bad:broken, split 'train'": lambda: data.cache.cache_mixture("bad:broken", ["train"], tmp_path / "s"),
    }
    for message, call in calls.items():
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    for call in (
        lambda: data.seqio_mixtures.register("m", ["bad:none"]),
        lambda: data.cache.cache_mixture("none", ["train"], tmp_path / "s"),
    ):
        with pytest.raises(UnknownNameError, match="closest"):
            call()
    assert not (tmp_path / "s").exists()


def test_the_converter_pads_and_masks_like_our_batches(
    data: types.SimpleNamespace, tasks: list[TaskSpec], preprocessing: Preprocessing, framed: tokenizers.Tokenizer
) -> None:
    [name] = data.seqio_tasks.register(tasks[1:2], preprocessing, framed, prefix="features")
    lengths = {"inputs": 50, "targets": 20}
    rows = data.seqio.get_mixture_or_task(name).get_dataset(lengths, "train", shuffle=False)
    converted = data.features.EncDecConverter(pad_id=framed.pad_token_id)(rows, lengths)
    for row, batch in zip(rows.as_numpy_iterator(), converted.as_numpy_iterator(), strict=True):
        assert batch.keys() == {"inputs", "targets", "loss_mask"}
        for field, length in lengths.items():
            assert batch[field].tolist() == row[field].tolist() + [1] * (length - len(row[field]))
        count = len(row["targets"])
        assert batch["loss_mask"].tolist() == [1.0] * count + [0.0] * (20 - count)
        assert batch["loss_mask"].dtype == np.float32


@pytest.mark.real_data
@pytest.mark.parametrize("vocabulary, frame", [("t5", ([], [1])), ("roberta-base", ([0], [2]))])
def test_real_tasks_give_the_same_bytes_both_ways(
    data: types.SimpleNamespace, tmp_path: pathlib.Path, vocabulary: str, frame: tuple[list[int], list[int]]
) -> None:
    tokenizer = tokenizers.load_tokenizer(DATA / "tokenizers" / vocabulary)
    every = catalog.load("sni", DATA / "sni")
    chosen = [task for task in every.values() if "train" in task.splits][::60]
    how = Preprocessing(prompt=functools.partial(prompts.tk_instruct, num_positive=2))
    name = f"real_{vocabulary.removesuffix('-base')}"
    names = data.seqio_tasks.register(chosen, how, tokenizer, prefix=name)
    data.seqio_mixtures.register(name, names)
    through_seqio = data.cache.cache_mixture(name, ["train"], tmp_path / "seqio")
    assert len(chosen) >= 4
    assert same_files(through_seqio, cache_tasks(chosen, ["train"], tmp_path / "direct", how, tokenizer))
    start, end = frame
    for ids in through_seqio.examples(through_seqio.task_names("train")[0], "train").row(0):
        assert (ids[: len(start)].tolist(), ids[-1:].tolist()) == (start, end)
