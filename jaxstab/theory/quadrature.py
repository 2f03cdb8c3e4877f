"""Gaussian expectations of an activation at any length, with an estimate of the error.

The integrand of E f(sqrt(q) u) varies on two scales in u: 1 for the Gaussian, and the activation's
scale over sqrt(q) around its kinks or centres. Fixed nodes miss the second scale as q grows. Here
every panel starts at a break with nodes graded towards the break, u = break +- scale (e^t - 1),
Gauss-Legendre in t. Breaks move with q, so that derivatives in q are exact across kinks too.

Double integrals are nested single ones. With z_i = sqrt(q c) x + sqrt(q (1 - c)) y_i and g(x) =
E[phi(z) | x],

    E phi(z1) phi(z2) = E g(x)^2,    E phi'(z1) phi'(z2) = E g'(x)^2,    E phi^2 - E g^2 = E var[phi(z) | x],

where the last keeps its digits as c tends to 1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxstab.activations import Activation
from jaxstab.norms.meshes import varying_like
from jaxstab.theory import host
from jaxstab.theory.features import Features, Nodes
from jaxstab.theory.host import AnyArray
from jaxstab.theory.panels import (
    Legendre,
    Panels,
    at_node,
    density,
    flat,
    gaussian_panels,
    legendre,
    shared_panels,
)

# up to so many panels are summed one after another, in the processor's cache; more side by side
_FEW_PANELS = 8
# outer nodes held in memory at once where there are many panels
_AT_ONCE = 16
# values that NumPy holds in memory at once
_IN_MEMORY = 2**19
# 1 - |c| below which the nodes of pairs do not move with c
CLOSEST = 1e-20
# range of lengths of quadrature; power laws continue moments outside
SHORTEST = 1e-24
LONGEST = 1e24
# relative difference of two rules above which a moment is NaN
ACCURACY = 1e-8


def _value_and_slope(phi: Activation, about: Features, z: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Evaluate phi and phi'; 0 at a singular point, where rounding may put a node of weight 0."""
    xp = host.namespace(z)
    if about.power > 1:
        at_break = functools.reduce(xp.logical_or, (z == place for place in about.breaks))
        z = xp.where(at_break, np.nextafter(about.breaks[-1], np.inf) + 1.0, z)
    if xp is np:
        value, slope = host.value_and_slope(phi)(z)
    else:
        value, slope = jax.jvp(phi.fn, (z,), (jnp.ones_like(z),))
    if about.power > 1:
        value = xp.where(at_break, 0.0, value)
        slope = xp.where(at_break, 0.0, slope)
    return value, slope


class Single(NamedTuple):
    """Moments of one Gaussian of variance q.

    Attributes:
        mean: E phi.
        mean_slope: E phi'.
        length: E phi^2 / q.
        length_power: d ln E phi^2 / d ln q.
        power_size: sum of the absolute terms of `length_power`.
        slope: E phi'^2.
        slope_power: d ln E phi'^2 / d ln q.
    """

    mean: Float[AnyArray, "*b"]
    mean_slope: Float[AnyArray, "*b"]
    length: Float[AnyArray, "*b"]
    length_power: Float[AnyArray, "*b"]
    power_size: Float[AnyArray, "*b"]
    slope: Float[AnyArray, "*b"]
    slope_power: Float[AnyArray, "*b"]


def single(phi: Activation, about: Features, q: Float[AnyArray, "*b"]) -> Single:
    """Compute moments of phi(z) and phi'(z), z ~ N(0, q).

    Args:
        phi: activation.
        about: features of the activation.
        q: variance, in [SHORTEST, LONGEST].

    Returns:
        Moments; NaN where two rules differ by more than ACCURACY.
    """
    xp = host.namespace(q)
    moments = _single(phi, about, q, about.nodes.single)
    if about.check is not None:
        other = _single(phi, about, q, about.check.single)
        moments = moments._replace(
            length=_agreed(moments.length, other.length), slope=_agreed(moments.slope, other.slope)
        )
    if about.no_length:
        moments = moments._replace(length=xp.full_like(q, np.nan))
    if about.no_slope:
        moments = moments._replace(slope=xp.full_like(q, np.inf), slope_power=xp.zeros_like(q))
    return moments


