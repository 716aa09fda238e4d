"""Heads of three kinds on one frozen encoder: fitted together as alone, scored, kept as a folder that loads."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from roberta_like import roberta_like

from jaxmtl.evals import answer_runner, few_shot_heads
from jaxmtl.evals.few_shot import FewShot
from jaxmtl.evals.per_task import settings
from jaxmtl.feed.answers import Windows, cache_answers
from jaxmtl.models.initial import initial_arguments
from jaxmtl.models.roberta import roberta
from jaxmtl.models.roberta_config import RobertaConfig
from jaxmtl.tasks.answers import Answer, AnsweredExample, with_answer
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.training.fitting import Schedule
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained, load_pretrained

HOW = FewShot(
    split="train",
    settings=settings(shots=(4,), learning_rates=(3e-2,)),
    schedule=Schedule(epochs=30, batch_size=4, num_shapes=1),
)
LABEL = HOW.settings[0].label


def task(name, answer, metric, rows, tested):
    examples = tuple(
        AnsweredExample(id=str(key), inputs="x", targets=targets, texts=texts, answer=own)
        for key, (texts, own, targets) in enumerate(rows + tested)
    )
    splits = {"train": tuple(range(len(rows))), "test": tuple(range(len(rows), 2 * len(rows)))}
    metadata = with_answer({}, answer)
    return TaskSpec(
        name=name, category="c", definition="", examples=examples, metric=metric, splits=splits, metadata=metadata
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return roberta_like(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def store(tmp_path_factory, tokenizer):
    said = [
        (("a", "g"), "yes", ("yes",)),
        (("a", "b"), "no", ("no",)),
        (("g",), "yes", ("yes",)),
        (("b",), "no", ("no",)),
    ]
    named = [(("go", "a", "g"), ("B-X", "O", "B-X"), ("",)), (("a", "g"), ("O", "B-X"), ("",))] * 2
    asked = [(("what", "ab g"), (3,), ("g",)), (("what", "g ab"), (0,), ("g",))] * 2
    # None of what is learnt is tested word for word.
    say_more = [((*texts[:-1], f"{texts[-1]} go"), *more) for texts, *more in said]
    name_more = [((*texts, "a"), (*own, "O"), targets) for texts, own, targets in named]
    ask_twice = [(("what what", text), *more) for (_, text), *more in asked]
    tasks = [
        task("pairs", Answer(kind="class", labels=("no", "yes")), "macro_f1", said, say_more),
        task("turned", Answer(kind="class", labels=("maybe", "no", "yes")), "macro_f1", said, say_more),
        task("names", Answer(kind="tags", labels=("B-X", "I-X", "O")), "entity_f1", named, name_more),
        task("questions", Answer(kind="span"), "squad_f1", asked, ask_twice),
    ]
    folder, windows = tmp_path_factory.mktemp("answers"), Windows(max_input_tokens=24, stride=4)
    return cache_answers(tasks, ["train", "test"], folder, tokenizer, windows=windows)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    sizes = dict(embed_dim=16, num_heads=2, mlp_dim=16, num_layers=1, num_positions=32)
    module = roberta(RobertaConfig(**sizes, vocab_size=tokenizer.vocab_size))
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), **initial_arguments(module))["params"])
    # As it starts, `<s>` hardly sees the other tokens: an encoder that was trained has kernels that matter.
    params = jax.tree.map(lambda leaf: leaf * 20 if leaf.ndim > 2 else leaf, params)
    return Pretrained(config=module.config, module=module, params=params, tokenizer=tokenizer)


def run(encoder, store, folder, **options):
    return few_shot_heads.evaluate(encoder, store, "test", folder, **(dict(few_shot=HOW) | options))


@pytest.mark.long
def test_heads_learn_and_are_kept(encoder, store, tmp_path, monkeypatch):
    scores = run(encoder, store, tmp_path)
    model = load_pretrained(tmp_path / LABEL / "model")
    learnt = answer_runner.evaluate(model, store, "train", tmp_path / "learnt")
    for name in ("pairs", "turned", "names"):
        assert learnt[name].metrics["score"] > 90
    assert [head.name for head in model.config.heads] == ["pairs", "turned", "names", "questions"]
    for name, leaf in encoder.params.items():
        for a, b in zip(jax.tree.leaves(leaf), jax.tree.leaves(model.params[name]), strict=True):
            np.testing.assert_array_equal(a, b)
    fits = json.loads((tmp_path / LABEL / "fits.json").read_text())["tasks"]
    assert fits["questions"]["losses"][-1] < 0.5 * fits["questions"]["losses"][0]

    monkeypatch.setattr(few_shot_heads, "fit_each", lambda *given, **more: pytest.fail("fitted again"))
    assert run(encoder, store, tmp_path) == scores


@pytest.mark.long
def test_a_head_is_the_same_without_its_neighbours(encoder, store, tmp_path):
    how = dataclasses.replace(HOW, schedule=Schedule(epochs=2, batch_size=4, num_shapes=1))
    losses = []
    for place, names in (("all", None), ("one", ["turned"])):
        run(encoder, store, tmp_path / place, few_shot=how, tasks=names)
        fits = json.loads((tmp_path / place / LABEL / "fits.json").read_text())["tasks"]
        losses.append(fits["turned"]["losses"])
    np.testing.assert_allclose(*losses, atol=1e-5)


def test_what_cannot_be_fitted_is_refused(encoder, store, tmp_path):
    with pytest.raises(InputError, match="a setting has 0 shots"):
        run(encoder, store, tmp_path, few_shot=dataclasses.replace(HOW, settings=settings(shots=(0,))))
    with pytest.raises(InputError, match=r"9 shots asked for, but 4 of 4 tasks have fewer .* pairs \(4\)"):
        run(encoder, store, tmp_path, few_shot=dataclasses.replace(HOW, settings=settings(shots=(9,))))
