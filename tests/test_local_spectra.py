"""Local spectra, partial Jacobians, alignment and Lyapunov exponents, against dense twins and theory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma, polygamma

from jaxstab import networks, spectra
from jaxstab.networks import MLP, Chain, Params

KEY = jax.random.key(4)
KINDS = {
    "norm and sum": {"norm": "layer", "skip": "sum"},
    "dense": {"skip": "dense"},
}

# eager, each small operation compiles by itself: minutes over a test session
local = jax.jit(spectra.local_log_singular_values, static_argnums=0)
log_apjn = jax.jit(spectra.log_apjn, static_argnums=(0, 3, 5))
alignment = jax.jit(spectra.alignment, static_argnums=0)
exponents = jax.jit(spectra.lyapunov_exponents, static_argnums=(0, 4, 5))


@functools.partial(jax.jit, static_argnums=(0, 3))
def jacobian_matrix(chain, params, x, first):
    return spectra.jacobian(chain, params, x, first).matrix()


@functools.partial(jax.jit, static_argnums=(0, 3))
def _per_layer(chain, params, x, depth):
    """Exponents at finite depth."""
    return spectra.log_singular_values(chain, params, x, [depth], from_layer=0)[0] / depth


@functools.cache
def _network(depth=4, width=7, d_in=5, sigma_w=1.4, sigma_b=0.1, **kind):
    # cached: a chain made again is a new static argument, and compiles again
    mlp = MLP(depth, width, **kind)
    x = jax.random.normal(jax.random.key(5), (d_in,))
    chain = networks.chain(mlp)
    return chain, chain.init(KEY, x, sigma_w, sigma_b), x


def _linear(factors):
    """A chain whose block l multiplies by factors[l]."""
    n = factors.shape[1]
    whole = Chain(
        lambda _, x: x,
        lambda w, h: w @ h,
        lambda _, h: h,
        networks.chain(MLP(1, n, "identity")).activation,
    )
    return whole, Params({}, jnp.asarray(factors), {}), jnp.ones(n, factors.dtype)


def _dense(chain, params, x):
    """Every block's Jacobian, one at a time."""
    h, found = chain.embed(params, x), []
    for i in range(params.depth):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks)
        found.append(np.asarray(jax.jacrev(chain.block, argnums=1)(block, h)))
        h = chain.block(block, h)
    return found


def _gaussian(layers, n, seed=0):
    return np.random.default_rng(seed).normal(size=(layers, n, n)) / n**0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_block_against_dense_jacobians(kind):
    chain, params, x = _network(**KINDS[kind])
    factors = _dense(chain, params, x)
    s = np.stack([np.linalg.svd(f, compute_uv=False) for f in factors])
    rank = [min(np.any(f, axis=0).sum(), np.any(f, axis=1).sum()) for f in factors]
    found = np.exp(local(chain, params, x))
    np.testing.assert_allclose(found, s, atol=1e-13 * s.max())
    assert np.array_equal((found > 0).sum(axis=1), rank)

    n = s.shape[1]
    for first in (0, 2):
        product, expected = np.eye(n), [np.nan] * first + [0.0]
        for factor in factors[first:]:
            product = factor @ product
            expected.append(np.log(np.sum(product**2) / n))
        found = log_apjn(chain, params, x, first)
        np.testing.assert_allclose(found.log_value, expected, atol=1e-12)
        np.testing.assert_array_equal(found.standard_error[first:], 0.0)
        partial = jacobian_matrix(chain, params, x, first)
        np.testing.assert_allclose(
            partial.direction * np.exp(partial.log_norm), product, atol=1e-13 * s.max() ** 4
        )


@pytest.mark.slow
def test_batchnorm_goes_through_flatten():
    mlp = MLP(3, 4, norm="batch")
    x = jax.random.normal(KEY, (5, 3))
    params = networks.chain(mlp).init(KEY, x, 1.2)
    chain = networks.flatten(networks.chain(mlp), 5)
    s = [np.linalg.svd(f, compute_uv=False) for f in _dense(chain, params, x.ravel())]
    np.testing.assert_allclose(np.exp(local(chain, params, x.ravel())), s, atol=1e-12)


