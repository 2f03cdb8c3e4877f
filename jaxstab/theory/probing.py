"""Kinks, jumps and singularities of a callable, found by halving panels until polynomials fit."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

# z -> phi(z), phi'(z), NumPy arrays of any shape
Probe = Callable[[np.ndarray], tuple[np.ndarray, ...]]

# Chebyshev points of a panel, number of coefficients that may be large, and bound on all others
# relative to the largest value
_POINTS = 48
_KEPT = 14
_RESOLVED = 1e-11
# most panels halved in one round, and most rounds
_MOST = 512
_ROUNDS = 60
# panels double in width from 0 on
_FIRST = 0.25
_FARTHEST = 2.0**20
# factors that keep edges off round numbers, where kinks often are, and make the edges asymmetric
_OFF_LEFT = 0.9173
_OFF_RIGHT = 1.0371
_HUGE = 1e100
# a panel that is unresolved at this width, relative to max(1, |z|), holds a kink
_NARROW = 2.0**-44
# spacing and reach of a grid between whose points nothing may hide, and how far values on it may be
# from a panel's polynomial, in units of what its coefficients may be
_SPACING = 1e-3
_SCANNED = 8.0
_BETWEEN = 1e3
# relative change of values by rounding of z, over a panel as wide as |z|
_ROUNDED = 2 * 2.0**-52


class Panels(NamedTuple):
    """Partition of the line into panels.

    Attributes:
        edges: edges, ascending; between neighbours phi and phi' are polynomials to rounding.
        halved: whether the panel after each edge is the result of halving.
        kinks: points at which phi or phi' is not a polynomial on any scale.
        complete: whether all panels are resolved.
    """

    edges: Float[np.ndarray, " n"]
    halved: Bool[np.ndarray, " panel"]
    kinks: Float[np.ndarray, " k"]
    complete: bool


def _chebyshev() -> tuple[np.ndarray, np.ndarray]:
    """Compute Chebyshev points on [-1, 1], and the map from values there to coefficients."""
    angle = (np.arange(_POINTS) + 0.5) * np.pi / _POINTS
    order = np.arange(_POINTS)
    to_coefficients = np.cos(order[:, None] * angle[None]) * 2 / _POINTS
    to_coefficients[0] /= 2
    return np.cos(angle), to_coefficients


class _Grid(NamedTuple):
    """phi and phi' on a grid near 0, finer than the points of a panel."""

    z: Float[np.ndarray, " n"]
    values: tuple[Float[np.ndarray, " n"], ...]

    def between(
        self,
        low: float,
        high: float,
        which: int,
        coefficients: Float[np.ndarray, " c"],
        allowed: float,
    ) -> bool:
        """Check that a value on the grid is that of a polynomial on a panel."""
        inside = slice(*np.searchsorted(self.z, [low, high]))
        if inside.start == inside.stop:
            return True
        x = (2 * self.z[inside] - low - high) / (high - low)
        off = np.abs(np.polynomial.chebyshev.chebval(x, coefficients) - self.values[which][inside])
        return not np.any(off > _BETWEEN * allowed)


def _grid(probe: Probe) -> _Grid:
    count = round(2 * _SCANNED / _SPACING)
    z = np.linspace(-_SCANNED, _SCANNED, count) * _OFF_RIGHT
    with np.errstate(all="ignore"):
        return _Grid(z, probe(z))


