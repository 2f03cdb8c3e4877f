"""The two folds, against the layers called one after the other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import initializers, networks
from jaxstab.networks.folds import States, layer_at

MLP = networks.MLP(depth=4, width=6, features_out=3)
X = jnp.linspace(-1.0, 1.0, 5)
PARAMS = networks.chain(MLP).init(jax.random.key(0), X, 1.5, 0.2)
CHAIN = networks.chain(MLP)


def block(layer, h):
    return CHAIN.block(jax.tree.map(lambda leaf: leaf[layer - 1], PARAMS.blocks), h)


def states():
    """x, h_0 .. h_4, y."""
    found = [X, CHAIN.embed(PARAMS, X)]
    for layer in range(1, 5):
        found.append(block(layer, found[-1]))
    return [*found, CHAIN.readout(PARAMS, found[-1])]


def number(carry, here):
    """A step that adds up numbers of layers and reads them off with the size of what a layer meets and makes."""
    return carry + here.layer, jnp.asarray([here.layer, here.h.size, here.out.size])


@pytest.mark.parametrize(("first", "last"), [(0, None), (1, None), (0, 2), (2, 3), (3, 3)])
def test_layers_come_in_their_order_at_the_states_that_they_meet(first, last):
    met = states()
    top = 4 if last is None else last
    wanted = [
        [layer, met[layer].size, met[layer + 1].size] for layer in [*range(first, top + 1), 5]
    ]
    start = met[first]
    total, read = networks.upwards(
        CHAIN, PARAMS, start, number, 0, first=first, last=last, readout=True
    )
    np.testing.assert_array_equal(read, wanted)
    assert total == sum(row[0] for row in wanted)
    passed = networks.states(CHAIN, PARAMS, X, last)
    for fold in (networks.upwards, networks.downwards):
        total, read = fold(CHAIN, PARAMS, passed, number, 0, first=first, last=last, readout=True)
        np.testing.assert_array_equal(read, wanted)


def test_states_are_those_of_the_layers():
    wanted = states()[1:-1]
    passed = networks.states(CHAIN, PARAMS, X)
    np.testing.assert_allclose(passed.stacked, jnp.stack(wanted), rtol=1e-12)
    for layer, h in enumerate(wanted):
        np.testing.assert_allclose(passed.at(layer), h, rtol=1e-12)
        np.testing.assert_allclose(networks.state(CHAIN, PARAMS, X, layer), h, rtol=1e-12)
        traced = jax.jit(lambda depth: networks.state(CHAIN, PARAMS, X, depth))(layer)
        np.testing.assert_allclose(traced, h, rtol=1e-12)


@pytest.mark.slow
def test_derivatives_of_a_layer():
    """Products by state and by parameters, both ways, for the embedding, a block and the readout."""
    met = states()
    for layer in (0, 2, 5):
        here = layer_at(CHAIN, PARAMS, layer, met[layer])
        by_state = jax.jacobian(lambda h, here=here: here.f(here.theta, h))(here.h)
        by_theta = jax.jacobian(lambda theta, here=here: here.f(theta, here.h))(here.theta)
        v = jnp.cos(jnp.arange(here.h.size, dtype=X.dtype))
        u = jnp.cos(jnp.arange(here.out.size, dtype=X.dtype))
        t = jax.tree.map(jnp.cos, here.theta)
        np.testing.assert_allclose(here.push(v), by_state @ v, rtol=1e-12)
        np.testing.assert_allclose(here.pull(u), u @ by_state, rtol=1e-12)
        pushed = jax.tree.map(lambda jacobian, t: jnp.tensordot(jacobian, t, t.ndim), by_theta, t)
        np.testing.assert_allclose(here.push_theta(t), sum(jax.tree.leaves(pushed)), rtol=1e-12)
        pulled = jax.tree.map(lambda jacobian, u=u: jnp.tensordot(u, jacobian, 1), by_theta)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), here.pull_theta(u), pulled
        )
        d_theta, d_h = here.pull_both(u)
        np.testing.assert_allclose(d_h, u @ by_state, rtol=1e-12)
        np.testing.assert_allclose(
            d_theta["dense"]["kernel"].full, pulled["dense"]["kernel"], rtol=1e-12
        )


def test_a_traced_depth_goes_no_further():
    """Sums of numbers of layers, up and down, in one program for all depths."""

    @jax.jit
    def sums(depth):
        passed = States(X, (networks.states(CHAIN, PARAMS, X).stacked,), X)

        def add(carry, here):
            return carry + here.layer, None

        up, nothing = networks.upwards(CHAIN, PARAMS, None, add, 0, first=1, last=depth)
        down, _ = networks.downwards(CHAIN, PARAMS, passed, add, 0, first=1, last=depth)
        assert nothing is None
        return up, down

    assert [tuple(map(int, sums(depth))) for depth in range(5)] == [
        (0, 0),
        (1, 1),
        (3, 3),
        (6, 6),
        (10, 10),
    ]


def test_a_fold_without_layers_gives_its_carry():
    carry, read = networks.upwards(CHAIN, PARAMS, states()[3], number, 7, first=3, last=2)
    assert carry == 7 and read is None


@pytest.mark.slow
def test_a_stack_of_no_layers_reads_off_stacks_of_none():
    # a program that takes the first blocks of a network takes none of them for depth 0
    mlp = networks.MLP(depth=2, width=3, features_out=1)
    x = jnp.arange(1.0, 5.0)
    params = networks.chain(mlp).init(jax.random.key(0), x)
    shallow = params._replace(blocks=jax.tree.map(lambda leaf: leaf[:0], params.blocks))
    step = lambda carry, here: (carry, here.theta)
    carry, read = networks.upwards(networks.chain(mlp), shallow, None, step, 1.0, first=1)
    assert carry == 1.0
    chex.assert_trees_all_equal_shapes(read, shallow.blocks)
    fitted = initializers.lsuv(mlp, shallow, x[None] * jnp.linspace(-1, 1, 7)[:, None])
    chex.assert_trees_all_equal_shapes(fitted, shallow)


def test_what_differs_in_shape_is_not_stacked():
    with pytest.raises(ValueError, match=r"must have one shape, got \[\(3,\)\] and \[\(6,\)\]"):
        networks.upwards(
            CHAIN, PARAMS, X, lambda carry, here: (carry, here.out), None, readout=True
        )
