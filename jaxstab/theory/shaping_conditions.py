"""Conditions of DKS and TAT on one layer, solved for scales and shifts of its activation."""

import math
from typing import NamedTuple

import numpy as np
import scipy

from jaxstab.activations import Activation
from jaxstab.theory import host
from jaxstab.theory.features import Features
from jaxstab.theory.host import AnyArray
from jaxstab.theory.panels import density, flat, gaussian_panels, legendre
from jaxstab.theory.quadrature import ACCURACY

# grid on which solutions are searched
_LOG_ALPHA = np.linspace(math.log(1e-3), math.log(10.0), 47)
_BETA = np.linspace(-6.0, 6.0, 60)
# number of kinks, the nearest to 0, with a search grid of their own
_KINKS = 8
# the bend at a grid point and at the solution close by differ at most by this factor
_FARTHER = 2.0
# relative difference below which bends or shifts are equal, set by rounding at the mildest targets
_ALIKE = 1e-5
# a root that needs more evaluations is not found at all
_EFFORT = {"maxfev": 60}
# bounds on the residuals: relative to the target of a layer, and absolute, above rounding
_SOLVED = 1e-9
_ROUNDED = 1e-14
# beta, and ends of ln alpha, where only alpha / beta counts; at beta = -1 relu needs u > 1 / alpha
_LOG_RATIOS = ((1.0, (math.log(1e-4), math.log(1e8))), (-1.0, (math.log(0.125), math.log(1e8))))
# a larger difference of slopes at a kink makes E phi''^2 infinite
_JUMP = 1e-6
_BESIDE = 1e-9
# offsets of the corners of a grid cell
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


class Conditions(NamedTuple):
    """Conditions on one layer of DKS or TAT.

    Attributes:
        phi: activation.
        about: features of the activation.
        tailored: True for TAT, False for DKS.
        rise: C'(1) - 1 for DKS, C''(1) for TAT.
    """

    phi: Activation
    about: Features
    tailored: bool
    rise: float

    def __str__(self) -> str:
        """Name the method, the activation and the condition on a layer."""
        if self.tailored:
            return f"tat of {self.phi.name} with C''(1) = {self.rise:.6g} a layer"
        return f"dks of {self.phi.name} with C'(1) = {1 + self.rise:.6g} a layer"


class Solution(NamedTuple):
    """Parameters of phi_hat(x) = gamma (phi(alpha x + beta) + delta), and slopes at q = c = 1.

    Attributes:
        alpha: input scale.
        beta: input shift.
        gamma: output scale.
        delta: output shift.
        length_slope: Q'(1).
        slope: C'(1).
        curvature: C''(1).
    """

    alpha: float
    beta: float
    gamma: float
    delta: float
    length_slope: float
    slope: float
    curvature: float


def solution(conditions: Conditions) -> Solution:
    """Solve the conditions.

    Args:
        conditions: conditions on a layer.

    Returns:
        Solution with the smallest alpha^2 gamma.

    Raises:
        ValueError: if there is no solution, or a moment is infinite or cannot be computed.
    """
    _check_moments(conditions)
    if not conditions.tailored and _scales(conditions.phi):
        return _scaling(conditions)
    return _general(conditions)


class _Moments(NamedTuple):
    """Moments of f = phi(alpha u + beta) + delta, where the method sets delta.

    Attributes:
        delta: output shift: -E phi for C(0) = 0 (DKS), else the shift with C'(1) = 1 (TAT).
        power: E f^2.
        length_excess: Q'(1) - 1.
        slope_excess: C'(1) - 1.
        curvature: C''(1).
    """

    delta: AnyArray
    power: AnyArray
    length_excess: AnyArray
    slope_excess: AnyArray
    curvature: AnyArray


