"""Panels of the real line with nodes graded towards the breaks of an activation."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxstab.activations import Activation
from jaxstab.theory import host
from jaxstab.theory.features import Features
from jaxstab.theory.host import AnyArray

# exp(-9^2 / 2) = 3e-18 is below rounding
_REACH = 9.0
# a break at a smooth centre is clipped to this distance, so that nodes lie on both sides
_CENTRAL = 3.5
# coarsest grading, on which the Gaussian itself varies
_WIDEST = 4.0
# finest grading in u: narrower features have a weight below rounding
_FINEST = 1e-13
# breaks of the standard normal, beside those of an activation that oscillates
_EVEN = np.arange(-8.0, 9.0, 2.0)


def density(u: AnyArray) -> AnyArray:
    """Compute the standard normal density.

    Args:
        u: points.

    Returns:
        Density at the points.
    """
    return host.namespace(u).exp(-(u**2) / 2) / np.sqrt(2 * np.pi)


class Legendre(NamedTuple):
    """Nodes and weights on [0, 1].

    Attributes:
        node: nodes, ascending.
        weight: weights, whose sum is 1.
    """

    node: Float[AnyArray, " n"]
    weight: Float[AnyArray, " n"]


@functools.cache
def legendre(count: int, power: int = 1, length: int | None = None) -> Legendre:
    """Compute Gauss-Legendre nodes in y = x^(1 / power).

    Args:
        count: number of nodes.
        power: exponent of the nodes x = y^power, which crowd at 0 for power > 1.
        length: length of the arrays; entries after `count` have weight 0.

    Returns:
        Nodes x and their weights.
    """
    x, w = np.polynomial.legendre.leggauss(count)
    root = (x + 1) / 2
    node = root**power
    weight = w / 2 * power * root ** (power - 1)
    missing = (length or count) - count
    return Legendre(np.pad(node, (0, missing), constant_values=0.5), np.pad(weight, (0, missing)))


class Panels(NamedTuple):
    """Half-panels graded towards a break: u = place + side scale (e^(span x) - 1), x in [0, 1].

    Attributes:
        place: break at which the half-panel starts.
        scale: distance from the break at which grading starts.
        span: ln (1 + length of the half-panel / scale).
        side: -1 left of the break, 1 right of the break.
    """

    place: Float[AnyArray, "*b k 2"]
    scale: Float[AnyArray, "*b k 2"]
    span: Float[AnyArray, "*b k 2"]
    side: Float[AnyArray, "*b k 2"]


def _panels(
    breaks: Float[AnyArray, "*b k"], low: AnyArray, high: AnyArray, scale: Float[AnyArray, "*b k"]
) -> Panels:
    """Cut [low, high] into two half-panels per break."""
    xp = host.namespace(breaks, scale)
    middle = (breaks[..., 1:] + breaks[..., :-1]) / 2
    first = xp.broadcast_to(low, (*breaks.shape[:-1], 1))
    last = xp.broadcast_to(high, (*breaks.shape[:-1], 1))
    left = breaks - xp.concatenate([first, middle], -1)
    right = xp.concatenate([middle, last], -1) - breaks
    both = (*breaks.shape, 2)
    scales = xp.broadcast_to(scale[..., None], both)
    span = xp.log1p(xp.stack([left, right], -1) / scales)
    side = np.broadcast_to(np.array([-1.0, 1.0]), both)
    return Panels(xp.broadcast_to(breaks[..., None], both), scales, span, side)


def at_node(panels: Panels, node: AnyArray, weight: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Map a node of [0, 1] to points u of all panels.

    Args:
        panels: half-panels.
        node: node in [0, 1].
        weight: weight of the node.

    Returns:
        Points u, and their weights in an integral over u.
    """
    xp = host.namespace(panels.span, node)
    step = panels.scale * xp.exp(panels.span * node)
    return panels.place + panels.side * (step - panels.scale), panels.span * step * weight


def graded_panels(
    breaks: Float[AnyArray, "*b k"], low: AnyArray, high: AnyArray, scale: AnyArray, nodes: int
) -> tuple[Float[AnyArray, "*b n"], Float[AnyArray, "*b n"]]:
    """Lay nodes on [low, high] in two half-panels per break, graded towards the break.

    Args:
        breaks: breaks, ascending.
        low: lower end of the interval.
        high: upper end of the interval.
        scale: scale of the grading, one for all breaks or one for each.
        nodes: number of nodes of a half-panel.

    Returns:
        Points and weights, in the order (break, side, node).
    """
    xp = host.namespace(breaks, scale)
    panels = _panels(breaks, low, high, xp.broadcast_to(scale, breaks.shape))
    return flat(panels, legendre(nodes))


