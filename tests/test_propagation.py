"""Propagation against a naive twin: plain NumPy forwards, one jax.grad per layer backwards."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import networks, norms, propagation
from jaxstab.networks import MLP, Params
from jaxstab.networks.pullbacks import pullback
from jaxstab.norms.logarithms import Product

KEY = jax.random.key(1)
LOSS = lambda y: optax.softmax_cross_entropy_with_integer_labels(y, 2)

# eager, each small operation compiles by itself: minutes over a test session
forward = jax.jit(propagation.forward, static_argnums=0)
backward = jax.jit(propagation.backward, static_argnums=(0, 3, 4))
correlation = jax.jit(propagation.correlation, static_argnums=0)


def _network(activation="tanh", depth=6, width=24, sigma_w=1.3, sigma_b=0.2, dtype=None):
    mlp = MLP(depth, width, activation)
    x = jax.random.normal(jax.random.key(7), (11,), dtype or jnp.result_type(float))
    chain = networks.chain(mlp)
    return chain, chain.init(KEY, x, sigma_w, sigma_b), x


def _dense(layer, h):
    return h @ layer["dense"]["kernel"] + layer["dense"]["bias"]


def _layers(params):
    return [jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks) for i in range(params.depth)]


def _prefix(params, depth):
    return Params(
        params.embed, jax.tree.map(lambda leaf: leaf[:depth], params.blocks), params.readout
    )


def _naive_backward(phi, params, x, depth):
    """|dL/dh_l| and |dL/dtheta_l| of the network of this depth, one gradient at a time."""
    layers = [params.embed, *_layers(params)[:depth]]

    def loss(shifts, layers):
        h = _dense(layers[0], x) + shifts[0]
        for layer, shift in zip(layers[1:], shifts[1:], strict=True):
            h = _dense(layer, phi(h)) + shift
        return LOSS(_dense(params.readout, phi(h)))

    shifts = [jnp.zeros(params.embed["dense"]["bias"].shape, x.dtype)] * (depth + 1)
    by_h, by_theta = jax.jit(jax.grad(loss, argnums=(0, 1)))(shifts, layers)
    norm = lambda tree: np.sqrt(
        sum(np.sum(np.asarray(leaf, float) ** 2) for leaf in jax.tree.leaves(tree))
    )
    return np.array([norm(g) for g in by_h]), np.array([norm(g) for g in by_theta])


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "hard_tanh"])
def test_forward_agrees_with_numpy(activation):
    chain, params, x = _network(activation)
    profile = forward(chain, params, x)
    h = np.asarray(_dense(params.embed, x))
    for layer, (q, saturation, dead) in enumerate(
        zip(profile.q, profile.saturation, profile.dead, strict=True)
    ):
        slope = np.abs(np.asarray(chain.activation.derivative(jnp.asarray(h))))
        assert float(q) == pytest.approx(np.mean(h**2), rel=1e-12)
        assert float(saturation) == pytest.approx(np.mean(slope <= 0.1), abs=1e-12)
        assert float(dead) == pytest.approx(np.mean(slope == 0), abs=1e-12)
        if layer < params.depth:
            h = np.asarray(_dense(_layers(params)[layer], chain.activation(jnp.asarray(h))))


def test_a_unit_is_dead_on_a_batch_only_if_dead_on_every_example():
    chain, params, _ = _network("relu")
    batch = jax.random.normal(KEY, (5, 11))
    profile = forward(chain, params, batch)
    single = [forward(chain, params, x) for x in batch]
    assert np.all(profile.dead <= np.min([p.dead for p in single], axis=0))
    np.testing.assert_allclose(profile.q, np.mean([p.q for p in single], axis=0), rtol=1e-12)


def test_correlation_agrees_with_numpy_and_keeps_precision_near_1():
    chain, params, x = _network("tanh", sigma_w=1.8)
    other = x.at[0].add(1.0)
    c = correlation(chain, params, x, other).c
    h, k = np.asarray(_dense(params.embed, x)), np.asarray(_dense(params.embed, other))
    assert float(c[0]) == pytest.approx(h @ k / np.linalg.norm(h) / np.linalg.norm(k), rel=1e-12)
    near = correlation(chain, params, x, x * (1 + 1e-9) + 1e-9).c
    assert np.all(near <= 1) and np.all(1 - near < 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", pytest.param("relu", marks=pytest.mark.kernels)])
def test_backward_agrees_with_one_gradient_at_a_time(activation):
    chain, params, x = _network(activation)
    depths = (0, 1, 4, 6)
    profile = backward(chain, params, x, LOSS, depths)
    tolerance = 100 * float(jnp.finfo(x.dtype).eps)
    for row, depth in enumerate(depths):
        by_h, by_theta = _naive_backward(chain.activation, params, x, depth)
        np.testing.assert_allclose(
            profile.log_grad_h[row, : depth + 1], np.log(by_h), atol=tolerance
        )
        np.testing.assert_allclose(
            profile.log_grad_theta[row, : depth + 1], np.log(by_theta), atol=tolerance
        )
        assert np.isnan(profile.log_grad_h[row, depth + 1 :]).all()
        assert np.isnan(profile.log_grad_theta[row, depth + 1 :]).all()


@pytest.mark.slow
def test_depth_is_a_prefix():
    chain, params, x = _network("gelu", depth=9)
    deep, whole = backward(chain, params, x, LOSS, (2, 5, 9)), forward(chain, params, x)
    for row, depth in enumerate([2, 5, 9]):
        shallow = backward(chain, _prefix(params, depth), x, LOSS)
        assert shallow.log_grad_h.shape == (depth + 1,)
        np.testing.assert_allclose(
            deep.log_grad_h[row, : depth + 1], shallow.log_grad_h, rtol=1e-12
        )
        np.testing.assert_allclose(
            deep.log_grad_theta[row, : depth + 1], shallow.log_grad_theta, rtol=1e-12
        )
        own = forward(chain, _prefix(params, depth), x)
        np.testing.assert_allclose(whole.log_q[: depth + 1], own.log_q, rtol=1e-12)


@pytest.mark.slow
def test_every_depth_at_once_is_each_by_itself():
    chain, params, x = _network("tanh", depth=9)
    together = backward(chain, params, x, LOSS, tuple(range(9)))
    for depth in (0, 5):
        alone = backward(chain, params, x, LOSS, (depth,))
        for all_of_them, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(all_of_them[depth], one[0], rtol=1e-12)
            assert np.isfinite(one[0, : depth + 1]).all() and np.isnan(one[0, depth + 1 :]).all()


BLOCKS = [
    {"skip": "sum", "norm": "batch"},
    {"skip": "scaled", "norm": "layer"},
    {"skip": "rezero", "norm": "rms", "norm_after": True},
    {"skip": "highway", "dropout": True},
    {"skip": "dense", "norm": "layer"},
]


def _gradients(f, params, h, v):
    """By jax.vjp, and by networks.pullback with the products multiplied out."""
    multiplied = lambda g: jnp.einsum("bi,bj->ij", *(jnp.atleast_2d(side) for side in g))
    is_product = lambda leaf: isinstance(leaf, Product)
    factored = pullback(f, params, h)(v)
    full = jax.tree.map(
        lambda leaf: multiplied(leaf) if is_product(leaf) else leaf, factored, is_leaf=is_product
    )
    products = sum(map(is_product, jax.tree.leaves(factored, is_leaf=is_product)))
    log_norms = norms.log_norm(factored[0]), norms.log_norm(jax.vjp(f, params, h)[1](v)[0])
    return full, jax.vjp(f, params, h)[1](v), products, log_norms


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_factored_gradients_are_those_of_every_block(block):
    mlp = MLP(1, 7, **block)
    x = jax.random.normal(KEY, (4, 5))
    params = networks.chain(mlp).init(KEY, x, 1.2, 0.3)
    beside = 1.7 if mlp.skip in ("highway", "dense") else None
    bound = networks.chain(mlp).bind(
        params, key=KEY if mlp.dropout else None, rate=0.3, sigma_w=beside
    )
    chain, layer = networks.chain(mlp), jax.tree.map(lambda leaf: leaf[0], bound.blocks)
    products = []

    @jax.jit
    def both(layer, x):
        h = chain.embed(params, x)
        full, expected, count, log_norms = _gradients(chain.block, layer, h, jnp.cos(h))
        products.append(count)
        numbers = lambda tree: [
            leaf for leaf in jax.tree.leaves(tree) if leaf.dtype != jax.dtypes.float0
        ]
        return numbers(full), numbers(expected), log_norms

    for inputs in [x] if mlp.norm == "batch" else [x, x[0]]:
        full, expected, log_norms = both(layer, inputs)
        chex.assert_trees_all_close(full, expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(*log_norms, rtol=1e-12)
    assert set(products) == {2 if mlp.skip == "highway" else 1}


@pytest.mark.slow
def test_kernels_read_in_other_ways_get_their_gradient_in_full():
    chain, params, x = _network(depth=1)
    layer, h = _layers(params)[0], chain.embed(params, x)
    rows = jnp.stack([h, 2 * h])
    for f, at in [
        (lambda layer, h: chain.block(layer, chain.block(layer, h)), h),
        (lambda layer, h: chain.block(layer, h) + jnp.sum(layer["dense"]["kernel"] ** 2), h),
        (lambda layer, h: chain.block(jax.tree.map(lambda leaf: 2 * leaf, layer), h), h),
        (lambda layer, rows: jax.vmap(lambda h: chain.block(layer, h))(rows), rows),
        (lambda layer, h: jax.checkpoint(chain.block)(layer, h), h),
        (_dense, h),
    ]:
        full, expected, products, _ = _gradients(f, layer, at, jnp.ones_like(at))
        assert products == 0
        chex.assert_trees_all_close(full, expected, rtol=1e-12)


@pytest.mark.kernels
def test_norms_beyond_the_range_of_float32():
    mlp = MLP(300, 8, "identity", weights="orthogonal")
    x = jnp.ones(8, jnp.float32)
    params = networks.chain(mlp).init(KEY, x, 0.1)
    profile = backward(networks.chain(mlp), params, x, lambda y: y[0])
    assert profile.log_grad_h.dtype == jnp.float32
    # an orthogonal layer of gain 0.1 divides the norm by 10 exactly: 10^-300 is far below float32
    steps = np.diff(np.asarray(profile.log_grad_h)) / np.log(10)
    np.testing.assert_allclose(steps, 1.0, atol=2e-4)
    assert float(profile.log_grad_h[0]) < -600


def test_a_zero_gradient_is_minus_infinity_and_nothing_else_breaks():
    chain, params, x = _network("relu")
    profile = backward(chain, params, x, lambda y: 0.0 * y[0])
    assert np.all(np.asarray(profile.log_grad_h) == -np.inf)
    silent = forward(chain, networks.rescale(params, 0.0, 0.0), x)
    assert np.all(np.asarray(silent.log_q) == -np.inf) and np.all(np.asarray(silent.dead) == 1)


@pytest.mark.slow
def test_jit_vmap_and_grad():
    chain, params, x = _network("tanh", depth=3)
    eager = propagation.backward(chain, params, x, LOSS, [1, 3])
    np.testing.assert_allclose(
        backward(chain, params, x, LOSS, (1, 3)).log_grad_h, eager.log_grad_h, rtol=1e-10
    )
    batch = jnp.stack([x, 2 * x])
    rows = lambda x: backward(chain, params, x, LOSS, (1, 3)).log_grad_h[:, 0]
    np.testing.assert_allclose(jax.vmap(rows)(batch), np.stack([rows(x), rows(2 * x)]), rtol=1e-10)
    # the gradient's norm as a function of the gain: what a curvature-aware initialiser would descend
    f = jax.jit(lambda w: backward(chain, networks.rescale(params, w, 1.0), x, LOSS).log_grad_h[0])
    step = 1e-6
    assert float(jax.grad(f)(1.1)) == pytest.approx(
        float((f(1.1 + step) - f(1.1 - step)) / (2 * step)), rel=1e-6
    )


@pytest.mark.parametrize("depths", [[], [7], [-1], [3, 2], [2, 2]])
def test_depths_that_the_chain_does_not_have_are_refused(depths):
    chain, params, x = _network()
    with pytest.raises(ValueError, match=r"depths must be ascending integers in \[0, 6\]"):
        propagation.backward(chain, params, x, LOSS, depths)
