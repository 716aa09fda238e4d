"""Turned kernels: what layers give with them, and which of a model's are turned."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmtl.models import turned
from jaxmtl.models.layers import FEW_ROWS, TURNED, Dense, normal
from jaxmtl.models.turned import with_turned_kernels


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(st.sampled_from([(1,), (FEW_ROWS, 1), (FEW_ROWS + 1,), (3, 2)]), st.integers(1, 9), st.integers(1, 9))
def test_a_layer_gives_the_same_with_a_turned_kernel(shape, width, features):
    layer = Dense(features, ("embed", "mlp"), normal(1.0), bias_init=normal(1.0))
    x = drawn(width, *shape, width)
    variables = {"params": {"kernel": drawn(features, width, features), "bias": drawn(features, features)}}
    turned_variables = with_turned_kernels(variables)
    assert set(turned_variables["params"]) == {"bias"}
    assert turned_variables[TURNED]["kernel"].shape == (features, width)
    # At most 9 products of float32 are added in another order.
    np.testing.assert_allclose(layer.apply(turned_variables, x), layer.apply(variables, x), atol=1e-5)


def test_a_turned_kernel_is_multiplied_in_the_layers_dtype():
    layer = Dense(4, ("embed", "mlp"), normal(1.0), dtype=jnp.bfloat16)
    x, given_variables = drawn(0, 2, 3), {"params": {"kernel": drawn(1, 3, 4)}}
    found, expected = (layer.apply(v, x) for v in (with_turned_kernels(given_variables), given_variables))
    assert found.dtype == expected.dtype == jnp.bfloat16
    # Both round sums of 3 products, of the size of 1, to 8 bits.
    np.testing.assert_allclose(np.float32(found), np.float32(expected), rtol=2**-7, atol=2**-7)


def test_only_kernels_of_the_named_part_are_turned():
    kernel = np.arange(6.0).reshape(2, 3)
    params = {"lm_head": {"kernel": kernel, "bias": np.ones(3)}, "decoder": {"out": {"kernel": kernel}}}
    found = with_turned_kernels({"params": params, "lora": {}}, below="lm_head/")
    np.testing.assert_array_equal(found[TURNED]["lm_head"]["kernel"], kernel.T)
    assert set(found["params"]["lm_head"]) == {"bias"}
    assert found["params"]["decoder"]["out"]["kernel"] is kernel
    assert found["lora"] == {}


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_nothing_is_turned_on_other_platforms(monkeypatch, platform):
    monkeypatch.setattr(turned.jax, "default_backend", lambda: platform)
    variables = {"params": {"kernel": np.ones((2, 3))}}
    assert with_turned_kernels(variables) is variables