def _agreed(found: AnyArray, other: AnyArray) -> AnyArray:
    xp = host.namespace(found)
    close = xp.abs(found - other) <= ACCURACY * xp.abs(found)
    return xp.where(close | (found == other), found, np.nan)


def _single(phi: Activation, about: Features, q: AnyArray, nodes: int) -> Single:
    xp = host.namespace(q)
    root = xp.sqrt(q)
    panels = gaussian_panels(about, xp.zeros_like(q), root, None)
    u, weights = flat(panels, legendre(nodes, about.power))
    weights = weights * density(u)
    weights = weights / xp.sum(weights, -1, keepdims=True)
    wide = xp.broadcast_to(root[..., None], u.shape)
    value, slope = _value_and_slope(phi, about, wide * u)
    value = value / wide
    squares = weights * value**2
    steep = weights * slope**2
    length = xp.sum(squares, -1)
    # d/dq of the Gaussian density itself: (u^2 - 1) / (2 q); E[phi phi' z] / q keeps more digits
    # where phi has no jump
    stretch = (u**2 - 1) / 2
    rough = about.jumps or about.no_slope
    growth = squares * stretch if rough else weights * value * slope * u
    mean_slope = xp.sum(weights * value * u if rough else weights * slope, -1)
    if about.check is not None:
        # weight in the tail shows that the reach cuts off more
        tail = xp.abs(u) > 0.9 * xp.max(xp.abs(u), -1, keepdims=True)
        lost = xp.sum(xp.where(tail, squares, 0.0), -1) > ACCURACY * length
        length = xp.where(lost, np.nan, length)
    return Single(
        xp.sum(weights * value, -1) * root,
        mean_slope,
        length,
        xp.sum(growth, -1) / length,
        xp.sum(xp.abs(growth), -1) / length,
        xp.sum(steep, -1),
        xp.sum(steep * stretch, -1) / xp.sum(steep, -1),
    )


class Pair(NamedTuple):
    """Moments of two Gaussians of variance q and correlation c = +-(1 - distance).

    Attributes:
        gap: (E phi^2 - E phi(z1) phi(z2)) / q.
        slope: E phi'(z1) phi'(z2).
    """

    gap: Float[AnyArray, ""]
    slope: Float[AnyArray, ""]


class Rule(NamedTuple):
    """Nodes of two nested integrals.

    Attributes:
        outer: nodes of the outer integral.
        inner: nodes of the inner integral.
    """

    outer: Legendre
    inner: Legendre


def rule(about: Features, check: bool = False) -> Rule:
    """Compute the nodes for moments of pairs.

    Args:
        about: features of the activation.
        check: whether to use the second rule, padded to the length of the first.

    Returns:
        Nodes of the nested integrals.
    """
    nodes = about.check if check and about.check is not None else about.nodes
    return Rule(
        legendre(nodes.outer, about.power, about.nodes.outer),
        legendre(nodes.inner, about.power, about.nodes.inner),
    )


def _mirrored(about: Features) -> Features:
    """Add the breaks of phi(-z) to the features of phi(z)."""
    scales: dict[float, float] = {}
    for place, scale in zip(about.breaks, about.scales, strict=True):
        for side in (-1.0, 1.0):
            at = side * place + 0.0
            scales[at] = min(scale, scales.get(at, scale))
    return about._replace(
        breaks=tuple(sorted(scales)), scales=tuple(scales[at] for at in sorted(scales))
    )


