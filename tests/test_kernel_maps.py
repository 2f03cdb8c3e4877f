"""Kernel maps, doubly critical points and gains: held tables A1, A5 and A6."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import initializers, theory


@pytest.mark.parametrize(
    ("name", "mean_share", "beta_0", "chi_1"),
    # held table A5, at q = 1
    [
        ("relu", 0.31830989, 0.73347110, 1.0),
        ("tanh", 0.0, 0.93046992, 1.177807),
        ("gelu", 0.18714358, 0.72328752, 1.072032),
        ("elu", 0.03995199, 0.93672735, 1.035905),
        ("selu", 0.0, 0.97068035, 1.071575),
        ("sigmoid", 0.85213996, 0.98416717, 0.152827),
        ("sin", 0.0, 0.85091813, 1.313035),
    ],
)
def test_kernel_maps_have_the_held_shares(name, mean_share, beta_0, chi_1):
    found = theory.kernel_map(name)
    np.testing.assert_allclose(found.mean_share, mean_share, atol=6e-9)
    np.testing.assert_allclose(found.beta_0, beta_0, atol=6e-9)
    np.testing.assert_allclose(found.chi_1, chi_1, atol=6e-7)


@pytest.mark.slow
def test_coefficients_of_an_exponential():
    """exp: c_k^2 = e/k!, so beta_0 = 1/(e - 1)."""
    found = theory.hermite_coefficients(jnp.exp, 12)
    np.testing.assert_allclose(
        found, [math.sqrt(math.e / math.factorial(k)) for k in range(12)], rtol=1e-9
    )
    np.testing.assert_allclose(theory.kernel_map(jnp.exp).beta_0, 1 / (math.e - 1), rtol=1e-9)
    # the sum is the kernel map itself
    squares = np.square(theory.hermite_coefficients("tanh", 40, 0.7))
    c = theory.correlation_map("tanh", 1.0, 0.0, 0.7, 0.5) * theory.second_moment("tanh", 0.7)
    np.testing.assert_allclose(np.sum(squares * 0.5 ** np.arange(40)), c, rtol=1e-9)


@pytest.mark.slow
def test_doubly_critical_points():
    """Held table A1 (Roberts, Yaida & Hanin 2022)."""
    *_, gelu = theory.doubly_critical("gelu")
    np.testing.assert_allclose(gelu.q, (3 + math.sqrt(17)) / 2, rtol=1e-9)
    np.testing.assert_allclose(
        [gelu.sigma_w**2, gelu.sigma_b**2], [1.98305825743817, 0.17292239075607], rtol=1e-9
    )
    assert theory.doubly_critical("relu")[0][:2] == pytest.approx((2**0.5, 0.0), abs=1e-12)
    assert theory.doubly_critical("erf")[0] == pytest.approx(
        (math.sqrt(math.pi / 4), 0.0, 0.0), rel=1e-9
    )
    *_, silu = theory.doubly_critical("silu")
    assert silu.q == pytest.approx(14.3, abs=0.05)
    # and by the other route: the point is critical and its length map marginal
    for name, point in (("gelu", gelu), ("silu", silu)):
        chi_1 = point.sigma_w**2 * theory.derivative_moment(name, point.q)
        slope = point.sigma_w**2 * theory.second_moment_slope(name, point.q)
        length = theory.length_map(name, point.sigma_w, point.sigma_b, point.q)
        np.testing.assert_allclose([chi_1, slope, length / point.q], 1.0, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "length", "gain"),
    # held table A6
    [
        ("gelu", 0.4252215, 1.5335304),
        ("silu", 0.3557755, 1.6765325),
        ("mish", 0.4523422, 1.4868476),
        ("softplus", 0.9212459, 1.0418668),
        ("sigmoid", 0.2933790, 1.8462285),
    ],
)
def test_gains_that_keep_lengths_are_the_published_ones(name, length, gain):
    found = initializers.gain(name, keep="length")
    assert float(theory.second_moment(name, 1.0)) == pytest.approx(length, abs=6e-8)
    assert found.sigma_w == pytest.approx(gain, abs=6e-8) and not found.critical


@pytest.mark.parametrize(
    ("name", "gain", "chi_1"), [("selu", 1.0, 1.0716), ("elu", 1.2451983, 1.0359)]
)
def test_a_gain_that_keeps_lengths_and_not_gradients_warns(name, gain, chi_1):
    """Held row A6: selu's length map contracts (slope 0.7826), and yet chi_1 = 1.0716."""
    with pytest.warns(
        UserWarning, match=rf"{name}.*chi_1 = {chi_1} .*length map contracts \(slope 0\.\d{{4}}\)"
    ):
        found = initializers.gain(name, keep="length")
    assert found.sigma_w == pytest.approx(gain, abs=6e-8) and f"chi_1 = {chi_1}" in found.source
