"""Spectra against dense Jacobians in range, and against multi-precision truth far beyond it."""

import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstab import networks, records, spectra
from jaxstab.networks import MLP, Params
from jaxstab.spectra import graded
from jaxstab.spectra.factors import factor_rank
from jaxstab.spectra.graded_values import log_values_with_errors

KEY = jax.random.key(3)

# eager, each small operation compiles by itself: minutes over a test session
log_singular_values = jax.jit(spectra.log_singular_values, static_argnums=(0, 3))
product_log_singular_values = jax.jit(spectra.product_log_singular_values)


def _truth(factors, digits=120):
    """ln of the singular values of factors[-1] ... factors[0] in so many digits; -inf where they vanish."""
    with mp.workdps(digits):
        product = mp.eye(factors.shape[1]).tolist()
        for factor in factors:
            columns = list(zip(*product, strict=True))
            product = [
                [mp.fdot(zip(map(mp.mpf, row), c, strict=True)) for c in columns]
                for row in factor.tolist()
            ]
        values = mp.svd_r(mp.matrix(product), compute_uv=False)
        floor = mp.mpf(10) ** (20 - digits) * max(values)
        return np.array(
            sorted((float(mp.log(v)) if v > floor else -np.inf for v in values), reverse=True)
        )


def _gaussian(layers, n, seed=0):
    # rounded to float32, so that both precisions see the same matrices
    return (
        np.random.default_rng(seed).normal(size=(layers, n, n)).astype(np.float32).astype(float)
        / n**0.5
    )


def _network(activation, depth=5, width=12, d_in=9, sigma_w=1.4, weights="gaussian", dtype=None):
    mlp = MLP(depth, width, activation, weights=weights)
    x = jax.random.normal(jax.random.key(5), (d_in,), dtype or jnp.result_type(float))
    chain = networks.chain(mlp)
    return chain, chain.init(KEY, x, sigma_w, 0.1), x


def _dense(chain, params, x, depth):
    def state(x):
        h = chain.embed(params, x)
        for i in range(depth):
            h = chain.block(jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks), h)
        return h

    return np.linalg.svd(np.asarray(jax.jacobian(state)(x)), compute_uv=False)


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "n"), [(60, 8), (1, 8)])
def test_product_of_gaussian_factors_against_multiprecision(layers, n):
    factors = np.random.default_rng(0).normal(size=(layers, n, n)).astype(np.float32).astype(float)
    truth = _truth(factors)
    single = product_log_singular_values(jnp.asarray(factors, jnp.float32))
    np.testing.assert_allclose(single, truth, atol=1e-3)
    if jax.config.read("jax_enable_x64"):
        double = product_log_singular_values(jnp.asarray(factors))
        np.testing.assert_allclose(double, truth, atol=1e-9)


def test_explicit_product_could_not_do_it():
    factors = _gaussian(60, 8)
    truth = _truth(factors)
    assert truth[0] == pytest.approx(-2, abs=1) and truth[-1] < -100
    with np.errstate(divide="ignore"):
        explicit = np.log(np.linalg.svd(np.linalg.multi_dot(factors[::-1]), compute_uv=False))
    assert np.max(np.abs(explicit - truth)) > 60, "this is why the product is never formed"
    np.testing.assert_allclose(product_log_singular_values(jnp.asarray(factors)), truth, atol=1e-9)


def _haar(rng, n):
    q, r = np.linalg.qr(rng.normal(size=(n, n)))
    return q * np.sign(np.diag(r))


def _with_values(rng, log_s, layers):
    """Factors whose product has these singular values, in bases that turn from layer to layer."""
    bases = [_haar(rng, len(log_s)) for _ in range(layers + 1)]
    return np.stack([b * np.exp(log_s / layers) @ a.T for a, b in itertools.pairwise(bases)])


