"""Reasons why moments of an activation are unknown."""

import jax.numpy as jnp
import numpy as np

from jaxstab.activations import Activation
from jaxstab.theory.features import Features, features
from jaxstab.theory.maps import derivative_moment, second_moment
from jaxstab.theory.moments import CANCELLED, CANCELLED_SQUARE, log_moments
from jaxstab.theory.quadrature import ACCURACY


def missing_moments(phi: Activation, q: float) -> str:
    """Give the reason why V, M, xi_q or xi_c of an activation is not known at a length.

    Args:
        phi: activation.
        q: length, > 0; not traced.

    Returns:
        The reason; empty where quadrature gives them all to a relative accuracy of 1e-8.
    """
    about = features(phi)
    length = bool(jnp.isfinite(second_moment(phi, q)))
    slope = bool(jnp.isfinite(derivative_moment(phi, q)))
    reasons = [reason for reason in (about.no_length, about.no_slope) if reason]
    if not (length and slope) and not reasons:
        reasons = [f"two rules of quadrature differ by more than {ACCURACY:g} at q = {q:g}"]
    if length and slope:
        reasons += _cancelled(phi, about, q)
    return "; ".join(reasons)


def _cancelled(phi: Activation, about: Features, q: float) -> list[str]:
    """List the depth scales that are NaN because the slope they depend on cancels in a sum."""
    moments = log_moments(phi, about, np.log(np.asarray(q, np.float64)))
    reasons = []
    if abs(moments.length_power) < CANCELLED * moments.power_size:
        reasons.append(
            f"dV/dq cancels to less than {CANCELLED:g} of its terms at q = {q:g}: xi_q has no "
            "correct digit"
        )
    if phi.kernel is None and moments.mean_slope**2 < CANCELLED_SQUARE * np.exp(moments.near_slope):
        lost = f"(E phi')^2 cancels to less than {CANCELLED_SQUARE:g} of E phi'^2 at q = {q:g}"
        reasons.append(f"{lost}: xi_c has no correct digit where c* is near 0")
    return reasons
