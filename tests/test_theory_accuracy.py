"""Theory where it is hard: tiny and huge lengths, undeclared kinks, jumps, singularities, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import theory


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
    assert np.all(np.asarray(forward.log_q) == -np.inf) and not np.isnan(np.asarray(correlation.c)).any()


@pytest.mark.kernels
def test_near_criticality_float32_has_its_digits():
    # held table, (sigma_w^2, sigma_b^2) = (1.97, 1)
    assert float(theory.fixed_point("silu", 1.97**0.5, 1.0).xi_c) == pytest.approx(663.5071, rel=1e-5)


def _relu6(z):
    return jnp.clip(z, 0.0, 6.0)


def _step(z):
    return jnp.tanh(200 * (z - 1))


@pytest.mark.parametrize(
    ("phi", "squares", "expected"),
    [
        # held table of the fault; the relu6 chi_1 is 2.5 P(0 < z < 6)
        (_relu6, (2.5, 0.1), {"q": 15.1472179, "xi_c": 20.2823913, "chi_1": 1.09605061}),
        # arcsine law: c = 2/pi arcsin c, scaled
        (jnp.sign, (1.0, 0.01), {"q": 1.01, "c": 0.0267878144, "chi_c": 0.630542882, "xi_c": 2.16837843}),
        # by this code, whose two rules, 0.75 of the nodes and all, agree to 1e-8: no reference of another make
        (_step, (1.0, 0.01), {"q": 1.00758033, "c": 0.709465695}),
    ],
    ids=["relu6", "sign", "steep step"],
)
def test_kinks_and_jumps_that_nobody_declared(phi, squares, expected):
    point = theory.fixed_point(phi, *np.sqrt(squares))
    for field, value in expected.items():
        assert float(getattr(point, field)) == pytest.approx(value, rel=1e-8), field


def test_a_jump_has_an_infinite_gradient():
    assert np.isinf(theory.derivative_moment(jnp.sign, 1.0))
    assert "phi jumps at z = 0" in theory.moment_error(jnp.sign, 1.0).reason


def test_exponential_growth_and_fast_oscillation():
    # E e^(2z) = e^(2q), E sin^2 = (1 - e^(-2 k^2 q))/2
    assert float(theory.second_moment(jnp.exp, 16.0)) == pytest.approx(np.exp(32), rel=1e-10)
    assert float(theory.second_moment(lambda z: jnp.sin(30 * z), 1.0)) == pytest.approx(0.5, rel=1e-10)


def test_what_is_infinite_is_not_a_number():
    root = lambda z: jnp.sign(z) * jnp.sqrt(jnp.abs(z))
    assert float(theory.second_moment(root, 2.0)) == pytest.approx(np.sqrt(4 / np.pi), rel=1e-10)
    assert not np.isfinite(theory.derivative_moment(root, 2.0))
    inverse = theory.moment_error(lambda z: 1 / z, 1.0)
    assert not inverse.second_moment and "E phi^2 is infinite" in inverse.reason
    # E exp(2 z^2) is infinite from q = 1/4 on
    square = lambda z: jnp.exp(z**2)
    assert float(theory.second_moment(square, 0.1)) == pytest.approx(0.6**-0.5, rel=1e-8)
    assert not theory.moment_error(square, 1.0).second_moment
