import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmtl import checkpoints
from jaxmtl.checkpoints import CheckpointPolicy, Checkpoints, find_start
from jaxmtl.partitioning import batch_sharding, make_mesh, replicated
from jaxmtl.types import InputError

TRANSFORM = optax.adam(0.1)
COUNT = {"count": jnp.zeros(())}


def make_state(sharding=None, rows=8):
    params = {"layer": {"kernel": jnp.arange(rows * 3.0).reshape(rows, 3)}, "scale": jnp.ones(rows)}
    opt_state = TRANSFORM.init(params)
    if sharding is not None:
        put = lambda leaf: jax.device_put(leaf, sharding if leaf.ndim else replicated(sharding.mesh))
        params, opt_state = jax.tree.map(put, (params, opt_state))
    return params, opt_state


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def save(folder, *steps, keep=2, **progress):
    with Checkpoints(folder, keep=keep) as store:
        for step in steps:
            store.save(step, *make_state(), {"step": step, **progress})


def read(folder, state=None):
    with Checkpoints(folder) as store:
        return store.restore(*shapes(state or make_state()))


def steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def refuse():
    raise AssertionError("must not be called")


def find(folder, **options):
    params, opt_state = shapes(make_state())
    with Checkpoints(folder) as store:
        return find_start(store, **(dict(params=params, opt_state=opt_state, scratch=refuse) | options))


def assert_trees_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_what_was_saved_is_read(tmp_path):
    save(tmp_path, 3, note="ä")
    found = read(tmp_path)
    assert_trees_equal((found.params, found.opt_state), make_state())
    assert found.progress == {"step": 3, "note": "ä"}


def test_arrays_are_read_straight_into_another_mesh(tmp_path):
    saved = make_state(batch_sharding(make_mesh(data=4, tensor=2)))
    with Checkpoints(tmp_path) as store:
        store.save(1, *saved, {"step": 1})
    wanted = make_state(batch_sharding(make_mesh(data=1, fsdp=8)))
    found = read(tmp_path, wanted)
    assert_trees_equal(found.params, wanted[0])
    assert found.params["layer"]["kernel"].sharding == wanted[0]["layer"]["kernel"].sharding


def test_the_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as store:
        for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
            store.save(step, *make_state(), {"step": step, "best_step": best})
    assert steps(tmp_path) == [2, 4, 5]
    with Checkpoints(tmp_path, keep=1) as store:
        store.restore(*shapes(make_state()))
        store.save(6, *make_state(), {"step": 6, "best_step": 6})
    assert steps(tmp_path) == [6]


def test_saving_does_not_see_later_changes(tmp_path):
    """The save goes on in the background while the next step writes over the donated memory."""
    update = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    tree = jax.jit(lambda: {"big": jnp.arange(4_000_000.0)})()
    expected = np.array(tree["big"])
    with Checkpoints(tmp_path) as store:
        store.save(1, tree, COUNT, {"step": 1})
        for _ in range(5):
            tree = update(tree)
        jax.block_until_ready(tree)
    with Checkpoints(tmp_path) as store:
        found = store.restore(shapes(tree), shapes(COUNT))
    np.testing.assert_array_equal(found.params["big"], expected)


def test_the_own_checkpoint_comes_first(tmp_path):
    save(tmp_path / "own", 5)
    save(tmp_path / "other", 7)
    start = find(tmp_path / "own", resume_from=tmp_path / "other", pretrained=refuse)
    assert start.progress["step"] == 5


def test_then_the_run_to_resume_from_without_its_best(tmp_path):
    save(tmp_path / "other", 7, best_step=7, best={"step": 7})
    start = find(tmp_path / "own", resume_from=tmp_path / "other", pretrained=refuse)
    assert start.progress == {"step": 7}
    assert start.opt_state is not None


def test_then_pretrained_weights_as_a_copy(tmp_path):
    params, _ = make_state()
    start = find(tmp_path, pretrained=lambda: params)
    assert start.opt_state is None and start.progress is None
    assert_trees_equal(start.params, params)
    jax.tree.map(lambda leaf: leaf.delete(), start.params)
    assert not params["scale"].is_deleted()


