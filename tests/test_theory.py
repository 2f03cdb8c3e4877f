"""Mean-field theory against closed forms, adaptive quadrature and the papers' numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize
from scipy.special import erf, erfc, erfcx, expit, ndtr

from jaxstab import theory
from jaxstab.activations import Activation, get, names
from jaxstab.theory.quadrature import expectation, pair_expectation

LENGTHS = [1e-6, 1e-3, 0.1, 0.57, 1.0, 4.0, 30.0, 150.0]
SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


# ---- references, none of them by the code under test --------------------------------------------------------------


def _negative_exponentials(q):
    """E[e^z; z < 0] and E[e^2z; z < 0] for z ~ N(0, q), through the scaled erfc so that nothing overflows."""
    return erfcx(np.sqrt(q / 2)) / 2, erfcx(np.sqrt(2 * q)) / 2


def _elu(q):
    once, twice = _negative_exponentials(q)
    return q / 2 + twice - 2 * once + 0.5, 0.5 + twice


def _selu(q):
    once, twice = _negative_exponentials(q)
    inner = SELU_ALPHA**2 * (twice - 2 * once + 0.5), SELU_ALPHA**2 * twice
    return SELU_SCALE**2 * (q / 2 + inner[0]), SELU_SCALE**2 * (0.5 + inner[1])


def _hard_tanh(q):
    a = 1 / np.sqrt(q)
    inside, tail = erf(a / np.sqrt(2)), erfc(a / np.sqrt(2))
    return q * (inside - 2 * a * np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)) + tail, inside


def _gelu(q):
    # Stein's lemma twice: E[z Phi phi] = q/(1+q) E phi^2 and E[z^2 Phi^2] = q (E Phi^2 + 2 E[z Phi phi])
    squared = 0.25 + np.arcsin(q / (1 + q)) / (2 * np.pi)
    cross = q / (1 + q) / (2 * np.pi * np.sqrt(1 + 2 * q))
    return q * (squared + 2 * cross), squared + 2 * cross + q / (2 * np.pi * (1 + 2 * q) ** 1.5)


CLOSED = {
    "identity": lambda q: (q, 1.0),
    "relu": lambda q: (q / 2, 0.5),
    "leaky_relu": lambda q: (q * (1 + 1e-4) / 2, (1 + 1e-4) / 2),
    "erf": lambda q: (2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)), 4 / np.pi / np.sqrt(1 + 4 * q)),
    "sin": lambda q: (-np.expm1(-2 * q) / 2, (1 + np.exp(-2 * q)) / 2),
    "hard_tanh": _hard_tanh,
    "elu": _elu,
    "selu": _selu,
    "gelu": _gelu,
}
SMOOTH = {
    "tanh": (np.tanh, lambda z: 1 / np.cosh(np.clip(z, -300, 300)) ** 2),
    "sigmoid": (expit, lambda z: expit(z) * expit(-z)),
    "silu": (lambda z: z * expit(z), lambda z: expit(z) * (1 + z * expit(-z))),
    "softplus": (lambda z: np.logaddexp(z, 0), expit),
}


def _adaptive(f, q):
    """E f(sqrt(q) u) by adaptive quadrature, told where the activation bends."""
    density = lambda u: f(np.sqrt(q) * u) * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
    bends = sorted({0.0, *(s * w for s in (-1, 1) for w in (0.5, 3.0, min(12.0, 8 / np.sqrt(q)), 12.0))})
    pieces = zip(bends[:-1], bends[1:], strict=True)
    return sum(integrate.quad(density, a, b, epsabs=1e-15, epsrel=1e-13, limit=200)[0] for a, b in pieces)


def _reference(name, q):
    if name in CLOSED:
        return CLOSED[name](q)
    phi, slope = SMOOTH[name]
    return _adaptive(lambda z: phi(z) ** 2, q), _adaptive(lambda z: slope(z) ** 2, q)


@functools.cache
def _moments(name):
    return jax.jit(
        jax.vmap(
            lambda q: (
                theory.second_moment(name, q),
                theory.derivative_moment(name, q),
                theory.second_moment_slope(name, q),
            )
        )
    )


# ---- one layer ----------------------------------------------------------------------------------------------------


def test_every_activation_has_a_reference():
    assert set(CLOSED) | set(SMOOTH) == set(names())


@pytest.mark.parametrize("name", names())
def test_moments_agree_with_closed_forms_or_adaptive_quadrature(name):
    v, m, _ = _moments(name)(jnp.asarray(LENGTHS))
    for q, found_v, found_m in zip(LENGTHS, v, m, strict=True):
        expected_v, expected_m = _reference(name, q)
        assert float(found_v) == pytest.approx(expected_v, rel=1e-10), f"V at q = {q}"
        assert float(found_m) == pytest.approx(expected_m, rel=1e-10), f"M at q = {q}"


@pytest.mark.parametrize("name", [n for n in CLOSED if get(n).kernel is not None and n != "sin"])
def test_quadrature_agrees_with_the_kernels_it_is_replaced_by(name):
    phi = get(name)
    at = [(0.5, 0.0), (0.5, 0.7), (4.0, 0.999), (30.0, -0.4), (100.0, 0.5)]
    q, c = (jnp.asarray(axis) for axis in zip(*at, strict=True))
    covariance = jax.vmap(lambda q, c: pair_expectation(phi.fn, phi, q, c))(q, c)
    derivative = jax.vmap(lambda q, c: pair_expectation(phi.derivative, phi, q, c))(q, c)
    expected = jax.vmap(phi.kernel)(q, c)
    # absolute, on the scale of the moment: an odd function's covariance is 0 at c = 0
    np.testing.assert_allclose(covariance, expected[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(derivative, expected[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "kinks"), [("tanh", [0.0]), ("hard_tanh", [-1.0, 1.0]), ("elu", [0.0])])
def test_pair_expectation_agrees_with_nested_adaptive_quadrature(name, kinks):
    fn = {"tanh": np.tanh, "hard_tanh": lambda z: np.clip(z, -1, 1), "elu": lambda z: np.where(z > 0, z, np.expm1(z))}[
        name
    ]
    q, c = 2.3, 0.6
    root, rest = np.sqrt(q), np.sqrt(1 - c**2)
    density = lambda u: np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)

    def inner(u):
        at = sorted([-10.0, 10.0, *((k / root - c * u) / rest for k in kinks)])
        f = lambda v: fn(root * (c * u + rest * v)) * density(v)
        return sum(integrate.quad(f, a, b, epsabs=1e-14)[0] for a, b in zip(at[:-1], at[1:], strict=True))

    at = sorted([-10.0, 10.0, *(k / root for k in kinks)])
    outer = lambda u: fn(root * u) * density(u) * inner(u)
    expected = sum(integrate.quad(outer, a, b, epsabs=1e-12)[0] for a, b in zip(at[:-1], at[1:], strict=True))
    found = pair_expectation(get(name).fn, get(name), jnp.asarray(q), jnp.asarray(c))
    assert float(found) == pytest.approx(expected, abs=1e-10)


@settings(max_examples=40)
@given(st.floats(-9, 9), st.sampled_from(["hard_tanh", "elu", "selu", "gelu"]))
def test_moments_hold_over_eight_decades_of_length(log_q, name):
    q = float(np.exp(log_q))
    v, m, _ = _moments(name)(jnp.full(len(LENGTHS), q))
    np.testing.assert_allclose([v[0], m[0]], _reference(name, q), rtol=1e-10)


@pytest.mark.parametrize("name", names())
def test_slope_of_the_second_moment_is_its_derivative(name):
    # hard_tanh's phi'' is a pair of deltas: an autodiff phi'' would give V' = M
    for q in (0.3, 1.7, 20.0):
        slope = _moments(name)(jnp.full(len(LENGTHS), q))[2][0]
        step = 1e-4 * q
        difference = (_reference(name, q + step)[0] - _reference(name, q - step)[0]) / (2 * step)
        assert float(slope) == pytest.approx(difference, rel=1e-6)


def test_hard_tanh_length_scale_feels_its_kinks():
    point = jax.jit(lambda: theory.fixed_point("hard_tanh", 2.0, 0.3))()
    q = float(point.q)
    slope = 4 * optimize.approx_fprime([q], lambda q: _hard_tanh(q[0])[0], 1e-7)[0]
    assert float(point.xi_q) == pytest.approx(-1 / np.log(slope), rel=1e-5)


@pytest.mark.parametrize("name", ["hard_tanh", "gelu"])
def test_correlation_map_is_1_at_1_and_has_chi_1_as_slope_there(name):
    point = _fixed(name)(1.2, 0.3)
    at_one = jax.jit(
        lambda q: (theory.correlation_map(name, 1.2, 0.3, q, 1.0), theory.correlation_slope(name, 1.2, 0.3, q, 1.0))
    )
    np.testing.assert_allclose(at_one(point.q), [1.0, point.chi_1], atol=1e-9)


# ---- fixed points -------------------------------------------------------------------------------------------------


@functools.cache
def _fixed(name):
    return jax.jit(lambda w, b: theory.fixed_point(name, w, b))


@pytest.mark.parametrize("name", ["tanh", "relu", "gelu", "hard_tanh", "softplus"])
def test_fixed_points_agree_with_scalar_root_finding(name):
    for sigma_w in (0.1, 0.6, 1.0, 1.35, 2.5, 10.0):
        point = _fixed(name)(sigma_w, 0.4)
        excess = lambda q, w=sigma_w: w**2 * _reference(name, q)[0] + 0.16 - q
        first = sigma_w**2 + 0.16
        if excess(first) > 0 and excess(1e9) > 0:
            assert np.isinf(point.q), f"sigma_w = {sigma_w}: the length grows without bound"
            assert float(point.chi_1) == pytest.approx(sigma_w**2 * _reference(name, 1e20)[1], rel=1e-8)
            continue
        bracket = (first, 1e9) if excess(first) > 0 else (1e-9, first)
        q = optimize.brentq(excess, *bracket, xtol=1e-15, rtol=1e-14)
        assert float(point.q) == pytest.approx(q, rel=1e-10)
        assert float(point.chi_1) == pytest.approx(sigma_w**2 * _reference(name, q)[1], rel=1e-10)


@pytest.mark.parametrize(
    ("sigma_w", "q", "chi_1", "c"),
    [(1.3, 0.6070, 0.9398, 1.0), (2.5, 4.0791, 1.5852, 0.1221), (4.0, 12.604, 2.367, 0.0297)],
)
def test_poole_2016_points(sigma_w, q, chi_1, c):
    point = _fixed("tanh")(sigma_w, 0.3)
    np.testing.assert_allclose([point.q, point.chi_1, point.c], [q, chi_1, c], rtol=4e-4)


@pytest.mark.parametrize(
    ("squared", "xi_c"), [(1.0, 3.63), (1.4, 10.73), (1.7, 74.9), (2.0, 25.2), (3.0, 9.05), (4.0, 6.98)]
)
def test_schoenholz_2017_depth_scales(squared, xi_c):
    point = _fixed("tanh")(squared**0.5, 0.05**0.5)
    assert float(point.xi_c) == pytest.approx(xi_c, rel=2e-3)


@functools.cache
def _critical(name):
    return jax.jit(lambda b: (theory.critical_points(name, b), theory.critical_sigma_w(name, b)))


def test_critical_tanh():
    points, _ = _critical("tanh")(0.05**0.5)
    assert float(points.sigma_w[0] ** 2) == pytest.approx(1.76095, abs=5e-6)
    assert float(points.q[0]) == pytest.approx(0.57005, abs=5e-6)
    on_line = _fixed("tanh")(points.sigma_w[0], 0.05**0.5)
    assert float(on_line.chi_1) == pytest.approx(1.0, abs=1e-10)


def test_relu_closed_forms():
    he = _fixed("relu")(2**0.5, 0.0)
    assert [float(v) for v in (he.chi_1, he.c, he.q)] == pytest.approx([1.0, 1.0, 2.0], abs=1e-12)
    assert np.isinf([he.xi_q, he.xi_c, he.xi_grad]).all() and not he.stable
    growing = _fixed("relu")(1.7, 0.2)
    assert np.isinf(growing.q) and not growing.stable
    assert float(growing.chi_1) == pytest.approx(1.7**2 / 2, rel=1e-12)
    assert float(growing.c) == 1.0 and float(growing.xi_q) < 0
    shrinking = _fixed("relu")(1.0, 0.2)
    assert float(shrinking.q) == pytest.approx(0.04 / 0.5, rel=1e-12)
    assert bool(shrinking.stable) and float(shrinking.xi_grad) == pytest.approx(1 / np.log(2), rel=1e-12)


def test_tanh_without_bias_below_criticality_dies_to_zero_length():
    point = _fixed("tanh")(0.8, 0.0)
    assert float(point.q) == 0.0 and bool(point.stable)
    assert float(point.chi_1) == pytest.approx(0.64, rel=1e-10)
    critical = _fixed("tanh")(1.0, 0.0)
    assert float(critical.q) == 0.0 and np.isinf(critical.xi_grad) and np.isinf(critical.xi_q)


def test_selu_at_lecun_initialisation():
    point = _fixed("selu")(1.0, 0.0)
    assert float(point.q) == pytest.approx(1.0, abs=1e-9)
    assert float(point.c) == pytest.approx(0.0, abs=1e-9)
    assert 1.0 < float(point.chi_1) < 1.2


@functools.cache
def _all_fixed(name):
    def lengths(w, b):
        points = theory.fixed_points(name, w, b)
        return points.q, points.stable, points.chi_1

    return jax.jit(lengths)


@pytest.mark.parametrize(
    ("name", "squared", "sigma_b"), [("gelu", 1.99, 0.4), ("gelu", 1.999, 0.3), ("silu", 1.9999, 0.4)]
)
def test_gelu_and_silu_have_three_length_fixed_points(name, squared, sigma_b):
    q, stable, chi_1 = _all_fixed(name)(squared**0.5, sigma_b)
    found = np.isfinite(q)
    assert found.sum() == 3 and list(stable[found]) == [True, False, True]
    assert chi_1[0] < 1 < chi_1[2], "the low one is ordered, the high one chaotic"
    lengths = np.geomspace(1e-3, 1e7, 4001)
    v = (
        np.asarray([_reference(name, x)[0] for x in lengths])
        if name == "gelu"
        else np.asarray(_moments(name)(jnp.asarray(lengths))[0])
    )
    excess = squared * v + sigma_b**2 - lengths
    crossings = lengths[:-1][np.sign(excess[1:]) != np.sign(excess[:-1])]
    np.testing.assert_allclose(q[found], crossings, rtol=6e-3)


def test_two_fixed_points_about_to_merge_are_both_found():
    # just below the fold they are 4e-4 apart, far inside one step (10 %) of the search grid; just above both are gone
    below, above = (np.asarray(_all_fixed("gelu")((1.9957162025 + step) ** 0.5, 0.4)[0]) for step in (-1e-9, 1e-9))
    assert np.isfinite(below).sum() == 3
    assert below[1] / below[0] - 1 < 1e-3
    assert np.isfinite(above).sum() == 1


def test_which_fixed_point_is_reached_depends_on_the_input():
    reached = jax.jit(jax.vmap(lambda q0: theory.fixed_point("gelu", 1.99**0.5, 0.4, q0).q))
    low, high = reached(jnp.asarray([0.1, 50.0]))
    assert float(low) == pytest.approx(1.2617, rel=1e-4) and float(high) == pytest.approx(13.4468, rel=1e-4)


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_critical_point_on_a_repelling_length_is_listed_but_not_usable(name):
    points, usable = _critical(name)(0.05**0.5)
    assert float(points.sigma_w[0]) > 2**0.5 and not points.usable[0]
    assert np.isnan(usable)
    # its length map repels there: the slope exceeds 1
    slope = points.sigma_w[0] ** 2 * _moments(name)(jnp.full(len(LENGTHS), points.q[0]))[2][0]
    assert float(slope) > 1


def test_usable_critical_gains():
    critical = lambda name, b: float(_critical(name)(b)[1])
    assert critical("relu", 0.0) == pytest.approx(2**0.5, rel=1e-12)
    assert critical("relu", 0.3) == pytest.approx(2**0.5, rel=1e-12), "chi_1 is sigma_w^2 / 2 at every length"
    assert critical("identity", 0.3) == pytest.approx(1.0, rel=1e-12)
    assert critical("tanh", 0.0) == pytest.approx(1.0, rel=1e-9)
    assert critical("sigmoid", 0.05**0.5) ** 2 == pytest.approx(103.1, rel=1e-3), "near 100"


def test_no_nan_over_the_whole_range_of_gains():
    for name in names():
        for gain in np.linspace(0.1, 10.0, 8):
            point = jax.device_get(_fixed(name)(float(gain), 0.2))
            assert not np.isnan(np.asarray(point, float)).any(), f"{name} at {gain}: {point}"
            assert 0 <= point.c <= 1
            assert point.c == 1 or point.chi_1 > 1 or np.isinf(point.q), f"{name} at {gain}: ordered, yet {point}"


def test_fixed_points_are_differentiable_in_the_gains():
    fields = ("q", "c", "chi_1", "xi_c", "xi_grad")
    several = lambda w: jnp.stack([theory.fixed_point("erf", w, 0.3)._asdict()[field] for field in fields])
    gradient = jax.jit(jax.jacrev(several))(2.5)
    above, below = (_fixed("erf")(2.5 + step, 0.3)._asdict() for step in (1e-5, -1e-5))
    np.testing.assert_allclose(gradient, [(above[f] - below[f]) / 2e-5 for f in fields], rtol=1e-6)


def test_critical_line_is_differentiable_in_sigma_b():
    line = jax.jit(jax.grad(lambda b: theory.critical_sigma_w("tanh", b)))(0.3)
    above, below = (_critical("tanh")(0.3 + step)[1] for step in (1e-5, -1e-5))
    assert float(line) == pytest.approx(float((above - below) / 2e-5), rel=1e-5)


def test_jit_and_vmap_change_nothing():
    # relu: the eager path compiles each operation by itself, and a closed-form kernel has the fewest
    eager = theory.fixed_point("relu", 1.3, 0.2)
    jitted = _fixed("relu")(1.3, 0.2)
    mapped = jax.jit(jax.vmap(lambda w: theory.fixed_point("relu", w, 0.2)))(jnp.asarray([1.3, 2.0]))
    for one, two, three in zip(eager, jitted, mapped, strict=True):
        np.testing.assert_allclose([two, three[0]], [one, one], rtol=1e-12)


@pytest.mark.kernels
def test_theory_is_right_to_the_precision_at_hand():
    point = _fixed("tanh")(2.5, 0.3)
    assert point.q.dtype == jnp.result_type(float)
    # the sums run over some 10^4 nodes; float32 keeps five digits of them
    rtol = 300 * float(jnp.finfo(point.q.dtype).eps) + 1e-8
    np.testing.assert_allclose([point.q, point.chi_1, point.c], [4.07912388, 1.58522477, 0.122103747], rtol=rtol)


@pytest.mark.parametrize(
    ("w", "b", "named"), [(-1.0, 0.0, "sigma_w"), (np.nan, 0.0, "sigma_w"), (1.0, np.inf, "sigma_b")]
)
def test_bad_gains_are_refused(w, b, named):
    for function in (theory.fixed_point, theory.fixed_points):
        with pytest.raises(ValueError, match=f"{named} must be finite"):
            function("tanh", w, b)


# ---- a user's own activation, and the fold ------------------------------------------------------------------------


def test_users_activation_with_kinks():
    shifted = Activation("shifted", lambda z: jnp.maximum(z - 1.0, 0.0), kinks=(1.0,))
    q, a = 2.0, 1 / 2**0.5
    density = np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)
    expected = q * ((1 + a**2) * ndtr(-a) - a * density)
    assert float(theory.second_moment(shifted, q)) == pytest.approx(expected, rel=1e-11)


def test_expectation_of_a_smooth_callable():
    cosine = get(jnp.cos)
    found = expectation(cosine.fn, cosine, jnp.asarray(1.3))
    assert float(found) == pytest.approx(np.exp(-0.65), rel=1e-12)


def test_saturation_and_dead_share():
    assert float(theory.saturation("relu", 3.0, 0.0)) == pytest.approx(0.5, abs=1e-12)
    assert float(theory.saturation("hard_tanh", 4.0, 0.0)) == pytest.approx(2 * ndtr(-0.5), abs=1e-12)
    edge = np.arccosh(np.sqrt(10.0))
    assert float(theory.saturation("tanh", 4.0, 0.1)) == pytest.approx(2 * ndtr(-edge / 2), abs=3e-4)
    assert float(theory.saturation("identity", 4.0, 0.1)) == 0.0


def test_relu_correlation_decays_polynomially_at_criticality():
    # 1 - c ~ 9 pi^2 / (2 l^2): logarithmic corrections leave a tenth at l = 2000
    _, correlation, _, _ = jax.jit(lambda: theory.predict("relu", 2**0.5, 0.0, [2000], width=8, d_in=8))()
    assert float((1 - correlation.c[-1]) * 2000**2 / (4.5 * np.pi**2)) == pytest.approx(1.0, abs=0.1)


def test_prediction_is_the_iterated_maps():
    forward, correlation, backward, spectrum = jax.jit(
        lambda: theory.predict("tanh", 1.5, 0.3, [2, 5], width=32, d_in=20, q0=1.3, c0=0.2)
    )()
    q, c, chi = [1.5**2 * 1.3 + 0.09], [(1.5**2 * 1.3 * 0.2 + 0.09) / (1.5**2 * 1.3 + 0.09)], []
    for _ in range(5):
        chi.append(1.5**2 * float(theory.derivative_moment("tanh", q[-1])))
        c.append(float(theory.correlation_map("tanh", 1.5, 0.3, q[-1], c[-1])))
        q.append(float(theory.length_map("tanh", 1.5, 0.3, q[-1])))
    np.testing.assert_allclose(forward.q, q, rtol=1e-10)
    np.testing.assert_allclose(correlation.c, c, rtol=1e-8)
    np.testing.assert_allclose(backward.log_grad_h[1], [sum(np.log(chi[i:])) / 2 for i in range(6)], atol=1e-10)
    assert np.isnan(backward.log_grad_h[0, 3:]).all() and float(backward.log_grad_h[0, 2]) == 0.0
    fed = np.asarray([20 * 1.3, *(32 * float(theory.second_moment("tanh", x)) for x in q[:-1])])
    np.testing.assert_allclose(backward.log_grad_theta[1] - backward.log_grad_h[1], np.log1p(fed) / 2, rtol=1e-9)
    assert np.isnan(spectrum.log_s).all() and spectrum.log_s.shape == (2, 20)
    expected = np.log(1.5**2 * 32 / 20) + np.asarray([sum(np.log(chi[:2])), sum(np.log(chi))])
    np.testing.assert_allclose(spectrum.log_mean_square, expected, rtol=1e-10)


def test_prediction_survives_lengths_that_grow():
    forward, correlation, backward, _ = jax.jit(lambda: theory.predict("relu", 4.0, 0.2, [64], width=8, d_in=8))()
    assert np.isfinite(forward.log_q).all() and float(forward.log_q[-1]) > 130
    assert np.isfinite(backward.log_grad_h).all() and 0.9 < float(correlation.c[-1]) <= 1
