"""Derivatives are right: `jax.grad` of every kind of public function against central differences.

One row for each function and its hard points: at generic ones, at small and large lengths, at equal singular
values, at depth 200. The differences are taken in float64, whatever the derivative is computed in.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import (
    activations,
    curvature,
    initializers,
    networks,
    norms,
    propagation,
    regularizers,
    spectra,
    theory,
)
from jaxstab.networks.layers import trained

KEY = jax.random.key(5)


class Row(NamedTuple):
    """A function of one number, where to differentiate it, and how far it may be off, in float64 and in float32.

    Tolerances are relative to the largest of the derivative and of the value over the point: of a function that is
    flat at a point, no more can be asked.
    """

    function: Callable
    points: tuple[float, ...]
    step: float = 1e-3
    tolerances: tuple[float, float] = (1e-7, 1e-4)


def _drawn(t, depth, width=6, weights="gaussian", activation="tanh", skip=None):
    """A network with gain t, and one input, in t's dtype."""
    mlp = networks.MLP(depth, width, activation, weights=weights, skip=skip, features_out=2)
    x = jnp.linspace(-1.0, 1.3, width).astype(t.dtype)
    return mlp, networks.chain(mlp).init(KEY, x, t, 0.1), x


def _length_at_depth_200(t):
    mlp, params, x = _drawn(t, 200)
    return propagation.forward(networks.chain(mlp), params, x).log_q[-1]


def _gradient_at_depth_200(t):
    mlp, params, x = _drawn(t, 200)
    return propagation.backward(networks.chain(mlp), params, x, lambda y: y[0]).log_grad_h[0]


def _correlation_of_inputs(t):
    """Of two inputs t apart; at 0 they are one."""
    mlp, params, x = _drawn(jnp.ones_like(t), 3)
    other = x.at[0].add(t)
    return propagation.correlation(networks.chain(mlp), params, x, other).c[-1]


def _jacobian_norm(t):
    return regularizers.jacobian_norm(
        lambda x: jnp.tanh(t * x), jnp.linspace(0.1, 1.0, 5).astype(t.dtype), KEY, 3
    ).value


def _weights(t):
    """A matrix whose singular values are t, 1 and 1."""
    rotation = jnp.asarray(np.linalg.qr(np.arange(9.0).reshape(3, 3) + np.eye(3))[0], t.dtype)
    return rotation * jnp.stack([t, jnp.ones_like(t), jnp.ones_like(t)])[None]


def _lsuv(t):
    mlp, params, x = _drawn(jnp.ones_like(t), 2)
    batch = jnp.stack([x, -x, x**2])
    return initializers.lsuv(mlp, params, batch, t).blocks["dense"]["kernel"][1, 0, 0]


def _operator(t):
    """A Jacobian of four singular values, apart from each other where t > 0."""
    chain, params, x = _isometric(t)
    return spectra.jacobian(chain, params, x)


def _moments(t):
    return jnp.sum(jnp.sin(spectra.moments(_operator(t), KEY)[0]))


def _looks_linear(t):
    mlp = networks.MLP(2, 6, "relu", features_out=2)
    x = jnp.linspace(-1.0, 1.3, 5).astype(t.dtype)
    params = initializers.looks_linear(mlp, KEY, x, t)
    return jnp.sum(networks.state(networks.chain(mlp), params, x) ** 2)


