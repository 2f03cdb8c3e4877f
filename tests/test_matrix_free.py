"""Matrix-free spectra against the dense Jacobian's SVD: values within bounds, means within standard errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import devices, networks, spectra
from jaxstab.networks import MLP
from jaxstab.spectra.matrix_free import Density

KEY = jax.random.key(3)
DEPTH = 4
# standard errors; a fixed seed either fails this or does not
SIGMAS = 4

# every kind of block, and from layer to layer, to the readout, from fewer and from more inputs than units
CASES = {
    "wide": ({"d_in": 40}, {}),
    "narrow": ({"d_in": 9}, {"to_layer": 2}),
    "layers": ({"activation": "relu"}, {"from_layer": 1, "to_layer": 3}),
    "dense": (
        {"skip": "dense", "norm": "layer"},
        {"from_layer": 2, "readout": True, "to_layer": 3},
    ),
    "layer": ({"norm": "layer", "dropout": True}, {}),
    "batch": ({"norm": "batch", "width": 6, "d_in": 5, "batch": 4}, {}),
}


def _network(d_in=24, width=24, batch=None, dtype=None, sigma_w=1.2, depth=DEPTH, **settings):
    mlp = MLP(depth, width, **({"activation": "tanh"} | settings))
    x = jax.random.normal(
        jax.random.key(5), (batch, d_in) if batch else (d_in,), dtype or jnp.result_type(float)
    )
    params = jax.jit(networks.chain(mlp).init)(KEY, x, sigma_w, 0.1)
    if mlp.dropout:
        params = networks.chain(mlp).bind(params, key=jax.random.key(6), rate=0.2)
    chain = networks.chain(mlp)
    return networks.flatten(chain, batch) if batch else chain, params, x.ravel()


def _function(chain, params, from_layer=None, to_layer=None, readout=False):
    """The map whose Jacobian it is, and a layer loop written out."""

    def function(h):
        h = chain.embed(params, h) if from_layer is None else h
        for i in range(from_layer or 0, params.depth if to_layer is None else to_layer):
            h = chain.block(jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks), h)
        return chain.readout(params, h) if readout else h

    return function


def _dense(chain, params, x, **layers):
    at = x
    if layers.get("from_layer") is not None:
        at = _function(chain, params, to_layer=layers["from_layer"])(x)
    return jax.jacobian(_function(chain, params, **layers))(at)


@partial(jax.jit, static_argnums=(0, 3))
def _operators(chain, params, x, layers):
    op = spectra.jacobian(chain, params, x, **dict(layers))
    eye = lambda n: jnp.eye(n, dtype=x.dtype)
    values = lambda product: jnp.ldexp(product[0], product[1][:, None])
    dense = _dense(chain, params, x, **dict(layers))
    return dense, values(op.apply(eye(op.columns))).T, values(op.adjoint(eye(op.rows)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.kernels] if case in ("batch", "wide") else [])
        for case in CASES
    ],
)
def test_products_are_those_of_the_dense_jacobian(case):
    settings, layers = CASES[case]
    chain, params, x = _network(**settings)
    dense, apply, adjoint = _operators(chain, params, x, tuple(layers.items()))
    # products of DEPTH + 2 factors round in each, relative to the largest value
    close = partial(
        np.testing.assert_allclose,
        atol=30 * float(jnp.finfo(x.dtype).eps) * np.linalg.norm(dense, 2),
    )
    close(apply, dense)
    close(adjoint, dense)


@partial(jax.jit, static_argnums=(0, 4))
def _everything(chain, params, x, key, layers):
    op = spectra.jacobian(chain, params, x, **dict(layers))
    return (
        spectra.extremes(op, key, top=3, steps=3, block=2),
        spectra.moments(op, key, probes=64, orders=3),
        spectra.density(op, key, probes=32, steps=6),
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["batch"])
def test_all_of_it_through_the_chain(case):
    settings, layers = CASES[case]
    chain, params, x = _network(**settings)
    layers = tuple(layers.items())
    dense = np.asarray(_operators(chain, params, x, layers)[0])
    extremes, moments, density = _everything(chain, params, x, jax.random.key(1), layers)
    s = np.linalg.svd(dense, compute_uv=False)

    top, bound = np.exp(extremes.log_s), np.asarray(extremes.relative_error)
    assert np.all(top <= s[:3] * (1 + bound)), "Ritz values lie below, up to rounding"
    assert np.all(np.min(np.abs(s[:, None] - top[None]), axis=0) <= bound * top)
    for matrix, there, back in [
        (dense, extremes.right, extremes.left),
        (dense.T, extremes.left, extremes.right),
    ]:
        residual = np.linalg.norm(there @ matrix.T - top[:, None] * back, axis=1)
        assert np.all(residual <= bound * top)
    assert np.exp(extremes.log_smallest_at_most) >= s[-1]
    assert extremes.log_condition_at_least <= np.log(s[0] / s[-1])

    for order, log_mean, error in zip(
        (1, 2, 3), moments.log_mean, moments.relative_error, strict=True
    ):
        assert abs(np.exp(log_mean) / np.mean(s ** (2 * order)) - 1) <= SIGMAS * error
    rank = np.sum(s**2) ** 2 / np.sum(s**4)
    assert abs(moments.effective_rank - rank) <= SIGMAS * moments.effective_rank_error

    np.testing.assert_allclose(jnp.sum(density.weights, axis=1), 1, rtol=1e-5)
    # Gauss quadrature is exact for E s^2, probe by probe
    mean = np.sum(np.exp(2 * density.log_s) * density.weights, axis=1)
    assert abs(mean.mean() - np.mean(s**2)) <= SIGMAS * mean.std(ddof=1) / len(mean) ** 0.5


def _matrix(matrix):
    """An operator from a matrix, for spectra of one's choice."""

    def product(matrix):
        return lambda v: (v @ matrix.T, jnp.zeros(len(v), jnp.int32))

    return spectra.Operator(product(matrix), product(matrix.T), *matrix.shape, matrix.dtype)


