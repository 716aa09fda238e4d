"""The loop over a real token store: tasks in, tokenised, drawn, trained on, validated, stopped and resumed."""

import functools

import pytest
from training_toy import Recorder, Tiny, assert_trees_equal, toy_run

from jaxmtl import tokenizers
from jaxmtl.checkpoints import CheckpointPolicy
from jaxmtl.feed.eval_stream import eval_stream
from jaxmtl.feed.stream import train_stream
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.tasks import prompts
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.training.loop import train
from jaxmtl.training.validation import ValidationLoss
from jaxmtl.types import Example

WORDS = "the quick brown fox jumps over lazy dogs and cats while seven birds sing old songs".split()


def make_task(name, offset):
    pairs = [(WORDS[(k + offset) % 16], WORDS[(k + 1 + offset) % 16]) for k in range(12)]
    examples = tuple(
        Example(id=f"{name}-{k}", inputs=source, targets=(target,)) for k, (source, target) in enumerate(pairs)
    )
    splits = {"train": tuple(range(10)), "validation": (10, 11)}
    return TaskSpec(name=name, category="Toy", definition="Say the next word.", examples=examples, splits=splits)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feed")
    corpus = [" ".join(WORDS), "Definition: Say the next word. Now complete the following example - Input: Output:"]
    tokenizer = tokenizers.train_sentencepiece(corpus * 50, folder / "spiece.model", 64, 10)
    prompt = functools.partial(prompts.tk_instruct, max_tokens=96)
    preprocessing = Preprocessing(prompt=prompt, max_input_tokens=96, max_target_tokens=16)
    tasks = [make_task("next", 0), make_task("later", 5)]
    return cache_tasks(tasks, ["train", "validation"], folder / "store", preprocessing, tokenizer)


def run_of(store, folder, **options):
    evaluation = ValidationLoss(
        module=Tiny(),
        batches=lambda: eval_stream(store, "validation", batch_size=4),
        task_names=store.task_names("validation"),
        every=4,
    )
    stream = train_stream(store, batch_size=8, seed=1, window=3)
    names = store.task_names("train")
    return toy_run(folder, **(dict(stream=stream, task_names=names, num_steps=8, evaluations=(evaluation,)) | options))


def test_a_token_store_is_trained_on_and_a_resumed_run_sees_the_same_examples(store, tmp_path):
    writer = Recorder()
    whole = train(run_of(store, tmp_path / "whole", writer=writer))
    logged = {name for _, values in writer.lines for name in values}
    assert {"train/task_loss/next", "validation/task_loss/later", "validation/loss"} <= logged
    policy = CheckpointPolicy(every=5)
    train(run_of(store, tmp_path / "parts", num_steps=5, checkpoints=policy))  # stops inside the second window
    resumed = train(run_of(store, tmp_path / "parts", checkpoints=policy))
    assert_trees_equal(resumed.params, whole.params)