ROWS = {
    "second_moment": Row(lambda q: theory.second_moment("tanh", q), (1e-4, 1e-3, 1.0, 1e6)),
    "second_moment_slope": Row(lambda q: theory.second_moment_slope("gelu", q), (1e-3, 1.0, 50.0)),
    "derivative_moment": Row(lambda q: theory.derivative_moment("erf", q), (1e-4, 1.0, 1e7)),
    "derivative_moment of sin": Row(lambda q: theory.derivative_moment("sin", q), (1e-4, 1.0, 5.0)),
    "length_map": Row(lambda w: theory.length_map("tanh", w, 0.1, 0.5), (1e-6, 1.0, 30.0)),
    "correlation_map": Row(
        lambda c: theory.correlation_map("tanh", 1.5, 0.3, 0.7, c), (-0.99, 0.0, 0.6, 0.99)
    ),
    "correlation_map of relu": Row(
        lambda c: theory.correlation_map("relu", 2**0.5, 0.1, 1.0, c),
        (-0.999, 0.0, 0.6, 0.999),
        1e-5,
        (1e-6, 1e-3),
    ),
    "correlation_slope": Row(
        lambda c: theory.correlation_slope("erf", 1.5, 0.3, 0.7, c), (-0.99, 0.0, 0.6, 0.99)
    ),
    "chi_1": Row(lambda w: theory.fixed_point("tanh", w, 0.3).chi_1, (0.5, 1.5, 4.0)),
    "xi_c": Row(
        lambda w: theory.fixed_point("tanh", w, 0.3).xi_c, (0.9, 1.5, 3.0), tolerances=(1e-6, 1e-3)
    ),
    "critical_sigma_w": Row(
        lambda b: theory.critical_sigma_w("tanh", b), (0.05, 0.3, 1.0), tolerances=(1e-6, 1e-3)
    ),
    "jacobian_moments": Row(
        lambda q: theory.jacobian_moments("tanh", 1.5, q, 20.0).relative_variance, (1e-2, 0.5, 30.0)
    ),
    "chi_1 by beta": Row(
        lambda a: theory.fixed_point(activations.swish(a), 1.2, 0.3).chi_1, (0.5, 1.702)
    ),
    "xi_c by slope": Row(
        lambda a: theory.fixed_point(activations.leaky_relu(a), 1.2, 0.3).xi_c,
        (-0.5, 0.0, 0.2),
        1e-4,
        (1e-6, 1e-3),
    ),
    "critical_sigma_w by slope": Row(
        lambda a: theory.critical_sigma_w(activations.leaky_relu(a), 0.0),
        (0.0, 0.2, 0.9),
        tolerances=(1e-6, 1e-3),
    ),
    "forward": Row(_length_at_depth_200, (0.7, 1.0), 1e-4, (1e-6, 5e-3)),
    "backward": Row(_gradient_at_depth_200, (0.7, 1.0), 1e-4, (1e-6, 5e-3)),
    "correlation": Row(_correlation_of_inputs, (0.0, 1e-3, 0.5), 1e-4),
    "jacobian_norm": Row(_jacobian_norm, (0.0, 1.0, 10.0)),
    "orthogonality": Row(
        lambda t: t + regularizers.orthogonality(_weights(t)), (1e-3, 1.0, 2.0), 1e-4
    ),
    "lsuv": Row(_lsuv, (0.5, 1.7), tolerances=(1e-6, 1e-3)),
    "moments": Row(_moments, (0.1, 0.3)),
    "looks_linear": Row(_looks_linear, (0.7, 1.5)),
    "log_norm": Row(
        lambda t: norms.log_norm({"a": jnp.stack([t, jnp.ones_like(t)])}), (0.0, 1.0, 1e10)
    ),
}


def _difference(f, t, step):
    """Central difference of the fourth order."""
    h = step * jnp.maximum(jnp.abs(t), jnp.where(t == 0, 1.0, 0.0))
    near, far = (f(t + h) - f(t - h)) / h, (f(t + 2 * h) - f(t - 2 * h)) / h
    return (8 * near - far) / 12


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ROWS)
def test_gradients_are_central_differences(name):
    function, points, step, tolerances = ROWS[name]
    x64 = jax.config.jax_enable_x64
    differ = lambda t: (
        jax.vmap(function)(t),
        jax.vmap(lambda t: _difference(function, t, step))(t),
    )
    with jax.enable_x64(True):
        value, difference = map(np.asarray, jax.jit(differ)(jnp.asarray(points, jnp.float64)))
    dtype = jnp.float64 if x64 else jnp.float32
    gradient = np.asarray(jax.jit(jax.vmap(jax.grad(function)))(jnp.asarray(points, dtype)))
    assert gradient.dtype == dtype and np.all(np.isfinite(gradient))
    size = np.maximum(np.abs(difference), np.abs(value) / np.maximum(np.abs(points), 1e-3))
    # a difference of what should be equal is rounding
    error = np.abs(gradient - difference) / np.maximum(size, 1e-9)
    assert np.max(error) < tolerances[0 if x64 else 1], (gradient, difference)


def _bound(gain, step=0.0):
    """A network with a gain beside its weights, these a step along a direction, and one input."""
    mlp, params, x = _drawn(jnp.ones_like(gain), 2, 3)
    kernel = params.blocks["dense"]["kernel"]
    blocks = params.blocks | {
        "dense": params.blocks["dense"] | {"kernel": kernel + step * jnp.cos(kernel)}
    }
    return (
        networks.chain(mlp),
        networks.chain(mlp).bind(params._replace(blocks=blocks), sigma_w=gain),
        x,
    )


def _loss_by_gain(t):
    chain, params, x = _bound(t)
    return jnp.sum(chain.readout(params, networks.state(chain, params, x)) ** 2)


def _log_spectrum_by_gain(t):
    chain, params, x = _bound(t)
    return spectra.log_singular_values(chain, params, x, [2])[0] @ jnp.arange(3.0)


