"""Fixed points of blocks with cures: closed forms, multi-precision, and the fold taken to great depth."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import optimize

from jaxstab import theory

GAINS = (1.5, 0.3)
DEPTH = 160
LAWS = {
    "dropout": {"keep": 0.9, "shared_masks": False},
    "LayerNorm, dropout": {
        "norm": "layer",
        "keep": 0.9,
        "shared_masks": False,
        "weights": "he_normal",
    },
    "LayerNorm after": {"norm": "layer", "norm_after": True},
    "BatchNorm": {"norm": "batch", "batch": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_the_fold_arrives_at_the_fixed_point(name):
    block = theory.law("selu" if name == "LayerNorm, dropout" else "tanh", **LAWS[name])
    point = theory.fixed_point(block, *GAINS)
    # two inputs in one batch start as alike as any: c of the fold is that of different batches
    predicted = jax.jit(lambda: theory.predict(block, *GAINS, [DEPTH], width=16, d_in=16, c0=0.3))
    forward, correlation, backward, _ = predicted()
    # errors shrink by chi_c = 0.83 and less per layer
    np.testing.assert_allclose(forward.log_q[-1], point.log_q, atol=1e-10)
    if "norm" not in LAWS[name] or LAWS[name]["norm"] != "batch":
        np.testing.assert_allclose(1 - correlation.c[-1], point.distance, rtol=1e-9)
    growth = 2 * (backward.log_grad_h[0, DEPTH - 1] - backward.log_grad_h[0, DEPTH])
    np.testing.assert_allclose(growth, np.log(point.chi_1), atol=1e-10)


@pytest.mark.slow
def test_a_normalised_branch_has_the_limits_of_one_that_is_not():
    """c* = 1 at strong biases, neared as L^-(1 - M/(V + 1)): the branch's length cancels."""
    gains = (1.0, 1.0)
    peri, layer = (theory.law("tanh", norm=norm, skip="sum") for norm in ("peri", "layer"))
    point = theory.fixed_point(peri, *gains)
    jax.tree.map(np.testing.assert_array_equal, point, theory.fixed_point(layer, *gains))
    at = [1000, 4000]
    fold = jax.jit(lambda: theory.predict(peri, *gains, [at[1]], width=16, d_in=16, c0=0.1))
    forward, correlation, _, _ = fold()
    np.testing.assert_allclose(forward.q[at[1]], at[1] + forward.q[0], rtol=1e-4)
    off = 1 - np.asarray(correlation.c)[at]
    slope = float(theory.derivative_moment("tanh", 1.0))
    kept = slope / (float(theory.second_moment("tanh", 1.0)) + 1)
    np.testing.assert_allclose(point.c, 1.0, atol=1e-12)
    # the next order in 1/L
    np.testing.assert_allclose(off[1] / off[0], 4 ** (kept - 1), rtol=5e-3)


def _arccos_map(c):
    """E relu(u1) relu(u2) / E relu^2 of correlation c (Cho & Saul 2009)."""
    return (mpmath.sqrt(1 - c**2) + c * (mpmath.pi - mpmath.acos(c))) / mpmath.pi


@pytest.mark.parametrize("keep", [0.5, 0.9, 1 - 1e-4, 1 - 1e-9])
def test_relu_with_dropout_in_multi_precision(keep):
    """c* = rho J_1(c*) at every gain without biases; 1 - c* nears (h/kappa)^(2/3), kappa = 2 sqrt 2/(3 pi)."""
    point = theory.fixed_point(theory.law("relu", keep=keep, shared_masks=False), 1.2, 0.0)
    with mpmath.workdps(40):
        rate = mpmath.mpf(keep)
        excess = lambda d: 1 - rate * _arccos_map(1 - d) - d
        distance = mpmath.findroot(
            excess, (1 - rate, 1), solver="bisect", maxsteps=120, verify=False
        )
    # 1 - keep, from which 1 - c* follows, has lost the digits that keep is given in
    rtol = 1e-9 + 1e-16 / (1 - keep)
    np.testing.assert_allclose(point.distance, float(distance), rtol=rtol)
    np.testing.assert_allclose(point.chi_1, 1.2**2 / 2 / keep, rtol=1e-12)