def _with_values(s, rows=None, seed=0):
    rng, n = np.random.default_rng(seed), len(s)
    left, right = (np.linalg.qr(rng.normal(size=(size, n)))[0] for size in (rows or n, n))
    return jnp.asarray(left * s @ right.T, jnp.result_type(float))


extremes = jax.jit(
    lambda matrix, key, **kw: spectra.extremes(_matrix(matrix), key, **kw),
    static_argnames=("top", "steps", "block"),
)
moments = jax.jit(
    lambda matrix, key, **kw: spectra.moments(_matrix(matrix), key, **kw),
    static_argnames=("probes", "orders"),
)
density = jax.jit(
    lambda matrix, key, **kw: spectra.density(_matrix(matrix), key, **kw),
    static_argnames=("probes", "steps"),
)
cdf = jax.jit(Density.cdf)
quantile = jax.jit(Density.quantile)


@pytest.mark.slow
@pytest.mark.kernels
def test_residual_bounds_hold_while_values_converge():
    s = np.linspace(2, 0, 120) ** 2 + 0.01
    errors = []
    for steps in (2, 4, 8):
        found = extremes(_with_values(s), KEY, top=4, steps=steps, block=8)
        top = np.exp(found.log_s)
        distance = np.min(np.abs(s[:, None] - top[None]), axis=0)
        assert np.all(distance <= found.relative_error * top)
        assert np.all(top <= s[:4] * (1 + 1e-5)) and np.exp(found.log_smallest_at_most) >= s[-1]
        errors.append(float(jnp.max(found.relative_error)))
    assert errors[0] > 2 * errors[1] > 4 * errors[2], "errors fall with the Krylov space"
    # the value a partial run would give for the smallest is several times too large, so it is but a bound
    assert np.exp(found.log_smallest_at_most) > 1.5 * s[-1]


@pytest.mark.slow
@pytest.mark.kernels
def test_multiple_values_and_lost_rank():
    s = np.array([3.0] * 5 + [1.0] * 3 + [0.0] * 32)
    found = extremes(_with_values(s, rows=50), KEY, top=9, steps=2, block=10)
    np.testing.assert_allclose(np.exp(found.log_s[:8]), s[:8], rtol=1e-5)
    assert found.log_s[8] < np.log(1e-5) and np.exp(found.log_smallest_at_most) < 1e-4
    for vectors in (found.left, found.right):
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(9), atol=1e-5)
    # breakdown after two steps must not spoil the quadrature
    quadrature = density(_with_values(s), KEY, probes=64, steps=10)
    share = cdf(quadrature, jnp.asarray([-1.0, 0.5, 2.0]))
    truth = np.array([32 / 40, 35 / 40, 1])
    assert np.all(np.abs(share.value - truth) <= SIGMAS * share.standard_error + 1e-5)
    assert np.isneginf(quantile(quadrature, jnp.asarray([0.5])).value[0])


