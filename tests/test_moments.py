"""Gaussian moments and kernels of activations against closed forms and adaptive quadrature."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_moments import CLOSED, LENGTHS, SMOOTH, moments, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy.special import ndtr

from jaxstab import theory
from jaxstab.activations import Activation, get, names
from jaxstab.theory.features import features
from jaxstab.theory.quadrature import pair, single


def test_every_activation_has_a_reference():
    assert set(CLOSED) | set(SMOOTH) == set(names())


@pytest.mark.parametrize("name", names())
def test_moments_agree_with_closed_forms_or_adaptive_quadrature(name):
    v, m, _ = moments(name)(jnp.asarray(LENGTHS))
    for q, found_v, found_m in zip(LENGTHS, v, m, strict=True):
        expected_v, expected_m = reference(name, q)
        assert float(found_v) == pytest.approx(expected_v, rel=1e-10), f"V at q = {q}"
        assert float(found_m) == pytest.approx(expected_m, rel=1e-10), f"M at q = {q}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in CLOSED if get(n).kernel is not None and n not in ("sin", "cos")]
)
def test_quadrature_agrees_with_the_kernels_it_is_replaced_by(name):
    kernel = get(name).kernel
    phi = Activation(name, get(name).fn, get(name).kinks)
    about = features(phi)
    at = [(0.5, 0.0), (0.5, 0.7), (4.0, 0.999), (30.0, -0.4), (100.0, 0.5)]
    q, c = (jnp.asarray(axis) for axis in zip(*at, strict=True))
    found = jax.vmap(lambda q, c: pair(phi, about, q, 1 - jnp.abs(c), about.nodes, c < 0))(q, c)
    covariance, derivative = jax.vmap(kernel)(q, c)
    length = jax.vmap(kernel)(q, jnp.ones_like(q))[0]
    # on the scale of the moment: an odd function's covariance is 0 at c = 0
    np.testing.assert_allclose(found.gap, (length - covariance) / q, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.slope, derivative, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "kinks"), [("tanh", [0.0]), ("hard_tanh", [-1.0, 1.0]), ("elu", [0.0])]
)
def test_pairs_agree_with_nested_adaptive_quadrature(name, kinks):
    fn = {
        "tanh": np.tanh,
        "hard_tanh": lambda z: np.clip(z, -1, 1),
        "elu": lambda z: np.where(z > 0, z, np.expm1(z)),
    }[name]
    q, c = 2.3, 0.6
    root, rest = np.sqrt(q), np.sqrt(1 - c**2)
    density = lambda u: np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)

    def inner(u):
        at = sorted([-10.0, 10.0, *((k / root - c * u) / rest for k in kinks)])
        f = lambda v: fn(root * (c * u + rest * v)) * density(v)
        return sum(
            integrate.quad(f, a, b, epsabs=1e-14)[0] for a, b in zip(at[:-1], at[1:], strict=True)
        )

    at = sorted([-10.0, 10.0, *(k / root for k in kinks)])
    outer = lambda u: fn(root * u) * density(u) * inner(u)
    expected = sum(
        integrate.quad(outer, a, b, epsabs=1e-12)[0] for a, b in zip(at[:-1], at[1:], strict=True)
    )
    phi = get(name)
    about = features(phi)
    gap = jax.jit(lambda: pair(phi, about, jnp.asarray(q), jnp.asarray(1 - c), about.nodes).gap)()
    assert float(gap) == pytest.approx((reference(name, q)[0] - expected) / q, abs=1e-10)


@settings(max_examples=40)
@given(st.floats(-9, 9), st.sampled_from(["hard_tanh", "elu", "selu", "gelu"]))
def test_moments_hold_over_eight_decades_of_length(log_q, name):
    q = float(np.exp(log_q))
    v, m, _ = moments(name)(jnp.full(len(LENGTHS), q))
    np.testing.assert_allclose([v[0], m[0]], reference(name, q), rtol=1e-10)


@pytest.mark.parametrize("name", names())
def test_slope_of_the_second_moment_is_its_derivative(name):
    # hard_tanh's phi'' is a pair of deltas: an autodiff phi'' would give V' = M
    for q in (0.3, 1.7, 20.0):
        slope = moments(name)(jnp.full(len(LENGTHS), q))[2][0]
        step = 1e-4 * q
        difference = (reference(name, q + step)[0] - reference(name, q - step)[0]) / (2 * step)
        assert float(slope) == pytest.approx(difference, rel=1e-6)


def test_users_activation_with_kinks():
    shifted = Activation("shifted", lambda z: jnp.maximum(z - 1.0, 0.0), kinks=(1.0,))
    q, a = 2.0, 1 / 2**0.5
    density = np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)
    expected = q * ((1 + a**2) * ndtr(-a) - a * density)
    assert float(theory.second_moment(shifted, q)) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("norm", ["dyt", "derf"])
def test_half_of_the_line_is_enough_for_squashes_with_even_derivative(norm):
    for name, after in itertools.product(["tanh", "erf", "sigmoid", "hard_tanh", "gelu"], [0, 1]):
        phi = theory.law(name, norm=norm, norm_after=bool(after)).activation
        about = features(phi)
        even = name in ("tanh", "erf") or (not after and name != "gelu")
        assert about.even_slope == even, (name, after)
        for q, distance in itertools.product([1e-3, 1.0, 300.0], [1e-6, 0.3, 1.0]):
            numbers = np.float64(q), np.float64(distance)
            half = pair(phi, about, *numbers, about.nodes)
            whole = pair(phi, about._replace(even_slope=False), *numbers, about.nodes)
            np.testing.assert_allclose(half, whole, rtol=1e-10)


def test_expectation_of_a_smooth_callable():
    cosine = get(jnp.cos)
    found = jax.jit(lambda q: single(cosine, features(cosine), q))(jnp.asarray(1.3))
    assert float(found.mean) == pytest.approx(np.exp(-0.65), rel=1e-12)


@pytest.mark.slow
def test_saturation_and_dead_share():
    assert float(theory.saturation("relu", 3.0, 0.0)) == pytest.approx(0.5, abs=1e-12)
    assert float(theory.saturation("hard_tanh", 4.0, 0.0)) == pytest.approx(
        2 * ndtr(-0.5), abs=1e-12
    )
    edge = np.arccosh(np.sqrt(10.0))
    assert float(theory.saturation("tanh", 4.0, 0.1)) == pytest.approx(
        2 * ndtr(-edge / 2), abs=3e-4
    )
    assert float(theory.saturation("identity", 4.0, 0.1)) == 0.0


@pytest.mark.parametrize(
    ("place", "width"),
    [(2.47653346366633, 2e-3), (2.9832596147352657, 2e-3), (0.15212593485435555, 6e-4)],
)
def test_a_spike_between_the_points_of_a_panel_is_seen(place, width):
    # places at which no Chebyshev point of a panel comes near the spike
    phi = lambda z: jnp.tanh(z) + 3 * jnp.exp(-(((z - place) / width) ** 2) / 2)
    known = lambda z: (np.tanh(z) + 3 * np.exp(-(((z - place) / width) ** 2) / 2)) ** 2
    density = lambda z: np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    cuts = [-9.0, place - 10 * width, place, place + 10 * width, 9.0]
    wanted = sum(
        integrate.quad(lambda z: known(z) * density(z), low, high, epsabs=1e-14, epsrel=1e-12)[0]
        for low, high in itertools.pairwise(cuts)
    )
    assert float(theory.second_moment(phi, 1.0)) == pytest.approx(wanted, rel=1e-10)
