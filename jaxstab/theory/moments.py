"""Moments of activations as functions of ln q: closed forms, tables, quadrature and power laws."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxstab.activations import Activation, Mixture
from jaxstab.theory import host
from jaxstab.theory.features import Features, Nodes
from jaxstab.theory.host import AnyArray
from jaxstab.theory.mixing import mixed_columns, mixed_pair
from jaxstab.theory.quadrature import LONGEST, SHORTEST, Pair, Rule, pair, single
from jaxstab.theory.tables import logarithms

# a sum that is smaller than this share of its terms has no digits
CANCELLED = 1e-7
CANCELLED_SQUARE = 1e-15
LOG_SHORTEST = float(np.log(SHORTEST))
LOG_LONGEST = float(np.log(LONGEST))


class LogMoments(NamedTuple):
    """V(q) = E phi(sqrt(q) u)^2 and M(q) = E phi'(sqrt(q) u)^2 in logarithms.

    Attributes:
        mean: E phi / sqrt(q), at q clipped to the range of quadrature.
        mean_slope: E phi', at clipped q.
        log_length: ln V.
        log_growth: ln (V/q), which keeps the digits that ln V - ln q loses.
        near_growth: ln (V/q) at clipped q, at which moments of pairs are computed.
        near_slope: ln M at clipped q.
        length_power: d ln V / d ln q.
        power_size: sum of the absolute terms of `length_power`.
        log_slope: ln M.
        slope_power: d ln M / d ln q.
    """

    mean: Float[AnyArray, "*n"]
    mean_slope: Float[AnyArray, "*n"]
    log_length: Float[AnyArray, "*n"]
    log_growth: Float[AnyArray, "*n"]
    near_growth: Float[AnyArray, "*n"]
    near_slope: Float[AnyArray, "*n"]
    length_power: Float[AnyArray, "*n"]
    power_size: Float[AnyArray, "*n"]
    log_slope: Float[AnyArray, "*n"]
    slope_power: Float[AnyArray, "*n"]


def inside(log_q: Float[AnyArray, " *n"]) -> Float[AnyArray, " *n"]:
    """Clip ln q to the range of quadrature.

    Args:
        log_q: ln q.

    Returns:
        Clipped ln q.
    """
    return host.namespace(log_q).clip(log_q, LOG_SHORTEST, LOG_LONGEST)


def log_moments(phi: Activation, about: Features, log_q: Float[AnyArray, "*n"]) -> LogMoments:
    """Compute moments at length q; outside [SHORTEST, LONGEST] they continue as powers of q.

    Args:
        phi: activation.
        about: features of the activation.
        log_q: ln q, in [-inf, inf].

    Returns:
        Moments of the activation.
    """
    near = inside(log_q)
    columns = _columns(phi, about, near)
    mean, mean_slope, log_growth, length_power, power_size, log_slope, slope_power = columns
    beyond = log_q - near
    return LogMoments(
        mean,
        mean_slope,
        near + log_growth + _continued(length_power, beyond),
        log_growth + _continued(length_power - 1.0, beyond),
        log_growth,
        log_slope,
        length_power,
        power_size,
        log_slope + _continued(slope_power, beyond),
        slope_power,
    )


def _columns(phi: Activation, about: Features, log_q: AnyArray) -> list[AnyArray]:
    """Compute the columns of a table at lengths inside the range of quadrature."""
    if phi.kernel is not None:
        return _closed(phi, log_q)
    if about.table is not None:
        return about.table(log_q)
    if isinstance(phi, Mixture):
        first, second = about.parts
        return mixed_columns(
            phi, _columns(phi.first, first, log_q), _columns(phi.second, second, log_q)
        )
    q = host.namespace(log_q).exp(log_q)
    return logarithms(single(phi, about, q), q)


def _continued(power: AnyArray, beyond: AnyArray) -> AnyArray:
    """Compute power * beyond, also for infinite beyond; round powers close to multiples of 1/2."""
    xp = host.namespace(power, beyond)
    exact = xp.round(2 * power) / 2
    power = xp.where(xp.abs(power - exact) < 1e-9, exact, power)
    still = (power == 0) | (beyond == 0)
    return xp.where(still, 0.0, xp.where(still, 1.0, power) * xp.where(still, 0.0, beyond))


def _kernel(phi: Activation, q: AnyArray, c: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Evaluate the closed-form kernel."""
    if host.namespace(q, c) is np:
        covariance, slope, _, _ = host.kernel(phi)(q, c)
        return covariance, slope
    assert phi.kernel is not None
    return phi.kernel(q, c)