def _regimes(n=12, layers=60):
    rng = np.random.default_rng(0)
    near = rng.normal(size=n)
    clusters = np.where(
        np.arange(n) < n // 2,
        -40 + 1e-6 * near,
        np.where(np.arange(n) < n - 2, 10 + 1e-3 * near, -90),
    )
    masks = rng.uniform(size=(layers, n)) < 0.97
    return {
        "chaotic": rng.normal(size=(layers, n, n)) * 3 / n**0.5,
        "ordered": rng.normal(size=(layers, n, n)) * 0.3 / n**0.5,
        "near-isometric": np.stack(
            [_haar(rng, n) + 1e-4 * rng.normal(size=(n, n)) for _ in range(layers)]
        ),
        "isometric": np.stack([0.5 * _haar(rng, n) for _ in range(layers)]),
        "clusters far down": _with_values(rng, clusters, layers),
        "pairs all the way": _with_values(
            rng, np.repeat(np.linspace(50, -150, n // 2), 2) + 1e-4 * near, layers
        ),
        "dense": _with_values(rng, np.linspace(0, -12, n), layers),
        "masked": np.stack([2**0.5 * _haar(rng, n) * mask[None] for mask in masks]),
        "width 1": rng.normal(size=(layers, 1, 1)),
    }


@jax.jit
def _with_errors(factors):
    layer = lambda product, factor: (
        product.then(factor @ product.basis, factor_rank(factor), factor),
        None,
    )
    start = graded.identity(factors.shape[1], factors.dtype)
    product = jax.lax.scan(layer, start, factors)[0]
    return log_values_with_errors(
        product.graded, product.disturbed.graded, product.rank.astype(factors.dtype)
    )


@pytest.mark.slow
@pytest.mark.parametrize("regime", _regimes())
@pytest.mark.kernels
def test_every_regime_against_multiprecision(regime):
    # rounded to float32, so that both precisions see the same matrices
    factors = _regimes()[regime].astype(np.float32).astype(float)
    truth = _truth(factors, 250)
    rank = np.isfinite(truth).sum()
    dtype = jnp.result_type(float)
    with jax.default_matmul_precision("highest"):
        found, error = map(np.asarray, _with_errors(jnp.asarray(factors, dtype)))
    assert np.isfinite(found).sum() == rank
    np.testing.assert_allclose(
        found[:rank], truth[:rank], atol=1e-9 if dtype == jnp.float64 else 2e-3
    )
    # an estimate of the error, not a bound of it: but no regime has gone past half of it
    assert np.all(np.abs(found[:rank] - truth[:rank]) <= error[:rank]) and np.all(error[rank:] == 0)


def _saturated(gain, layers=30, n=12):
    """Jacobians W diag(phi'(h)) of a tanh network: 1 - tanh^2 is down to e^-40, more than float32 resolves."""
    rng, factors = np.random.default_rng(2), []
    h = gain * rng.normal(size=n)
    for _ in range(layers):
        weights = gain * rng.normal(size=(n, n)) / n**0.5
        factors.append(weights / np.cosh(h)[None] ** 2)
        h = weights @ np.tanh(h)
    # rounded to float32, so that both precisions see the same matrices
    return np.stack(factors).astype(np.float32).astype(float)


@pytest.mark.slow
@pytest.mark.kernels
def test_error_of_saturated_networks_is_never_understated():
    offs, errors = [], []
    for gain in [2.0, 4.0, 6.0]:
        factors = _saturated(gain)
        with jax.default_matmul_precision("highest"):
            found, error = map(np.asarray, _with_errors(jnp.asarray(factors, float)))
        offs.append(np.abs(found - _truth(factors, 500)))
        errors.append(error)
        assert np.sum(error < 0.1) >= 3, "the largest are known"
    off, error = np.array(offs), np.array(errors)
    assert np.all(off <= error)
    assert np.isinf(error).any(), (
        "the least of the most saturated are not told from zero, and said to be so"
    )
    known = np.isfinite(error)
    # some are right to the last digit
    with np.errstate(divide="ignore"):
        excess = np.median(error[known] / off[known])
    assert excess < 60, "stated errors are not far above true ones"


def _disturbed_families(layers=20, n=12):
    """Products whose rounding is amplified in different ways: against the order, by grading, by non-normality."""
    rng = np.random.default_rng(5)
    normal = rng.normal(size=(layers, n, n))
    grades = np.exp(-np.arange(n))
    steps = np.exp(np.linspace(-2, 2, n))
    kahan = np.diag(0.9 ** np.arange(n)) @ (np.eye(n) - 0.4 * np.triu(np.ones((n, n)), 1))
    return {
        "gaussian": normal / n**0.5,
        "lower": np.tril(normal) / n**0.5,
        "upper": np.triu(normal) / n**0.5,
        "growth against the order": 0.3 * np.tril(normal) + np.diag(steps),
        "growth with the order": 0.3 * np.tril(normal) + np.diag(steps[::-1]),
        "kahan": np.stack([kahan] * layers),
        "jordan": np.stack([0.9 * np.eye(n) + np.eye(n, k=1)] * layers),
        "small rows last": grades[None, :, None] * normal,
        "small rows first": grades[None, ::-1, None] * normal,
        "small columns last": grades[None, None] * normal,
    }


@pytest.mark.slow
@pytest.mark.kernels
def test_stated_errors_cover_and_are_tight():
    excess = []
    for name, factors in _disturbed_families().items():
        # rounded to float32, so that both precisions see the same matrices
        factors = factors.astype(np.float32).astype(float)
        found, error = map(np.asarray, _with_errors(jnp.asarray(factors, float)))
        off = np.abs(found - _truth(factors))
        assert np.all(off <= error), name
        known = np.isfinite(error) & (off > 0)
        excess.append(error[known] / off[known])
    # 28 over a larger set of families in both precisions, the issue asks for 30
    assert np.median(np.concatenate(excess)) < 50


@pytest.mark.slow
def test_errors_beside_what_floats_do_not_hold():
    # a value that an SVD of its layer cannot tell from zero is not known, and NaN has no error
    wide = jnp.asarray([[1.0, 1.0], [1.0, 1.0]])
    found, error = _with_errors(jnp.stack([wide, wide]))
    assert float(found[0]) == pytest.approx(2 * np.log(2)) and np.isinf(error[1])
    assert np.isnan(_with_errors(jnp.full((2, 2, 2), jnp.nan))[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "weights", "width", "depth", "d_in", "gain"),
    [
        ("tanh", "orthogonal", 24, 12, 24, 1.02),
        ("tanh", "orthogonal", 32, 4, 20, 1.02),
        ("relu", "gaussian", 32, 8, 40, 2**0.5),
    ],
)
def test_gradient_of_close_values_is_that_of_an_svd(activation, weights, width, depth, d_in, gain):
    mlp, x = (
        MLP(depth, width, activation, weights=weights),
        jax.random.normal(jax.random.key(1), (d_in,)),
    )
    params, chain = networks.chain(mlp).init(KEY, x, gain, 0.1), networks.chain(mlp)

    def ours(scale):
        return spectra.log_singular_values(chain, networks.rescale(params, scale, 1.0), x, [depth])[
            0
        ]

    def jacobian(scale):
        scaled = networks.rescale(params, scale, 1.0)

        def state(x):
            return jax.lax.scan(
                lambda h, block: (chain.block(block, h), None),
                chain.embed(scaled, x),
                scaled.blocks,
            )[0]

        return jax.jacrev(state)(x)

    values, slopes = jax.jit(lambda: jax.jvp(ours, (1.0,), (1.0,)))()
    dense, moved = jax.jit(lambda: jax.jvp(jacobian, (1.0,), (1.0,)))()
    u, s, vt = np.linalg.svd(dense, full_matrices=False)
    # a dense SVD knows values and vectors to about eps over their share of the largest
    known = s > 1e-4 * s[0]
    expected = np.einsum("ji,jk,ik->i", u, moved, vt)[known] / s[known]
    np.testing.assert_allclose(np.asarray(values)[known], np.log(s[known]), atol=1e-9)
    np.testing.assert_allclose(np.asarray(slopes)[known], expected, atol=1e-6)
    assert np.isfinite(slopes).all()


def _sum_along(t, mask):
    """Weights times ln s of a product along a line."""
    factors = jnp.asarray(np.stack([_haar(np.random.default_rng(seed), 5) for seed in range(3)]))
    direction = jnp.asarray(_gaussian(3, 5, 7))
    log_s = spectra.product_log_singular_values((factors + (0.1 + t) * direction) * mask)
    return jnp.sum(jnp.arange(5.0) * jnp.where(jnp.isfinite(log_s), log_s, 0.0))


_slope_along = jax.jit(jax.grad(_sum_along))


@jax.jit
def _second_slopes(t, mask):
    def along(t):
        return _sum_along(t, mask)

    def slope_by_jvp(t):
        return jax.jvp(along, (t,), (1.0,))[1]

    return jnp.stack([
        jax.grad(jax.grad(along))(t),
        jax.hessian(along)(t),
        jax.jvp(jax.grad(along), (t,), (1.0,))[1],
        jax.grad(slope_by_jvp)(t),
    ])  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("killed", [False, True])
def test_second_derivatives_in_every_order_of_modes(killed):
    # against differences of first derivatives; killed as a unit that relu has switched off
    mask = jnp.ones((3, 1, 5)).at[1, 0, 2].set(0.0 if killed else 1.0)
    difference = (_slope_along(1e-5, mask) - _slope_along(-1e-5, mask)) / 2e-5
    np.testing.assert_allclose(_second_slopes(0.0, mask), jnp.full(4, difference), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 4])
def test_nilpotent_products_are_killed_with_a_derivative_of_zero(n):
    factor = jnp.triu(jnp.asarray(_gaussian(1, n)[0]), 1)

    def finite(factors):
        log_s = spectra.product_log_singular_values(factors)
        return jnp.sum(jnp.where(log_s == -jnp.inf, 0.0, log_s)), log_s

    for power in (n - 1, n):
        factors = jnp.stack([factor] * power)
        slopes, log_s = jax.jit(jax.grad(finite, has_aux=True))(factors)
        assert np.isfinite(log_s).sum() == n - power
        assert np.isfinite(slopes).all() and (power < n or not slopes.any())


@pytest.mark.slow
def test_factors_at_the_ends_of_the_float_range():
    # XLA takes 1e-40 for zero in arithmetic
    steps = np.array([[1e38, 1.0, 1.0], [1.0, 1e-40, 1e-20], [1e-40, 1e-40, 0.0]], np.float32)
    factors = jax.vmap(jax.vmap(jnp.diag))(jnp.asarray(np.stack([steps] * 3, 1)))
    with np.errstate(divide="ignore"):
        expected = -np.sort(-3 * np.log(steps.astype(float)), axis=1)
    # a power of 2 is taken out of such factors, whose logarithm rounds
    np.testing.assert_allclose(
        jax.jit(jax.vmap(product_log_singular_values))(factors), expected, rtol=1e-6, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 12])
