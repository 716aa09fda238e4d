import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.models.layers import Dense, LayerNorm, normal

X = np.array([[1.0, 2.0, 6.0], [-1.0, 0.0, 1.0]], np.float32)


def test_layer_norm_subtracts_the_mean_and_divides_by_the_deviation():
    params = {"scale": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.array([0.5, 0.0, -1.0])}
    ours = LayerNorm(epsilon=1e-5).apply({"params": params}, X)
    # By hand: means 3 and 0, variances 14/3 and 2/3.
    deviations = np.sqrt(np.array([[14 / 3], [2 / 3]]) + 1e-5)
    expected = (X - np.array([[3.0], [0.0]])) / deviations * [1, 2, 3] + [0.5, 0.0, -1.0]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_layer_norm_of_bfloat16_is_computed_in_float32():
    x = (1000 + jnp.arange(8)).astype(jnp.bfloat16)[None]  # a mean of which bfloat16 itself keeps 3 digits
    ours = LayerNorm(dtype=jnp.dtype("bfloat16")).init_with_output(jax.random.key(0), x)[0]
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(np.float32), expected, atol=2**-8)  # one rounding at the end


def test_a_dense_layer_has_a_bias_only_if_it_is_told_how_to_start_it():
    plain = Dense(2, ("embed", "mlp"), normal(1.0))
    shifted = Dense(2, ("embed", "mlp"), normal(1.0), bias_init=nn.initializers.constant(3.0))
    y, without = plain.init_with_output(jax.random.key(0), X)
    y_shifted, with_bias = shifted.init_with_output(jax.random.key(0), X)
    assert without["params"].keys() == {"kernel"}
    assert with_bias["params"]["bias"].names == ("mlp",)
    np.testing.assert_allclose(y_shifted, y + 3.0, rtol=1e-6)
