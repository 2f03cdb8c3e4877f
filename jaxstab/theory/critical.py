"""The critical line chi_1 = 1 (Schoenholz et al. 2017), all of it in ln q."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxstab.activations import Activation, get
from jaxstab.checks import check_gains
from jaxstab.records import CriticalPoint
from jaxstab.theory.features import Features
from jaxstab.theory.fixed_points import on_grid, vanishes
from jaxstab.theory.maps import AnyActivation, log_square, log_sum
from jaxstab.theory.moments import LOG_LONGEST, LogMoments, inside, log_moments
from jaxstab.theory.precision import compiled
from jaxstab.theory.roots import LOG_LENGTHS, Known, Samples, all_roots, tolerance

# ln of the longest critical length searched
_LONGEST = 28.0


def _excess(moments: LogMoments, log_b: Array, log_q: Array) -> Known:
    """ln (V/(M q) + sigma_b^2/q), zero on the critical line, and its slope in ln q."""
    line = moments.log_growth - moments.log_slope
    value = log_sum(line, log_b - log_q)
    share = jnp.exp(line - jnp.where(jnp.isfinite(value), value, 0.0))
    return Known(value, share * (moments.length_power - moments.slope_power) - 1.0, moments)


@compiled()
def _critical_points(phi: Activation, about: Features, sigma_b: Array) -> CriticalPoint:
    log_b = log_square(sigma_b)
    table = on_grid(phi, about)
    grid = jnp.asarray(LOG_LENGTHS)
    known = jax.vmap(_excess, (0, None, 0))(table, log_b, grid)
    # beyond, phi that grows linearly is critical to rounding, and signs mean nothing
    searched = slice(int(np.searchsorted(LOG_LENGTHS, _LONGEST)))
    samples = Samples(grid[searched], known.value[searched], known.slope[searched])
    known_roots, found, marginal = all_roots(
        lambda log_q: _excess(log_moments(phi, about, log_q), log_b, log_q), samples
    )
    roots = jnp.where(found, known_roots.log_q, jnp.nan)
    at_zero = (sigma_b == 0) & vanishes(phi)
    roots = jnp.where(at_zero, jnp.roll(roots, 1).at[0].set(-jnp.inf), roots)
    roots = jnp.where(marginal, jnp.full_like(roots, jnp.nan).at[0].set(0.0), roots)

    rounding = tolerance(grid.dtype)
    grows_linearly = log_moments(phi, about, jnp.asarray(LOG_LONGEST)).log_growth > jnp.log(rounding)
    log_q = jnp.append(roots, jnp.where(grows_linearly & ~marginal, jnp.inf, jnp.nan))
    missing = jnp.isnan(log_q)
    finite = jnp.where(jnp.isfinite(log_q), log_q, inside(jnp.where(missing, 0.0, log_q)))
    moments = jax.vmap(lambda log_q: log_moments(phi, about, log_q))(finite)
    sigma_w = jnp.where(missing, jnp.nan, jnp.exp(-moments.log_slope / 2))
    repels = jnp.exp(moments.log_growth - moments.log_slope) * moments.length_power > 1.0 + rounding
    # at 0 the slope is 1 whatever the drift beside it: gelu's lengths leave, tanh's come back
    beside = log_moments(phi, about, jnp.log(1e-4)).log_growth
    repels |= (log_q == -jnp.inf) & (beside - moments.log_slope > rounding)
    scale_free = jnp.ptp(table.log_slope) <= rounding
    usable = ~missing & ~repels & ((log_q < jnp.inf) | scale_free)
    return CriticalPoint(sigma_w, jnp.exp(log_q), usable & (sigma_w > 0) & jnp.isfinite(sigma_w), log_q)


def critical_points(activation: AnyActivation, sigma_b: ArrayLike) -> CriticalPoint:
    """All gains at which chi_1 = 1 on a length fixed point, ascending in q, and whether a network stays there.

    Along the critical line sigma_w^2 = 1/M(q) and sigma_b^2 = q - V(q)/M(q). For gelu and silu at small sigma_b
    the point sits on a length fixed point that repels: it is listed, and not usable.

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_b: bias standard deviation, >= 0.

    Returns:
        A record with a leading axis of 9; NaN where there is none. The last entry is the one at q = inf.

    Raises:
        ValueError: if sigma_b is negative or not finite.

    Example:
        >>> point = jax.jit(lambda: critical_points("tanh", 0.05**0.5))()
        >>> print(f"sigma_w^2 = {point.sigma_w[0] ** 2:.5f} at q = {point.q[0]:.5f}, usable: {point.usable[0]}")
        sigma_w^2 = 1.76095 at q = 0.57005, usable: True
    """
    phi = get(activation)
    check_gains(0.0, sigma_b)
    return _critical_points(phi, sigma_b)


def critical_sigma_w(activation: AnyActivation, sigma_b: ArrayLike) -> Float[Array, ""]:
    """The weight gain on the critical line chi_1 = 1 at this sigma_b, where a network stays on it.

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_b: bias standard deviation, >= 0.

    Returns:
        The smallest usable gain of `critical_points`, NaN where there is none.

    Raises:
        ValueError: if sigma_b is negative or not finite.

    Example:
        >>> print(f"{jax.jit(lambda: critical_sigma_w('relu', 0.1))() ** 2:.5f}")
        2.00000
    """
    points = critical_points(activation, sigma_b)
    gain = jnp.min(jnp.where(points.usable, points.sigma_w, jnp.inf))
    return jnp.where(jnp.isinf(gain), jnp.nan, gain)
