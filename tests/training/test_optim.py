import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmtl.training import optim
from jaxmtl.training.schedules import constant
from jaxmtl.types import InputError

RNG = np.random.default_rng(0)
RATE = constant(rate=0.1)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def run(transform, params, all_grads):
    state = transform.init(params)
    for grads in all_grads:
        updates, state = transform.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def adafactor_by_hand(param, all_grads, rate):
    """Follows Shazeer & Stern 2018, algorithm 4, for one matrix, in float64."""
    param = param.astype(np.float64)
    row, col = np.zeros(param.shape[0]), np.zeros(param.shape[1])
    for step, grad in enumerate(all_grads, start=1):
        decay = 1 - step**-0.8
        squares = grad.astype(np.float64) ** 2 + 1e-30
        row = decay * row + (1 - decay) * squares.mean(1)
        col = decay * col + (1 - decay) * squares.mean(0)
        update = grad / np.sqrt(np.outer(row, col) / row.mean())
        update /= max(1.0, np.sqrt((update**2).mean()))
        param = param - rate * max(1e-3, np.sqrt((param**2).mean())) * update
    return param


def test_adafactor_follows_the_paper():
    params, grads = {"w": normal(6, 4)}, [{"w": normal(6, 4)} for _ in range(3)]
    ours = run(optim.adafactor(RATE, {"w": False}, min_factored_size=2), params, grads)
    expected = adafactor_by_hand(params["w"], [g["w"] for g in grads], 0.1)
    np.testing.assert_allclose(ours["w"], expected, rtol=1e-5)


def test_adafactor_treats_stacked_layers_as_single_layers():
    shapes = {"kernel": (3, 6, 4), "scale": (3, 5)}
    stacked = {"kernel": True, "scale": True}
    params = {name: normal(*shape) for name, shape in shapes.items()}
    grads = [{name: normal(*shape) for name, shape in shapes.items()} for _ in range(3)]
    ours = run(optim.adafactor(RATE, stacked, min_factored_size=2), params, grads)
    layer = lambda tree, index: {name: leaf[index] for name, leaf in tree.items()}
    for index in range(3):
        one = optax.adafactor(RATE, min_dim_size_to_factor=2)
        alone = run(one, layer(params, index), [layer(g, index) for g in grads])
        for name in shapes:
            np.testing.assert_allclose(ours[name][index], alone[name], rtol=1e-6)


def test_adafactor_keeps_rows_and_columns_per_layer_only():
    state = optim.adafactor(RATE, {"w": True}, min_factored_size=2).init({"w": jnp.zeros((3, 6, 4))})
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim > 1) <= 3 * (6 + 4 + 2)


def test_step_offset_restarts_the_decay():
    """After k updates, an offset of k makes the next update forget the past, as the first one does."""
    transform = optim.adafactor(RATE, {"w": False}, min_factored_size=2, step_offset=2)
    params, grads = {"w": normal(6, 4)}, {"w": normal(6, 4)}
    state = jax.tree.map(lambda s: s + 2 if s.ndim == 0 and s.dtype == jnp.int32 else s, transform.init(params))
    updates, _ = transform.update(grads, state, params)
    expected = adafactor_by_hand(params["w"], [grads["w"]], 0.1) - params["w"]
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-4, atol=1e-7)


def test_adamw_follows_the_paper_and_decays_matrices_only():
    params = {"w": normal(2, 3), "scale": normal(2, 3)}  # scale: two layers' norms, stacked
    grads = [{"w": normal(2, 3), "scale": normal(2, 3)} for _ in range(3)]
    transform = optim.adamw(RATE, {"w": False, "scale": True}, weight_decay=0.5, max_norm=None)
    ours = run(transform, params, grads)
    for name, decay in (("w", 0.5), ("scale", 0.0)):
        param, m, v = params[name].astype(np.float64), 0.0, 0.0
        for step, grad in enumerate((g[name].astype(np.float64) for g in grads), start=1):
            m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
            adam = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
            param = param - 0.1 * (adam + decay * param)
        np.testing.assert_allclose(ours[name], param, rtol=1e-4)


def test_clipping_scales_all_gradients_by_the_global_norm():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([0.0, 4.0])}  # global norm 5
    small = jax.tree.map(lambda g: g / 5, grads)
    transform = optim.adamw(RATE, {"a": False, "b": False}, max_norm=1.0, epsilon=1.0)
    update = lambda g: transform.update(g, transform.init(grads), grads)[0]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), update(grads), update(small))


