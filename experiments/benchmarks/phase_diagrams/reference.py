"""Fixed points at one pair of gains, by quadrature in one and two dimensions, and bracketing.

Nothing of jaxstab is used. Where phi is analytic beside the real line, equal steps are good to rounding
(Trefethen & Weideman 2014); else composite Gauss-Legendre rules are split where phi bends.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

# standard deviations at either side that are integrated over, and nodes of a panel
REACH = 9.5
NODES, WEIGHTS = np.polynomial.legendre.leggauss(14)
# of a panel, in standard deviations
LONGEST = 1.3
# lengths that a fixed point is sought among
LENGTHS = np.geomspace(1e-9, 1e7, 1201)

Elementwise = Callable[[np.ndarray], np.ndarray]


class Phi(NamedTuple):
    """An activation.

    Attributes:
        value: phi.
        slope: its derivative.
        scale: length of panels, over which it changes little.
        pole: distance of its nearest singularity from the real line; None where it bends on it, at 0.
    """

    value: Elementwise
    slope: Elementwise
    scale: float
    pole: float | None = None


class Point(NamedTuple):
    """A fixed point; fields as in jaxstab's record."""

    q: float
    c: float
    chi_1: float
    chi_c: float
    xi_q: float
    xi_c: float


def _elu(z: np.ndarray) -> np.ndarray:
    return np.where(z > 0, z, np.expm1(np.minimum(z, 0.0)))


def _elu_slope(z: np.ndarray) -> np.ndarray:
    return np.where(z > 0, 1.0, np.exp(np.minimum(z, 0.0)))


def _silu_slope(z: np.ndarray) -> np.ndarray:
    return special.expit(z) * (1 + z * special.expit(-z))


ACTIVATIONS = {
    "tanh": Phi(np.tanh, lambda z: 1 - np.tanh(z) ** 2, 1.3, np.pi / 2),
    "silu": Phi(lambda z: z * special.expit(z), _silu_slope, 2.5, np.pi),
    "elu": Phi(_elu, _elu_slope, 3.0),
    "relu": Phi(lambda z: np.maximum(z, 0.0), lambda z: 1.0 * (z > 0), 6.0),
}


