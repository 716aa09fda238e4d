import os
import pathlib
import sys

# Tests compile much and compute little: without LLVM's optimisations they take about half the time. Only machine code
# changes, not the program; `make parity` sets the variable to nothing and tests what users run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis
import jax
import pytest

REAL_DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for packing_toy

jax.config.update("jax_num_cpu_devices", 8)

# A first call compiles, and a busy machine is slow: how long an example takes says nothing about whether it is right.
hypothesis.settings.register_profile("jaxmtl", deadline=None)
hypothesis.settings.load_profile("jaxmtl")


def pytest_collection_modifyitems(items):
    if REAL_DATA.is_dir():
        return
    skip = pytest.mark.skip(reason="the real data sets (../shared/data) are not on this machine")
    for item in items:
        if item.get_closest_marker("real_data"):
            item.add_marker(skip)