def pair(
    phi: Activation,
    about: Features,
    q: Float[AnyArray, ""],
    distance: Float[AnyArray, ""],
    nodes: Nodes | Rule,
    opposite: AnyArray | None = None,
) -> Pair:
    """Compute E phi(z1) phi(z2) and E phi'(z1) phi'(z2) of Gaussians of equal length.

    Args:
        phi: activation.
        about: features of the activation.
        q: variance, in [SHORTEST, LONGEST].
        distance: 1 - |c|, in [0, 1].
        nodes: rule, or its numbers of nodes.
        opposite: whether c < 0; None where c >= 0 always.

    Returns:
        Gap per q, and slope.
    """
    if isinstance(nodes, Nodes):
        nodes = Rule(legendre(nodes.outer, about.power), legendre(nodes.inner, about.power))
    xp = host.namespace(q, distance)
    # both spreads are kept positive, so that c = 0 and c = 1 are limits
    spread = xp.sqrt(q * xp.maximum(distance, CLOSEST))
    shared = xp.sqrt(q * xp.maximum(1 - distance, 1e-30))
    panels = gaussian_panels(
        about if opposite is None else _mirrored(about), xp.zeros_like(q), shared, spread
    )
    mirror = opposite is None and about.even_slope
    if mirror:
        # both halves of the line are equal: integrate over the right one
        panels = Panels(*(part[..., 1:] for part in panels))
    x, weights = flat(panels, nodes.outer)
    weights = weights * density(x)
    weights = weights / xp.sum(weights)
    mean, variance, slope = _given(phi, about, shared * x, spread, nodes.inner)
    if opposite is None:
        return Pair(xp.sum(weights * variance) / q, xp.sum(weights * slope**2))
    # in the order (break, side, node), -x is the same node of the mirrored break and side
    shape = (*panels.span.shape, -1)
    other_mean = xp.where(opposite, mean.reshape(shape)[::-1, ::-1].reshape(-1), mean)
    other_slope = xp.where(opposite, slope.reshape(shape)[::-1, ::-1].reshape(-1), slope)
    return Pair(
        xp.sum(weights * (variance + mean * (mean - other_mean))) / q,
        xp.sum(weights * slope * other_slope),
    )


def joint(
    phi: Activation,
    about: Features,
    q: tuple[AnyArray, AnyArray],
    c: Float[AnyArray, ""],
    nodes: Nodes,
) -> tuple[AnyArray, AnyArray]:
    """Compute E phi(z1) phi(z2) and E phi'(z1) phi'(z2) of Gaussians of two lengths.

    Args:
        phi: activation.
        about: features of the activation.
        q: both variances, in [SHORTEST, LONGEST].
        c: correlation, in [-1, 1].
        nodes: numbers of nodes.

    Returns:
        The two moments.
    """
    xp = host.namespace(*q, c)
    distance = 1.0 - xp.abs(c)
    apart = [xp.sqrt(length * xp.maximum(distance, CLOSEST)) for length in q]
    together = [xp.sqrt(length * xp.maximum(1 - distance, 1e-30)) for length in q]
    panels = shared_panels(_mirrored(about), tuple(together), tuple(apart))
    x, weights = flat(panels, legendre(nodes.outer, about.power))
    weights = weights * density(x)
    weights = weights / xp.sum(weights)
    inner = legendre(nodes.inner, about.power)
    signs = (xp.ones_like(c), xp.where(c < 0, -1.0, 1.0))
    known = [
        _given(phi, about, sign * wide * x, spread, inner)
        for sign, wide, spread in zip(signs, together, apart, strict=True)
    ]
    means, slopes = ([one[place] for one in known] for place in (0, 2))
    return xp.sum(weights * means[0] * means[1]), xp.sum(weights * slopes[0] * slopes[1])