def test_groups_scale_the_rate_of_the_parameters_they_match():
    params = {"head": {"kernel": normal(2, 2)}, "body": {"kernel": normal(2, 2)}, "rest": normal(2, 2)}
    stacked = jax.tree.map(lambda _: False, params)
    groups = (
        optim.Group(name="frozen", matches=lambda path: path.startswith("body/"), rate=0.0),
        optim.Group(name="head", matches=lambda path: "kernel" in path, rate=2.0),
    )
    plain, grouped = optim.adamw(RATE, stacked), optim.adamw(RATE, stacked, groups=groups)
    update = lambda transform: transform.update(params, transform.init(params), params)[0]
    before, after = update(plain), update(grouped)
    np.testing.assert_allclose(after["head"]["kernel"], 2 * before["head"]["kernel"])
    np.testing.assert_array_equal(after["body"]["kernel"], 0)
    # Gradients are clipped by the norm of what is trained, which Adam's first step forgets but for its epsilon.
    np.testing.assert_allclose(after["rest"], before["rest"], rtol=1e-6)


@pytest.mark.parametrize("make", [optim.adamw, optim.adafactor])
def test_what_is_frozen_is_not_in_the_optimisers_state_nor_in_the_norm(make):
    params = {"base": {"kernel": normal(40, 50), "scale": normal(7)}, "net": {"kernel": normal(3, 4)}}
    stacked = jax.tree.map(lambda _: False, params)
    frozen = optim.Group(name="base", matches=lambda path: path.startswith("base/"), rate=0.0)
    transform = make(RATE, stacked, max_norm=1.0, groups=(frozen,))
    state = transform.init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 40
    grads = jax.tree.map(lambda leaf: 1e6 * leaf, params)
    updates, _ = transform.update(grads, state, params)
    after = optax.apply_updates(params, updates)
    jax.tree.map(np.testing.assert_array_equal, after["base"], params["base"])
    alone = make(RATE, stacked["net"], max_norm=1.0)
    expected, _ = alone.update(grads["net"], alone.init(params["net"]), params["net"])
    jax.tree.map(np.testing.assert_array_equal, updates["net"], expected)


def test_a_group_may_learn_by_an_optimiser_of_its_own():
    params = {"base": {"kernel": jnp.full((4, 4), 2.0)}, "network": {"kernel": jnp.ones((4, 4))}, "still": jnp.ones(3)}
    stacked = jax.tree.map(lambda leaf: False, params)
    grads = jax.tree.map(lambda leaf: leaf * jnp.linspace(0.1, 1.0, leaf.size).reshape(leaf.shape), params)
    groups = (
        optim.Group(name="still", matches=lambda path: path == "still", rate=0.0),
        optim.Group(
            name="base",
            matches=lambda path: path.startswith("base/"),
            rate=0.5,
            optimizer=functools.partial(optim.adafactor, min_factored_size=4),
        ),
    )
    both = optim.adamw(RATE, stacked, max_norm=0.1, groups=groups)
    state = both.init(params)
    alone = {
        "base": optim.adafactor(RATE, {"kernel": False}, min_factored_size=4),
        "network": optim.adamw(RATE, {"kernel": False}, max_norm=0.1),
    }
    states = {name: one.init(params[name]) for name, one in alone.items()}
    for _ in range(3):
        updates, state = both.update(grads, state, params)
        for name, one in alone.items():
            expected, states[name] = one.update(grads[name], states[name], params[name])
            share = 0.5 if name == "base" else 1.0
            np.testing.assert_array_equal(updates[name]["kernel"], share * expected["kernel"])
        assert not np.any(updates["still"])
        params = jax.tree.map(jnp.add, params, updates)


@pytest.mark.parametrize("names", [("a", "a"), ("a", "")])
def test_groups_have_names_of_their_own(names):
    groups = [
        optim.Group(name=name, matches=lambda path, start=start: path == start)
        for name, start in zip(names, "xy", strict=True)
    ]
    transform = optim.adamw(RATE, {"x": False, "y": False}, groups=groups)
    with pytest.raises(InputError, match="expected a name for each, and all of them different"):
        transform.init({"x": jnp.zeros(2), "y": jnp.zeros(2)})


def test_groups_that_leave_nothing_to_train_are_refused():
    group = optim.Group(name="all", matches=lambda path: True, rate=0.0)
    with pytest.raises(InputError, match="no parameter is trained"):
        optim.adamw(RATE, {"head": False}, groups=(group,)).init({"head": jnp.zeros(2)})


def test_a_group_that_matches_nothing_is_refused():
    group = optim.Group(name="typo", matches=lambda path: path == "hed")
    with pytest.raises(InputError, match="typo"):
        optim.adamw(RATE, {"head": False}, groups=(group,)).init({"head": jnp.zeros(2)})
