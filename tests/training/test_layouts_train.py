"""Layouts and rates from a token store through T5 and the loop: the same losses whatever shares a batch or a row."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest
from training_toy import assert_trees_equal, toy_run

from jaxmtl import tokenizers
from jaxmtl.checkpoints import CheckpointPolicy
from jaxmtl.feed.changing_rates import DynamicWeightAverage
from jaxmtl.feed.grouping import grouped, pad, same_cost
from jaxmtl.feed.packing import packed
from jaxmtl.feed.sampler import Draw, PooledSampler, Sampler
from jaxmtl.feed.stream import train_stream
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.tasks import prompts
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.training.loop import train
from jaxmtl.training.objectives import EncoderDecoderLoss, sum_segments
from jaxmtl.types import Example

WORDS = "the quick brown fox jumps over lazy dogs and cats while seven birds sing old songs".split()
SIZES = dict(vocab_size=64, embed_dim=12, num_heads=3, head_dim=5, mlp_dim=20, dropout_rate=0.0)
LAYERS = dict(num_encoder_layers=2, num_decoder_layers=2, relative_buckets=8, relative_max_distance=20)


def make_task(name, length):
    examples = tuple(
        Example(id=str(k), inputs=" ".join(WORDS[: 1 + (k + length) % 13]), targets=(" ".join(WORDS[: 1 + k % 3]),))
        for k in range(16)
    )
    splits = {"train": tuple(range(16))}
    return TaskSpec(name=name, category="Toy", definition="Repeat.", examples=examples, splits=splits)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    tokenizer = tokenizers.train_sentencepiece([" ".join(WORDS) + " Repeat."] * 50, folder / "spiece.model", 40, 2)
    how = Preprocessing(prompt=prompts.bare, max_input_tokens=48, max_target_tokens=16)
    return cache_tasks([make_task("short", 0), make_task("long", 6)], ["train"], folder / "store", how, tokenizer)


@pytest.fixture(scope="module")
def model():
    module = T5(T5Config(**SIZES, **LAYERS))
    tokens = np.ones((1, 2), np.int32)
    return module, jax.jit(module.init)(jax.random.key(0), tokens, tokens)["params"]


@pytest.mark.parametrize("layout", [grouped, functools.partial(grouped, rows=same_cost), packed])
def test_each_example_has_the_loss_that_it_has_alone(store, model, layout):
    module, params = model
    params = jax.tree.map(
        lambda leaf: getattr(leaf, "value", leaf), params, is_leaf=lambda leaf: hasattr(leaf, "value")
    )
    objective = jax.jit(lambda batch: EncoderDecoderLoss()(module, {"params": params}, batch, dropout_key=None))
    stream = train_stream(store, batch_size=8, window=2, sampler=PooledSampler, layout=layout)
    found = {}
    for batch in itertools.islice(stream, 6):
        losses = objective(batch)
        if "target_segments" in batch:
            summed = np.asarray(sum_segments(losses, batch["target_segments"], 32).loss)
            rows, places = np.nonzero((batch["target_positions"] == 0) & (batch["target_segments"] > 0))
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                pair = batch["task_ids"][row, place], batch["example_ids"][row, place]
                found[pair] = summed[row, batch["target_segments"][row, place] - 1]
        else:
            found |= zip(
                zip(batch["task_ids"], batch["example_ids"], strict=True), np.asarray(losses.loss.sum(1)), strict=True
            )
    assert len(found) >= 24
    for (task, example), loss in found.items():
        draw = Draw(np.array([task], np.int32), np.array([example]))
        alone = objective(pad(stream.rows, draw, (48, 16)))
        assert loss == pytest.approx(float(alone.loss.sum()), rel=1e-5)


def test_rates_that_follow_losses_resume_in_the_loop(store, tmp_path):
    follows = functools.partial(Sampler, rates=DynamicWeightAverage(loss_period=2, temperature=1e-3))

    def run(folder, num_steps, **options):
        few = functools.partial(grouped, num_shapes=2)
        stream = train_stream(store, batch_size=8, window=3, sampler=follows, layout=few)
        names = store.task_names("train")
        return train(toy_run(folder, stream=stream, task_names=names, num_steps=num_steps, **options))

    whole = run(tmp_path / "whole", 24)
    policy = CheckpointPolicy(every=11)
    run(tmp_path / "parts", 11, checkpoints=policy)
    resumed = run(tmp_path / "parts", 24, checkpoints=policy)
    assert_trees_equal(resumed.params, whole.params)
    draws = json.loads((tmp_path / "whole" / "draws.json").read_text())
    assert json.loads((tmp_path / "parts" / "draws.json").read_text()) == draws
    asked = [task["asked"] for task in draws.values()]
    assert sum(asked) == pytest.approx(sum(task["drawn"] for task in draws.values()), abs=0.01)
    assert abs(asked[0] - asked[1]) > 1, "the rates never left uniform"


@pytest.mark.long
def test_a_packed_run_resumes_exactly(store, tmp_path):
    def run(folder, num_steps, **options):
        stream = train_stream(store, batch_size=8, window=3, layout=packed)
        module = T5(T5Config(**SIZES, **LAYERS))
        names = store.task_names("train")
        return train(toy_run(folder, module=module, stream=stream, task_names=names, num_steps=num_steps, **options))

    whole = run(tmp_path / "whole", 5)
    assert len(whole.compilations) == 1
    run(tmp_path / "parts", 3, checkpoints=CheckpointPolicy(every=3))
    assert_trees_equal(run(tmp_path / "parts", 5).params, whole.params)
