"""Moments of an activation as functions of ln q, from a closed form, by quadrature, or by power laws beyond both."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxstab.activations import Activation
from jaxstab.theory.features import Features, Nodes
from jaxstab.theory.quadrature import LONGEST, SHORTEST, Pair, pair, single

LOG_SHORTEST, LOG_LONGEST = float(np.log(SHORTEST)), float(np.log(LONGEST))


class LogMoments(NamedTuple):
    """V(q) = E phi(sqrt(q) u)^2 and M(q) = E phi'(sqrt(q) u)^2 in logarithms.

    Attributes:
        mean: E phi, at the length inside the range of quadrature.
        log_length: ln V.
        log_growth: ln (V/q), which keeps the digits that ln V - ln q loses.
        near_growth: ln (V/q) at the length inside the range of quadrature, where moments of pairs are taken.
        near_slope: ln M there.
        length_power: d ln V / d ln q.
        log_slope: ln M.
        slope_power: d ln M / d ln q.
    """

    mean: Float[Array, ""]
    log_length: Float[Array, ""]
    log_growth: Float[Array, ""]
    near_growth: Float[Array, ""]
    near_slope: Float[Array, ""]
    length_power: Float[Array, ""]
    log_slope: Float[Array, ""]
    slope_power: Float[Array, ""]


def inside(log_q: Float[Array, " *n"]) -> Float[Array, " *n"]:
    """ln q within the range of quadrature.

    Args:
        log_q: ln q.

    Returns:
        It, or the nearer end of the range.
    """
    return jnp.clip(log_q, LOG_SHORTEST, LOG_LONGEST)


def log_moments(phi: Activation, about: Features, log_q: Float[Array, ""]) -> LogMoments:
    """Moments at length q; outside [SHORTEST, LONGEST] they continue as powers of q.

    Args:
        phi: the activation.
        about: its features.
        log_q: ln q, -inf and inf included.

    Returns:
        The moments.
    """
    near = inside(log_q)
    if phi.kernel is not None:
        mean, log_growth, length_power, log_slope, slope_power = _closed(phi, near)
    else:
        found = single(phi, about, jnp.exp(near))
        mean, log_growth, log_slope = found.mean, jnp.log(found.length), jnp.log(found.slope)
        length_power, slope_power = found.length_power, found.slope_power
    beyond = log_q - near
    return LogMoments(
        mean,
        near + log_growth + _continued(length_power, beyond),
        log_growth + _continued(length_power - 1.0, beyond),
        log_growth,
        log_slope,
        length_power,
        log_slope + _continued(slope_power, beyond),
        slope_power,
    )


def _continued(power: Array, beyond: Array) -> Array:
    """power * beyond, beyond finite or not; a power within rounding of a multiple of 1/2 is one."""
    exact = jnp.round(2 * power) / 2
    power = jnp.where(jnp.abs(power - exact) < 1e-9, exact, power)
    still = (power == 0) | (beyond == 0)
    return jnp.where(still, 0.0, jnp.where(still, 1.0, power) * jnp.where(still, 0.0, beyond))


def _closed(phi: Activation, log_q: Array) -> tuple[Array, ...]:
    """The moments of a closed-form kernel."""
    kernel = phi.kernel
    assert kernel is not None

    def logs(log_q: Array) -> tuple[Array, Array]:
        q = jnp.exp(log_q)
        length, slope = kernel(q, jnp.ones_like(q))
        return jnp.log(length / q), jnp.log(slope)

    (log_growth, log_slope), (power, slope_power) = jax.jvp(logs, (log_q,), (jnp.ones_like(log_q),))
    q = jnp.exp(log_q)
    square = kernel(q, jnp.zeros_like(q))[0]
    mean = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return mean, log_growth, power + 1.0, log_slope, slope_power


def log_pair(
    phi: Activation,
    about: Features,
    log_q: Float[Array, ""],
    distance: Float[Array, ""],
    nodes: Nodes,
    opposite: Array | None = None,
) -> Pair:
    """Moments of two Gaussians of length q, correlation c = +-(1 - distance), inside the range of quadrature.

    Args:
        phi: the activation.
        about: its features.
        log_q: ln q; what lies outside the range counts as its end.
        distance: 1 - |c|, in [0, 1].
        nodes: of the rule.
        opposite: whether c < 0; None where it never is.

    Returns:
        The moments; multiples of V/q and M at the same length.
    """
    q = jnp.exp(inside(log_q))
    if phi.kernel is None:
        return pair(phi, about, q, distance, nodes, opposite)
    c = 1.0 - distance
    if opposite is not None:
        c = jnp.where(opposite, -c, c)
    covariance, slope = phi.kernel(q, c)
    return Pair((phi.kernel(q, jnp.ones_like(q))[0] - covariance) / q, slope)