@pytest.mark.kernels
def test_partial_jacobians_beyond_any_float():
    dtype = jnp.result_type(float)
    n, layers = 6, 400
    turns = np.linalg.qr(_gaussian(layers, n))[0]
    chain, params, x = _linear(jnp.asarray(1e-10 * turns, dtype))
    # an orthogonal layer of gain 1e-10 multiplies the squared norm by 1e-20, 400 times; roundings add up along it
    expected = -20 * np.log(10) * np.arange(layers + 1)
    tolerance = layers * float(jnp.finfo(dtype).eps) * abs(expected[-1])
    np.testing.assert_allclose(log_apjn(chain, params, x).log_value, expected, atol=tolerance)
    matrix = jacobian_matrix(chain, params, x, 0)
    log_norm = expected[-1] / 2 + np.log(n) / 2
    np.testing.assert_allclose(matrix.log_norm, log_norm, atol=tolerance)
    np.testing.assert_allclose(jnp.linalg.norm(matrix.direction), 1.0, rtol=1e-6)
    # every probe of an orthogonal chain has the same length
    found = log_apjn(chain, params, x, 0, KEY, 3)
    np.testing.assert_allclose(found.log_value, expected, atol=tolerance)
    np.testing.assert_allclose(found.standard_error, 0.0, atol=layers * float(jnp.finfo(dtype).eps))


def test_averaged_norm_of_gaussian_linear_layers_is_the_gain():
    # E |W_l ... W_1|_F^2 / n = sigma_w^(2 l) exactly, at any width
    draws, layers, n = 4000, 5, 8
    factors = np.stack([_gaussian(layers, n, seed) for seed in range(draws)])
    chain, _, x = _linear(factors[0])
    log_j = jax.jit(jax.vmap(lambda w: spectra.log_apjn(chain, Params({}, w, {}), x).log_value))(
        jnp.asarray(1.1 * factors)
    )
    samples = np.exp(log_j)
    error = samples.mean(axis=0) - 1.1 ** (2 * np.arange(layers + 1))
    assert np.all(np.abs(error) <= 4 * samples.std(axis=0, ddof=1) / draws**0.5 + 1e-14)


@pytest.mark.slow
def test_hutchinson_estimates_within_its_error():
    chain, params, x = _network(depth=6, width=16, sigma_w=1.8)
    exact = np.asarray(log_apjn(chain, params, x, 1).log_value)
    found = log_apjn(chain, params, x, 1, KEY, 400)
    assert np.isnan(found.log_value[0]) and np.isnan(found.standard_error[0])
    assert float(found.log_value[1]) == pytest.approx(0, abs=1e-14)
    error = np.asarray(found.log_value)[2:] - exact[2:]
    assert np.all(np.abs(error) <= 4 * np.asarray(found.standard_error)[2:])
    assert np.all(np.asarray(found.standard_error)[2:] < 0.1)
    assert np.isnan(log_apjn(chain, params, x, 1, KEY, 1).standard_error).all()


@pytest.mark.slow
def test_hutchinson_error_bars_have_the_spread_that_they_claim():
    chain, params, x = _network(depth=3, width=16, sigma_w=1.5)
    runs = jax.jit(jax.vmap(lambda key: spectra.log_apjn(chain, params, x, 0, key, 64)))(
        jax.random.split(KEY, 400)
    )
    claimed = np.sqrt(np.mean(np.asarray(runs.standard_error)[:, 1:] ** 2, axis=0))
    # a standard deviation from 400 runs is itself known to 1 / sqrt(800) = 3.5 %; four of those
    np.testing.assert_allclose(np.std(runs.log_value, axis=0)[1:], claimed, rtol=0.15)


@pytest.mark.slow
def test_alignment_against_numpy_and_its_meaning():
    chain, params, x = _network(depth=4, width=7)
    factors, found = _dense(chain, params, x), alignment(chain, params, x)
    for pair, (below, above) in enumerate(zip(factors, factors[1:], strict=False)):
        u = np.linalg.svd(below)[0]
        vt = np.linalg.svd(above)[2]
        np.testing.assert_allclose(found.overlap[pair], np.abs(vt @ u), atol=1e-10)
        norms = [np.sum(m**2) for m in (above @ below, above, below)]
        assert float(found.excess[pair]) == pytest.approx(
            np.log(7 * norms[0] / norms[1] / norms[2]), abs=1e-12
        )
    np.testing.assert_allclose(np.sum(np.asarray(found.overlap) ** 2, axis=1), 1, atol=1e-12)


def test_aligned_random_and_opposed_layers():
    n, rng = 16, np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in "uv")
    s = np.diag(0.5 ** np.arange(n))
    # V of the second layer is U of the first: the overlap is the identity; reversed, it is the exchange
    aligned = np.stack([u @ s @ v.T, v @ s @ u.T])
    opposed = np.stack([u @ s @ v.T, v @ s @ u[:, ::-1].T])
    together, apart = alignment(*_linear(aligned)), alignment(*_linear(opposed))
    np.testing.assert_allclose(together.overlap[0], np.eye(n), atol=1e-9)
    np.testing.assert_allclose(apart.overlap[0], np.eye(n)[::-1], atol=1e-9)
    assert float(together.excess[0]) > 1 and float(apart.excess[0]) < -1
    random = alignment(*_linear(_gaussian(400, n)))
    squares = np.asarray(random.overlap) ** 2
    # entries of a Haar matrix: the mean square is 1/n by construction, that of one entry to its Monte-Carlo error
    corner = squares[:, 0, 0]
    assert abs(corner.mean() - 1 / n) <= 4 * corner.std(ddof=1) / corner.size**0.5
    ratio = np.exp(random.excess)
    # neighbouring pairs share a layer but no rotation: uncorrelated
    assert abs(ratio.mean() - 1) <= 4 * ratio.std(ddof=1) / ratio.size**0.5