def _moments(
    conditions: Conditions,
    alpha: np.ndarray,
    beta: np.ndarray,
    sign: float,
    nodes: int | None = None,
) -> _Moments:
    """Compute moments at scales and shifts, without cancellation for nearly linear phi."""
    # with f = c_0 + c_1 u + r: E f'^2 - var f = var f' - E r^2, and Q'(1) - 1 = E f (u f' - f) / E f^2
    # with u f' - f = -c_0 + u (f' - c_1) - r
    phi, about, tailored, _ = conditions
    rule = legendre(nodes or about.nodes.single, about.power)
    u, weights = flat(gaussian_panels(about, beta, alpha, None), rule)
    weights = weights * density(u)
    weights = weights / np.sum(weights, -1, keepdims=True)
    # u = 0 gets weight 0: differences from phi there keep digits where alpha is small
    u = np.concatenate([np.zeros_like(u[..., :1]), u], -1)
    weights = np.concatenate([np.zeros_like(u[..., :1]), weights], -1)
    scale = alpha[..., None]
    value, slope, curvature = host.with_curvature(phi)(scale * u + beta[..., None])

    def mean(values: np.ndarray) -> np.ndarray:
        return np.sum(weights * values, -1)

    middle = value[..., 0]
    off = value - middle[..., None]
    centre = mean(off)
    linear = mean(scale * slope)
    rest = off - centre[..., None] - linear[..., None] * u
    steep = scale * slope - linear[..., None]
    variance = linear**2 + mean(rest**2)
    excess = mean(steep**2) - mean(rest**2)
    constant = np.zeros_like(alpha)
    if tailored:
        constant = sign * np.sqrt(np.maximum(excess, 0.0))
    power = variance + constant**2
    shaped_value = constant[..., None] + linear[..., None] * u + rest
    bent = mean(shaped_value * (u * steep - rest)) - constant**2
    return _Moments(
        constant - centre - middle,
        power,
        bent / power,
        (excess - constant**2) / power,
        mean((scale**2 * curvature) ** 2) / power,
    )


def _residuals(conditions: Conditions, moments: _Moments) -> tuple[np.ndarray, np.ndarray]:
    """Compute Q'(1) - 1 and ln of C'(1) - 1 or C''(1), relative to the target."""
    rise = moments.curvature if conditions.tailored else moments.slope_excess
    return moments.length_excess / conditions.rise, np.log(rise / conditions.rise)


def _check_moments(conditions: Conditions) -> None:
    """Check that the moments in the conditions are finite."""
    about = conditions.about
    if about.no_length or about.no_slope:
        raise ValueError(f"{conditions} has no solution: {about.no_length or about.no_slope}")
    if not conditions.tailored:
        return
    bends = _bends(conditions)
    if bends:
        raise ValueError(
            f"{conditions} has no solution: E phi''^2 is infinite where phi' jumps, at z = "
            f"{bends[0]:.6g}; use dks, or tat of leaky_relu"
        )


def _bends(conditions: Conditions) -> list[float]:
    """Find the points where phi' jumps."""
    places = np.asarray(conditions.phi.kinks or conditions.about.breaks)
    slopes = host.value_and_slope(conditions.phi)
    change = np.abs(slopes(places + _BESIDE)[1] - slopes(places - _BESIDE)[1])
    return places[change > _JUMP].tolist()


def _scales(phi: Activation) -> bool:
    """Check that phi(2 z) = 2 phi(z)."""
    z = np.array([-3.7, -1.0, -0.3, 0.3, 1.0, 3.7])
    once, twice = (host.value_and_slope(phi)(scale * z)[0] for scale in (1.0, 2.0))
    return bool(np.allclose(twice, 2.0 * once, rtol=1e-12, atol=0.0))


def _scaling(conditions: Conditions) -> Solution:
    """Apply DKS to an activation with phi(2 z) = 2 phi(z), at beta = 1 or -1, without Q'(1) = 1."""

    def rise(log_alpha: float, beta: float) -> float:
        return float(_moments(conditions, *_place(log_alpha, beta), 1.0).slope_excess[0])

    steepest = 0.0
    for beta, ends in _LOG_RATIOS:
        reached = [rise(end, beta) for end in ends]
        if min(reached) <= conditions.rise <= max(reached):
            root = scipy.optimize.brentq(
                lambda place, beta: rise(place, beta) - conditions.rise, *ends, (beta,), xtol=1e-14
            )
            return _verified(conditions, root, beta, 1.0)
        steepest = max(steepest, *reached)
    raise ValueError(f"{conditions} has no solution: C'(1) reaches {1 + steepest:.6g} at most")


class _Start(NamedTuple):
    """Start of a root search.

    Attributes:
        bend: alpha^2 gamma, to which |phi_hat''| is proportional.
        log_alpha: ln alpha.
        beta: input shift.
        sign: sign of E f.
    """

    bend: float
    log_alpha: float
    beta: float
    sign: float