@pytest.mark.kernels
def test_values_too_many_for_one_block(depth):
    # wide enough for all sizes of blocks that settle neighbours
    factors = _gaussian(depth, 64, seed=2)
    if jax.config.read("jax_enable_x64"):
        # in float64 nothing but multi-precision knows better, and that takes its time
        factors = factors[:, :33, :33] * (64 / 33) ** 0.5
        truth, atol = _truth(factors, 60), 1e-9
    else:
        product = np.linalg.multi_dot(factors[::-1]) if depth > 1 else factors[0]
        truth = np.log(np.linalg.svd(product, compute_uv=False))
        # float64 knows values down to 15 nats above its rounding
        truth, atol = truth[truth > truth[0] - 20], 2e-3
    found = np.asarray(product_log_singular_values(jnp.asarray(factors, float)))[: len(truth)]
    np.testing.assert_allclose(found, truth, atol=atol)


@pytest.mark.kernels
def test_order_and_gaps_beyond_any_float():
    dtype = jnp.result_type(float)
    steps = np.array([-200, 0, -150, 100]) if dtype == jnp.float64 else np.array([-30, 0, -20, 12])
    factors = jnp.asarray(np.stack([np.diag(10.0**steps)] * 300), dtype)
    expected = np.log(10) * 300 * np.sort(steps)[::-1]
    # 300 additions of logarithms round to 300 eps of the largest
    np.testing.assert_allclose(
        product_log_singular_values(factors), expected, rtol=300 * jnp.finfo(dtype).eps
    )