def _extremes_in_steps(t):
    operator = _operator(t)
    found = spectra.extremes(operator, KEY, top=4, steps=2, block=2)
    return jnp.sum(jnp.cos(found.log_s)) + (found.left[0] @ jnp.arange(4.0)) ** 2


def _fixed_points_in_a_scan(t):
    def layer(carry, sigma_b):
        return carry + jnp.sin(theory.fixed_point("relu", t + 0.1 * carry, sigma_b).q), None

    return jax.lax.scan(layer, t, jnp.array([0.2, 0.5]))[0]


# rules of derivatives are to outlive a scan that is differentiated twice
SCANNED = {
    "loss by a bound gain": (_loss_by_gain, 1.3),
    "log spectrum by a bound gain": (_log_spectrum_by_gain, 1.3),
    "fixed points": (_fixed_points_in_a_scan, 0.7),
    "moments": (_moments, 0.3),
    "extremes in steps": (_extremes_in_steps, 0.3),
}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", SCANNED)
def test_second_derivatives_of_scans_are_central_differences_of_the_gradient(name):
    function, point = SCANNED[name]
    gradient = jax.grad(function)
    step = 1e-3 * point
    around = point + step * jnp.arange(-2.0, 3.0)
    values, slopes = jax.jit(lambda at: (jax.vmap(function)(at), jax.vmap(gradient)(at)))(around)
    forward, reverse = jax.jit(
        lambda t: (jax.jvp(gradient, (t,), (1.0,))[1], jax.grad(gradient)(t))
    )(point)
    central = jnp.asarray([1.0, -8.0, 0.0, 8.0, -1.0]) / (12 * step)
    # the error of the differences, of the fourth order
    np.testing.assert_allclose(slopes[2], values @ central, rtol=1e-7)
    np.testing.assert_allclose((forward, reverse), slopes @ central, rtol=1e-7)


@pytest.mark.slow
def test_second_derivatives_by_bound_weights_are_those_by_their_product_with_the_gain():
    gain = jnp.asarray(1.3)

    def loss(step):
        chain, params, x = _bound(gain, step)
        return jnp.sum(chain.readout(params, networks.state(chain, params, x)) ** 2)

    def multiplied(step):
        chain, params, x = _bound(gain)
        at_fixed_bias = trained(networks.rescale(params, 1.0))
        change = jnp.cos(params.blocks.params["dense"]["kernel"])
        dense = at_fixed_bias.blocks["dense"]
        blocks = {"dense": dense | {"kernel": dense["kernel"] + step * change}}
        params = at_fixed_bias._replace(blocks=blocks)
        return jnp.sum(chain.readout(params, networks.state(chain, params, x)) ** 2)

    def derivatives(loss):
        return jax.grad(loss)(0.0), jax.hessian(loss)(0.0), jax.grad(jax.grad(loss))(0.0)

    np.testing.assert_allclose(
        *jax.jit(lambda: (derivatives(loss), derivatives(multiplied)))(), rtol=1e-10
    )


def _isometric(t):
    """A deep linear net, all of whose singular values coincide at t = 0, and one input."""
    mlp = networks.MLP(3, 4, "identity", features_out=2)
    x = jnp.linspace(-1.0, 1.3, 4).astype(t.dtype)
    # the same in either precision, which JAX's draws are not
    bases = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4, 4)))[0], t.dtype)
    bias = jnp.full((4,), 0.1, t.dtype)
    embed = {"dense": {"kernel": bases[0], "bias": bias}}
    turned = bases[1:].at[1].add(t * jnp.sin(7.0 * bases[2]))
    blocks = {"dense": {"kernel": turned, "bias": jnp.stack([bias] * 3)}}
    readout = {"dense": {"kernel": bases[0, :, :2], "bias": bias[:2]}}
    params = networks.Params(embed, blocks, readout)
    return networks.chain(mlp), params, x


def _sum_over(logs):
    """A smooth function of values, whatever their order: only such have a derivative where values coincide."""
    return jnp.sum(jnp.cos(logs))