def _given(
    phi: Activation,
    about: Features,
    shared: Float[AnyArray, " m"],
    spread: AnyArray,
    nodes: Legendre,
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Compute mean and variance of phi and mean of phi', conditional on the shared part."""
    xp = host.namespace(shared, spread)
    few = 2 * (len(about.breaks) + about.sharp + 2 * bool(about.growth)) <= _FEW_PANELS

    def sums(part: Float[AnyArray, " m"]) -> tuple[AnyArray, ...]:
        wide = xp.broadcast_to(spread, part.shape)
        panels = gaussian_panels(about, part, wide, None)
        beside = Panels(*(each.reshape(len(part), -1) for each in panels))
        # differences from the middle value keep the digits of a small variance
        middle = _value_and_slope(phi, about, part)[0]
        middle = xp.where(xp.isfinite(middle), middle, 0.0)
        if xp is np:
            return _summed_at_once(phi, about, beside, (part, wide, middle), nodes)
        return _summed_in_turn(phi, about, beside, (part, wide, middle), nodes, few)

    if xp is np:
        size = max(1, _IN_MEMORY // (len(nodes.node) * 2 * (len(about.breaks) + 3)))
        chunks = [sums(shared[start : start + size]) for start in range(0, len(shared), size)]
        parts = [np.concatenate(each) for each in zip(*chunks, strict=True)]
    else:
        at_once = 1 if few else np.gcd(len(shared), _AT_ONCE)
        parts = [part.reshape(-1) for part in jax.lax.map(sums, shared.reshape(-1, int(at_once)))]
    middle, weight, off, square, slope = parts
    off = off / weight
    return middle + off, square / weight - off**2, slope / weight


def _integrands(
    phi: Activation,
    about: Features,
    panels: Panels,
    given: tuple[AnyArray, ...],
    node: AnyArray,
    weight: AnyArray,
) -> tuple[AnyArray, ...]:
    """Compute weights at a node, and the weighted phi - middle, its square, and phi'."""
    shared, spread, middle = given
    y, weights = at_node(panels, node, weight)
    weights = weights * density(y)
    value, slope = _value_and_slope(phi, about, shared + spread * y)
    off = weights * (value - middle)
    if about.jumps or about.no_slope:
        tilt = off * y / spread
    else:
        tilt = weights * slope
    return weights, off, off * (value - middle), tilt


def _summed_at_once(
    phi: Activation, about: Features, panels: Panels, given: tuple[np.ndarray, ...], nodes: Legendre
) -> tuple[np.ndarray, ...]:
    wide = Panels(*(part[..., None] for part in panels))
    beside = tuple(part[:, None, None] for part in given)
    parts = _integrands(phi, about, wide, beside, nodes.node, nodes.weight)
    return given[2], *(np.sum(part, (-1, -2)) for part in parts)


def _summed_in_turn(
    phi: Activation,
    about: Features,
    panels: Panels,
    given: tuple[AnyArray, ...],
    nodes: Legendre,
    few: bool,
) -> tuple[AnyArray, ...]:
    """Sum in loops, whose body compiles fast and stays in cache."""
    along = Legendre(jnp.asarray(nodes.node), jnp.asarray(nodes.weight))
    shape = given[0].shape if few else panels.span.shape
    if few:
        beside = given
    else:
        beside = tuple(jnp.broadcast_to(part[:, None], shape) for part in given)

    def over_nodes(sums: tuple[AnyArray, ...], panels: Panels) -> tuple[tuple[AnyArray, ...], None]:
        def add(sums: tuple[AnyArray, ...], node: Legendre) -> tuple[tuple[AnyArray, ...], None]:
            parts = _integrands(phi, about, panels, beside, node.node, node.weight)
            return tuple(total + part for total, part in zip(sums, parts, strict=True)), None

        return jax.lax.scan(add, sums, along)

    zeros = varying_like((jnp.zeros(shape, given[0].dtype),) * 4, given)
    if few:
        in_turn = Panels(*(jnp.moveaxis(jnp.asarray(part), 1, 0) for part in panels))
        sums = jax.lax.scan(over_nodes, zeros, in_turn)[0]
        return given[2], *sums
    side_by_side = Panels(*(jnp.asarray(part) for part in panels))
    return given[2], *(jnp.sum(part, -1) for part in over_nodes(zeros, side_by_side)[0])
