"""Gaussian expectations of an activation, at any length, with an estimate of their error.

E f(sqrt(q) u) has features of two widths: the Gaussian's (1, in u) and the activation's (its own scale over sqrt(q),
around its kinks or centres). A rule of fixed nodes misses the second as q grows. Here every panel starts at a break
and its nodes are graded towards it, u = break +- scale (e^t - 1), Gauss-Legendre in t. Breaks move with q, so that
derivatives with respect to q are exact across kinks too.

Two dimensions are two times one. With z_i = sqrt(q c) x + sqrt(q (1 - c)) y_i and g(x) = E[phi(z) | x],

    E phi(z1) phi(z2) = E g(x)^2,    E phi'(z1) phi'(z2) = E g'(x)^2,    E phi^2 - E g^2 = E var[phi(z) | x],

of which the last keeps its digits as c tends to 1.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxstab.activations import Activation
from jaxstab.theory.features import Features, Nodes

# exp(-9^2 / 2) = 3e-18: what lies beyond is below the rounding of what lies within
_REACH = 9.0
# a half-panel around a smooth centre starts at most so far out: a Gaussian wants nodes on both sides
_CENTRAL = 3.5
# the Gaussian itself varies on this scale
_WIDEST = 4.0
# no grading finer than this in u: what is narrower has weight below rounding
_FINEST = 1e-13
# nodes of the outer integral that are held in memory at once
_AT_ONCE = 16
# 1 - |c| below which the nodes of pairs stand still
CLOSEST = 1e-20
# lengths outside are continued by power laws
SHORTEST, LONGEST = 1e-24, 1e24
# a moment whose two rules differ by more is not given
ACCURACY = 1e-8


def _density(u: Array) -> Array:
    return jnp.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)


def _legendre(nodes: int, dtype: jnp.dtype) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype)


def _graded_panels(
    breaks: Float[Array, "*b k"], low: Array, high: Array, scale: Array, nodes: int
) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
    """Nodes and weights on [low, high], two half-panels per break, graded towards the break.

    The scale is one for all breaks, or one for each.

    Returns:
        Points and weights; they lie (break, side, node).
    """
    x, w = _legendre(nodes, breaks.dtype)
    x, w = (jnp.expand_dims(each, tuple(range(breaks.ndim + 1))) for each in (x, w))
    middle = (breaks[..., 1:] + breaks[..., :-1]) / 2
    first = jnp.broadcast_to(low, (*breaks.shape[:-1], 1))
    last = jnp.broadcast_to(high, (*breaks.shape[:-1], 1))
    left = breaks - jnp.concatenate([first, middle], -1)
    right = jnp.concatenate([middle, last], -1) - breaks
    scales = jnp.broadcast_to(scale, breaks.shape)[..., None, None]
    span = jnp.log1p(jnp.stack([left, right], -1)[..., None] / scales)
    steps = scales * jnp.exp(span * ((x + 1) / 2))
    side = jnp.stack([-jnp.ones_like(breaks), jnp.ones_like(breaks)], -1)[..., None]
    points = breaks[..., None, None] + side * (steps - scales)
    weights = span * steps * (w / 2)
    shape = (*breaks.shape[:-1], -1)
    return points.reshape(shape), weights.reshape(shape)


def _centres(activation: Activation) -> tuple[float, ...]:
    return activation.kinks or (0.0,)


def _gaussian_rule(
    about: Features, centre: Array, spread: Array, blur: Array | None, nodes: int
) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"]]:
    """Nodes u and weights of E f(centre + spread u), u standard normal; the weights sum to 1.

    f varies as the activation does, smoothed over the distance `blur` where one is given.

    Returns:
        Nodes and weights.
    """
    dtype, edges = spread.dtype, (*centre.shape, len(about.breaks))

    def along(values: Array | np.ndarray) -> Array:
        """Values of the breaks, or one for all, with an axis for each of the centre's."""
        return jnp.broadcast_to(jnp.expand_dims(jnp.asarray(values, dtype), tuple(range(centre.ndim))), edges)

    reach = _REACH + 2 * about.growth * spread
    exact = (along(np.asarray(about.breaks)) - centre[..., None]) / spread
    limit = reach if about.sharp else jnp.asarray(_CENTRAL, dtype)
    places = jnp.clip(exact, -limit, limit)
    width = along(np.asarray(about.scales))
    if blur is not None:
        # what a kink does is as wide as the smoothing, what a smooth feature does no narrower than itself
        own = jnp.zeros_like(width) if about.sharp else width
        width = jnp.hypot(own, along(blur[None]))
    sizes = jnp.clip(width / spread + jnp.abs(exact - places), _FINEST, _WIDEST)
    breaks = _with_zero(places) if about.sharp else places
    if about.growth:
        peak = jnp.broadcast_to(2 * about.growth * spread, (*centre.shape, 1))
        breaks = jnp.sort(jnp.concatenate([breaks, -peak, peak], -1))
    distance = jnp.abs(breaks[..., :, None] - places[..., None, :])
    field = jnp.minimum(jnp.min(sizes[..., None, :] + distance, -1), _WIDEST)
    u, weights = _graded_panels(breaks, -reach, reach, field, nodes)
    weights = weights * _density(u)
    return u, weights / jnp.sum(weights, -1, keepdims=True)


