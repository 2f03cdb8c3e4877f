"""Theory where it is hard: tiny and huge lengths, undeclared kinks, jumps, singularities, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, special

from jaxstab import theory
from jaxstab.activations import Activation


def test_fixed_points_of_tiny_lengths_are_found():
    # tanh is linear there: q* = b^2 / (1 - w^2), chi_1 = w^2
    for b, q in ((1e-6, 5.263157894500726e-12), (1e-100, 1e-200 / 0.19)):
        point = theory.fixed_point("tanh", 0.9, b)
        assert float(point.q) == pytest.approx(q, rel=1e-9)
        assert float(point.chi_1) == pytest.approx(0.81, rel=1e-9)
        assert float(point.xi_c) == pytest.approx(4.745610790, rel=1e-8) and bool(point.stable)


@pytest.mark.kernels
def test_the_fold_carries_ln_q():
    # relu at sigma_w = 1 halves the length: ln q = -l ln 2
    fold = jax.jit(lambda q0: theory.predict("relu", 1.0, 0.0, [7300], width=4, d_in=4, q0=q0)[:2])
    forward, correlation = fold(1.0)
    np.testing.assert_allclose(
        forward.log_q[jnp.asarray([100, 7300])], [-100 * np.log(2), -7300 * np.log(2)], rtol=1e-6
    )
    assert not np.isnan(np.asarray(correlation.c)).any()
    forward, correlation = fold(0.0)
    assert (
        np.all(np.asarray(forward.log_q) == -np.inf)
        and not np.isnan(np.asarray(correlation.c)).any()
    )


@pytest.mark.kernels
def test_near_criticality_float32_has_its_digits():
    # held table, (sigma_w^2, sigma_b^2) = (1.97, 1)
    assert float(theory.fixed_point("silu", 1.97**0.5, 1.0).xi_c) == pytest.approx(
        663.5071, rel=1e-5
    )


@pytest.mark.parametrize(
    ("phi", "squares", "expected"),
    [
        # arcsine law: c = 2/pi arcsin c, scaled
        (
            jnp.sign,
            (1.0, 0.01),
            {"q": 1.01, "c": 0.0267878144, "chi_c": 0.630542882, "xi_c": 2.16837843},
        ),
    ],
    ids=["sign"],
)
def test_kinks_and_jumps_that_nobody_declared(phi, squares, expected):
    point = theory.fixed_point(phi, *np.sqrt(squares))
    for field, value in expected.items():
        assert float(getattr(point, field)) == pytest.approx(value, rel=1e-8), field


def _mean(f, centre, spread, bends):
    """E f(centre + spread u) by SciPy, told where f bends."""
    density = lambda z: (
        f(z) * np.exp(-(((z - centre) / spread) ** 2) / 2) / spread / np.sqrt(2 * np.pi)
    )
    ends = centre - 8 * spread, centre + 8 * spread
    edges = [
        ends[0],
        *sorted(bend for bend in (*bends, centre) if ends[0] < bend < ends[1]),
        ends[1],
    ]
    pieces = zip(edges[:-1], edges[1:], strict=True)
    return sum(
        integrate.quad_vec(density, *piece, epsabs=1e-11, epsrel=1e-11)[0] for piece in pieces
    )


BARE = {
    "relu6": (
        lambda z: jnp.clip(z, 0.0, 6.0),
        lambda z: np.clip(z, 0.0, 6.0),
        lambda z: 1.0 * ((z > 0) & (z < 6)),
        (0.0, 6.0),
        (2.5, 0.1),
    ),
    "steep step": (
        lambda z: jnp.tanh(20 * (z - 1)),
        lambda z: np.tanh(20 * (z - 1)),
        lambda z: 20 / np.cosh(np.clip(20 * (z - 1), -300, 300)) ** 2,
        (0.8, 0.95, 1.0, 1.05, 1.2),
        (1.0, 0.01),
    ),
}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", BARE)
def test_undeclared_kinks_agree_with_scipy(name):
    # the record satisfies its equations as nested adaptive quadrature has them, z2 conditioned on z1
    traced, phi, slope, bends, (w2, b2) = BARE[name]
    point = theory.fixed_point(traced, w2**0.5, b2**0.5)
    q, c, root = float(point.q), float(point.c), float(point.q) ** 0.5
    length, steep = _mean(lambda z: np.array([phi(z) ** 2, slope(z) ** 2]), 0.0, root, bends)
    assert w2 * length + b2 == pytest.approx(q, rel=1e-9)
    assert float(point.chi_1) == pytest.approx(w2 * steep, rel=1e-9)

    def given(z):
        inner = _mean(
            lambda y: np.array([phi(y), slope(y)]), c * z, root * (1 - c**2) ** 0.5, bends
        )
        return np.array([phi(z), slope(z)]) * inner

    product, chi = _mean(given, 0.0, root, bends)
    # an error of c is 1/(1 - chi_c) times that of its equation
    assert (w2 * product + b2) / q == pytest.approx(c, abs=1e-9 * abs(1 - float(point.chi_c)))
    assert float(point.chi_c) == pytest.approx(w2 * chi, rel=1e-8)
    assert float(point.xi_c) == pytest.approx(-1 / np.log(w2 * chi), rel=1e-8)


def test_a_finite_length_beside_a_singular_slope():
    # ln |z| of z = sqrt(q) u: variance pi^2/8, mean (ln q - gamma - ln 2)/2
    logarithm = lambda z: jnp.log(jnp.abs(z))
    for q in (0.3, 4.0):
        expected = np.pi**2 / 8 + ((np.log(q) - np.euler_gamma - np.log(2)) / 2) ** 2
        assert float(theory.second_moment(logarithm, q)) == pytest.approx(expected, rel=1e-9)
    assert "E phi'^2 is infinite" in theory.missing(logarithm, q=1.0)["moments"]


@pytest.mark.slow
def test_what_cancels_has_no_depth_scale():
    # dV/dq of sin 40 z is 1600 exp(-3200 q), far below rounding
    point = theory.fixed_point(lambda z: jnp.sin(40 * z), 1.0, 0.1**0.5)
    assert float(point.q) == pytest.approx(0.6, rel=1e-12)
    assert float(point.chi_1) == pytest.approx(800.0, rel=1e-10)
    assert np.isnan(point.xi_q) and np.isnan(point.xi_c)


def test_a_jump_has_an_infinite_gradient():
    assert np.isinf(theory.derivative_moment(jnp.sign, 1.0))
    assert "phi jumps at z = 0" in theory.missing(jnp.sign, q=1.0)["moments"]


def test_exponential_growth_and_fast_oscillation():
    # E e^(2z) = e^(2q), E sin^2 = (1 - e^(-2 k^2 q))/2
    assert float(theory.second_moment(jnp.exp, 16.0)) == pytest.approx(np.exp(32), rel=1e-10)
    assert float(theory.second_moment(lambda z: jnp.sin(30 * z), 1.0)) == pytest.approx(
        0.5, rel=1e-10
    )


def test_oscillations_far_wider_than_the_signal():
    """E sin(a z1) sin(a z2) = e^(-a^2 q) sinh(a^2 q c), at a length where sin(40 x) has no second wave."""
    for q, c in ((1e-8, -0.5), (1e-4, 0.9)):
        wanted = np.sinh(1600 * q * c) / np.sinh(1600 * q)
        found = theory.correlation_map(lambda x: jnp.sin(40 * x), 1.0, 0.0, q, c)
        np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_what_is_infinite_is_not_a_number():
    root = lambda z: jnp.sign(z) * jnp.sqrt(jnp.abs(z))
    assert float(theory.second_moment(root, 2.0)) == pytest.approx(np.sqrt(4 / np.pi), rel=1e-10)
    assert not np.isfinite(theory.derivative_moment(root, 2.0))
    inverse = lambda z: 1 / z
    assert not np.isfinite(theory.second_moment(inverse, 1.0))
    assert "E phi^2 is infinite" in theory.missing(inverse, q=1.0)["moments"]
    # E exp(2 z^2) is infinite from q = 1/4 on
    square = lambda z: jnp.exp(z**2)
    assert float(theory.second_moment(square, 0.1)) == pytest.approx(0.6**-0.5, rel=1e-8)
    assert not np.isfinite(theory.second_moment(square, 1.0))


def test_depth_scales_without_digits_have_a_reason():
    # V = (1 - e^(-3200 q))/2 is flat, and E phi' = 40 e^(-800 q) far below what its terms round to
    fast = lambda z: jnp.sin(40 * z)
    assert np.isfinite(theory.second_moment(fast, 0.5) + theory.derivative_moment(fast, 0.5))
    reason = theory.missing(fast, q=0.5)["moments"]
    assert "xi_q has no correct digit" in reason and "xi_c has no correct digit" in reason
    assert "moments" not in theory.missing(lambda z: jnp.sin(2 * z), q=0.5)
    # V = (e^(2q) - 1)/2 is above q everywhere, so that lengths leave the range of floats at sigma_w = 1
    assert theory.missing(jnp.sinh, q=1e6)["moments"]


def _wavy(z):
    return z + jnp.sin(z) ** 2


@pytest.mark.kernels
@pytest.mark.skipif("not config.getoption('--float32')")
@pytest.mark.parametrize("phi", ["hard_tanh", "gelu", "relu", _wavy])
def test_theory_traced_by_a_caller_in_float32_is_what_it_is_at_once(phi):
    gains = (jnp.float32(1.3), jnp.float32(0.4))
    traced = jax.jit(lambda w, b: theory.fixed_point(phi, w, b))(*gains)
    at_once = theory.fixed_point(phi, *gains)
    for field, value, expected in zip(traced._fields, traced, at_once, strict=True):
        assert value.dtype == expected.dtype, field
        # float32 keeps seven digits of what both compute in float64
        np.testing.assert_allclose(value, expected, rtol=2e-6, equal_nan=True, err_msg=field)


@pytest.mark.slow
def test_pairs_of_long_lengths_are_right_or_refused():
    """erf without its kernel, and tanh, whose limit is that of a sign, (2/pi) arcsin c."""
    plain = Activation("plain_erf", jax.scipy.special.erf)
    lengths = np.geomspace(1e2, 1e24, 12)
    at = jnp.asarray(np.stack(np.meshgrid(lengths, [-0.5, 0.3, 0.9]), -1).reshape(-1, 2))

    def both(phi):
        def one(q, c):
            return (
                theory.correlation_map(phi, 1.0, 0.0, q, c),
                theory.correlation_slope(phi, 1.0, 0.0, q, c),
            )

        return jax.jit(jax.vmap(one))(*at.T)

    for found, wanted in zip(both(plain), both("erf"), strict=True):
        known = np.isfinite(found)
        np.testing.assert_allclose(found[known], wanted[known], atol=2e-8, rtol=2e-8)
        # short lengths are not refused
        assert np.all(known[at[:, 0] < 1e3])
    c, _ = both("tanh")
    sign = 2 / np.pi * np.arcsin(at[:, 1])
    long = np.isfinite(c) & (np.asarray(at[:, 0]) > 1e12)
    # tanh is a sign up to 1/sqrt(q)
    np.testing.assert_allclose(c[long], sign[long], atol=1e-6)


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["relu", "erf"])
def test_predictions_jitted_by_the_caller_hold_beyond_the_range_of_quadrature(name):
    """Lengths of relu pass 1e24 at this depth; a compiler once turned a slope of 0 there into 0/0."""

    def predicted(sigma_w):
        return theory.predict(name, sigma_w, 0.2, (64,), width=8, d_in=8, c0=0.3)

    found = jax.jit(predicted)(3.0)
    wanted = predicted(3.0)
    assert float(wanted[0].log_q[-1]) > 60 or name == "erf"
    # ln of a length of e^98 in float32
    np.testing.assert_allclose(found[0].log_q, wanted[0].log_q, atol=1e-4)
    np.testing.assert_allclose(found[2].log_grad_h, wanted[2].log_grad_h, atol=1e-4)


def _normal_density(z):
    return np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


# phi and phi'
SMOOTH = {
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "erf": (special.erf, lambda z: 2 * np.exp(-(z**2)) / np.sqrt(np.pi)),
    "gelu": (lambda z: z * special.ndtr(z), lambda z: special.ndtr(z) + z * _normal_density(z)),
    "silu": (
        lambda z: z * special.expit(z),
        lambda z: special.expit(z) * (1 + z * special.expit(-z)),
    ),
}


def _correlation_by_trapezoids(name, sigma_w, q):
    """(1 - c*, chi_1, chi_c) at length q, by a two-dimensional trapezoid rule: for analytic phi good to rounding."""
    phi, slope = SMOOTH[name]
    u = np.arange(-9.5, 9.55, 0.1)
    weight = np.exp(-(u**2) / 2)
    weight = weight / weight.sum()
    root = np.sqrt(q)
    chi_1 = sigma_w**2 * np.sum(weight * slope(root * u) ** 2)
    if chi_1 <= 1:
        return 0.0, chi_1, chi_1
    shared, own = np.meshgrid(u, u, indexing="ij")

    def pair(distance):
        other = (1 - distance) * shared + np.sqrt(distance * (2 - distance)) * own
        return root * shared, root * other

    def excess(log_distance):
        first, second = pair(np.exp(log_distance))
        square = weight @ (phi(first) - phi(second)) ** 2 @ weight
        return sigma_w**2 * square / (2 * q * np.exp(log_distance)) - 1

    distance = np.exp(optimize.brentq(excess, -25, 0, xtol=1e-14))
    first, second = pair(distance)
    return distance, chi_1, sigma_w**2 * (weight @ (slope(first) * slope(second)) @ weight)


@pytest.mark.parametrize("name", SMOOTH)
def test_correlations_at_fixed_points_are_those_of_trapezoids(name):
    # ordered, chaotic, and within 1 % of criticality for tanh
    for sigma_w, sigma_b in ((0.5, 1.0), (1.25, 0.4), (1.335, 0.3), (2.0, 0.01), (3.0, 1.0)):
        point = theory.fixed_point(name, sigma_w, sigma_b)
        if np.isinf(point.q):
            continue
        distance, chi_1, chi_c = _correlation_by_trapezoids(name, sigma_w, float(point.q))
        tolerance = 1e-8 if abs(chi_1 - 1) < 0.01 else 1e-9
        found = (point.c, point.chi_1, point.chi_c, point.xi_c)
        expected = (1 - distance, chi_1, chi_c, -1 / np.log(chi_c))
        np.testing.assert_allclose(found, expected, rtol=tolerance, err_msg=f"{sigma_w}, {sigma_b}")
