import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models.initial import abstract_params
from jaxmtl.partitioning import make_mesh, shardings_for
from jaxmtl.weights.fingerprint import weights_hash

TREE = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": {"c": np.ones(5, np.float32)}}


def mixed(x):
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
    return x ^ (x >> 16)


def by_hand(tree):
    """The same hash with Python integers."""
    digest, sums = hashlib.sha256(), b""
    for path, leaf in (("a", tree["a"]), ("b/c", tree["b"]["c"])):
        digest.update(f"{path} {leaf.shape} {leaf.dtype}\n".encode())
        words = [int(word) for word in leaf.reshape(-1).view(np.uint32)]
        for seed in (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):
            total = sum(mixed(word ^ mixed((i + seed) % 2**32)) for i, word in enumerate(words)) % 2**32
            sums += total.to_bytes(4, "little")
    digest.update(sums)
    return digest.hexdigest()[:16]


def test_hash_equals_one_computed_with_python_integers():
    assert weights_hash(TREE) == by_hand(TREE)


@pytest.mark.parametrize("index", [(0, 0), (2, 3)])
def test_one_changed_bit_changes_the_hash(index):
    other = TREE["a"].copy()
    other[index] = np.nextafter(other[index], np.float32(100))
    assert weights_hash({**TREE, "a": other}) != weights_hash(TREE)


def test_swapped_values_and_other_shapes_names_and_dtypes_change_the_hash():
    others = [TREE["a"][::-1], TREE["a"].reshape(4, 3), TREE["a"].astype(jnp.bfloat16), TREE["a"].astype(np.int32)]
    hashes = {weights_hash({**TREE, "a": other}) for other in others} | {weights_hash({"z": TREE["a"], "b": TREE["b"]})}
    assert len(hashes | {weights_hash(TREE)}) == 6


def test_hash_is_the_same_on_a_mesh(pretrained):
    for axes in (dict(data=8), dict(data=2, fsdp=2, tensor=2)):
        shardings = shardings_for(abstract_params(pretrained.module), make_mesh(**axes))
        placed = jax.device_put(pretrained.params, shardings)
        assert weights_hash(placed) == weights_hash(pretrained.params)


def test_the_hash_in_another_dtype_is_that_of_the_cast_weights():
    cast = jax.tree.map(lambda leaf: jnp.asarray(leaf / 3).astype(jnp.bfloat16), TREE)
    assert weights_hash(jax.tree.map(lambda leaf: leaf / 3, TREE), "bfloat16") == weights_hash(cast)