def _with_zero(ascending: Float[Array, "*b k"]) -> Float[Array, "*b one_more"]:
    """The values with 0 among them, ascending."""
    first = jnp.minimum(ascending[..., :1], 0.0)
    between = jnp.clip(0.0, ascending[..., :-1], ascending[..., 1:])
    last = jnp.maximum(ascending[..., -1:], 0.0)
    return jnp.concatenate([first, between, last], -1)


def _value_and_slope(phi: Activation, z: Array) -> tuple[Array, Array]:
    return jax.jvp(phi.fn, (z,), (jnp.ones_like(z),))


class Single(NamedTuple):
    """Moments of one Gaussian of variance q.

    Attributes:
        mean: E phi.
        length: E phi^2 / q.
        length_power: d ln E phi^2 / d ln q.
        slope: E phi'^2.
        slope_power: d ln E phi'^2 / d ln q.
    """

    mean: Float[Array, ""]
    length: Float[Array, ""]
    length_power: Float[Array, ""]
    slope: Float[Array, ""]
    slope_power: Float[Array, ""]


def single(phi: Activation, about: Features, q: Float[Array, ""]) -> Single:
    """Moments of phi(z) and phi'(z), z ~ N(0, q).

    Args:
        phi: the activation.
        about: its features.
        q: variance, in [SHORTEST, LONGEST].

    Returns:
        The moments, NaN where two rules differ by more than ACCURACY.
    """
    found = _single(phi, about, q, about.nodes.single)
    if about.check is not None:
        other = _single(phi, about, q, about.check.single)
        found = found._replace(length=_agreed(found.length, other.length), slope=_agreed(found.slope, other.slope))
    if about.no_length:
        found = found._replace(length=jnp.full_like(q, jnp.nan))
    if about.no_slope:
        found = found._replace(slope=jnp.full_like(q, jnp.inf))
    return found


def _agreed(found: Array, other: Array) -> Array:
    return jnp.where(jnp.abs(found - other) <= ACCURACY * jnp.abs(found), found, jnp.nan)