def flat(panels: Panels, rule: Legendre) -> tuple[AnyArray, AnyArray]:
    """Lay the nodes of a rule on all panels.

    Args:
        panels: half-panels.
        rule: nodes of each half-panel.

    Returns:
        Points and weights, in the order (break, side, node).
    """
    panels = Panels(*(part[..., None] for part in panels))
    along = [each.reshape((1,) * (panels.span.ndim - 1) + (-1,)) for each in rule]
    points, weights = at_node(panels, *along)
    shape = (*points.shape[:-3], -1)
    return points.reshape(shape), weights.reshape(shape)


def centres(activation: Activation) -> tuple[float, ...]:
    """Choose the points around which nodes are graded.

    Args:
        activation: the activation.

    Returns:
        Kinks of the activation; 0 where it has none.
    """
    return activation.kinks or (0.0,)


def gaussian_panels(
    about: Features, centre: AnyArray, spread: AnyArray, blur: AnyArray | None
) -> Panels:
    """Lay panels for E f(centre + spread u), u standard normal.

    f has the features of the activation, smoothed over the distance `blur`. Centre, spread and blur
    have the same shape.

    Args:
        about: features of the activation.
        centre: mean.
        spread: standard deviation.
        blur: distance of smoothing, or None.

    Returns:
        Half-panels.
    """
    xp = host.namespace(centre, spread)
    edges = (*centre.shape, len(about.breaks))

    def along(values: tuple[float, ...]) -> AnyArray:
        """Broadcast values of the breaks to the shape of the centre."""
        return np.broadcast_to(np.asarray(values, float), edges)

    reach = (_REACH + 2 * about.growth * spread)[..., None]
    wide = xp.broadcast_to(spread[..., None], edges)
    exact = (along(about.breaks) - centre[..., None]) / wide
    if about.sharp:
        limit = xp.broadcast_to(reach, edges)
    else:
        limit = np.full(edges, _CENTRAL)
    places = xp.clip(exact, -limit, limit)
    width = along(about.scales)
    if blur is not None:
        # smoothing widens a kink to blur, and a smooth feature by blur
        own = np.zeros(edges) if about.sharp else width
        width = xp.hypot(own, xp.broadcast_to(blur[..., None], edges))
    sizes = xp.clip(width / wide + xp.abs(exact - places), _FINEST, _WIDEST)
    breaks = _with_zero(places) if about.sharp else places
    if about.growth:
        peak = 2 * about.growth * spread[..., None]
        breaks = xp.sort(xp.concatenate([breaks, -peak, peak], -1), -1)
    if np.all(np.isinf(about.scales)):
        # between breaks far apart the Gaussian itself has to be resolved
        even = np.broadcast_to(_EVEN, (*centre.shape, len(_EVEN)))
        breaks = xp.sort(xp.concatenate([breaks, even], -1), -1)
        return _panels(breaks, -reach, reach, np.full(breaks.shape, _WIDEST))
    if breaks is places and len(about.breaks) == 1:
        return _panels(breaks, -reach, reach, sizes)
    distance = xp.abs(breaks[..., :, None] - places[..., None, :])
    field = xp.minimum(xp.min(sizes[..., None, :] + distance, -1), _WIDEST)
    return _panels(breaks, -reach, reach, field)


def shared_panels(
    about: Features, spreads: tuple[AnyArray, AnyArray], blurs: tuple[AnyArray, AnyArray]
) -> Panels:
    """Lay panels for E f_1(spread_1 u) f_2(spread_2 u), graded towards the breaks of f_1 and f_2.

    Args:
        about: features of the activation, shared by f_1 and f_2.
        spreads: standard deviations, scalars.
        blurs: distances of smoothing of f_1 and f_2.

    Returns:
        Half-panels.
    """
    xp = host.namespace(*spreads, *blurs)
    breaks = np.asarray(about.breaks)
    scales = np.asarray(about.scales)
    reach = _REACH + 2 * about.growth * xp.maximum(*spreads)
    limit = reach if about.sharp else _CENTRAL
    places = []
    sizes = []
    for spread, blur in zip(spreads, blurs, strict=True):
        exact = breaks / spread
        place = xp.clip(exact, -limit, limit)
        width = xp.hypot(np.where(about.sharp, 0.0, scales), blur)
        places.append(place)
        sizes.append(xp.clip(width / spread + xp.abs(exact - place), _FINEST, _WIDEST))
    known = xp.concatenate(places)
    size = xp.concatenate(sizes)
    ascending = xp.sort(xp.concatenate([known, xp.zeros_like(known[:1])]))
    distance = xp.abs(ascending[:, None] - known[None])
    field = xp.minimum(xp.min(size[None] + distance, -1), _WIDEST)
    return _panels(ascending, -reach[None], reach[None], field)


def _with_zero(ascending: Float[AnyArray, "*b k"]) -> Float[AnyArray, "*b one_more"]:
    """Insert 0 into ascending values."""
    xp = host.namespace(ascending)
    first = xp.minimum(ascending[..., :1], 0.0)
    between = xp.clip(0.0, ascending[..., :-1], ascending[..., 1:])
    last = xp.maximum(ascending[..., -1:], 0.0)
    return xp.concatenate([first, between, last], -1)
