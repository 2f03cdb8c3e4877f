"""The critical line chi_1 = 1 (Schoenholz et al. 2017), solved in ln q."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxstab.activations import Activation
from jaxstab.checks import check_gains, check_one_point
from jaxstab.records import CriticalPoint
from jaxstab.theory import host
from jaxstab.theory.block_maps import batch_state, gains_of
from jaxstab.theory.block_moments import block_moments, on_grid
from jaxstab.theory.blocks import Form, block_of, grid_of, is_at_once, parted, vanishes
from jaxstab.theory.features import Features
from jaxstab.theory.host import AnyArray
from jaxstab.theory.implicit import derivatives, differentiable
from jaxstab.theory.laws import AnyBlock, as_law
from jaxstab.theory.maps import log_sum
from jaxstab.theory.moments import LOG_LONGEST, LogMoments, inside
from jaxstab.theory.reasons import missing_critical_points
from jaxstab.theory.roots import CAPACITY, ROUNDING, Known, Samples, all_roots

# ln of the longest critical length searched
_LONGEST = 28.0


def _excess(moments: LogMoments, log_b: AnyArray, log_x: AnyArray) -> Known:
    """Compute ln (V/(M q) + sigma_b^2/q), 0 on the critical line, and its slope in ln q."""
    xp = host.namespace(log_b, log_x)
    line = moments.log_growth - moments.log_slope
    value = log_sum(line, log_b - log_x)
    share = xp.exp(line - xp.where(xp.isfinite(value), value, 0.0))
    return Known(value, share * (moments.length_power - moments.slope_power) - 1.0, moments)


def _solve(
    form: Form, phi: Activation, about: Features, sigma_b: AnyArray, *numbers: AnyArray
) -> CriticalPoint:
    xp = host.namespace(sigma_b, *numbers)
    block = block_of(form, phi, about, numbers)
    unit = gains_of(block, xp.ones_like(sigma_b), sigma_b)
    grid = grid_of(block)
    table = on_grid(block)
    known = _excess(table, unit.bias, grid)
    # at longer lengths a linearly growing phi is critical to rounding, and signs are noise
    searched = slice(int(np.searchsorted(grid, _LONGEST)))
    samples = Samples(grid[searched], known.value[searched], known.slope[searched])
    known_roots, is_root, marginal = all_roots(
        lambda log_x: _excess(block_moments(block, log_x), unit.bias, log_x), samples
    )
    roots = xp.where(is_root, known_roots.log_q, np.nan)
    at_zero = (unit.bias == -np.inf) & vanishes(block)
    leading = np.arange(len(roots)) == 0
    roots = xp.where(at_zero, xp.where(leading, -np.inf, xp.roll(roots, 1)), roots)
    roots = xp.where(marginal, np.where(leading, 0.0, np.nan), roots)

    far = block_moments(block, xp.full_like(sigma_b, LOG_LONGEST)).log_growth
    grows_linearly = far > np.log(ROUNDING)
    log_x = xp.append(roots, xp.where(grows_linearly & ~marginal, np.inf, np.nan))
    missing = xp.isnan(log_x)
    finite = xp.where(xp.isfinite(log_x), log_x, inside(xp.where(missing, 0.0, log_x)))
    moments = block_moments(block, finite)
    log_w = -moments.log_slope - unit.weight
    sigma_w = xp.where(missing, np.nan, xp.exp(log_w / 2))
    repels = xp.exp(moments.log_growth - moments.log_slope) * moments.length_power > 1.0 + ROUNDING
    # at q = 0 the slope is 1, so stability follows from the next order: gelu repels, tanh attracts
    beside = block_moments(block, xp.full_like(sigma_b, np.log(1e-4))).log_growth
    repels |= (log_x == -np.inf) & (beside - moments.log_slope > ROUNDING)
    scale_free = xp.max(table.log_slope) - xp.min(table.log_slope) <= ROUNDING
    usable = ~missing & ~repels & ((log_x < np.inf) | scale_free)
    log_q = log_x
    if block.law.norm == "batch":
        of_batch = lambda log_w, at, moments: batch_state(
            block, at, moments, unit._replace(weight=log_w)
        )[0]
        log_q = xp.where(missing, np.nan, jax.vmap(of_batch)(log_w + unit.weight, finite, moments))
    return CriticalPoint(
        sigma_w, xp.exp(log_q), usable & (sigma_w > 0) & xp.isfinite(sigma_w), log_q
    )


def _local(form: Form, phi: Activation, about: Features, *scalars: AnyArray) -> dict[str, AnyArray]:
    """Compute the residual that is 0 on the critical line, and ln sigma_w there."""
    sigma_b, *numbers, log_q = scalars
    block = block_of(form, phi, about, tuple(numbers))
    unit = gains_of(block, jnp.ones_like(sigma_b), sigma_b)
    moments = block_moments(block, log_q)
    excess = _excess(moments, unit.bias, log_q)
    return {"length": excess.value, "log_w": -(moments.log_slope + unit.weight) / 2}


def _jacobian(
    form: Form, phi: Activation, about: Features, record: tuple[AnyArray, ...], *numbers: AnyArray
) -> CriticalPoint:
    def one(point: CriticalPoint) -> CriticalPoint:
        known = jnp.isfinite(point.log_q)
        log_q = jnp.where(
            known, point.log_q, inside(jnp.where(jnp.isnan(point.log_q), 0.0, point.log_q))
        )
        by = derivatives(
            lambda phi, *scalars: _local(form, phi, about, *scalars), phi, numbers, (log_q,)
        )
        along = by["length"][-1]
        fixed = ~known | (jnp.abs(along) <= ROUNDING)
        d_log_q = jnp.where(fixed, 0.0, -by["length"][:-1] / jnp.where(fixed, 1.0, along))
        d_sigma_w = point.sigma_w * (by["log_w"][:-1] + by["log_w"][-1] * d_log_q)
        d_q = jnp.where(known, point.q, 0.0) * d_log_q
        slopes = CriticalPoint(d_sigma_w, d_q, jnp.zeros_like(d_log_q), d_log_q)
        return CriticalPoint(*(jnp.where(jnp.isnan(point.log_q), 0.0, slope) for slope in slopes))

    return jax.vmap(one)(CriticalPoint(*record))


@functools.cache
def _solver(form: Form) -> Callable[..., CriticalPoint]:
    at_once = is_at_once(form.law)
    return differentiable(
        functools.partial(_solve, form), functools.partial(_jacobian, form), at_once=at_once
    )


def critical_points(block: AnyBlock, sigma_b: ArrayLike) -> CriticalPoint:
    """Find all gains with chi_1 = 1 at a length fixed point, ascending in q.

    On the critical line sigma_w^2 = 1/M(q) and sigma_b^2 = q - V(q)/M(q). A point is usable where
    its length fixed point does not repel. For gelu and silu at small sigma_b it repels.

    Args:
        block: `law` of a block, or a chain that carries one; for a plain block also the
            activation, as name, `Activation` or elementwise callable.
        sigma_b: bias standard deviation, >= 0.

    Returns:
        Record with a leading axis of 9, padded with NaN; the last entry is for the point at
        q = inf. All NaN where the law has no critical line, for the reason that `missing` gives.
        Where every length is critical (relu at sigma_b = 0), only the point at q = 1.

    Raises:
        ValueError: if sigma_b is negative or not finite.

    Example:
        >>> point = jax.jit(lambda: critical_points("tanh", 0.05**0.5))()
        >>> print(f"sigma_w^2 = {point.sigma_w[0] ** 2:.5f} at q = {point.q[0]:.5f}, usable: {point.usable[0]}")
        sigma_w^2 = 1.76095 at q = 0.57005, usable: True
    """
    check_one_point(sigma_b=sigma_b)
    check_gains(0.0, sigma_b)
    known = as_law(block)
    if missing_critical_points(known):
        unknown = jnp.full(CAPACITY + 1, jnp.nan)
        return CriticalPoint(unknown, unknown, jnp.zeros(CAPACITY + 1, bool), unknown)
    form, numbers = parted(known)
    return _solver(form)(known.activation, sigma_b, *numbers)


def critical_sigma_w(block: AnyBlock, sigma_b: ArrayLike) -> Float[Array, ""]:
    """Find the weight gain on the critical line chi_1 = 1 at a given sigma_b.

    Args:
        block: `law` of a block, or a chain that carries one; for a plain block also the
            activation, as name, `Activation` or elementwise callable.
        sigma_b: bias standard deviation, >= 0.

    Returns:
        Smallest usable gain of `critical_points`; NaN where no gain is usable.

    Raises:
        ValueError: if sigma_b is negative or not finite.

    Example:
        >>> print(f"{jax.jit(lambda: critical_sigma_w('relu', 0.1))() ** 2:.5f}")
        2.00000
    """
    points = critical_points(block, sigma_b)
    gain = jnp.min(jnp.where(points.usable, points.sigma_w, jnp.inf))
    return jnp.where(jnp.isinf(gain), jnp.nan, gain)