def _single(phi: Activation, about: Features, q: Array, nodes: int) -> Single:
    root = jnp.sqrt(q)
    u, weights = _gaussian_rule(about, jnp.zeros_like(q), root, None, nodes)
    value, slope = _value_and_slope(phi, root * u)
    value = value / root
    squares = weights * value**2
    steep = weights * slope**2
    length = jnp.sum(squares)
    # d/dq of the Gaussian density itself: (u^2 - 1) / (2 q); E[phi phi' z] / q keeps more digits where phi has no jump
    stretch = (u**2 - 1) / 2
    growth = jnp.sum(squares * stretch) if about.jumps else jnp.sum(weights * value * slope * u)
    if about.check is not None:
        # a tail that the reach cuts off
        tail = jnp.abs(u) > 0.9 * jnp.max(jnp.abs(u))
        length = jnp.where(jnp.sum(jnp.where(tail, squares, 0.0)) > ACCURACY * length, jnp.nan, length)
    return Single(
        jnp.sum(weights * value) * root,
        length,
        growth / length,
        jnp.sum(steep),
        jnp.sum(steep * stretch) / jnp.sum(steep),
    )


class Pair(NamedTuple):
    """Moments of two Gaussians of variance q and correlation c = +-(1 - distance).

    Attributes:
        gap: (E phi^2 - E phi(z1) phi(z2)) / q.
        slope: E phi'(z1) phi'(z2).
    """

    gap: Float[Array, ""]
    slope: Float[Array, ""]


def _mirrored(about: Features) -> Features:
    """Features with those of phi(-z) among them."""
    scales: dict[float, float] = {}
    for place, scale in zip(about.breaks, about.scales, strict=True):
        for side in (-1.0, 1.0):
            at = side * place + 0.0
            scales[at] = min(scale, scales.get(at, scale))
    return about._replace(breaks=tuple(sorted(scales)), scales=tuple(scales[at] for at in sorted(scales)))


def pair(
    phi: Activation,
    about: Features,
    q: Float[Array, ""],
    distance: Float[Array, ""],
    nodes: Nodes,
    opposite: Array | None = None,
) -> Pair:
    """Moments of phi(z1), phi(z2) and of their derivatives.

    Args:
        phi: the activation.
        about: its features.
        q: variance, in [SHORTEST, LONGEST].
        distance: 1 - |c|, in [0, 1].
        nodes: of the rule.
        opposite: whether c < 0; None where it never is.

    Returns:
        The moments.
    """
    # both spreads stay positive: at c = 0 and c = 1 the integrals are limits
    spread = jnp.sqrt(q * jnp.maximum(distance, CLOSEST))
    shared = jnp.sqrt(q * jnp.maximum(1 - distance, 1e-30))
    outer = about if opposite is None else _mirrored(about)
    x, weights = _gaussian_rule(outer, jnp.zeros_like(q), shared, spread, nodes.outer)

    if opposite is None and about.even_slope:
        # one break at 0: panels lie (side, node)
        x, weights = x[nodes.outer :], 2 * weights[nodes.outer :]

    def given(a: Float[Array, " m"]) -> tuple[Array, Array, Array]:
        """Mean and variance of phi, and mean of phi', given the shared part."""
        y, weights = _gaussian_rule(about, a, spread, None, nodes.inner)
        value, slope = _value_and_slope(phi, a[:, None] + spread * y)
        mean = jnp.sum(weights * value, -1)
        off = value - mean[:, None]
        tilt = weights * off * y / spread if about.jumps else weights * slope
        return mean, jnp.sum(weights * off**2, -1), jnp.sum(tilt, -1)

    parts = jax.lax.map(given, (shared * x).reshape(-1, math.gcd(x.size, _AT_ONCE)))
    mean, variance, slope = (part.reshape(-1) for part in parts)
    if opposite is None:
        return Pair(jnp.sum(weights * variance) / q, jnp.sum(weights * slope**2))
    # panels lie (break, side, node): those of -x are the same nodes of the mirrored break and the other side
    panels = (-1, 2, nodes.outer)
    other_mean = jnp.where(opposite, mean.reshape(panels)[::-1, ::-1].reshape(-1), mean)
    other_slope = jnp.where(opposite, slope.reshape(panels)[::-1, ::-1].reshape(-1), slope)
    return Pair(jnp.sum(weights * (variance + mean * (mean - other_mean))) / q, jnp.sum(weights * slope * other_slope))