def _of_an_isometry(t):
    """Every kind of public function of a network's Jacobian, near dynamical isometry."""
    chain, params, x = _isometric(t)
    depths = [3]
    kernel = params.blocks["dense"]["kernel"]
    batch = jnp.stack([x, x**2])
    partial = spectra.jacobian(chain, params, x, 1, 3).matrix()
    operator = spectra.jacobian(chain, params, x)
    # either Krylov space is the whole space
    at_once = spectra.extremes(operator, KEY, top=4)
    in_steps = spectra.extremes(operator, KEY, top=4, steps=2, block=2)
    by_probes = {}
    # whose probes are others in float32
    if t.dtype == jnp.float64:
        density = spectra.density(operator, KEY, probes=2, steps=3)
        by_probes = {
            "density": jnp.sum(density.weights * jnp.sin(density.log_s)),
            "moments": jnp.sum(jnp.sin(spectra.moments(operator, KEY).log_mean)),
        }
    return by_probes | {
        "extremes": _sum_over(at_once.log_s),
        "extremes in steps": _sum_over(in_steps.log_s),
        "log_singular_values": _sum_over(spectra.log_singular_values(chain, params, x, depths)),
        "singular_values": jnp.sum(spectra.singular_values(chain, params, x, depths) ** 3),
        "local_log_singular_values": _sum_over(spectra.local_log_singular_values(chain, params, x)),
        "log_apjn": jnp.sum(spectra.log_apjn(chain, params, x).log_value),
        "matrix of a jacobian": partial.log_norm + jnp.sum(jnp.sin(partial.direction)),
        "omega": regularizers.omega(chain, params, x, lambda y: y[0], immediate=False),
        "orthogonality": regularizers.orthogonality(kernel),
        "tangent_kernel": jnp.sum(curvature.tangent_kernel(chain, params, batch)),
    }


def _at_depth_200(t):
    """Every kind of public function of a network 200 layers deep, by its gain."""
    rng = np.random.default_rng(1)

    # the same in either precision, which JAX's draws are not
    def layer(*shape):
        kernel = jnp.asarray(rng.normal(size=shape) / shape[-2] ** 0.5, t.dtype)
        return {
            "dense": {"kernel": t * kernel, "bias": jnp.full(shape[:-2] + shape[-1:], 0.1, t.dtype)}
        }

    params = networks.Params(layer(4, 4), layer(200, 4, 4), layer(4, 2))
    chain = networks.chain(networks.MLP(200, 4, "tanh", features_out=2))
    x = jnp.linspace(-1.0, 1.3, 4).astype(t.dtype)
    depths = [200]
    weights = jnp.arange(1.0, 5.0, dtype=t.dtype)
    operator = spectra.jacobian(chain, params, x)
    largest = spectra.extremes(operator, KEY, top=1)
    return {
        "log_singular_values": spectra.log_singular_values(chain, params, x, depths)[0] @ weights,
        "extremes": largest.log_s[0],
        "local_log_singular_values": jnp.sum(spectra.local_log_singular_values(chain, params, x)),
        "log_apjn": spectra.log_apjn(chain, params, x).log_value[-1],
        "matrix of a jacobian": spectra.jacobian(chain, params, x, 0, 200).matrix().log_norm,
        "forward": propagation.forward(chain, params, x).log_q[-1],
        "backward": propagation.backward(chain, params, x, lambda y: y[0]).log_grad_h[0],
        "omega": regularizers.omega(chain, params, x, lambda y: y[0], immediate=False),
    }


# functions of one number, where, the step of differences, and how far off slopes may be in float64 and float32:
# differences are of the fourth order; float32 carries 7 digits, of which a product of five layers loses two
TABLES = {
    # values that coincide, that nearly do, and that do not
    "isometry": (_of_an_isometry, (0.0, 1e-6, 1e-3, 0.3), 1e-3, 1e-8, 1e-4),
    "depth 200": (_at_depth_200, (0.8, 1.1), 1e-4, 1e-7, 1e-4),
}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param("isometry", marks=pytest.mark.kernels), "depth 200"])
def test_gradients_of_every_kind_are_central_differences(name):
    function, points, step, *tolerances = TABLES[name]
    around = (np.array(points)[:, None] + step * np.arange(-2, 3)).ravel()
    x64 = jax.config.jax_enable_x64
    with jax.enable_x64(True):
        values = jax.jit(jax.vmap(function))(jnp.asarray(around, jnp.float64))
    dtype = jnp.float64 if x64 else jnp.float32
    slopes = jax.jit(jax.vmap(jax.jacrev(function)))(jnp.asarray(points, dtype))
    central = np.array([1.0, -8.0, 0.0, 8.0, -1.0]) / (12 * step)
    tolerance = tolerances[0 if x64 else 1]
    for kind, slope in slopes.items():
        expected = np.asarray(values[kind]).reshape(len(points), 5) @ central
        np.testing.assert_allclose(slope, expected, rtol=tolerance, atol=tolerance, err_msg=kind)


@pytest.mark.slow
def test_a_gradient_at_known_numbers_is_that_of_a_program():
    # outside of any program the root is found in NumPy
    slope = jax.grad(lambda w: theory.fixed_point("tanh", w, 0.3).chi_1)
    np.testing.assert_allclose(slope(1.5), jax.jit(slope)(1.5), rtol=1e-10)
