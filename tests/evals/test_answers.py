import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roberta_like import roberta_like

from jaxmtl.evals import answer_runner
from jaxmtl.evals.answer_runner import evaluate
from jaxmtl.evals.answers import AnswerEvaluation, head_ids, predict, renumbered, score
from jaxmtl.evals.files import prediction_file, read_records, read_rows
from jaxmtl.evals.spans import SpanChoice, best_spans
from jaxmtl.evals.summary import Labels
from jaxmtl.feed.answers import Windows, cache_answers
from jaxmtl.models.head_config import Head
from jaxmtl.models.heads import HeadLogits
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.roberta import RobertaWithHeads
from jaxmtl.models.roberta_config import RobertaConfig
from jaxmtl.tasks.answers import Answer, AnsweredExample, with_answer
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import InputError, UnknownNameError
from jaxmtl.weights import Pretrained

WORDS = "the king in the inn had ten things to think of in the thin light"
HEADS = (
    Head(name="other", kind="class", labels=("x",)),
    Head(name="questions", kind="span"),
    Head(name="names", kind="tags", labels=("B-X", "I-X", "O")),
    Head(name="pairs", kind="class", labels=("no", "yes")),
)


@dataclasses.dataclass(frozen=True)
class Config:
    heads: tuple = HEADS
    pad_id: int = 1


class Oracle(nn.Module):
    """Answers by looking at the tokens: what it says can be told by hand from the texts."""

    config: Config = Config()

    def __call__(self, inputs, task_ids=None):
        is_g = inputs == inputs.dtype.type(G)
        classes = jnp.stack([jnp.zeros(len(inputs)), is_g.any(1) - 0.5], 1)
        tags = jax.nn.one_hot(jnp.where(is_g, 0, 2), 3)
        spans = jnp.where(is_g, 5.0, 0.0)[..., None] * jnp.ones(2) - jnp.arange(inputs.shape[1])[:, None] * 1e-3
        return HeadLogits(classes=classes * (task_ids == 3)[:, None], tags=tags, spans=spans)


G = 0


def example(key, texts, answer, targets):
    return AnsweredExample(id=key, inputs="x", targets=targets, texts=texts, answer=answer)


