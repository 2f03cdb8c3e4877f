r"""BatchNorm before phi, at a finite batch size and in the limit of many examples.

The B pre-activations of a unit are Gaussians of variance q and correlation c. Their variance about
the batch mean is v = q (1 - c). h - mean has length sqrt(v) r, r^2 ~ chi^2 with B - 1 degrees of
freedom, and a uniform direction in the complement of (1, .., 1). So y = (h - mean) / s is uniform
on a sphere of radius t sqrt(B), with

    s^2 = v r^2 / B + epsilon,    t^2 = v r^2 / (v r^2 + B epsilon).

Let (a, b, e, g) = E[phi'_1^2, phi'_1 phi'_2, phi'_1^2 y_1^2, phi'_1 y_1 phi'_2 y_2] on that sphere.
The squared gradient grows per layer by sigma_w^2 E[((B - 1) a + b - (2 - t^2)(e - g)) / s^2] / B;
at epsilon = 0 this is

    sigma_w^2 ((B - 1) a + b - e + g) / ((B - 3) v)        (Yang et al. 2019, arXiv:1902.08129; relu: their theorem 8).

Gradients with respect to h sum to 0 over the batch. The expectation over r is a trapezoid rule in
ln r^2, with nodes shifted so that ln (v r^2 / (B epsilon)) falls on a fixed grid. So moments on
spheres are computed once for all gains and layers.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from jaxstab.activations import Activation
from jaxstab.theory.features import Features
from jaxstab.theory.laws import Law
from jaxstab.theory.maps import log_sum
from jaxstab.theory.moments import LogMoments, inside, log_moments, variance
from jaxstab.theory.signals import Head, Signal, log

# largest |ln t^2/(1 - t^2)| of the grid: above, t is 1 to rounding; below, moments are powers of t
_FARTHEST = 38.0
# an integral over a density ends where the density has fallen by so many nats
_END = 40.0
# nodes between two breaks, of the outer and the inner integral
_OUTER = 48
_INNER = 32
# up to this batch size, breaks that touch the edge of the sphere need panels of their own
_GRAZING = 12


class Sphere(NamedTuple):
    """Moments on spheres of every radius.

    Attributes:
        power: E phi_1^2.
        within: E phi_1^2 - E phi_1 phi_2, of two examples of a batch.
        variance: E phi_1^2 - (E phi_1)^2, of examples of two batches.
        slope: E phi'_1^2.
        cross: E phi'_1 phi'_2, of two examples of a batch.
        stretch: E (phi'_1 y_1)^2.
        cross_stretch: E phi'_1 y_1 phi'_2 y_2.
        square: t^2.
    """

    power: Float[Array, "*r"]
    within: Float[Array, "*r"]
    variance: Float[Array, "*r"]
    slope: Float[Array, "*r"]
    cross: Float[Array, "*r"]
    stretch: Float[Array, "*r"]
    cross_stretch: Float[Array, "*r"]
    square: Float[Array, "*r"]


def _spacing(batch: int) -> float:
    """Choose the spacing of nodes in ln r^2, whose standard deviation is sqrt(2 / (batch - 1))."""
    return min(0.2, 0.7 * math.sqrt(2 / (batch - 1)))


def _panels(
    edges: Float[Array, "*b k"], nodes: int
) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
    """Lay Gauss-Legendre nodes between edges, dense at the edges, where roots become smooth."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    x = (x + 1) / 2
    w = w / 2
    place = x**3 * (10 - 15 * x + 6 * x**2)
    weight = w * 30 * x**2 * (1 - x) ** 2
    shape = (1,) * edges.ndim + (nodes,)
    low = edges[..., :-1, None]
    high = edges[..., 1:, None]
    points = low + (high - low) * place.reshape(shape)
    weights = (high - low) * weight.reshape(shape)
    flat = (*edges.shape[:-1], -1)
    return points.reshape(flat), weights.reshape(flat)


def _angles(
    sines: Float[Array, "*b k"], power: int, nodes: int
) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
    """Lay nodes and weights of the density cos^power on an angle, with breaks at given sines."""
    breaks = jnp.sort(jnp.arcsin(jnp.clip(sines, -1.0, 1.0)), -1)
    return _weighted(breaks, power, nodes)


def _weighted(
    breaks: Float[Array, "*b k"], power: int, nodes: int
) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
    end = math.acos(math.exp(-_END / power)) if power else math.pi / 2
    ends = jnp.full((*breaks.shape[:-1], 1), end, breaks.dtype)
    edges = jnp.concatenate([-ends, jnp.clip(breaks, -end, end), ends], -1)
    points, weights = _panels(edges, nodes)
    weights = weights * jnp.cos(points) ** power
    return points, weights / jnp.sum(weights, -1, keepdims=True)


def _grazing(kinks: Float[Array, " k"], cosine: float) -> Float[Array, " m"]:
    """Find angles of the first coordinate at which the second one's range ends at a kink."""
    reached = jnp.arcsin(jnp.clip(kinks, -1.0, 1.0))
    turned = math.acos(cosine)
    angles: list[Array] = []
    for offset in (turned, -turned):
        # the second coordinate's extremes are sin(angle + offset)
        solutions = (reached, math.pi - reached)
        angles.extend(
            (solution - offset + math.pi) % (2 * math.pi) - math.pi for solution in solutions
        )
    return jnp.concatenate(angles)


def sphere(phi: Activation, about: Features, batch: int, square: Float[Array, ""]) -> Sphere:
    """Compute moments of phi on the sphere of radius t sqrt(B) in the complement of (1, .., 1).

    Args:
        phi: activation.
        about: features of the activation.
        batch: batch size B, >= 4.
        square: t^2, in [0, 1].

    Returns:
        Moments, scalars.
    """
    freedom = batch - 1
    radius = jnp.sqrt(square * freedom)
    kinks = jnp.asarray(about.breaks, square.dtype)
    cosine = -1.0 / freedom
    sine = math.sqrt(1 - cosine**2)
    breaks = jnp.arcsin(jnp.clip(kinks / radius, -1.0, 1.0))
    if about.sharp and batch <= _GRAZING:
        breaks = jnp.concatenate([breaks, _grazing(kinks / radius, cosine)])
    angle, weight = _weighted(jnp.sort(breaks), freedom - 2, _OUTER)
    y = radius * jnp.sin(angle)
    reach = radius * sine * jnp.cos(angle)
    other_angle, other_weight = _angles(
        (kinks[None] - cosine * y[:, None]) / reach[:, None], freedom - 3, _INNER
    )
    other = cosine * y[:, None] + reach[:, None] * jnp.sin(other_angle)
    value, slope = _value_and_slope(phi, y)
    other_value, other_slope = _value_and_slope(phi, other)

    def given(values: Array) -> Array:
        return jnp.sum(other_weight * values, -1)

    mean = jnp.sum(weight * value)
    return Sphere(
        power=jnp.sum(weight * value**2),
        within=jnp.sum(weight * given((value[:, None] - other_value) ** 2)) / 2,
        variance=jnp.sum(weight * (value - mean) ** 2),
        slope=jnp.sum(weight * slope**2),
        cross=jnp.sum(weight * slope * given(other_slope)),
        stretch=jnp.sum(weight * (slope * y) ** 2),
        cross_stretch=jnp.sum(weight * slope * y * given(other_slope * other)),
        square=square,
    )


def _value_and_slope(phi: Activation, z: Array) -> tuple[Array, Array]:
    return jax.jvp(phi.fn, (z,), (jnp.ones_like(z),))


def spheres(law: Law, phi: Activation, about: Features, dtype: jnp.dtype) -> Sphere | None:
    """Tabulate moments on spheres, on a grid of ln t^2/(1 - t^2).

    Args:
        law: law of the block.
        phi: activation.
        about: features of the activation.
        dtype: dtype of the moments.

    Returns:
        Moments along the grid for BatchNorm over a finite batch; else None.
    """
    if not law.finite_batch:
        return None
    batch = law.batch
    assert batch is not None
    count = math.ceil(_FARTHEST / _spacing(batch))
    grid = jnp.arange(-count, count + 1).astype(dtype) * _spacing(batch)
    squares = jax.nn.sigmoid(grid)
    return jax.lax.map(functools.partial(sphere, phi, about, batch), squares, batch_size=8)


class _Radii(NamedTuple):
    """Nodes of the expectation over r.

    Attributes:
        weight: weights of the nodes.
        log_square: ln r^2.
        moments: moments on the sphere at each node.
    """

    weight: Float[Array, " k"]
    log_square: Float[Array, " k"]
    moments: Sphere


def _radii(table: Sphere, batch: int, log_ratio: Array) -> _Radii:
    """Lay nodes in r, given ln (v / (B epsilon))."""
    freedom = batch - 1
    step = _spacing(batch)
    low, high = _range(freedom)
    shift = jnp.clip(log_ratio, -1e3, 1e3)
    whole = stop_gradient(jnp.ceil(shift / step))
    offset = jnp.arange(math.floor(low / step), math.ceil(high / step) + 1)
    x = offset.astype(shift.dtype) * step + (whole * step - shift)
    log_density = freedom / 2 * (x - math.log(2)) - jnp.exp(x) / 2 - math.lgamma(freedom / 2)
    middle = (len(table.square) - 1) // 2
    wanted = offset + whole.astype(offset.dtype) + middle
    place = jnp.clip(wanted, 0, 2 * middle)
    below = step * jnp.minimum(wanted, 0).astype(shift.dtype)

    def at_nodes(moment: Array) -> Array:
        return moment[place] * jnp.exp(_power(moment, step) * below)

    return _Radii(step * jnp.exp(log_density), x, jax.tree.map(at_nodes, table))


def _power(moment: Float[Array, " r"], step: float) -> Float[Array, ""]:
    """Power of t^2 as which a moment falls below the grid of radii; rounding would make it grow."""
    known = moment[0] * moment[1] > 0
    rate = jnp.log(jnp.where(known, moment[1] / jnp.where(known, moment[0], 1.0), 1.0)) / step
    exact = jnp.round(2 * rate) / 2
    return jnp.clip(jnp.where(jnp.abs(rate - exact) < 1e-4, exact, rate), 0.0, None)


def _range(freedom: int) -> tuple[float, float]:
    """Find the range in ln r^2 of integrals over the chi^2 density and over density / r^2."""
    x = np.linspace(-200.0, 10.0, 21_001)
    low = (freedom - 2) / 2
    high = freedom / 2
    density = [power * x - np.exp(x) / 2 for power in (low, high)]
    kept = [x[one > np.max(one) - _END] for one in density]
    return float(kept[0][0]), float(kept[1][-1])


def finite_head(law: Law, table: Sphere, signal: Signal, log_epsilon: Array) -> Head:
    """Compute the head of a block with BatchNorm before phi at a finite batch size.

    Args:
        law: law of the block.
        table: moments on spheres, from `spheres`.
        signal: pre-activations that enter the block.
        log_epsilon: ln epsilon.

    Returns:
        Moments of the head. Slopes and `log_own` include dropout, lengths and gaps do not.
    """
    batch = law.batch
    assert batch is not None
    log_v = signal.log_q + log(signal.within)
    nodes = _radii(table, batch, log_v - math.log(batch) - log_epsilon)
    known = nodes.moments

    def mean(values: Array) -> Array:
        return jnp.sum(nodes.weight * values)

    # different examples have different masks
    own = (1.0 - 1.0 / batch) / law.keep + 1.0 / batch
    cross = -1.0 / batch
    slope = own * known.slope + cross * (known.slope - known.cross)
    stretch = own * known.stretch + cross * (known.stretch + (batch - 1.0) * known.cross_stretch)
    centred = slope - (2.0 - known.square) * stretch / (batch - 1.0)
    isotropic = ((batch - 1.0) * known.slope - (2.0 - known.square) * known.stretch) / (
        law.keep * batch
    )
    # 1/s^2 relative to its value at a typical radius, which keeps it in range
    log_typical = -log_sum(log_v, log_epsilon)
    log_inverse = -jax.vmap(log_sum, (0, None))(
        log_v + nodes.log_square - math.log(batch), log_epsilon
    )
    inverse = jnp.exp(log_inverse - log_typical)
    bias = own * known.slope + cross * (known.slope + (batch - 1.0) * known.cross)
    log_power = log(mean(known.power))
    return Head(
        log_power=log_power,
        log_gain=log_power - signal.log_q,
        log_unit=-signal.log_q,
        gap=mean(known.variance),
        within=mean(known.within),
        log_slope=log_typical + log(jnp.maximum(mean(inverse * centred), 0.0)),
        log_isotropic=log_typical + log(mean(inverse * isotropic)),
        log_own=log(mean(stretch + bias) * batch / (batch - 1.0)),
    )


def limit_head(
    law: Law, phi: Activation, about: Features, signal: Signal, log_epsilon: Array
) -> Head:
    """Compute `finite_head` in the limit of many examples, which the norm makes independent.

    Args:
        law: law of the block.
        phi: activation of the block.
        about: features of the activation.
        signal: pre-activations that enter the block.
        log_epsilon: ln epsilon.

    Returns:
        Moments of the head. Slopes and `log_own` include dropout, lengths and gaps do not.
    """
    log_within = log(signal.within)
    log_v = signal.log_q + log_within
    log_factor = -log_sum(log_v, log_epsilon)
    moments = log_moments(phi, about, log_v + log_factor)
    spread = variance(phi, about, log_v + log_factor, about.nodes)
    per_length = log_factor + log_within
    log_slope = moments.log_slope - jnp.log(law.keep)
    own = _own_limit(law, phi, about, log_v + log_factor, moments)
    return Head(
        log_power=moments.log_length,
        log_gain=moments.log_growth + per_length,
        log_unit=moments.log_growth - moments.near_growth + per_length,
        gap=spread,
        within=spread,
        log_slope=log_slope + log_factor,
        log_isotropic=log_slope + log_factor,
        log_own=moments.log_slope - moments.near_slope + log(own),
    )


def _own_limit(
    law: Law, phi: Activation, about: Features, log_y: Array, moments: LogMoments
) -> Array:
    """Compute the squared gradient of BatchNorm's scale and bias, in the limit of many examples.

    y ~ N(0, e^log_y) is the output of the norm. Gradients sum to 0 over a batch, so only variances
    over examples count: E phi'^2 / rho - (E phi')^2 and E (phi' y)^2 / rho - (E phi' y)^2.

    Args:
        law: law of the block.
        phi: activation of the block.
        about: features of the activation.
        log_y: ln of the variance of y.
        moments: moments of phi at that variance.

    Returns:
        Sum of the two variances, over the squared gradient with respect to a.
    """

    def mean(log_y: Array) -> Array:
        return log_moments(phi, about, log_y).mean * jnp.exp(inside(log_y) / 2)

    # Stein: E phi'(y) y = 2 d E phi / d ln q, and E (phi' u)^2 = M (1 + 2 dlnM/dlnq)
    rate = jax.jvp(mean, (log_y,), (jnp.ones_like(log_y),))[1]
    square = jnp.exp(moments.near_slope)
    stretch = square * jnp.exp(inside(log_y)) * (1.0 + 2.0 * moments.slope_power)
    bias = square / law.keep - moments.mean_slope**2
    scale = stretch / law.keep - 4.0 * rate**2
    return jnp.maximum(bias, 0.0) + jnp.maximum(scale, 0.0)
