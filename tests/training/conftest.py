import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for training_toy, which subprocesses of tests import too


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiles 2.5 times as fast; test_kill trains in processes of its own, with all optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