@pytest.mark.slow
@pytest.mark.parametrize("killed", [[2], [0, 5], [1, 3, 4]])
@pytest.mark.kernels
def test_killed_directions_are_minus_infinity_and_the_rest_is_right(killed):
    factors = _gaussian(7, 6, seed=1)
    factors[3][:, killed] = 0.0
    factors[5][:, killed[:1]] = 0.0
    truth = _truth(factors)
    rank = 6 - len(killed)
    dtype = jnp.result_type(float)
    found = np.asarray(product_log_singular_values(jnp.asarray(factors, dtype)))
    assert np.isfinite(found).sum() == rank and np.isfinite(truth).sum() == rank
    np.testing.assert_allclose(
        found[:rank], truth[:rank], atol=1e-9 if dtype == jnp.float64 else 1e-3
    )


@pytest.mark.slow
def test_a_factor_of_zeros_kills_everything():
    factors = _gaussian(4, 5)
    factors[2] = 0.0
    assert np.all(np.asarray(product_log_singular_values(jnp.asarray(factors))) == -np.inf)


def test_what_is_not_finite_stays_so():
    factors = _gaussian(4, 5)
    factors[2, 1, 1] = np.nan
    assert np.isnan(product_log_singular_values(jnp.asarray(factors))).all()


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(-200, 200), st.floats(0, 12))
def test_scaling_and_grading_are_followed_exactly(seed, shift, spread):
    # scaling a factor by e^s moves every logarithm by s; rows graded by e^spread are absorbed without loss
    factors = np.random.default_rng(seed).normal(size=(5, 4, 4))
    graded = factors * np.exp(-spread * np.arange(4))[None, :, None]
    base = product_log_singular_values(jnp.asarray(graded))
    moved = product_log_singular_values(jnp.asarray(graded * np.exp(shift)))
    np.testing.assert_allclose(moved, base + 5 * shift, atol=1e-9)
    total = sum(np.linalg.slogdet(factor)[1] for factor in graded)
    assert float(jnp.sum(base)) == pytest.approx(total, abs=1e-8), "the logarithms sum to ln |det|"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d_in", "activation"),
    [pytest.param(5, "tanh", marks=pytest.mark.kernels), (12, "gelu"), (30, "identity")],
)
def test_jacobian_of_a_chain_against_autodiff(activation, d_in):
    chain, params, x = _network(activation, d_in=d_in)
    found = log_singular_values(chain, params, x, (0, 1, 3, 5))
    assert found.shape == (4, min(12, d_in))
    single = x.dtype == jnp.float32
    for row, depth in enumerate([0, 1, 3, 5]):
        expected = np.log(_dense(chain, params, x, depth))
        # a dense SVD in float32 is right to eps times the largest value only
        atol = (
            1e-4 * np.exp(expected[0] - expected)
            if single
            else 1e-9 * np.exp(expected[0] - expected)
        )
        assert np.all(np.abs(np.asarray(found[row]) - expected) < atol + 1e-9)


