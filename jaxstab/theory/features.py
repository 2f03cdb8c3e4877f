"""Features of activations for quadrature: breaks, scales of variation, and infinite moments."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from jaxstab.activations import Activation, Mixture, get, names
from jaxstab.theory import host
from jaxstab.theory.probing import Panels, Probe, Singularity, panels, singularity
from jaxstab.theory.squashes import squashes_to_even_slope


class Nodes(NamedTuple):
    """Numbers of Gauss-Legendre nodes of a half-panel.

    Attributes:
        single: nodes of a single integral.
        outer: nodes of the outer of two nested integrals.
        inner: nodes of the inner of two nested integrals.
    """

    single: int
    outer: int
    inner: int


class Features(NamedTuple):
    """Breaks between which an activation is smooth, and further features that quadrature needs.

    Attributes:
        breaks: ascending points z.
        scales: distance from each break within which phi varies; nodes are graded beyond.
        sharp: whether phi or a derivative of phi jumps at some break.
        jumps: whether phi itself jumps at some break.
        even_slope: whether phi'(-z) = phi'(z), so that both halves of an outer integral are equal.
        growth: rate g where phi grows as e^(g |z|), else 0.
        power: exponent of the nodes x^power on a half-panel, x Gauss-Legendre nodes.
        nodes: nodes of the rule whose result is returned.
        check: nodes of a second rule for comparison; None where tests have verified the first.
        check_from: ln q from which on moments of pairs are compared.
        no_length: reason why E phi^2 is infinite; empty where it is not known to be.
        no_slope: reason why E phi'^2 is infinite; empty where it is not known to be.
        table: moments as a function of ln q; None where quadrature computes them.
        parts: features of both activations of a mixture, with the mixture's nodes.
    """

    breaks: tuple[float, ...] = (0.0,)
    scales: tuple[float, ...] = (1.0,)
    sharp: bool = False
    jumps: bool = False
    even_slope: bool = False
    growth: float = 0.0
    power: int = 1
    nodes: Nodes = Nodes(96, 32, 40)
    check: Nodes | None = None
    check_from: float = -math.inf
    no_length: str = ""
    no_slope: str = ""
    table: Callable[[Array], list[Array]] | None = None
    parts: tuple["Features", ...] = ()


# smooth built-in activations with even derivative, which need half of the outer nodes
_EVEN_SLOPE = ("tanh", "sigmoid")
# up to so many narrow features of a smooth phi get a break each; with more, every panel gets one
_CENTRES = 6
# breaks of an oscillating activation, the nearest to 0; a multiple of four
_PANELS = 224
# a break explains a panel that is at least this share of its distance to the break
_EXPLAINED = 0.15
# panel edges closer to a kink than this are due to the kink
_CROWDED = 0.05
# exponent of the nodes near a point where phi or phi' is singular
_SINGULAR = 4
# rate above which growth counts as exponential
_EXPONENTIAL = 0.2


def features(phi: Activation) -> Features:
    """Find the features of an activation: built-in ones are declared, all others are probed.

    An activation with traced parameters cannot be probed. It counts as smooth between its declared
    kinks, and its moments are NaN where it is not.

    Args:
        phi: activation.

    Returns:
        Features of the activation.
    """
    if isinstance(phi, Mixture):
        return _of_both(features(phi.first), features(phi.second))
    if phi.name in names() and get(phi.name).static_fn == phi.static_fn:
        # the kinks of the built-in activation, whether or not they are declared again
        return _declared(get(phi.name))
    declared = _declared(phi)
    try:
        return _probed(phi)
    except (TypeError, jax.errors.JAXTypeError, jax.errors.UnexpectedTracerError):
        return declared._replace(even_slope=False, check=_check(declared.nodes))


def _of_both(first: Features, second: Features) -> Features:
    """Combine the features of a mixture's activations, with the larger node counts for both."""
    nodes = Nodes(*map(max, first.nodes, second.nodes))
    unchecked = first.check is None and second.check is None
    check = None if unchecked else _check(nodes)
    power = max(first.power, second.power)
    parts = (
        first._replace(nodes=nodes, check=check, power=power),
        second._replace(nodes=nodes, check=check, power=power),
    )
    return Features(
        breaks=tuple(sorted({*first.breaks, *second.breaks})),
        sharp=first.sharp or second.sharp,
        jumps=first.jumps or second.jumps,
        growth=max(first.growth, second.growth),
        power=power,
        nodes=nodes,
        check=check,
        no_length=first.no_length or second.no_length,
        no_slope=first.no_slope or second.no_slope,
        parts=parts,
    )


def _declared(phi: Activation) -> Features:
    if not phi.kinks:
        return Features(even_slope=phi.name in _EVEN_SLOPE)
    return Features(phi.kinks, (1.0,) * len(phi.kinks), sharp=True, nodes=Nodes(96, 40, 28))


