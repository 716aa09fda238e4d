"""Batches that are taken apart on a CPU: what comes of them is what the whole batch gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmtl.adapters.lora import LoRA, init_adapter
from jaxmtl.models import parts
from jaxmtl.models.bart import BART
from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.models.decoding import greedy
from jaxmtl.models.memory import read_memory
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.partitioning import make_mesh, use_mesh

SIZES = dict(embed_dim=12, num_heads=3, mlp_dim=20, num_encoder_layers=2, num_decoder_layers=2, scan_unroll=0)
MODELS = {"t5": T5(T5Config(vocab_size=48, head_dim=5, **SIZES)), "bart": BART(BARTConfig(vocab_size=48, **SIZES))}
INPUTS = np.random.default_rng(0).integers(3, 48, (6, 8))
SEEN = np.arange(8) < np.array([8, 8, 7, 5, 2, 1])[:, None]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "CACHED_TOKENS", 16)


@pytest.fixture
def forgotten_after():
    """Programs of small parts serve no other test."""
    yield
    jax.clear_caches()


def rows_read(monkeypatch, module):
    """A list to which the model adds the number of rows whenever it is made to read some."""
    found, encode = [], type(module).encode

    def counted(self, inputs, *rest, **options):
        found.append(inputs.shape[0])
        return encode(self, inputs, *rest, **options)

    monkeypatch.setattr(type(module), "encode", counted)
    return found


def params_of(module):
    tokens = jnp.ones((1, 1), jnp.int32)
    return nn.unbox(jax.jit(module.init)(jax.random.key(5), tokens, tokens))["params"]


@given(st.integers(1, 64), st.integers(1, 4096))
def test_a_part_divides_the_batch_and_fits_or_is_all_of_it(batch, length):
    size = parts.rows_of_part(batch, length)
    assert batch % size == 0
    if size < batch:
        assert parts.CACHED_TOKENS / 2 <= size * length <= parts.CACHED_TOKENS
        larger = [number for number in range(size + 1, batch) if batch % number == 0]
        assert all(number * length > parts.CACHED_TOKENS for number in larger)


@pytest.mark.parametrize("batch, length, size", [(16, 512, 4), (16, 128, 16), (16, 256, 8), (7, 512, 7), (4, 2048, 1)])
def test_parts_of_some_batches(batch, length, size):
    assert parts.rows_of_part(batch, length) == size


def test_parts_are_put_together_in_order(small_parts):
    shapes = []

    def double(rows):
        shapes.append(rows["ids"].shape)
        return rows["ids"] * 2, rows["seen"].sum(axis=1)

    doubled, counts = parts.by_parts(double, {"ids": jnp.asarray(INPUTS), "seen": jnp.asarray(SEEN)})
    np.testing.assert_array_equal(doubled, INPUTS * 2)
    np.testing.assert_array_equal(counts, SEEN.sum(axis=1))
    assert set(shapes) == {(2, 8)}


@pytest.mark.parametrize("module", MODELS.values(), ids=MODELS)
def test_memory_and_texts_are_those_of_the_whole_batch(monkeypatch, forgotten_after, module):
    variables, call = {"params": params_of(module)}, (jnp.asarray(INPUTS), jnp.asarray(SEEN))
    expected = read_memory(module, variables, *call)
    texts = greedy(module, variables, *call, max_tokens=6)
    monkeypatch.setattr(parts, "CACHED_TOKENS", 16)
    jax.clear_caches()
    found = rows_read(monkeypatch, module)
    # Sums of float32 in another order.
    np.testing.assert_allclose(read_memory(module, variables, *call), expected, atol=1e-5)
    np.testing.assert_array_equal(greedy(module, variables, *call, max_tokens=6), texts)
    assert set(found) == {2}


def test_rows_with_adapters_of_their_own_are_read_together(monkeypatch, small_parts):
    module = MODELS["t5"]
    adapter = init_adapter(module, LoRA(rank=2, targets="q,v"), jax.random.key(1))
    variables = {"params": params_of(module), "lora": adapter.collection()}
    found = rows_read(monkeypatch, module)
    read_memory(module, variables, jnp.asarray(INPUTS), jnp.asarray(SEEN))
    assert found == [6]


def test_a_batch_on_many_devices_is_read_whole(monkeypatch, small_parts):
    module = MODELS["t5"]
    variables = {"params": params_of(module)}
    found = rows_read(monkeypatch, module)
    with use_mesh(make_mesh(data=2, devices=jax.devices()[:2])):
        read_memory(module, variables, jnp.asarray(INPUTS), jnp.asarray(SEEN))
    assert found == [6]