@pytest.mark.slow
@pytest.mark.kernels
def test_nothing_at_all():
    nothing = jnp.zeros((12, 9))
    found = extremes(nothing, KEY, top=2, steps=2, block=3)
    assert np.all(np.isneginf(found.log_s)) and np.all(np.isposinf(found.relative_error))
    assert np.all(np.isneginf(moments(nothing, KEY).log_mean))
    assert cdf(density(nothing, KEY), jnp.asarray(-50.0)).value == 1
    spoilt = nothing.at[0, 0].set(jnp.nan)
    assert np.all(np.isnan(extremes(spoilt, KEY, top=2, steps=2, block=3).log_s))
    assert np.all(np.isnan(moments(spoilt, KEY).log_mean))


@pytest.mark.slow
@pytest.mark.parametrize("sigma_w", [1e-3, 1e3])
def test_beyond_any_float(sigma_w):
    chain, params, x = _network(
        width=16, d_in=16, depth=300, activation="identity", weights="orthogonal", sigma_w=1.0
    )
    params = networks.rescale(params, sigma_w, 0.0)

    @jax.jit
    def measure(params):
        op = spectra.jacobian(chain, params, 0 * x, from_layer=0)
        return (
            spectra.extremes(op, KEY, top=2, steps=1, block=4),
            spectra.moments(op, KEY),
            spectra.density(op, KEY),
        )

    top, moment, spectrum = measure(params)
    expected = 300 * np.log(sigma_w)
    assert abs(expected) > 2000
    # a sum of two terms of order 2000 rounds to eps of them
    close = partial(np.testing.assert_allclose, rtol=30 * float(jnp.finfo(x.dtype).eps))
    close(top.log_s, expected)
    close(moment.log_mean, 2 * expected * np.array([1, 2]))
    close(moment.effective_rank, 16, rtol=1e-4)
    close(quantile(spectrum, jnp.asarray([0.3, 0.7])).value, expected)


def test_moments_are_unbiased_and_their_errors_are_honest():
    s = np.linspace(0.2, 2, 40) ** 2
    found = jax.vmap(lambda key: moments(_with_values(s), key, probes=8))(
        jax.random.split(KEY, 200)
    )
    truth = np.array([np.mean(s**2), np.mean(s**4)])
    means = np.exp(np.asarray(found.log_mean, float))
    assert np.all(np.abs(means.mean(0) - truth) <= SIGMAS * means.std(0, ddof=1) / 200**0.5)
    # the mean square of the errors is that of their estimates; 8 probes and 200 draws know it to a tenth or so
    assert np.all(
        np.abs(np.mean((found.relative_error * means) ** 2, 0) / means.var(0, ddof=1) - 1) < 0.4
    )
    rank = np.sum(s**2) ** 2 / np.sum(s**4)
    spread = np.std(found.effective_rank, ddof=1)
    assert abs(np.sqrt(np.mean(found.effective_rank_error**2)) / spread - 1) < 0.4
    # a ratio of means of 8 is biased by about its variance: less than its standard error
    assert abs(np.mean(found.effective_rank) - rank) < spread


@pytest.mark.slow
def test_distribution_and_quantiles():
    s = np.linalg.svd(np.random.default_rng(1).normal(size=(300, 200)) / 300**0.5, compute_uv=False)
    found = density(_with_values(s), KEY, probes=16, steps=20)
    grid = np.linspace(np.log(s[-1]) - 0.2, np.log(s[0]) + 0.2, 101)
    truth = np.mean(np.log(s)[None] <= grid[:, None], axis=1)
    share = cdf(found, jnp.asarray(grid))
    # the quadrature has about 20 nodes in the range: half a node's weight between them, and sampling
    distance = np.max(np.abs(share.value - truth))
    assert distance <= 1 / 40 + SIGMAS * np.max(share.standard_error), distance
    assert np.all(np.diff(share.value) >= -1e-6)
    shares = jnp.asarray([0.1, 0.5, 0.9])
    value = quantile(found, shares)
    np.testing.assert_allclose(cdf(found, value.value).value, shares, atol=0.01)
    width = np.gradient(
        np.quantile(np.log(s), [0.09, 0.1, 0.11, 0.49, 0.5, 0.51, 0.89, 0.9, 0.91]), 0.01
    )[[1, 4, 7]]
    allowed = width / 40 + SIGMAS * value.standard_error
    assert np.all(np.abs(value.value - np.quantile(np.log(s), shares)) <= allowed)
    assert np.all(value.standard_error > 0)