def test_dropout_near_criticality_is_universal():
    """Held table A7 (arXiv:2605.21648), smooth phi: m sqrt(g/2h) = sqrt(1 + t^2) - t, t = (1 - chi)/sqrt(2 g h)."""
    # odd phi at q -> 0: chi = sigma_w^2 and h = 1 - rho; at sigma_b > 0 both come from the map
    h, sigma_b = 1e-8, 0.3
    critical = float(theory.critical_sigma_w("tanh", sigma_b))
    # how chi_1 moves with the gain
    beside = [
        float(theory.fixed_point("tanh", critical + step, sigma_b).chi_1) for step in (1e-4, -1e-4)
    ]
    slope = (beside[0] - beside[1]) / 2e-4
    for t in (-3.0, 0.0, 3.0):
        plain = theory.fixed_point("tanh", critical, sigma_b)
        curvature = _curvature(float(plain.q), critical)
        gain = critical - t * math.sqrt(2 * curvature * h) / slope
        # h = (1 - rho) sigma_w^2 V/q, with V/q from the length map itself
        share = 1 - sigma_b**2 / float(plain.q)
        block = theory.law("tanh", keep=1 - h / share, shared_masks=False)
        distance = float(theory.fixed_point(block, gain, sigma_b).distance)
        # the next order is that of sqrt(h)
        np.testing.assert_allclose(
            distance * math.sqrt(curvature / (2 * h)), math.sqrt(1 + t**2) - t, rtol=2e-3
        )


def _curvature(q, sigma_w):
    """g = F''(1) = sigma_w^2 q E phi''^2 of tanh."""
    z, weight = np.polynomial.hermite_e.hermegauss(120)
    tanh = np.tanh(q**0.5 * z)
    second = -2 * tanh * (1 - tanh**2)
    return sigma_w**2 * q * float(np.sum(weight * second**2) / np.sqrt(2 * np.pi))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [4, 64])
def test_batchnorm_on_relu_has_its_correlation(batch):
    """c* = J_1(-1/(B - 1)) (Yang et al. 2019, theorem 5), whatever the gain, without biases and epsilon."""
    block = theory.law("relu", norm="batch", batch=batch, epsilon=0.0)
    point = theory.fixed_point(block, 0.7, 0.0)
    np.testing.assert_allclose(point.c, float(_arccos_map(mpmath.mpf(-1) / (batch - 1))), atol=1e-9)
    known = {4: 3.08406, 64: 1.49306}[batch]
    np.testing.assert_allclose(point.chi_1, known, rtol=4e-6)
    np.testing.assert_allclose(point.q, 0.7**2 / 2, rtol=1e-9)


def test_batchnorm_far_below_its_epsilon_contracts_as_a_linear_layer():
    """The variance of a batch shrinks by sigma_w^2 phi'(0)^2 / epsilon per layer, at every length."""
    block = theory.law("hard_tanh", norm="batch", batch=8, epsilon=1.0)
    point = theory.fixed_point(block, 0.88, 0.05)
    np.testing.assert_allclose([point.chi_1, point.chi_c], 0.88**2, rtol=1e-9)
    np.testing.assert_allclose([point.q, point.c], [0.05**2, 1.0], rtol=1e-9)


def test_layernorm_in_closed_form():
    """chi_1 = M / (V + sigma_b^2/sigma_w^2) at length 1; critical where sigma_w^2 = sigma_b^2 / (M - V)."""
    length, slope = (
        float(moment("tanh", 1.0)) for moment in (theory.second_moment, theory.derivative_moment)
    )
    block = theory.law("tanh", norm="rms", epsilon=0.0)
    point = theory.fixed_point(block, *GAINS)
    np.testing.assert_allclose(point.q, GAINS[0] ** 2 * length + GAINS[1] ** 2, rtol=1e-12)
    np.testing.assert_allclose(
        point.chi_1, slope / (length + (GAINS[1] / GAINS[0]) ** 2), rtol=1e-12
    )
    critical = float(theory.critical_sigma_w(block, 0.3))
    np.testing.assert_allclose(critical**2, 0.09 / (slope - length), rtol=1e-10)


