"""Panels of the real line with nodes graded towards the breaks of an activation."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxstab.activations import Activation
from jaxstab.theory import host
from jaxstab.theory.features import Features
from jaxstab.theory.host import AnyArray

# exp(-9^2 / 2) = 3e-18: what lies beyond is below the rounding of what lies within
_REACH = 9.0
# a half-panel around a smooth centre starts at most so far out: a Gaussian wants nodes on both
# sides
_CENTRAL = 3.5
# the Gaussian itself varies on this scale
_WIDEST = 4.0
# no grading finer than this in u: what is narrower has weight below rounding
_FINEST = 1e-13


def density(u: AnyArray) -> AnyArray:
    """The standard normal density.

    Args:
        u: where.

    Returns:
        The density.
    """
    return host.namespace(u).exp(-(u**2) / 2) / np.sqrt(2 * np.pi)


class Legendre(NamedTuple):
    """Nodes and weights on [0, 1].

    Attributes:
        node: ascending.
        weight: they sum to 1.
    """

    node: Float[AnyArray, " n"]
    weight: Float[AnyArray, " n"]


@functools.cache
def legendre(count: int, power: int = 1, length: int | None = None) -> Legendre:
    """Gauss-Legendre nodes in the root of x.

    Args:
        count: of nodes.
        power: nodes are x = y^power with y those of Gauss and Legendre: they crowd at 0.
        length: of the arrays; what exceeds the count has weight 0.

    Returns:
        The rule.
    """
    x, w = np.polynomial.legendre.leggauss(count)
    root = (x + 1) / 2
    node = root**power
    weight = w / 2 * power * root ** (power - 1)
    missing = (length or count) - count
    return Legendre(np.pad(node, (0, missing), constant_values=0.5), np.pad(weight, (0, missing)))


class Panels(NamedTuple):
    """Half-panels that start at a break, graded towards it: u = place + side scale (e^(span x) - 1), x in [0, 1].

    Attributes:
        place: the break.
        scale: of the grading.
        span: of the grading.
        side: -1 left of the break, 1 right of it.
    """

    place: Float[AnyArray, "*b k 2"]
    scale: Float[AnyArray, "*b k 2"]
    span: Float[AnyArray, "*b k 2"]
    side: Float[AnyArray, "*b k 2"]


def _panels(
    breaks: Float[AnyArray, "*b k"], low: AnyArray, high: AnyArray, scale: Float[AnyArray, "*b k"]
) -> Panels:
    """The half-panels of [low, high]."""
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
    """Points of the panels at a node of [0, 1], and weights of the integral over u there.

    Args:
        panels: the panels.
        node: of each.
        weight: of the node.

    Returns:
        Points and weights.
    """
    xp = host.namespace(panels.span, node)
    step = panels.scale * xp.exp(panels.span * node)
    return panels.place + panels.side * (step - panels.scale), panels.span * step * weight


def graded_panels(
    breaks: Float[AnyArray, "*b k"], low: AnyArray, high: AnyArray, scale: AnyArray, nodes: int
) -> tuple[Float[AnyArray, "*b n"], Float[AnyArray, "*b n"]]:
    """Nodes and weights on [low, high], two half-panels per break, graded towards the break.

    Args:
        breaks: ascending.
        low: end of the interval.
        high: end of the interval.
        scale: one for all breaks, or one for each.
        nodes: of a half-panel.

    Returns:
        Points and weights; they lie (break, side, node).
    """
    xp = host.namespace(breaks, scale)
    panels = _panels(breaks, low, high, xp.broadcast_to(scale, breaks.shape))
    return flat(panels, legendre(nodes))


def flat(panels: Panels, rule: Legendre) -> tuple[AnyArray, AnyArray]:
    """All points of the panels, and their weights.

    Args:
        panels: the panels.
        rule: nodes of each.

    Returns:
        Points and weights; they lie (break, side, node).
    """
    panels = Panels(*(part[..., None] for part in panels))
    along = [each.reshape((1,) * (panels.span.ndim - 1) + (-1,)) for each in rule]
    points, weights = at_node(panels, *along)
    shape = (*points.shape[:-3], -1)
    return points.reshape(shape), weights.reshape(shape)


def centres(activation: Activation) -> tuple[float, ...]:
    """Points around which nodes are graded.

    Args:
        activation: the activation.

    Returns:
        Its kinks, 0 where it has none.
    """
    return activation.kinks or (0.0,)


def gaussian_panels(
    about: Features, centre: AnyArray, spread: AnyArray, blur: AnyArray | None
) -> Panels:
    """Panels of E f(centre + spread u), u standard normal.

    f varies as the activation does, smoothed over the distance `blur` where one is given. Centre,
    spread and blur have one shape.

    Args:
        about: features of the activation.
        centre: mean.
        spread: standard deviation.
        blur: distance, or None.

    Returns:
        The panels.
    """
    xp = host.namespace(centre, spread)
    edges = (*centre.shape, len(about.breaks))

    def along(values: tuple[float, ...]) -> AnyArray:
        """Values of the breaks with an axis for each of the centre's."""
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
        # what a kink does is as wide as the smoothing, what a smooth feature does no narrower than
        # itself
        own = np.zeros(edges) if about.sharp else width
        width = xp.hypot(own, xp.broadcast_to(blur[..., None], edges))
    sizes = xp.clip(width / wide + xp.abs(exact - places), _FINEST, _WIDEST)
    breaks = _with_zero(places) if about.sharp else places
    if about.growth:
        peak = 2 * about.growth * spread[..., None]
        breaks = xp.sort(xp.concatenate([breaks, -peak, peak], -1), -1)
    if np.all(np.isinf(about.scales)):
        return _panels(breaks, -reach, reach, np.full(breaks.shape, _WIDEST))
    if breaks is places and len(about.breaks) == 1:
        return _panels(breaks, -reach, reach, sizes)
    distance = xp.abs(breaks[..., :, None] - places[..., None, :])
    field = xp.minimum(xp.min(sizes[..., None, :] + distance, -1), _WIDEST)
    return _panels(breaks, -reach, reach, field)


def shared_panels(
    about: Features, spreads: tuple[AnyArray, AnyArray], blurs: tuple[AnyArray, AnyArray]
) -> Panels:
    """Panels of E f_1(spread_1 u) f_2(spread_2 u), u standard normal, graded towards the breaks of both.

    Args:
        about: features of the activation, which both vary as.
        spreads: standard deviations, scalars.
        blurs: distances over which each is smoothed.

    Returns:
        The panels.
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
    """The values with 0 among them, ascending."""
    xp = host.namespace(ascending)
    first = xp.minimum(ascending[..., :1], 0.0)
    between = xp.clip(0.0, ascending[..., :-1], ascending[..., 1:])
    last = xp.maximum(ascending[..., -1:], 0.0)
    return xp.concatenate([first, between, last], -1)
