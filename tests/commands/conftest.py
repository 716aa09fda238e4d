import contextlib
import functools
import os
import pathlib
import socket
import sys

import jax
import pytest

from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.main import main
from jaxmtl.tasks import catalog, prompts
from jaxmtl.tokenizers import train_sentencepiece

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from short_runs import train_words  # noqa: E402  (found by the line above)


@contextlib.contextmanager
def quick_compilation():
    """Compiles 2.5 times as fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def quickly():
    with quick_compilation():
        yield


def make_store(folder, vocab_size):
    """Makes a store of four embedded tasks, without TensorFlow."""
    tasks = list(catalog.load("toy", None, num_examples=16).values())[:4]
    texts = [text for task in tasks for one in task.examples for text in (task.definition, one.inputs, *one.targets)]
    tokenizer = train_sentencepiece(texts, folder / "spiece.model", vocab_size, 10)
    prompt = functools.partial(prompts.tk_instruct, max_tokens=64)
    preprocessing = Preprocessing(prompt=prompt, max_input_tokens=64, max_target_tokens=24)
    return cache_tasks(tasks, ("train", "validation", "test"), folder / "store", preprocessing, tokenizer).folder


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("commands"), 260)


@pytest.fixture(scope="session")
def other_store(tmp_path_factory):
    """The same tasks in another vocabulary."""
    return make_store(tmp_path_factory.mktemp("other"), 250)


@pytest.fixture(scope="session")
def run_dir(store, tmp_path_factory):
    """A run folder of four steps; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with quick_compilation():
        assert main(train_words(store, folder, "--gin.STEPS=4")) == 0
    return folder


@pytest.fixture
def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture
def on_cpu():
    """Environment of child processes: one CPU device each, the checkout importable."""
    root = str(pathlib.Path(__file__).parents[2])
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join([root, *sys.path]),
    }
