"""The table of embeddings as an output layer: few rows are scored from the other side, with the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models.layers import FEW_ROWS, Embed


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(FEW_ROWS, 1), (FEW_ROWS + 1, 1), (3, 2), (5,)])
def test_scores_and_gradients_are_those_of_a_product(shape, dtype):
    module = Embed(11, 6, jax.nn.initializers.normal(1.0), dtype)
    table = jax.random.normal(jax.random.key(0), (11, 6))
    x = jax.random.normal(jax.random.key(1), (*shape, 6))
    weights = jax.random.normal(jax.random.key(2), (*shape, 11))

    def ours(table, x):
        return jnp.sum(module.apply({"params": {"embedding": table}}, x, method="attend") * weights)

    def plain(table, x):
        cast = lambda leaf: leaf.astype(dtype).astype(jnp.float32)
        return jnp.sum(jnp.einsum("...d,vd->...v", cast(x), cast(table)) * weights)

    # bfloat16 rounds what comes back through the cast to 8 bits.
    tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == jnp.float32 else dict(rtol=2e-2, atol=2e-2 * np.sqrt(x.size))
    np.testing.assert_allclose(ours(table, x), plain(table, x), **tolerance)
    for mine, expected in zip(jax.grad(ours, (0, 1))(table, x), jax.grad(plain, (0, 1))(table, x), strict=True):
        np.testing.assert_allclose(mine, expected, **tolerance)
