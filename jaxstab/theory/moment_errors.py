"""Whether the moments of an activation are known, and if not, why."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxstab.activations import Activation, get
from jaxstab.theory.features import Features, features
from jaxstab.theory.maps import AnyActivation, derivative_moment, second_moment
from jaxstab.theory.moments import CANCELLED, CANCELLED_SQUARE, log_moments
from jaxstab.theory.quadrature import ACCURACY


class MomentError(NamedTuple):
    """How well the moments of an activation are known at a length.

    Attributes:
        second_moment: whether V(q) is known to 1e-8 of itself; where not, it is NaN or inf.
        derivative_moment: the same of M(q).
        reason: why one is not, or why xi_q or xi_c is not, in words; empty where all are.
    """

    second_moment: bool
    derivative_moment: bool
    reason: str


def moment_error(activation: AnyActivation, q: float) -> MomentError:
    """Say whether quadrature knows an activation's moments, and if not, why.

    Args:
        activation: name, `Activation` or elementwise callable.
        q: length, > 0; not for tracing.

    Returns:
        The answer.

    Example:
        >>> moment_error(lambda z: jnp.sign(z) * jnp.sqrt(jnp.abs(z)), 1.0).reason
        "E phi'^2 is infinite: phi' grows too fast towards z = 0"
    """
    phi = get(activation)
    about = features(phi)
    length = bool(jnp.isfinite(second_moment(phi, q)))
    slope = bool(jnp.isfinite(derivative_moment(phi, q)))
    reasons = [reason for reason in (about.no_length, about.no_slope) if reason]
    if not (length and slope) and not reasons:
        reasons = [f"two rules of quadrature differ by more than {ACCURACY:g} at q = {q:g}"]
    if length and slope:
        reasons += _cancelled(phi, about, q)
    return MomentError(length, slope, "; ".join(reasons))


def _cancelled(phi: Activation, about: Features, q: float) -> list[str]:
    """Which depth scales are NaN, as what they are logarithms of is lost among the terms of a sum."""
    moments = log_moments(phi, about, np.log(np.asarray(q, np.float64)))
    reasons = []
    if abs(moments.length_power) < CANCELLED * moments.power_size:
        reasons.append(
            f"dV/dq cancels to less than {CANCELLED:g} of its terms at q = {q:g}: xi_q has no "
            "digits"
        )
    if phi.kernel is None and moments.mean_slope**2 < CANCELLED_SQUARE * np.exp(moments.near_slope):
        lost = f"(E phi')^2 cancels to less than {CANCELLED_SQUARE:g} of E phi'^2 at q = {q:g}"
        reasons.append(f"{lost}: xi_c has no digits where c* is near 0")
    return reasons