@pytest.mark.slow
def test_orthogonal_chains_have_one_exponent():
    mlp = MLP(80, 8, "identity", weights="orthogonal")
    x = jnp.ones(5, jnp.float32)
    params = networks.chain(mlp).init(KEY, x, 0.03)
    chain, expected = networks.chain(mlp), np.log(0.03)
    found = exponents(chain, params, x, KEY, 0, 8)
    # single precision: each layer rounds ln s by about eps
    np.testing.assert_allclose(found.exponent, expected, atol=2e-6)
    np.testing.assert_allclose(found.running, expected, atol=2e-6)
    np.testing.assert_allclose(found.standard_error, 0, atol=2e-6)


@pytest.mark.slow
def test_gaussian_linear_exponents_are_newmans():
    # Newman 1986: E ln r_ii = ln sigma_w + (psi((n - i + 1) / 2) + ln(2 / n)) / 2, at any depth
    n, sigma_w = 8, 1.3
    found = exponents(*_linear(sigma_w * _gaussian(2000, n)), KEY, 0, 40)
    i = np.arange(1, n + 1)
    theory = np.log(sigma_w) + (digamma((n - i + 1) / 2) + np.log(2 / n)) / 2
    assert np.all(np.abs(found.exponent - theory) <= 4 * np.asarray(found.standard_error))
    # var ln r_ii = trigamma / 4, which the groups find: 40 of them give a standard error to 1 / sqrt(78) = 11 %
    per_layer = np.sqrt(polygamma(1, (n - i + 1) / 2) / 4)
    np.testing.assert_allclose(found.standard_error, per_layer / 2000**0.5, rtol=4 / np.sqrt(78))
    np.testing.assert_allclose(found.running[-1], found.exponent, atol=1e-12)
    # singular values approach the same numbers as 1 / depth
    finite = _per_layer(*_linear(sigma_w * _gaussian(300, n)), 300)
    assert np.all(np.abs(finite - theory) <= 4 * per_layer / 300**0.5 + np.log(n) / 300)


@pytest.mark.slow
def test_relu_kills_exponents_and_the_limit_says_so():
    chain, params, x = _network(depth=12, width=10, activation="relu", sigma_w=1.4)
    finite, found = _per_layer(chain, params, x, 12), exponents(chain, params, x, KEY, 2, 5)
    assert np.array_equal(np.isfinite(finite), np.isfinite(found.exponent))
    assert 0 < np.isfinite(finite).sum() < 10
    assert np.array_equal(np.isfinite(found.standard_error), np.isfinite(found.exponent))
    # 10 layers in 5 groups: the first two are left out
    assert np.isnan(found.running[:2]).all() and not np.isnan(found.running[2:]).any()


@pytest.mark.slow
def test_vmap_and_grad():
    chain, params, x = _network(depth=3)
    batch = jnp.stack([x, 2 * x])
    found = jax.jit(jax.vmap(lambda x: spectra.local_log_singular_values(chain, params, x)))(batch)
    np.testing.assert_allclose(found[1], local(chain, params, 2 * x), atol=1e-12)
    apjn = lambda gain: spectra.log_apjn(chain, networks.rescale(params, gain, 1.0), x).log_value[
        -1
    ]
    top = lambda gain: spectra.local_log_singular_values(
        chain, networks.rescale(params, gain, 1.0), x
    )[2, 0]
    scalar = jax.jit(lambda gain: top(gain) + apjn(gain))
    step = 1e-6
    slope = (scalar(1.1 + step) - scalar(1.1 - step)) / (2 * step)
    assert float(jax.grad(scalar)(1.1)) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.slow
def test_what_makes_no_sense_is_refused():
    chain, params, x = _network(depth=3)
    with pytest.raises(ValueError, match=r"first must be an integer in \[0, 3\], got 4"):
        spectra.log_apjn(chain, params, x, first=4)
    with pytest.raises(ValueError, match="probes must be >= 1, got 0"):
        spectra.log_apjn(chain, params, x, key=KEY, probes=0)
    with pytest.raises(ValueError, match="groups=16, depth 3"):
        spectra.lyapunov_exponents(chain, params, x, KEY)
    shallow, one, _ = _network(depth=1)
    with pytest.raises(ValueError, match="depth >= 2, got 1"):
        spectra.alignment(shallow, one, x)
