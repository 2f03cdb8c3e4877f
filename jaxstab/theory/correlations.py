"""The stable fixed point of the correlation map, solved for sqrt(1 - c)."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxstab.activations import Activation
from jaxstab.theory import host
from jaxstab.theory.features import Features
from jaxstab.theory.host import AnyArray
from jaxstab.theory.moments import LogMoments, log_pair
from jaxstab.theory.panels import Legendre
from jaxstab.theory.quadrature import ACCURACY, Rule, rule
from jaxstab.theory.roots import ROUNDING

# stages: seek the root, evaluate at the root, evaluate with other nodes, finished
_SEEK, _EVALUATE, _CHECK, _DONE = range(4)
# relative step after which the error, its square, is below rounding
_SMALL = 1e-6
# sqrt(1 - c) below which c is 1 to rounding
_TOGETHER = 1e-8
# maximal number of evaluations for a root
_MOST = 24
# with a field the root may be orders of magnitude from the first guess
_MOST_IN_FIELD = 64


class Stable(NamedTuple):
    """The stable fixed point c* of the correlation map.

    Attributes:
        distance: 1 - c*.
        chi: slope of the map at c*.
    """

    distance: Float[AnyArray, ""]
    chi: Float[AnyArray, ""]


class _Point(NamedTuple):
    """Excess r - 1 and its derivative at a value of sqrt(1 - c)."""

    root: Float[AnyArray, ""]
    value: Float[AnyArray, ""]
    derivative: Float[AnyArray, ""]


class _Search(NamedTuple):
    """State of a search, in sqrt(1 - c)."""

    stage: Int[AnyArray, ""]
    evaluations: Int[AnyArray, ""]
    low: Float[AnyArray, ""]
    high: Float[AnyArray, ""]
    root: Float[AnyArray, ""]
    before: _Point
    chi: Float[AnyArray, ""]
    derivative: Float[AnyArray, ""]
    unsure: Bool[AnyArray, ""]


def stable_distance(
    phi: Activation,
    about: Features,
    log_q: Float[AnyArray, ""],
    share: Float[AnyArray, ""],
    moments: LogMoments,
    field: Float[AnyArray, ""] | None = None,
) -> Stable:
    """Find the stable fixed point c* in [0, 1] of the correlation map, and the slope there.

    With d = 1 - c the map is d' = share gap(d). The correlation map is convex, as its coefficients
    in c are squared Hermite coefficients of phi. So r(d) = share gap(d)/d falls from share E phi'^2
    at d = 0. The only root of r = 1 is stable; where r <= 1 everywhere, d = 0 is stable. A field h,
    due to dropout masks, adds to d': then r = 1 - h/d has one root, >= h.

    The search is in sqrt(d), in which r is linear near d = 0 for kinked phi. A step goes to the
    zero of the inverse cubic through two points and slopes, else to Newton's, else to the middle.

    Args:
        phi: activation.
        about: features of the activation.
        log_q: ln q.
        share: `pair_share` of the length map.
        moments: moments at this length.
        field: h >= 0; None for no field.

    Returns:
        1 - c* and the slope at c*; NaN where two rules of quadrature differ.
    """
    xp = host.namespace(log_q, share)
    slope = share * xp.exp(moments.near_slope)
    ordered = slope <= 1.0 + ROUNDING
    if field is not None:
        ordered &= field == 0
    fine = rule(about)
    other = rule(about, check=True)

    def step(search: _Search) -> _Search:
        if about.check is None:
            nodes = fine
        else:
            nodes = _either(search.stage == _CHECK, other, fine)
        pair = log_pair(phi, about, log_q, search.root**2, nodes)
        ratio = share * pair.gap / search.root**2
        chi = share * pair.slope
        excess = ratio - 1.0
        fall = 2 * (chi - ratio) / search.root
        if field is not None:
            excess = excess + field / search.root**2
            fall = fall - 2 * field / search.root**3
        most = _MOST if field is None else _MOST_IN_FIELD
        return _next(search, _Point(search.root, excess, fall), chi, about.check is not None, most)

    search = _start(share, slope, ordered, moments)
    if field is not None:
        search = _in_field(search, slope - 1.0, xp.where(ordered, 1.0, field))
    if xp is np:
        while search.stage < _DONE:
            search = step(search)
    else:
        search = jax.lax.while_loop(lambda search: search.stage < _DONE, step, search)
    distance = xp.where(search.unsure, np.nan, search.root**2)
    chi = xp.where(search.unsure, np.nan, search.chi)
    return Stable(xp.where(ordered, 0.0, distance), xp.where(ordered, slope, chi))


def _either(check: AnyArray, other: Rule, fine: Rule) -> Rule:
    """Choose between two rules with equal numbers of nodes."""
    xp = host.namespace(check)
    pairs = zip(other, fine, strict=True)
    return Rule(
        *(Legendre(*(xp.where(check, *each) for each in zip(*both, strict=True))) for both in pairs)
    )


def _start(share: AnyArray, slope: AnyArray, ordered: AnyArray, moments: LogMoments) -> _Search:
    """Start a search from the map at c = 1 and c = 0, which follows from single moments."""
    xp = host.namespace(share)
    growth = xp.exp(moments.near_growth)
    end = xp.minimum(share * (growth - moments.mean**2) - 1.0, 0.0)
    end_slope = share * moments.mean_slope**2 - (end + 1.0)
    # r - 1 = top + first d + second d^2 has these values and this slope
    top = slope - 1.0
    second = end_slope - (end - top)
    first = (end - top) - second
    discriminant = xp.sqrt(xp.maximum(first**2 - 4 * second * top, 0.0))
    guess = 2 * top / (discriminant - first)
    chord = top / (top - end)
    guess = xp.where((guess > 0) & (guess <= 1), guess, xp.where(xp.isfinite(top), chord, 0.5))
    guess = xp.where(ordered, 1.0, xp.clip(guess, 1e-18, 1.0))
    zero = xp.zeros_like(guess)
    one = xp.ones_like(guess)
    begun = xp.where(ordered, _DONE, _SEEK).astype(np.int32)
    at_end = _Point(one, end, 2 * end_slope)
    return _Search(
        begun,
        xp.zeros_like(begun),
        zero,
        one,
        xp.sqrt(guess),
        at_end,
        zero,
        one,
        ordered & ~ordered,
    )


def _in_field(search: _Search, top: AnyArray, field: AnyArray) -> _Search:
    """Start a search in a field from the root for a linear r."""
    xp = host.namespace(top)
    end = search.before.value
    fall = xp.maximum(top - end, 0.0)
    discriminant = xp.sqrt(top**2 + 4 * fall * field)
    # root of field + top d - fall d^2 = 0, in the form that does not cancel
    ordered = 2 * field / (discriminant + xp.abs(top))
    chaotic = (discriminant + xp.abs(top)) / xp.where(fall > 0, 2 * fall, 1.0)
    guess = xp.where(top <= 0, ordered, chaotic)
    guess = xp.clip(xp.where(xp.isfinite(guess), guess, 0.5), field, 1.0)
    at_end = _Point(search.before.root, end + field, search.before.derivative - 2 * field)
    # rounding may put the root outside an end
    low = xp.sqrt(field) * (1.0 - ROUNDING)
    return search._replace(low=low, root=xp.sqrt(guess), before=at_end)


def _next(search: _Search, here: _Point, chi: AnyArray, checked: bool, most: int) -> _Search:
    """Update a search after an evaluation."""
    xp = host.namespace(here.value)
    seeking = search.stage == _SEEK
    evaluating = search.stage == _EVALUATE
    low = xp.where(seeking & (here.value > 0), here.root, search.low)
    high = xp.where(seeking & (here.value <= 0), here.root, search.high)
    new = (low + high) / 2
    for candidate in (_newton(here), _cubic(search.before, here)):
        new = xp.where((candidate > low) & (candidate <= high), candidate, new)
    near = xp.abs(new - here.root) <= _SMALL * here.root
    near |= here.root <= _TOGETHER
    last = (
        near
        | (xp.abs(here.value) <= ROUNDING)
        | xp.isnan(here.value)
        | (search.evaluations >= most)
    )
    stage = search.stage + xp.where(seeking & ~last, 0, 1)
    if not checked:
        stage = xp.where(evaluating, _DONE, stage)
    off = xp.abs(here.value / search.derivative) * 2 * here.root + xp.abs(chi - search.chi)
    return _Search(
        xp.minimum(stage, _DONE).astype(np.int32),
        search.evaluations + np.int32(1),
        low,
        high,
        xp.where(seeking, new, search.root),
        here,
        xp.where(evaluating, chi, search.chi),
        xp.where(
            evaluating, xp.where(here.derivative == 0, 1.0, here.derivative), search.derivative
        ),
        search.unsure | ((search.stage == _CHECK) & ~(off <= ACCURACY)),
    )


def _newton(here: _Point) -> AnyArray:
    xp = host.namespace(here.value)
    return here.root - here.value / xp.where(here.derivative == 0, 1.0, here.derivative)


def _cubic(before: _Point, here: _Point) -> AnyArray:
    """Find the zero by the inverse cubic through two points and slopes; NaN where unusable."""
    xp = host.namespace(here.value)
    height = here.value - before.value
    usable = (xp.abs(height) > ROUNDING) & (before.derivative < 0) & (here.derivative < 0)
    height = xp.where(usable, height, 1.0)
    t = -before.value / height
    start = height / xp.where(usable, before.derivative, 1.0)
    end = height / xp.where(usable, here.derivative, 1.0)
    rise = here.root - before.root
    root = before.root + t * (
        start + t * (3 * rise - 2 * start - end + t * (start + end - 2 * rise))
    )
    return xp.where(usable, root, np.nan)