def _resolved(
    probe: Probe, low: np.ndarray, high: np.ndarray, floor: float, grid: _Grid
) -> Bool[np.ndarray, " n"]:
    """Check that phi and phi' are polynomials on each panel."""
    points, to_coefficients = _chebyshev()
    z = (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * points
    fits = np.ones(len(low), bool)
    with np.errstate(all="ignore"):
        for which, values in enumerate(probe(z)):
            signed = values @ to_coefficients.T
            coefficients = np.abs(signed)
            size = np.max(np.abs(values), axis=1)
            noise = (
                np.ptp(values, axis=1)
                * _ROUNDED
                * np.maximum(np.abs(low), np.abs(high))
                / (high - low)
            )
            allowed = _RESOLVED * (size + floor) + noise
            # halving panels does not help against overflow
            smooth = coefficients[:, _KEPT:].max(axis=1) <= allowed
            # the grid is finer than the points of a wide panel only
            for k in np.flatnonzero(smooth & fits & (high - low > _POINTS * _SPACING / 2)):
                smooth[k] = grid.between(low[k], high[k], which, signed[k], allowed[k])
            fits &= smooth | ~(size <= _HUGE)
    return fits


def panels(probe: Probe, known: tuple[float, ...] = ()) -> Panels:
    """Partition the line into panels on which an activation is smooth.

    Args:
        probe: function that returns phi and phi'.
        known: declared kinks.

    Returns:
        Partition of the line.
    """
    out = 2.0 ** np.arange(np.log2(_FIRST), np.log2(_FARTHEST) + 1)
    # declared kinks are edges from the start
    edges = np.unique(
        np.concatenate([-_OFF_LEFT * out, _OFF_RIGHT * out, np.asarray(known, float)])
    )
    low = edges[:-1]
    high = edges[1:]
    done: list[np.ndarray] = [edges]
    kinks: list[float] = list(known)
    complete = True
    with np.errstate(all="ignore"):
        usual = np.abs(np.stack(probe(np.linspace(-4.0, 4.0, 200) + 1e-3)))
    floor = 0.1 * float(np.median(usual[usual < _HUGE])) + 1e-300
    grid = _grid(probe)
    for _ in range(_ROUNDS):
        open_ = ~_resolved(probe, low, high, floor, grid)
        low = low[open_]
        high = high[open_]
        narrow = high - low <= _NARROW * np.maximum(1.0, np.abs(low))
        kinks += list((low[narrow] + high[narrow]) / 2)
        low = low[~narrow]
        high = high[~narrow]
        # panels close to 0 matter most
        nearest = np.argsort(np.minimum(np.abs(low), np.abs(high)), kind="stable")
        complete &= len(nearest) <= _MOST
        keep = np.sort(nearest[:_MOST])
        low = low[keep]
        high = high[keep]
        middle = (low + high) / 2
        done.append(middle)
        if not len(low):
            break
        low = np.concatenate([low, middle])
        high = np.concatenate([middle, high])
    whole = np.unique(np.concatenate(done))
    parents = np.searchsorted(edges, whole[:-1], side="right") - 1
    halved = np.diff(whole) < 0.99 * np.diff(edges)[parents]
    return Panels(whole, halved, _merged(kinks), complete)


def _merged(kinks: list[float]) -> np.ndarray:
    """Merge kinks within rounding of each other, and round kinks close to simple numbers."""
    merged: list[float] = []
    for kink in sorted(kinks):
        simple = round(kink, 9)
        if abs(kink - simple) <= 1e-12 * max(1.0, abs(kink)):
            near = simple
        else:
            near = kink
        if not merged or near - merged[-1] > 1e-10 * max(1.0, abs(near)):
            merged.append(near + 0.0)
    return np.asarray(merged)


class Singularity(NamedTuple):
    """Behaviour of phi at a kink.

    Attributes:
        jump: whether phi jumps.
        order: exponent of |phi| ~ |z - kink|^order where phi is unbounded, else 0.
        slope_order: exponent of phi' where phi' is unbounded, else 0.
    """

    jump: bool
    order: float
    slope_order: float


def singularity(probe: Probe, kink: float) -> Singularity:
    """Classify a kink of phi.

    Args:
        probe: function that returns phi and phi'.
        kink: position of the kink.

    Returns:
        Jump of phi, and growth exponents of phi and phi'.
    """
    steps = np.geomspace(1e-4, 1e-9, 6) * max(1.0, abs(kink))
    with np.errstate(all="ignore"):
        sides = [probe(kink + side * steps) for side in (-1.0, 1.0)]
    orders = [[_order(values, steps) for values in side] for side in sides]
    left = sides[0][0]
    right = sides[1][0]
    size = max(1.0, *np.abs([left[0], right[0]]))
    # as the points come closer, only the difference at a jump stays
    gap = np.abs(right - left)
    jump = bool(gap[-1] > 1e-3 * size * 1e-3 and gap[-1] > 0.5 * gap[-2])
    return Singularity(jump, min(o[0] for o in orders), min(o[1] for o in orders))


def _order(values: np.ndarray, steps: np.ndarray) -> float:
    """Estimate the exponent of growth towards a point; 0 for bounded and logarithmic growth."""
    size = np.abs(values)
    if not np.all(np.isfinite(size)) or np.any(size == 0):
        return 0.0
    power = float(np.log(size[-1] / size[-2]) / np.log(steps[-1] / steps[-2]))
    if power < -1e-3:
        return power
    return 0.0
