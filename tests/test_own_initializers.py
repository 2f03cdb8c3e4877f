"""Gains and LSUV of chains of a user's own layers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxstab import initializers, networks
from jaxstab.networks import chains

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (20, 5), jnp.float32)


class Residual(nn.Module):
    @nn.compact
    def __call__(self, h):
        return h + nn.Dense(6)(nn.relu(nn.Dense(9)(nn.LayerNorm()(h))))


def states(chain, params, x):
    """h_0, h_1, ... and y."""
    h = [chain.embed(params, x)]
    parts = params.blocks.parts
    layers = [
        jax.tree.map(lambda leaf, i=i: leaf[i], p)
        for p in parts
        for i in range(chains.layers_of(p))
    ]
    for block, theta in zip(chain.block, layers, strict=True):
        h.append(block(theta, h[-1]))
    return [*h, chain.readout(params, h[-1])]


@pytest.mark.slow
def test_gains_of_layers_multiply_kernels_alone():
    chain = networks.from_linen([nn.Dense(6), *[Residual()] * 3, nn.Dense(2)])
    params = chain.init(KEY, X)
    gains = jnp.asarray([2.0, 3.0, 4.0, 5.0, 6.0])
    found = jax.jit(networks.rescale)(params, gains)
    np.testing.assert_allclose(found.embed["kernel"], 2 * params.embed["kernel"], rtol=1e-6)
    np.testing.assert_allclose(found.readout["kernel"], 6 * params.readout["kernel"], rtol=1e-6)
    blocks, wanted = found.blocks.parts[0], params.blocks.parts[0]
    for name in ("Dense_0", "Dense_1"):
        times = jnp.asarray([3.0, 4.0, 5.0], jnp.float32)[:, None, None]
        np.testing.assert_allclose(
            blocks[name]["kernel"], times * wanted[name]["kernel"], rtol=1e-6
        )
        chex.assert_trees_all_equal(blocks[name]["bias"], wanted[name]["bias"])
    chex.assert_trees_all_equal(blocks["LayerNorm_0"], wanted["LayerNorm_0"])
    # the caller's rule
    only = networks.rescale(params, 2.0, kernels=lambda path: path == ("Dense_1", "kernel"))
    chex.assert_trees_all_equal(only.embed, params.embed)
    np.testing.assert_allclose(
        only.blocks.parts[0]["Dense_1"]["kernel"], 2 * wanted["Dense_1"]["kernel"]
    )
    chex.assert_trees_all_equal(only.blocks.parts[0]["Dense_0"], wanted["Dense_0"])


@pytest.mark.slow
def test_gains_of_nnx_layers_and_of_plain_arrays():
    rngs = nnx.Rngs(0)
    blocks = [
        nnx.Sequential(jnp.tanh, nnx.Linear(6, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs))
        for _ in range(2)
    ]
    _, params = networks.from_nnx(
        [nnx.Linear(5, 6, rngs=rngs), *blocks, nnx.Linear(6, 2, rngs=rngs)], X
    )
    found = networks.rescale(params, 2.0)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    np.testing.assert_allclose(found.embed["kernel"][...], 2 * params.embed["kernel"][...])
    changed = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), found.blocks.parts[0], params.blocks.parts[0]
    )
    assert sum(jax.tree.leaves(changed.params)) == 1 and not any(
        jax.tree.leaves(changed.batch_stats)
    )
    weights = [jnp.ones((5, 4)), jnp.eye(4), jnp.eye(4), jnp.ones((4, 2))]
    _, params = networks.from_params([lambda w, h: h @ w] * 4, weights, jnp.ones(5))
    np.testing.assert_allclose(
        networks.rescale(params, 3.0).blocks.parts[0], 3 * params.blocks.parts[0]
    )


@pytest.mark.slow
def test_lsuv_of_layers_with_several_weights():
    """Layers of one weight and layers of two, in whose blocks the branch is measured."""
    shrink = nn.Sequential([nn.relu, nn.Dense(6), nn.relu, nn.Dense(4)])
    chain = networks.from_linen([nn.Dense(6), *[Residual()] * 3, shrink, nn.Dense(3)])
    params = networks.rescale(chain.init(KEY, X), 0.3)

    def branch(below, above):
        return above - below if above.shape == below.shape else above

    found = jax.jit(lambda params: initializers.lsuv(chain, params, X, 1.7, steps=15, part=branch))(
        params
    )
    h = states(chain, found, X)
    for below, above in zip([X, *h[:-1]], h, strict=True):
        assert float(jnp.var(branch(below, above))) == pytest.approx(1.7, rel=1e-4)
    # nothing but weights has changed
    chex.assert_trees_all_equal(
        found.blocks.parts[0]["LayerNorm_0"], params.blocks.parts[0]["LayerNorm_0"]
    )


def test_lsuv_is_that_of_our_network():
    mlp = networks.MLP(depth=3, width=6, activation="tanh", features_out=3)
    params = networks.chain(mlp).init(KEY, X, 0.4, 0.1)
    ours = networks.chain(mlp)
    blocks = [jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks) for i in range(3)]
    applies = [
        lambda theta, x: ours.embed(params._replace(embed=theta), x),
        *[ours.block] * 3,
        lambda theta, h: ours.readout(params._replace(readout=theta), h),
    ]
    chain, own = networks.from_params(applies, [params.embed, *blocks, params.readout], X)
    found, wanted = jax.jit(
        lambda: (initializers.lsuv(chain, own, X), initializers.lsuv(mlp, params, X))
    )()
    chex.assert_trees_all_close(found.blocks.parts[0], wanted.blocks, rtol=1e-5)
    chex.assert_trees_all_close(
        (found.embed, found.readout), (wanted.embed, wanted.readout), rtol=1e-5
    )


@pytest.mark.parametrize("scale", [networks.rescale, None])
def test_a_network_without_weights_is_refused(scale):
    chain, params = networks.from_params(
        [lambda w, h: h * w["w"]] * 3, [{"w": jnp.ones(2, jnp.float32)}] * 3, X[0, :2]
    )
    with pytest.raises(ValueError, match=r"kernels must select a parameter .* there are w$"):
        initializers.lsuv(chain, params, X[:, :2]) if scale is None else scale(params, 2.0)


def test_gains_that_are_none_are_refused():
    chain = networks.from_linen([nn.Dense(6), nn.Dense(6), nn.Dense(2)])
    params = chain.init(KEY, X)
    with pytest.raises(ValueError, match=r"one per layer, \[3\], got shape \(2,\)"):
        networks.rescale(params, jnp.ones(2))
    with pytest.raises(ValueError, match="must be finite and >= 0, got -1"):
        networks.rescale(params, -1.0)
    with pytest.raises(ValueError, match="kernels and part must be None for an MLP"):
        initializers.lsuv(networks.MLP(1, 3), params, X, part=lambda h, y: y)
    with pytest.raises(
        ValueError,
        match=r"network must be a networks.MLP or a networks.Chain, got a Dense: for your own layers",
    ):
        initializers.lsuv(nn.Dense(3), params, X)


@pytest.mark.slow
def test_auto_init_brings_partial_jacobians_of_a_chain_to_one():
    """Against the dense Jacobian of each block, of changing widths and one or two kernels."""
    wide = nn.Sequential([nn.sigmoid, nn.Dense(9), nn.tanh, nn.Dense(7)])
    narrow = nn.Sequential([nn.relu, nn.Dense(11)])
    chain = networks.from_linen([nn.Dense(6), wide, narrow, narrow, nn.Dense(2)])
    x = X[0]
    params = jax.jit(chain.init)(KEY, x)
    draw = jax.jit(
        lambda params: initializers.auto_init(chain, params, x, KEY, samples=400, steps=30)
    )
    found = draw(params)
    chex.assert_trees_all_equal(found.embed, params.embed)
    chex.assert_trees_all_equal(found.readout, params.readout)

    @jax.jit
    def jacobians(params):
        h = states(chain, params, x)
        thetas = [jax.tree.map(lambda leaf: leaf[0], part) for part in params.blocks.parts]
        layers = zip(chain.block, thetas, h[:3], strict=True)
        return [jax.jacobian(block, 1)(theta, state) for block, theta, state in layers]

    for jacobian in jacobians(found):
        # 400 vectors: the relative error of a squared norm of N = 7 or 11 units is below (2 / 400)^(1/2)
        np.testing.assert_allclose(np.sum(jacobian**2) / len(jacobian), 1.0, rtol=4 * 0.07)
    residual = networks.mlp(2, 4, skip="sum")
    with pytest.raises(ValueError, match="auto_init needs blocks without a skip, got skip 'sum'"):
        initializers.auto_init(residual, residual.init(KEY, x), x, KEY)
