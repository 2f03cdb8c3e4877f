"""Doubly critical points: chi_1 = 1 and dq'/dq = 1 (Roberts, Yaida & Hanin 2022, section 5.3)."""

from typing import NamedTuple

import numpy as np
import scipy

from jaxstab.activations import Activation, Mixture, get
from jaxstab.theory import host
from jaxstab.theory.maps import AnyActivation
from jaxstab.theory.moments import log_moments
from jaxstab.theory.precision import known
from jaxstab.theory.roots import ROUNDING

# ln of the lengths searched: at longer ones a linearly growing phi is critical to rounding
_SEARCHED = np.linspace(-12.0, 12.0, 193)
# sigma_b^2 / q that counts as 0
_NOTHING = 1e-12


class DoublyCritical(NamedTuple):
    """A point at which chi_1 = 1 and the length map has slope 1.

    Attributes:
        sigma_w: weight gain.
        sigma_b: bias standard deviation.
        q: length fixed point; 1 where every length is a fixed point.
    """

    sigma_w: float
    sigma_b: float
    q: float


def doubly_critical(activation: AnyActivation) -> list[DoublyCritical]:
    """Find all points with chi_1 = 1 and dq'/dq = 1 at a length fixed point.

    There V'(q) = M(q), sigma_w^2 = 1/M(q) and sigma_b^2 = q - V(q)/M(q). Where phi(0) = 0 and
    phi'(0) != 0, q = 0 at sigma_b = 0 is such a point.

    Args:
        activation: name, `Activation` or elementwise callable, without traced parameters.

    Returns:
        Doubly critical points, ascending in q.

    Raises:
        ValueError: if the activation is a mixture or traced.

    Example:
        >>> [f"{point.sigma_w**2:.6f}, {point.sigma_b**2:.6f} at {point.q:.6f}" for point in doubly_critical("gelu")]
        ['4.000000, 0.000000 at 0.000000', '1.983058, 0.172922 at 3.561553']
    """
    phi = get(activation)
    if isinstance(phi, Mixture) or host.is_traced(phi):
        raise ValueError(
            f"activation must be one activation without traced parameters, got {phi!r}"
        )
    with np.errstate(all="ignore"):
        excess = np.array([_excess(phi, log_q) for log_q in _SEARCHED])
        if np.all(np.abs(excess) <= ROUNDING):
            return [_point(phi, 0.0)]
        turns = np.flatnonzero((excess[:-1] * excess[1:] < 0) & (np.abs(excess[:-1]) > ROUNDING))
        roots = [
            scipy.optimize.brentq(
                lambda log_q: _excess(phi, log_q), *_SEARCHED[place : place + 2], xtol=1e-14
            )
            for place in turns
        ]
        points = [_point(phi, root) for root in roots]
    points = [point for point in points if point.sigma_b >= 0]
    value = float(host.value_and_slope(phi)(np.zeros(1))[0][0])
    at_zero = log_moments(phi, known(phi)._replace(table=None), np.float64(-50.0)).log_slope
    if value == 0 and np.exp(at_zero) > _NOTHING:
        points.insert(0, DoublyCritical(float(np.exp(-at_zero / 2)), 0.0, 0.0))
    return points


def _excess(phi: Activation, log_q: float) -> float:
    """Compute V'(q) / M(q) - 1 by quadrature."""
    moments = log_moments(phi, known(phi)._replace(table=None), np.float64(log_q))
    return float(np.exp(moments.log_growth - moments.log_slope) * moments.length_power - 1.0)


def _point(phi: Activation, log_q: float) -> DoublyCritical:
    """Compute the point at a length; sigma_b is NaN where sigma_b^2 < 0."""
    moments = log_moments(phi, known(phi)._replace(table=None), np.float64(log_q))
    share = 1.0 - float(np.exp(moments.log_growth - moments.log_slope))
    square = 0.0 if abs(share) < _NOTHING else share * float(np.exp(log_q))
    sigma_b = square**0.5 if square >= 0 else float("nan")
    return DoublyCritical(float(np.exp(-moments.log_slope / 2)), sigma_b, float(np.exp(log_q)))