def test_then_random_weights(tmp_path):
    assert find(tmp_path, scratch=lambda: "random").params == "random"


def test_pretrained_weights_of_another_size_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"pretrained.*layer/kernel: found shape \(4, 3\), expected shape \(8, 3\)"):
        find(tmp_path, pretrained=lambda: make_state(rows=4)[0])


def test_a_folder_without_checkpoints_cannot_be_resumed_from(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        find(tmp_path / "own", resume_from=tmp_path / "nothing")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        find(tmp_path / "own", resume_from=tmp_path / "empty")
    assert not (tmp_path / "nothing").exists()


def test_a_checkpoint_of_another_size_names_the_first_leaf_that_differs(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(InputError, match=r"1/params.*layer/kernel: found shape \(8, 3\), expected shape \(6, 3\)"):
        read(tmp_path, make_state(rows=6))


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    save(tmp_path, 1)
    params, _ = make_state()
    with pytest.raises(InputError, match=r"1/optimizer.*expected nothing"):
        read(tmp_path, (params, optax.sgd(0.1).init(params)))


@pytest.mark.parametrize("item", ["params", "optimizer", "progress"])
def test_a_checkpoint_with_a_cut_file_is_refused(tmp_path, item):
    save(tmp_path, 1)
    files = [path for path in (tmp_path / "checkpoints" / "1" / item).rglob("*") if path.is_file()]
    files = [path for path in files if path.name != "commit_success.txt"]  # only its presence counts
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(InputError, match="checkpoints/1: this checkpoint cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize("item", ["params", "optimizer", "progress"])
def test_a_checkpoint_without_an_item_is_refused(tmp_path, item):
    save(tmp_path, 1)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / item)
    with pytest.raises(InputError, match="checkpoints/1: this checkpoint cannot be read"):
        read(tmp_path)


def test_an_unfinished_save_is_cleared_away(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp")
    assert read(tmp_path).progress["step"] == 1
    assert steps(tmp_path) == [1]


def test_a_run_that_never_saved_leaves_no_folder_behind(tmp_path):
    with Checkpoints(tmp_path / "run") as store:
        assert store.latest() is None
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with Checkpoints(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir() and not list((tmp_path / "mine").iterdir())


def test_a_nearly_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    save(tmp_path, 1)
    full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: full)
    with pytest.raises(InputError, match="step 2 needs about .* GB are free"):
        save(tmp_path, 2)
    assert steps(tmp_path) == [1]


FILL_THE_DISK = """
import resource, sys
import jax.numpy as jnp
from jaxmtl.checkpoints import Checkpoints
from jaxmtl.types import InputError

tree = {"big": jnp.sin(jnp.arange(2_000_000.0))}
store = Checkpoints(sys.argv[1], keep=1)
store.save(1, tree, {"count": jnp.zeros(())}, {"step": 1})
store.wait()
# No file may grow beyond 100 kB from here: writes fail half-way, as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    store.save(2, tree, {"count": jnp.zeros(())}, {"step": 2})
    store.wait()
except InputError as error:
    print(error)
    sys.exit(1)
"""


def test_a_disk_that_fills_up_while_saving_leaves_the_previous_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", FILL_THE_DISK, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "could not be written" in done.stdout and "the ones before it are whole" in done.stdout
    assert "File too large" in done.stdout and done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr, "what is raised is not told in the log too"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    tree = {"big": jnp.sin(jnp.arange(2_000_000.0))}
    with Checkpoints(tmp_path) as store:
        found = store.restore(shapes(tree), shapes(COUNT))
    assert found.progress == {"step": 1}
    np.testing.assert_array_equal(found.params["big"], tree["big"])


@pytest.mark.parametrize("bad", [dict(every=0), dict(keep=0)])
def test_policies_below_one_are_refused(bad):
    with pytest.raises(InputError, match="at least 1"):
        CheckpointPolicy(**bad)


def test_progress_is_plain_json(tmp_path):
    save(tmp_path, 1, best_step=1)
    assert json.loads((tmp_path / "checkpoints/1/progress/metadata").read_text())["best_step"] == 1