def _dense_between(chain, params, x, first, last, readout):
    blocks = lambda i: jax.tree.map(lambda leaf: leaf[i], params.blocks)
    start = x
    if first is not None:
        start = chain.embed(params, x)
        for i in range(first):
            start = chain.block(blocks(i), start)

    def state(v):
        h = chain.embed(params, v) if first is None else v
        for i in range(first or 0, last):
            h = chain.block(blocks(i), h)
        return chain.readout(params, h) if readout else h

    return np.linalg.svd(np.asarray(jax.jacobian(state)(start)), compute_uv=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "readout", "d_in"), [(None, True, 30), (2, True, 9), (3, False, 30), (None, True, 3)]
)
def test_from_any_layer_to_any_layer_and_the_output(first, readout, d_in):
    chain, params, x = _network("tanh", d_in=d_in)
    depths = [3, 5]

    @jax.jit
    def both(x):
        log = spectra.log_singular_values(chain, params, x, depths, first, readout, errors=True)
        return log, spectra.singular_values(chain, params, x, depths, first, readout)

    log, plain = both(x)
    eps = jnp.finfo(x.dtype).eps
    for row, depth in enumerate(depths):
        if first == depth and not readout:
            np.testing.assert_allclose(log.log_s[row], 0.0, atol=1e-6)
            continue
        expected = _dense_between(chain, params, x, first, depth, readout)
        assert plain[row].shape == log.log_s[row].shape == expected.shape
        # a dense SVD is right to eps times the largest value, times the root of the sizes
        rounding = 100 * eps * expected[0]
        np.testing.assert_allclose(plain[row], expected, atol=rounding)
        assert np.all(
            np.abs(np.exp(np.asarray(log.log_s[row])) - expected)
            <= log.error[row] * expected + rounding
        )


@pytest.mark.slow
@pytest.mark.kernels
def test_relu_rank_is_the_smallest_active_count():
    chain, params, x = _network("relu", depth=8, width=20, d_in=40)
    h, active = chain.embed(params, x), []
    for i in range(8):
        active.append(int((h > 0).sum()))
        h = chain.block(jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks), h)
    log_s = log_singular_values(chain, params, x, (1, 4, 8))
    finite = np.isfinite(log_s).sum(axis=1)
    assert finite.tolist() == [min(active[:1]), min(active[:4]), min(active)]
    assert not np.isnan(log_s).any()
    assert min(active) < 20