@pytest.mark.slow
def test_vmap_is_a_loop():
    chain, params, x = _network(width=12, d_in=12, depth=2)

    def measure(x, key):
        return spectra.extremes(
            spectra.jacobian(chain, params, x), key, top=2, steps=2, block=3
        ).log_s

    xs, keys = jnp.stack([x, 2 * x]), jax.random.split(KEY, 2)
    together, one = jax.jit(jax.vmap(measure))(xs, keys), jax.jit(measure)
    alone = jnp.stack([one(x, key) for x, key in zip(xs, keys, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e4 * float(jnp.finfo(x.dtype).eps))


@pytest.mark.slow
def test_moments_have_gradients():
    chain, params, x = _network(width=8, d_in=8, activation="identity", weights="orthogonal")

    def log_mean(sigma_w):
        scaled = networks.rescale(params, sigma_w, 1.0)
        return spectra.moments(spectra.jacobian(chain, scaled, x, from_layer=0), KEY).log_mean

    # s = (1.2 sigma_w)^DEPTH
    np.testing.assert_allclose(
        jax.jit(jax.jacrev(log_mean))(1.5), 2 * DEPTH / 1.5 * np.array([1, 2]), rtol=1e-9
    )


def test_memory_is_a_small_part_of_the_weights():
    # the states and one layer's weights at a time: a share of about 1/depth
    net, x = networks.mlp(depth=1024, width=128), jax.ShapeDtypeStruct((64,), jnp.float32)
    params = jax.eval_shape(net.init, KEY, x)

    def extremes(params, x):
        return spectra.extremes(spectra.jacobian(net, params, x), KEY, block=16, steps=8)

    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    assert devices.memory(extremes, params, x) <= weights / 10


@pytest.mark.slow
def test_agrees_with_matfree():
    decomp, eig = (pytest.importorskip(f"matfree.{name}") for name in ("decomp", "eig"))
    chain, params, x = _network()

    @jax.jit
    def both(x):
        op = spectra.jacobian(chain, params, x)
        theirs = eig.svd_partial(decomp.bidiag(24))(op.matvec, x)[1]
        return spectra.extremes(op, KEY, top=5, steps=6).log_s, theirs

    ours, theirs = both(x)
    np.testing.assert_allclose(np.exp(ours), theirs[:5], rtol=1e-9)


@pytest.mark.slow
def test_mistakes_are_named():
    chain, params, x = _network(width=8, d_in=8)
    op = spectra.jacobian(chain, params, x)
    for settings in (
        {"from_layer": 3, "to_layer": 2},
        {"to_layer": 5},
        {"from_layer": -1},
        {"from_layer": True},
    ):
        with pytest.raises(ValueError, match="0 <= from_layer <= to_layer <= 4"):
            spectra.jacobian(chain, params, x, **settings)
    for wrong, match in [
        (lambda: spectra.moments(op, KEY, probes=0), "probes must be an integer >= 1, got 0"),
        (lambda: spectra.moments(op, KEY, orders=1), "orders must be an integer >= 2"),
        (lambda: spectra.density(op, KEY, steps=0), "steps"),
        (
            lambda: spectra.extremes(op, KEY, top=9),
            "at most the number of singular values, 8, got 9",
        ),
        (lambda: spectra.extremes(op, KEY, top=4, block=1, steps=2), "block"),
        (
            lambda: Density(x[None], x[None]).quantile(jnp.asarray([1.5])),
            r"in \[0, 1\]",
        ),
    ]:
        with pytest.raises(ValueError, match=match):
            wrong()