def _panels(low: np.ndarray, high: np.ndarray, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of equal panels from low to high, along a new last axis."""
    low = np.asarray(low)[..., None]
    length = np.asarray(high)[..., None] - low
    count = max(1, int(np.ceil(np.max(length) / longest)))
    places = (np.arange(count)[:, None] + (NODES + 1) / 2).ravel() / count
    return low + length * places, length * np.tile(WEIGHTS, count) / (2 * count)


def _normal(u: np.ndarray) -> np.ndarray:
    return np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)


def _split(bend: np.ndarray, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """A rule for standard normal u that is split at a bend."""
    bend = np.clip(bend, -REACH, REACH)
    below, above = (
        _panels(*ends, longest)
        for ends in ((np.full_like(bend, -REACH), bend), (bend, np.full_like(bend, REACH)))
    )
    u, weight = (np.concatenate(pair, axis=-1) for pair in zip(below, above, strict=True))
    return u, weight * _normal(u)


def _steps(phi: Phi, root: float) -> tuple[np.ndarray, np.ndarray]:
    """Equal steps for standard normal u; errors of phi(root u) are e^-46 times what it is beside its pole."""
    assert phi.pole is not None
    pole = phi.pole / root
    # the density grows by e^(pole^2 / 2) on the way there
    step = min(0.5, 2 * np.pi * pole / (46 + pole**2 / 2))
    count = int(np.ceil(REACH / step))
    u = step * np.arange(-count, count + 1)
    return u, step * _normal(u)


def _rule(phi: Phi, root: float) -> tuple[np.ndarray, np.ndarray]:
    if phi.pole is not None:
        return _steps(phi, root)
    return _split(np.zeros(()), min(LONGEST, phi.scale / root))


def _graded(width: float, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """A rule for standard normal u of what changes within a width of 0: panels double from there."""
    ends = [0.0, *(width * 2.0 ** np.arange(1, 60)), REACH]
    ends = sorted(end for end in set(ends) if end <= REACH)
    pieces = [_panels(*map(np.asarray, pair), longest) for pair in itertools.pairwise(ends)]
    u, weight = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    weight = weight * _normal(u)
    return np.concatenate([-u, u]), np.concatenate([weight, weight])


def moments(phi: Phi, q: float) -> tuple[float, float, float]:
    """V = E phi^2, V' and M = E phi'^2 at a length."""
    root = np.sqrt(q)
    u, weight = _rule(phi, root)
    z = root * u
    value = phi.value(z)
    slope = phi.slope(z)
    return weight @ value**2, weight @ (value * slope * z) / q, weight @ slope**2


def pair(phi: Phi, q: float, distance: float) -> tuple[float, float]:
    """E (phi(z1) - phi(z2))^2 / 2 and E phi'(z1) phi'(z2) at correlation 1 - distance."""
    root = np.sqrt(q)
    beside = np.sqrt(distance * (2 - distance))
    if phi.pole is not None:
        u, weight = _steps(phi, root)
        v, inner = (part[None] for part in _steps(phi, root))
    else:
        u, weight = _graded(beside, min(LONGEST, phi.scale / root))
        longest = min(LONGEST, phi.scale / root / beside)
        v, inner = _split(-(1 - distance) * u / beside, longest)
    z1 = root * u[:, None]
    # the difference is small where the distance is
    z2 = z1 + root * (beside * v - distance * u[:, None])
    gap = np.sum(inner * (phi.value(z1) - phi.value(z2)) ** 2, axis=1) / 2
    return weight @ gap, weight @ (phi.slope(u * root) * np.sum(inner * phi.slope(z2), axis=1))


class Reference:
    """Fixed points of one activation; V at `LENGTHS` is kept for all gains."""

    def __init__(self, name: str) -> None:
        """Tabulate V.

        Args:
            name: one of `ACTIVATIONS`.
        """
        self.phi = ACTIVATIONS[name]
        self.tabulated = np.array([moments(self.phi, q)[0] for q in LENGTHS])

    def at(self, sigma_w: float, sigma_b: float) -> Point | None:
        """The fixed point next to the length sigma_w^2 + sigma_b^2, where the map leads; None where it grows."""
        weight, bias = sigma_w**2, sigma_b**2
        ratio = (weight * self.tabulated + bias) / LENGTHS - 1
        first = int(np.searchsorted(LENGTHS, weight + bias))
        grows = (weight * moments(self.phi, weight + bias)[0] + bias) > weight + bias
        way = range(first, len(LENGTHS)) if grows else range(first - 1, -1, -1)
        end = next((i for i in way if (ratio[i] > 0) != grows), None)
        if end is None:
            return None
        inner = weight + bias if end in (first, first - 1) else LENGTHS[end - (1 if grows else -1)]

        def excess(log_q: float) -> float:
            q = np.exp(log_q)
            return (weight * moments(self.phi, q)[0] + bias) / q - 1

        found = optimize.brentq(
            excess, *np.log(sorted((inner, LENGTHS[end]))), xtol=1e-15, rtol=1e-15
        )
        q = float(np.exp(found))
        _, growth, steepness = moments(self.phi, q)
        # one Newton step: brentq ends at rounding of ln q
        q -= q * excess(np.log(q)) / (weight * growth - 1)
        _, growth, steepness = moments(self.phi, q)
        chi_1 = weight * steepness
        distance, chi_c = self._correlation(weight, q, chi_1)
        xi_q, xi_c = (-1 / np.log(slope) for slope in (weight * growth, chi_c))
        return Point(q, 1 - distance, chi_1, chi_c, xi_q, xi_c)

    def _correlation(self, weight: float, q: float, chi_1: float) -> tuple[float, float]:
        if chi_1 <= 1:
            return 0.0, chi_1

        def excess(log_distance: float) -> float:
            distance = np.exp(log_distance)
            return weight * pair(self.phi, q, distance)[0] / (q * distance) - 1

        log_distance = optimize.brentq(excess, -28.0, 0.0, xtol=1e-15, rtol=1e-14)
        distance = np.exp(log_distance)
        return distance, weight * pair(self.phi, q, distance)[1]