def task(name, answer, metric, *rows):
    metadata = with_answer({}, answer)
    splits = {"test": tuple(range(len(rows)))}
    return TaskSpec(
        name=name, category="c", definition="", examples=rows, metric=metric, splits=splits, metadata=metadata
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    global G
    folder = tmp_path_factory.mktemp("answers")
    tokenizer = roberta_like(folder / "vocabulary")
    (G,) = tokenizer.encode("g", False)
    pairs = task(
        "pairs",
        Answer(kind="class", labels=("no", "yes")),
        "macro_f1",
        example("p0", ("a", "g"), "yes", ("yes",)),
        example("p1", ("a", "b"), "yes", ("yes",)),
        example("p2", ("a",), "no", ("no",)),
    )
    names = task(
        "names",
        Answer(kind="tags", labels=("B-X", "I-X", "O")),
        "entity_f1",
        example("n0", ("go", "a", "g"), ("B-X", "O", "B-X"), ("",)),
        # "ag" begins with another piece than g: the tag on its first piece counts only.
        example("n1", ("ag", "g"), ("B-X", "B-X"), ("",)),
    )
    # Only one window holds a g; the text of the answer is that letter.
    questions = task(
        "questions",
        Answer(kind="span"),
        "squad_f1",
        example("q0", ("what", "a" * 30 + "g" + "b" * 30), (30,), ("g",)),
        example("q1", ("what", "ab g"), (0,), ("ab g", "ab")),
    )
    windows = Windows(max_input_tokens=24, stride=4)
    return cache_answers([pairs, names, questions], ["test"], folder / "store", tokenizer, windows=windows)


def test_predictions_and_scores_by_hand(store):
    module = Oracle()
    predicted = predict(module, {}, store, "test", batch_size=3)
    assert [(one.id, one.prediction, one.references) for one in predicted["pairs"]] == [
        ("p0", "yes", "yes"),
        ("p1", "no", "yes"),
        ("p2", "no", "no"),
    ]
    # " go": the space is the word's first piece, so nothing is found there; words have a space before them.
    assert [one.references for one in predicted["names"]] == [["B-X", "O", "B-X"], ["B-X", "B-X"]]
    assert [one.prediction for one in predicted["names"]] == [["O", "O", "O"], ["O", "O"]]
    assert [(one.id, one.prediction) for one in predicted["questions"]] == [("q0", "g"), ("q1", "g")]
    scores = score(predicted, store, "test")
    # By hand. Classes: both F1s are 2/3. Spans: "g" is right; of "ab g" it is one of two words: F1 2/3.
    assert scores["pairs"].metrics == pytest.approx(dict.fromkeys(("accuracy", "macro_f1", "score"), 200 / 3))
    assert scores["names"].metrics == {"entity_f1": 0.0, "score": 0.0}
    expected = {"squad_f1": 250 / 3, "squad_exact": 50.0, "score": 250 / 3}
    assert scores["questions"].metrics == pytest.approx(expected)
    evaluation = AnswerEvaluation(every=1, module=module, store=store, split="test", batch_size=2)
    assert evaluation.run({}, 0)["mean"] == pytest.approx((200 / 3 + 0.0 + 250 / 3) / 3)


def test_an_evaluation_leaves_predictions_scores_and_records_and_is_not_repeated(store, tmp_path, monkeypatch):
    config = RobertaConfig(vocab_size=300, embed_dim=4, num_heads=1, mlp_dim=4, num_layers=1, heads=HEADS)
    module = RobertaWithHeads(config)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), nn.unbox(abstract_params(module)))
    told = []
    scores = evaluate(
        Pretrained(config, module, params, None),
        store,
        "test",
        tmp_path,
        labels=Labels(step=7),
        progress=lambda *done: told.append(done),
    )
    assert told == [(1, 3, "pairs"), (2, 3, "names"), (3, 3, "questions")]
    rows = read_rows(prediction_file(tmp_path, "questions"))
    assert [row["id"] for row in rows] == ["q0", "q1"] and rows[1]["references"] == ["ab g", "ab"]
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["tasks"]["names"]["entity_f1"] == round(scores["names"].metrics["entity_f1"], 4)
    assert written["overall"]["n"] == 7
    found = {(one.task, one.metric) for one in read_records(tmp_path / "records.jsonl")}
    assert ("pairs", "macro_f1") in found and ("questions", "score") in found
    answered = []
    answer = lambda *args, tasks, **options: answered.extend(tasks) or predict(*args, tasks=tasks, **options)
    monkeypatch.setattr(answer_runner, "predict", answer)
    again = functools.partial(evaluate, Pretrained(config, module, params, None), store, "test", tmp_path)
    assert again() == scores and not answered
    path = prediction_file(tmp_path, "names")
    path.write_text(path.read_text().replace('"key"', '"damaged"', 1))
    assert again() == scores and answered == ["names"]
    again(span_choice=SpanChoice(max_answer_length=2))
    assert answered == ["names", "questions"]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert again() == scores and answered == ["names", "questions", "names", "questions"]
    with pytest.raises(InputError, match="holds results of split 'test'"):
        evaluate(Pretrained(config, module, params, None), store, "other", tmp_path)


def test_tasks_are_found_by_name_not_by_place(store):
    assert head_ids(HEADS, store.task_names("test")).tolist() == [3, 2, 1]
    batches = renumbered([{"task_ids": np.array([0, 2, 1])}], np.array([3, 2, 1]))
    assert next(batches)["task_ids"].tolist() == [3, 1, 2]
    with pytest.raises(UnknownNameError, match="unknown head of task 'pears'; closest: pairs"):
        head_ids(HEADS, ["pears"])


def test_a_head_with_other_labels_is_refused(store):
    heads = (*HEADS[:3], Head(name="pairs", kind="class", labels=("yes", "no")))
    with pytest.raises(InputError, match="task pairs: the store has other labels than the model's head"):
        predict(Oracle(Config(heads=heads)), {}, store, "test")


def test_spans_stay_inside_the_context_in_order_and_short():
    inputs = np.array([0, 9, 9, 2, 2, 10, 11, 12, 13, 2])  # <s> question </s></s> context </s>
    logits = np.zeros((10, 2), np.float32)
    logits[[0, 1, 9], :] = 9.0  # outside the context
    logits[7, 0], logits[6, 1], logits[8, 1] = 3.0, 4.0, 2.0
    choose = lambda **options: best_spans([logits], [inputs], 2, SpanChoice(**options))
    # By hand: 7 to 8 has 5; 5 to 6 and 6 to 6 have 4; 7 to 6 would have 7, but ends before it begins.
    assert choose() == [12, 13]
    assert choose(max_answer_length=1) == [11]
    assert choose(n_best=3) == []  # the three best first tokens all stand outside the context
    better = logits + np.float32(1.0)
    assert best_spans([logits, better], [inputs, inputs + 0], 2, SpanChoice(max_answer_length=1)) == [11]


def test_numbers_below_one_are_refused():
    with pytest.raises(InputError, match="n_best=0"):
        SpanChoice(n_best=0)