# ln q up to which tests verify pair moments of built-in activations
_HELD_PAIRS = math.log(1e4)


def with_checked_pairs(about: Features) -> Features:
    """Add a second rule for pairs of long lengths, which span more decades than the nodes resolve.

    Args:
        about: features of an activation.

    Returns:
        Features with `check` set.
    """
    if about.check is not None:
        return about
    return about._replace(check=_check(about.nodes), check_from=_HELD_PAIRS)


def _check(nodes: Nodes) -> Nodes:
    return Nodes(nodes.single * 3 // 4, nodes.outer * 4 // 5, nodes.inner * 4 // 5)


@functools.lru_cache(maxsize=256)
def _probed(phi: Activation) -> Features:
    probe = host.value_and_slope(phi)
    cut = panels(probe, phi.kinks)
    kinks = tuple(float(kink) for kink in cut.kinks)
    singular = {kink: singularity(probe, kink) for kink in sorted(kinks, key=abs)[:_PANELS]}
    growth = _growth(probe)
    breaks = _with_centres(cut, dict.fromkeys(kinks, 1.0), growth)
    common = Features(
        jumps=any(kind.jump for kind in singular.values()),
        growth=growth,
        power=_SINGULAR if any(kind.slope_order < 0 for kind in singular.values()) else 1,
        no_length=_reason(
            singular, "E phi^2", lambda kind: kind.order <= -0.49, "phi grows too fast towards"
        ),
        no_slope=_reason(singular, "E phi'^2", lambda kind: kind.jump, "phi jumps at")
        or _reason(
            singular,
            "E phi'^2",
            lambda kind: kind.slope_order <= -0.49,
            "phi' grows too fast towards",
        ),
    )
    if breaks is not None:
        places = tuple(sorted(breaks))
        sharp = bool(kinks) or len(places) > 1
        nodes = Nodes(128, 64, 48)
        shaped = common._replace(
            breaks=places, scales=tuple(breaks[place] for place in places), sharp=sharp, nodes=nodes
        )
        # only with a single smooth centre at 0 are the two halves mirror images
        even_slope = not sharp and places == (0.0,) and squashes_to_even_slope(phi)
        return shaped._replace(even_slope=even_slope, check=_check(nodes)._replace(outer=48))
    # edges that crowd around a kink are replaced by the kink
    crowded = [np.any(np.abs(edge - cut.kinks) < _CROWDED) for edge in cut.edges]
    nearest = sorted([*cut.edges[~np.asarray(crowded, bool)].tolist(), *kinks], key=abs)[:_PANELS]
    places = tuple(sorted(nearest[: len(nearest) // 4 * 4]))
    return common._replace(
        breaks=places,
        scales=(math.inf,) * len(places),
        sharp=True,
        nodes=Nodes(16, 8, 8),
        check=Nodes(12, 6, 6),
    )


def _with_centres(
    cut: Panels, breaks: dict[float, float], growth: float
) -> dict[float, float] | None:
    """Add breaks where phi varies fast, until grading resolves every panel; None where too many."""
    middle = (cut.edges[1:] + cut.edges[:-1]) / 2
    width = np.diff(cut.edges)
    breaks = dict(breaks) or {0.0: 1.0}
    for _ in range(_CENTRES):
        explained = ~cut.halved | (width * growth >= 1)
        for kink in cut.kinks:
            explained |= np.abs(middle - kink) < 1e-9 * max(1.0, abs(kink))
        for place, scale in breaks.items():
            explained |= width >= _EXPLAINED * (np.abs(middle - place) + scale * (scale < 1.0))
        if np.all(explained):
            return breaks
        narrowest = np.min(width[~explained])
        alike = np.flatnonzero(~explained & (width <= narrowest * 1.01))
        place = float(middle[alike[len(alike) // 2]])
        if place in breaks:
            return None
        breaks[place] = float(narrowest)
    return None


def _growth(probe: Probe) -> float:
    """Estimate the rate g of |phi| ~ e^(g |z|); 0 for growth as a power."""
    with np.errstate(all="ignore"):
        size = np.log(np.abs(probe(np.array([-40.0, -20.0, 20.0, 40.0]))[0]))
        rates = np.array([size[0] - size[1], size[3] - size[2]]) / 20
    rate = float(np.max(np.where(np.isfinite(rates), rates, 0.0)))
    if rate > _EXPONENTIAL:
        return rate
    return 0.0


def _reason(
    singular: dict[float, Singularity],
    moment: str,
    infinite: Callable[[Singularity], bool],
    what: str,
) -> str:
    guilty = sorted((kink for kink, kind in singular.items() if infinite(kind)), key=abs)
    if guilty:
        return f"{moment} is infinite: {what} z = {guilty[0]:.6g}"
    return ""