@pytest.mark.slow
@pytest.mark.kernels
def test_saturated_tanh_is_small_but_not_dead_in_float32():
    chain, params, x = _network("tanh", depth=6, width=16, sigma_w=30.0, dtype=jnp.float32)
    log_s = log_singular_values(chain, params, x, (6,))
    assert log_s.dtype == jnp.float32 and np.isfinite(log_s).all()


@pytest.mark.slow
@pytest.mark.kernels
def test_orthogonal_chain_is_an_isometry_at_any_depth():
    chain, params, x = _network(
        "identity", depth=256, width=16, d_in=16, sigma_w=0.3, weights="orthogonal"
    )
    log_s = log_singular_values(chain, params, x, (1, 256))
    expected = np.log(0.3) * np.array([[2.0], [257.0]])
    # sums over layers keep what they round off: relative to s, 1e-5 in float32 besides the rounding of ln s itself
    eps = jnp.finfo(x.dtype).eps
    for found, ln_s in zip(log_s, expected[:, 0], strict=True):
        np.testing.assert_allclose(found, ln_s, atol=100 * eps + eps * abs(ln_s))


@pytest.mark.slow
def test_gradient_of_the_living_values_of_a_relu_network():
    # every layer is linear in its gain once the mask is fixed: d ln s / d ln sigma_w = number of weight matrices
    mlp, x = MLP(4, 10, "relu"), jax.random.normal(jax.random.key(2), (12,))
    params, chain = networks.chain(mlp).init(KEY, x, 1.4), networks.chain(mlp)
    values = lambda gain: spectra.log_singular_values(
        chain, networks.rescale(params, gain, 1.0), x, (4,)
    )[0]
    found, slope = jax.jit(lambda gain: (values(gain), jax.jacfwd(values)(gain)))(1.0)
    living = np.isfinite(found)
    assert 2 <= living.sum() < 10
    np.testing.assert_allclose(slope[living], 5.0, rtol=1e-4)
    reverse = jax.jit(jax.grad(lambda gain: jnp.sum(values(gain)[:2])))(1.0)
    assert float(reverse) == pytest.approx(10.0, rel=1e-4)


@pytest.mark.slow
def test_depth_is_a_prefix():
    chain, params, x = _network("tanh", depth=9)
    deep = log_singular_values(chain, params, x, (2, 5, 9))
    for row, depth in enumerate([2, 5, 9]):
        shallow = Params(
            params.embed,
            jax.tree.map(lambda leaf, d=depth: leaf[:d], params.blocks),
            params.readout,
        )
        np.testing.assert_allclose(
            log_singular_values(chain, shallow, x, (depth,))[0], deep[row], atol=1e-11
        )


@pytest.mark.slow
def test_spectrum_record_carries_the_mean_square():
    chain, params, x = _network("relu")
    record = records.Spectrum.of(log_singular_values(chain, params, x, (2, 5)))
    s = np.exp(np.asarray(record.log_s))
    np.testing.assert_allclose(record.log_mean_square, np.log(np.mean(s**2, axis=1)), rtol=1e-12)


@pytest.mark.slow
def test_jit_vmap_and_grad():
    factors = jnp.asarray(np.stack([_gaussian(6, 5, seed) for seed in range(3)]))
    one = lambda f: product_log_singular_values(f)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(one))(factors), np.stack([one(f) for f in factors]), atol=1e-12
    )
    direction = jnp.asarray(_gaussian(6, 5, 9))
    forward = jax.jit(lambda f: jax.jvp(one, (f,), (direction,))[1])(factors[0])
    step = 1e-6
    difference = (one(factors[0] + step * direction) - one(factors[0] - step * direction)) / (
        2 * step
    )
    np.testing.assert_allclose(forward, difference, atol=1e-6)
    backward = jax.jit(jax.grad(lambda f: one(f)[1]))(factors[0])
    assert float(jnp.sum(backward * direction)) == pytest.approx(float(forward[1]), rel=1e-8)


def test_bad_arguments_are_refused():
    chain, params, x = _network("tanh")
    for depths in ([], [6], [2, 1]):
        with pytest.raises(ValueError, match=r"depths must be ascending integers in \[0, 5\]"):
            spectra.log_singular_values(chain, params, x, depths)
    for first in (-1, 3, True):
        with pytest.raises(
            ValueError, match=r"from_layer must be an integer in \[0, 2\], the first depth, got"
        ):
            spectra.singular_values(chain, params, x, [2, 4], from_layer=first)