def _closed(phi: Activation, log_q: AnyArray) -> list[AnyArray]:
    """Compute the columns of a table from a closed-form kernel."""
    xp = host.namespace(log_q)
    q = xp.exp(log_q)
    one = xp.ones_like(q)
    if xp is np:
        length, slope, length_rate, slope_rate = host.kernel(phi)(q, one)
    else:
        assert phi.kernel is not None
        (length, slope), (length_rate, slope_rate) = jax.jvp(
            phi.kernel, (q, one), (q, jnp.zeros_like(q))
        )
    square, square_slope = _kernel(phi, q, xp.zeros_like(q))
    return [
        root(square) / xp.sqrt(q),
        root(square_slope),
        xp.log(length / q),
        length_rate / length,
        xp.abs(length_rate / length),
        xp.log(slope),
        slope_rate / slope,
    ]


def root(square: AnyArray) -> AnyArray:
    """Compute the square root, which is 0 with derivative 0 where the number is <= 0.

    Args:
        square: number.

    Returns:
        Square root.
    """
    xp = host.namespace(square)
    positive = square > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, square, 1.0)), 0.0)


def log_pair(
    phi: Activation,
    about: Features,
    log_q: Float[AnyArray, ""],
    distance: Float[AnyArray, ""],
    nodes: Nodes | Rule,
    opposite: AnyArray | None = None,
) -> Pair:
    """Compute moments of two Gaussians of length q and correlation c = +-(1 - distance).

    Args:
        phi: activation.
        about: features of the activation.
        log_q: ln q, clipped to the range of quadrature.
        distance: 1 - |c|, in [0, 1].
        nodes: rule of quadrature, or its numbers of nodes.
        opposite: whether c < 0; None where c >= 0 always.

    Returns:
        Gap per q, and slope, both at the clipped length.
    """
    xp = host.namespace(log_q, distance)
    q = xp.exp(inside(log_q))
    if phi.kernel is None and isinstance(phi, Mixture):
        given = (log_q, distance, nodes, opposite)
        first, second = about.parts
        return mixed_pair(
            phi, log_pair(phi.first, first, *given), log_pair(phi.second, second, *given)
        )
    if phi.kernel is None:
        return pair(phi, about, q, distance, nodes, opposite)
    c = 1.0 - distance
    if opposite is not None:
        c = xp.where(opposite, -c, c)
    covariance, slope = _kernel(phi, q, c)
    return Pair((_kernel(phi, q, xp.ones_like(c))[0] - covariance) / q, slope)


def variance(
    phi: Activation, about: Features, log_q: Float[AnyArray, ""], nodes: Nodes
) -> AnyArray:
    """Compute the variance of phi over the units of a layer, (E phi^2 - (E phi)^2) / q.

    The variance is the gap at c = 0, which keeps its digits where phi hardly varies. A mixture adds
    the variance between its activations' means. Where a table shows that phi varies at every
    length, the difference itself is computed.

    Args:
        phi: activation.
        about: features of the activation.
        log_q: ln q, clipped to the range of quadrature.
        nodes: numbers of nodes.

    Returns:
        Variance per q.
    """
    xp = host.namespace(log_q)
    if getattr(about.table, "varies", False):
        moments = log_moments(phi, about, log_q)
        return xp.exp(moments.near_growth) - moments.mean**2
    within = log_pair(phi, about, log_q, xp.ones_like(log_q), nodes).gap
    if not isinstance(phi, Mixture):
        return within
    parts = zip((phi.first, phi.second), about.parts, strict=True)
    first, second = (log_moments(part, own, inside(log_q)).mean for part, own in parts)
    return within + phi.share * (1.0 - phi.share) * (first - second) ** 2
