"""Mixtures of units: theory's moments of both parts, averaged, and networks whose units differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import activations, networks, propagation, theory


@pytest.mark.parametrize(
    ("k", "share", "squared_gain"), [(0.01, 0.91120560, 3.15893005), (1.0, 0.77581455, 2.74415492)]
)
def test_scale_invariant_share_of_swish_and_tanh(k, share, squared_gain):
    # Lesser & Chowdhury 2026 (arXiv 2605.05294): K g'(K) = g(K), recomputed by an independent quadrature to 8 digits
    def excess(p):
        mixed = activations.mixture("tanh", "swish", p)
        return k * theory.second_moment_slope(mixed, k) - theory.second_moment(mixed, k)

    def gain(p):
        return k / theory.second_moment(activations.mixture("tanh", "swish", p), k)

    # the excess is linear in the share: one step of Newton's from anywhere
    newton = jax.jit(lambda p: (p - excess(p) / jax.grad(excess)(p), excess(p)))
    root, _ = newton(0.5)
    assert abs(root - share) < 1e-8
    assert abs(gain(float(root)) - squared_gain) < 1e-8
    # at once and in a program
    assert excess(0.5) == pytest.approx(float(newton(0.5)[1]), rel=1e-10)


def _of_parts(p, q, moment):
    return (1 - p) * moment("tanh", q) + p * moment("leaky_relu", q)


@pytest.mark.slow
def test_theory_averages_moments_over_the_units():
    p, q, w, b = 0.3, 0.8, 1.5, 0.4
    mixed = activations.mixture("tanh", "leaky_relu", p)
    for moment in (theory.second_moment, theory.second_moment_slope, theory.derivative_moment):
        np.testing.assert_allclose(moment(mixed, q), _of_parts(p, q, moment), rtol=1e-10)
    length = w**2 * _of_parts(p, q, theory.second_moment) + b**2

    def covariance(phi, c):
        own = w**2 * theory.second_moment(phi, q) + b**2
        return theory.correlation_map(phi, w, b, q, c) * own

    for c in (-0.7, 0.0, 0.6, 1.0):
        expected = _of_parts(p, c, covariance) / length
        np.testing.assert_allclose(theory.correlation_map(mixed, w, b, q, c), expected, rtol=1e-10)
    one = theory.fixed_point(mixed, w, b)
    np.testing.assert_allclose(theory.length_map(mixed, w, b, one.q), one.q, rtol=1e-10)
    np.testing.assert_allclose(theory.correlation_map(mixed, w, b, one.q, one.c), one.c, rtol=1e-10)
    np.testing.assert_allclose(
        one.chi_1, w**2 * _of_parts(p, one.q, theory.derivative_moment), rtol=1e-10
    )
    flat = theory.saturation(mixed, q, 0.05)
    # both have steepest slope 1
    np.testing.assert_allclose(
        flat, _of_parts(p, q, lambda phi, q: theory.saturation(phi, q, 0.05)), rtol=1e-6
    )
    atoms, shares = theory.squared_slopes(mixed, w, q)
    np.testing.assert_allclose(
        atoms @ shares, w**2 * _of_parts(p, q, theory.derivative_moment), rtol=1e-6
    )


@pytest.mark.slow
def test_fixed_points_are_differentiable_in_the_share():
    def fields(p):
        point = theory.fixed_point(activations.mixture("tanh", "relu", p), 1.5, 0.4)
        return jnp.stack([point.q, point.chi_1, point.xi_c])

    p, step = 0.4, 1e-4
    slopes = jax.jit(jax.jacfwd(fields))(p)
    # the error of a central difference is the square of its step
    np.testing.assert_allclose(
        slopes, (fields(p + step) - fields(p - step)) / (2 * step), rtol=1e-6
    )


def test_kernels_are_averaged_and_the_share_is_traced():
    def kernel(p):
        covariance, slope = activations.mixture("relu", "identity", p).kernel(
            jnp.asarray(2.0), jnp.asarray(1.0)
        )
        return jnp.stack([covariance, slope])

    values, slopes = jax.jit(jax.vmap(lambda p: jax.jvp(kernel, (p,), (1.0,))))(
        jnp.asarray([0.0, 0.25, 1.0])
    )
    # relu: q / 2 and 1/2; identity: q and 1
    np.testing.assert_allclose(values[:, 0], [1.0, 1.25, 2.0], rtol=1e-12)
    np.testing.assert_allclose(values[:, 1], [0.5, 0.625, 1.0], rtol=1e-12)
    np.testing.assert_allclose(slopes, [[1.0, 0.5]] * 3, rtol=1e-12)


@pytest.mark.slow
def test_networks_give_each_unit_its_own_activation():
    mixed = activations.mixture("tanh", activations.leaky_relu(0.2), 0.3)
    z = jnp.linspace(-2.0, 2.0, 20).reshape(2, 10)
    np.testing.assert_allclose(mixed(z)[:, :3], activations.leaky_relu(0.2)(z[:, :3]))
    np.testing.assert_allclose(mixed(z)[:, 3:], jnp.tanh(z[:, 3:]))
    np.testing.assert_allclose(mixed.derivative(z)[:, 3:], 1 - np.tanh(z[:, 3:]) ** 2, rtol=1e-12)

    mlp, x = networks.MLP(1, 4000, mixed), jnp.ones(50)
    params = networks.chain(mlp).init(jax.random.key(0), x, 1.5, 0.2)
    measured = jax.jit(lambda x: propagation.forward(networks.chain(mlp), params, x).log_q)(x)
    q = float(jnp.exp(measured[0]))
    expected = theory.length_map(mixed, 1.5, 0.2, q)
    # 4,000 units: one standard error of a second moment is about 3 %
    assert float(jnp.exp(measured[1])) == pytest.approx(float(expected), rel=0.1)


@pytest.mark.slow
def test_networks_are_differentiable_in_the_share():
    x = jnp.linspace(-1.0, 1.0, 4)
    params = networks.chain(networks.MLP(2, 10, "tanh")).init(jax.random.key(1), x, 1.5, 0.2)

    @jax.jit
    def length(p):
        chain = networks.chain(networks.MLP(2, 10, activations.mixture("tanh", "relu", p)))
        return propagation.forward(chain, params, x).log_q[-1]

    # one unit between both, and at a whole number of units the mean of the slopes on either side
    for p in (0.33, 0.5):
        difference = (length(p + 1e-6) - length(p - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(length)(p), difference, rtol=1e-5)
        assert difference != 0


def test_a_mixture_is_a_pytree_and_static_where_its_share_is_a_number():
    mixed = activations.mixture("tanh", activations.swish(2.0), 0.3)
    assert jax.tree.leaves(mixed) == [2.0, 0.3]
    assert mixed == activations.mixture("tanh", activations.swish(2.0), 0.3)
    assert mixed != activations.mixture("tanh", activations.swish(2.0), 0.4)
    assert hash(mixed) == hash(activations.mixture("tanh", activations.swish(2.0), 0.3))
    by_beta = jax.grad(lambda phi: jnp.sum(phi(jnp.ones(10))))(mixed)
    assert by_beta.second.parameters["beta"] > 0 and by_beta.share != 0


def test_what_is_no_mixture_is_refused():
    for share in (-0.1, 1.5, jnp.ones(2), float("nan")):
        with pytest.raises(ValueError, match=r"share must be one number in \[0, 1\]"):
            activations.mixture("tanh", "relu", share)
    mixed = activations.mixture("tanh", "relu", 0.5)
    with pytest.raises(ValueError, match="a mixture needs two plain activations, got a mixture"):
        activations.mixture(mixed, "relu", 0.5)
    with pytest.raises(ValueError, match="has no single function"):
        mixed.fn(jnp.ones(2))
    with pytest.raises(ValueError, match="dense"):
        networks.MLP(2, 8, mixed, skip="dense")
    with pytest.raises(ValueError, match="needs an axis of units"):
        mixed(jnp.asarray(1.0))
