import os
import pathlib
import sys

import hypothesis
import jax
import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
MAPS, MANY_MAPS = pathlib.Path("/proc/self/maps"), 20_000
REAL_DATA = REPOSITORY.parent / "shared" / "data"

# Tests compile much and compute little. Without LLVM's optimisations, with XLA's older way from fusions to machine code
# and in one piece, which change that code and not the program, compiling takes less than half the time; and what one
# test has compiled, others and later runs take from pytest's cache folder. Processes that tests start read the
# environment.
FLAGS = "--xla_backend_optimization_level=0"
if jax.__version_info__[:2] == (0, 10):  # JAX does not start with a flag that its version does not know
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", FLAGS)
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".pytest_cache" / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.05,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": 0,
}
for name, value in CACHE.items():
    os.environ[name] = str(value)
    jax.config.update(name.lower(), value)

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for packing_toy and its like

jax.config.update("jax_num_cpu_devices", 8)

# A first call compiles, and a busy machine is slow: how long an example takes says nothing about whether it is right.
# Many examples compile anew: half of hypothesis's own number keeps the suite short.
hypothesis.settings.register_profile("jaxmtl", deadline=None, max_examples=50)
hypothesis.settings.load_profile("jaxmtl")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Every compiled program takes memory maps, and a process that has too many of them (65,530 on Linux) dies."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()


def pytest_collection_modifyitems(items):
    if REAL_DATA.is_dir():
        return
    skip = pytest.mark.skip(reason="the real data sets (../shared/data) are not on this machine")
    for item in items:
        if item.get_closest_marker("real_data"):
            item.add_marker(skip)