def test_residual_blocks_keep_the_correlation_of_their_branch():
    """q grows for ever; tanh is then a sign: c = (sigma_w^2 (2/pi) arcsin c + sigma_b^2) / (sigma_w^2 + sigma_b^2)."""
    point = theory.fixed_point(theory.law("tanh", skip="sum"), *GAINS)
    w2, b2 = np.square(GAINS)
    # quadrature stands at a length where tanh is a sign to 1e-6
    excess = lambda c: (w2 * 2 / np.pi * np.arcsin(c) + b2) / (w2 + b2) - c
    np.testing.assert_allclose(point.c, optimize.brentq(excess, 0.0, 0.9, xtol=1e-14), rtol=1e-5)
    assert (
        point.q == np.inf and point.xi_c == np.inf and point.xi_grad == np.inf and not point.stable
    )
    # relu's branch grows with q: q' = (1 + s^2 sigma_w^2/2) q
    for settings, square in (({"skip": "sum"}, 1.0), ({"skip": "scaled", "depth": 5}, 0.2)):
        point = theory.fixed_point(theory.law("relu", **settings), 1.2, 0.3)
        assert point.q == np.inf and point.c == 1.0
        np.testing.assert_allclose(point.chi_1, 1 + square * 0.72, rtol=1e-12)
    block = theory.law("tanh", skip="rezero", alpha=0.0)
    assert float(theory.fixed_point(block, *GAINS).q) == pytest.approx(w2 + b2, rel=1e-12)
    # dense skips near the plain fixed point
    dense, plain = (
        theory.fixed_point(theory.law("tanh", skip="dense"), *GAINS),
        theory.fixed_point("tanh", *GAINS),
    )
    np.testing.assert_allclose([dense.q, dense.c], [plain.q, plain.c], rtol=1e-12)
    assert dense.chi_1 == 1.0 and dense.xi_q == np.inf


@pytest.mark.parametrize(
    "settings", [{"skip": "highway"}, {"skip": "scaled"}, {"norm": "batch", "norm_after": True}]
)
def test_laws_without_a_fixed_point_say_why(settings):
    block = theory.law("tanh", **settings)
    assert {"fixed_point", "critical_points"} <= theory.missing(block).keys()
    for found in (theory.fixed_point(block, *GAINS), theory.fixed_points(block, *GAINS)):
        assert (
            np.all(np.isnan(found.q)) and np.all(np.isnan(found.xi_c)) and not np.any(found.stable)
        )
    assert np.isnan(theory.critical_sigma_w(block, 0.3))
    for known in ("tanh", theory.law("tanh", keep=0.5)):
        assert not {"fixed_point", "critical_points"} & theory.missing(known).keys()


def test_dropout_moves_the_critical_gain_by_the_root_of_the_keep_rate():
    plain = float(theory.critical_sigma_w("tanh", 0.3))
    block = theory.law("tanh", keep=0.8, weights="he_normal")
    # he_normal's weights have variance 2/fan_in
    np.testing.assert_allclose(
        theory.critical_sigma_w(block, 0.3), plain * math.sqrt(0.8 / 2), rtol=1e-12
    )
    np.testing.assert_allclose(
        theory.fixed_point(block, plain * math.sqrt(0.4), 0.3).chi_1, 1.0, atol=1e-12
    )


@pytest.mark.slow
def test_fixed_points_of_laws_are_differentiable_over_grids():
    """Derivatives in a gain, a keep rate and epsilon, within jit(vmap(vmap)), are those of differences."""

    def fields(gain, keep, epsilon):
        block = theory.law("tanh", norm="layer", keep=keep, epsilon=epsilon, shared_masks=False)
        point = theory.fixed_point(block, gain, 0.3)
        return jnp.stack([point.log_q, point.distance, point.chi_1, point.xi_c])

    def both(*numbers):
        return fields(*numbers), jnp.stack(jax.jacfwd(fields, (0, 1, 2))(*numbers), -1)

    gains, keeps = jnp.asarray([1.2, 2.0]), jnp.asarray([0.7, 0.9])
    grid = jax.jit(jax.vmap(jax.vmap(both, (0, None, None)), (None, 0, None)))
    _, found = grid(gains, keeps, 0.1)
    step = 1e-5
    for place, shift in enumerate(step * np.eye(3)):
        above, below = (
            grid(gains + sign * shift[0], keeps + sign * shift[1], 0.1 + sign * shift[2])[0]
            for sign in (1, -1)
        )
        # truncation of the difference is of the order of step^2, rounding of eps/step
        np.testing.assert_allclose(
            found[..., place], (above - below) / (2 * step), rtol=1e-6, atol=1e-9
        )
    # a cell alone, without a program of the caller
    alone = theory.fixed_point(
        theory.law("tanh", norm="layer", keep=0.9, epsilon=0.1, shared_masks=False), 2.0, 0.3
    )
    np.testing.assert_allclose(
        grid(gains, keeps, 0.1)[0][1, 1],
        [alone.log_q, alone.distance, alone.chi_1, alone.xi_c],
        rtol=1e-10,
    )