def _general(conditions: Conditions) -> Solution:
    """Solve all conditions from starts on grids of scales and shifts, smallest bend first."""
    best: _Start | None = None
    for start in sorted(_starts(conditions)):
        if best and start.bend > _FARTHER * best.bend:
            break
        place = (start.log_alpha, start.beta)
        root = scipy.optimize.root(
            _at_one, place, (conditions, start.sign), tol=1e-13, options=_EFFORT
        )
        if np.max(np.abs(root.fun)) < max(_SOLVED, _ROUNDED / conditions.rise):
            log_alpha, beta = map(float, root.x)
            begun = _start(conditions, log_alpha, beta, start.sign)
            if best is None or _goes_before(begun, best):
                best = begun
            else:
                best = best
    if best is None:
        raise ValueError(
            f"{conditions} has no solution with alpha in [{math.exp(_LOG_ALPHA[0]):.3g}, "
            f"{math.exp(_LOG_ALPHA[-1]):.3g}] and beta in [{_BETA[0]:g}, {_BETA[-1]:g}]"
        )
    return _verified(conditions, best.log_alpha, best.beta, best.sign)


def _goes_before(begun: _Start, best: _Start) -> bool:
    """Compare two solutions: less bend wins, then smaller |beta|, then beta > 0."""
    if not math.isclose(begun.bend, best.bend, rel_tol=_ALIKE):
        return begun.bend < best.bend
    if not math.isclose(abs(begun.beta), abs(best.beta), rel_tol=_ALIKE):
        return abs(begun.beta) < abs(best.beta)
    return begun.beta > 0 > best.beta


def _start(conditions: Conditions, log_alpha: float, beta: float, sign: float) -> _Start:
    moments = _moments(conditions, *_place(log_alpha, beta), sign)
    bend = math.exp(2.0 * log_alpha) * float(moments.power[0] ** -0.5)
    return _Start(bend, log_alpha, beta, sign)


def _starts(conditions: Conditions) -> list[_Start]:
    """List starts in grid cells at whose corners both residuals change sign."""
    scales = _LOG_ALPHA[:, None]
    grids = [np.broadcast_to(_BETA, (len(scales), len(_BETA)))]
    # around a kink, solutions vary with (beta - kink) / alpha
    about = conditions.about
    places = zip(about.breaks, about.scales, strict=True)
    kinks = [place for place, width in places if about.sharp and math.isfinite(width)]
    kinks = sorted(kinks, key=abs)[:_KINKS]
    grids += [kink + np.exp(scales) * _BETA for kink in kinks]
    starts = []
    for sign in (1.0, -1.0) if conditions.tailored else (1.0,):
        for beta in grids:
            alpha = np.broadcast_to(np.exp(scales), beta.shape)
            pairs = zip(alpha, beta, strict=True)
            rows = [_residuals(conditions, _moments(conditions, *pair, sign)) for pair in pairs]
            for i, j in np.argwhere(_both_change(np.array(rows).swapaxes(0, 1))):
                starts.append(_start(conditions, float(_LOG_ALPHA[i]), float(beta[i, j]), sign))
    return [start for start in starts if math.isfinite(start.bend)]


def _both_change(grid: np.ndarray) -> np.ndarray:
    """Check for each cell that both residuals change sign between its corners."""
    corners = np.stack([grid[:, i : i - 1 or None, j : j - 1 or None] for i, j in _CORNERS])
    both = np.any(corners > 0, 0) & np.any(corners < 0, 0)
    return np.all(both, 0)


def _at_one(place: np.ndarray, conditions: Conditions, sign: float) -> np.ndarray:
    moments = _moments(conditions, np.exp(place[:1]), place[1:], sign)
    return np.concatenate(_residuals(conditions, moments))


def _verified(conditions: Conditions, log_alpha: float, beta: float, sign: float) -> Solution:
    """Build the solution, and check that two rules of quadrature agree on its moments."""
    fewer = conditions.about.nodes.single * 3 // 4
    solved, check = (
        _Moments(
            *map(float, np.concatenate(_moments(conditions, *_place(log_alpha, beta), sign, nodes)))
        )
        for nodes in (None, fewer)
    )
    unsure = np.abs(np.subtract(solved, check)) > ACCURACY * (1.0 + np.abs(solved))
    if np.any(unsure):
        raise ValueError(f"{conditions} has moments beyond the accuracy {ACCURACY:g} of quadrature")
    return Solution(
        math.exp(log_alpha),
        beta,
        solved.power**-0.5,
        solved.delta,
        1.0 + solved.length_excess,
        1.0 + solved.slope_excess,
        math.inf if _bends(conditions) else solved.curvature,
    )


def _place(log_alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    return np.exp([log_alpha]), np.array([beta])
