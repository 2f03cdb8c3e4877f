"""Fixed points of the length and correlation maps, and the depth scales around them.

All of it is in ln q and in 1 - c. Moments on the grid of lengths do not depend on the gains: they are tabulated once.
Roots carry the derivatives of the implicit function.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from jaxstab.activations import Activation, Mixture, get
from jaxstab.checks import check_gains
from jaxstab.records import FixedPoint
from jaxstab.theory import host
from jaxstab.theory.correlations import Stable, stable_distance
from jaxstab.theory.features import Features
from jaxstab.theory.host import AnyArray
from jaxstab.theory.implicit import derivatives, differentiable
from jaxstab.theory.maps import AnyActivation, log_length_map, log_square, log_sum
from jaxstab.theory.moments import LOG_LONGEST, LOG_SHORTEST, LogMoments, log_moments, log_pair
from jaxstab.theory.quadrature import rule
from jaxstab.theory.roots import LOG_LENGTHS, ROUNDING, Function, Known, Samples, all_roots, next_root

# of the terms of a sum that cancel: what is smaller has no digits
_CANCELLED = 1e-7
_CANCELLED_SQUARE = 1e-15


def on_grid(phi: Activation, about: Features) -> LogMoments:
    """Moments on the grid of lengths.

    Args:
        phi: the activation.
        about: its features.

    Returns:
        The moments, along the grid; numbers at once unless the activation has traced parameters.
    """
    in_program = host.is_traced(phi) and about.table is None
    return log_moments(phi, about, jnp.asarray(LOG_LENGTHS) if in_program else LOG_LENGTHS)


def _excess(moments: LogMoments, log_w: AnyArray, log_b: AnyArray, log_q: AnyArray) -> Known:
    """ln (q'/q), zero at a fixed point, and its slope in ln q."""
    xp = host.namespace(log_w, log_b, log_q)
    length = log_length_map(moments, log_w, log_b, log_q)
    slope = xp.exp(length.log_share + moments.log_growth) * moments.length_power - 1.0
    return Known(length.log_ratio, slope, moments)


def _length_function(phi: Activation, about: Features, log_w: AnyArray, log_b: AnyArray) -> Function:
    return lambda log_q: _excess(log_moments(phi, about, log_q), log_w, log_b, log_q)


def _length_samples(moments: LogMoments, log_w: AnyArray, log_b: AnyArray) -> Samples:
    known = _excess(moments, log_w, log_b, LOG_LENGTHS)
    return Samples(LOG_LENGTHS, known.value, known.slope)


def depth_scale(chi: AnyArray) -> AnyArray:
    """-1/ln chi, inf where chi is 1 to working precision.

    Args:
        chi: factor per layer.

    Returns:
        Layers.
    """
    xp = host.namespace(chi)
    rate = xp.log(xp.abs(chi))
    critical = xp.abs(rate) <= ROUNDING
    return xp.where(critical, np.inf, -1.0 / xp.where(critical, 1.0, rate))


def _around(
    phi: Activation,
    about: Features,
    sigma_w: AnyArray,
    sigma_b: AnyArray,
    at: AnyArray,
    moments: LogMoments,
    log_q: AnyArray,
) -> FixedPoint:
    """The record of the fixed point at length q: the root's, or 0 or inf with the limits on the way; NaN gives NaN."""
    xp = host.namespace(sigma_w, sigma_b, at)
    nowhere = xp.isnan(log_q)
    log_w = log_square(sigma_w)
    length = log_length_map(moments, log_w, log_square(sigma_b), at)
    growth = xp.exp(log_w + moments.log_growth)
    slope = growth * moments.length_power
    chi_1 = xp.exp(log_w + moments.log_slope)
    stable = _correlations(phi, about, at, length.pair_share, moments, nowhere)
    # what is left of sums that cancel has no digits, and its logarithm none at all
    xi_q = xp.where(xp.abs(slope) < _CANCELLED * growth * moments.power_size, np.nan, depth_scale(slope))
    smoothed = xp.minimum(moments.near_slope, moments.near_growth - xp.log(stable.distance))
    lost = (stable.distance > 0) & (stable.chi < _CANCELLED_SQUARE * length.pair_share * xp.exp(smoothed))
    quadrature = phi.kernel is None
    xi_c = xp.where(lost & quadrature, np.nan, depth_scale(stable.chi))
    fields = (1.0 - stable.distance, chi_1, stable.chi, xi_q, xi_c, xp.abs(depth_scale(chi_1)))
    c, chi_1, chi_c, xi_q, xi_c, xi_grad = (xp.where(nowhere, np.nan, field) for field in fields)
    is_stable = (xp.abs(slope) < 1.0 - ROUNDING) & (log_q < np.inf)
    return FixedPoint(xp.exp(log_q), c, chi_1, chi_c, xi_q, xi_c, xi_grad, is_stable, log_q)


def _correlations(
    phi: Activation, about: Features, at: AnyArray, share: AnyArray, moments: LogMoments, nowhere: AnyArray
) -> Stable:
    """Stable correlations at one length, or at each of several."""
    if host.namespace(share) is not np:
        one = lambda at, share, moments: stable_distance(phi, about, at, share, moments)
        return one(at, share, moments) if at.ndim == 0 else jax.vmap(one)(at, share, moments)
    if at.ndim == 0:
        return stable_distance(phi, about, at, share, moments)
    missing = Stable(np.float64(np.nan), np.float64(np.nan))
    found = [
        missing if nowhere[i] else stable_distance(phi, about, at[i], share[i], LogMoments(*(m[i] for m in moments)))
        for i in range(len(at))
    ]
    return Stable(*map(np.stack, zip(*found, strict=True)))


def vanishes(phi: Activation) -> AnyArray:
    """Whether phi(0) = 0, so that a signal of length 0 stays one.

    Args:
        phi: the activation.

    Returns:
        Whether.
    """
    if isinstance(phi, Mixture):
        return vanishes(phi.first) & vanishes(phi.second)
    if host.is_traced(phi):
        return phi(jnp.zeros(1))[0] == 0
    return host.value_and_slope(phi)(np.zeros(1))[0][0] == 0


def _first_length(sigma_w: AnyArray, sigma_b: AnyArray, q0: AnyArray) -> AnyArray:
    """ln q of the first layer."""
    xp = host.namespace(sigma_w, sigma_b, q0)
    return log_sum(log_square(sigma_w) + xp.log(q0), log_square(sigma_b))


def _solve_one(phi: Activation, about: Features, sigma_w: AnyArray, sigma_b: AnyArray, q0: AnyArray) -> FixedPoint:
    xp = host.namespace(sigma_w, sigma_b, q0)
    log_w, log_b = log_square(sigma_w), log_square(sigma_b)
    f = _length_function(phi, about, log_w, log_b)
    samples = _length_samples(on_grid(phi, about), log_w, log_b)
    first = xp.maximum(_first_length(sigma_w, sigma_b, q0), LOG_LENGTHS[0])
    root, log_q = next_root(f, samples, first, (LOG_SHORTEST, LOG_LONGEST))
    at, moments = root.log_q, root.known.moments
    if xp is np and about.table is not None:
        at, moments = _by_quadrature(phi, about, log_w, log_b, at)
    log_q = xp.where(xp.isfinite(log_q), at, log_q)
    # a signal without length keeps it
    empty = (sigma_b == 0) & ((sigma_w == 0) | (q0 == 0)) & vanishes(phi)
    return _around(phi, about, sigma_w, sigma_b, at, moments, xp.where(empty, -np.inf, log_q))


def _solve_all(phi: Activation, about: Features, sigma_w: AnyArray, sigma_b: AnyArray, q0: AnyArray) -> FixedPoint:
    xp = host.namespace(sigma_w, sigma_b, q0)
    log_w, log_b = log_square(sigma_w), log_square(sigma_b)
    f = _length_function(phi, about, log_w, log_b)
    roots, found, marginal = all_roots(f, _length_samples(on_grid(phi, about), log_w, log_b))
    log_q = xp.where(found, roots.log_q, np.nan)
    # a signal without length keeps it; where every length is a fixed point it is the input's
    first = _first_length(sigma_w, sigma_b, q0)
    at_zero = (sigma_b == 0) & vanishes(phi)
    special = at_zero | marginal
    leading = np.arange(len(log_q)) == 0
    named = xp.where(marginal, first, -np.inf)
    log_q = xp.where(special, xp.where(leading, named, xp.where(marginal, np.nan, xp.roll(log_q, 1))), log_q)
    at = xp.where(xp.isfinite(log_q), log_q, xp.where(special & leading, LOG_SHORTEST, roots.log_q))
    if xp is np and about.table is not None:
        at, moments = _by_quadrature(phi, about, log_w, log_b, at)
        log_q = xp.where(xp.isfinite(log_q), at, log_q)
    else:
        moments = log_moments(phi, about, at)
    return _around(phi, about, sigma_w, sigma_b, at, moments, log_q)


def _by_quadrature(
    phi: Activation, about: Features, log_w: AnyArray, log_b: AnyArray, log_q: AnyArray
) -> tuple[AnyArray, LogMoments]:
    """Roots that a table has, to the digits of quadrature, and moments there."""
    about = about._replace(table=None)
    known = _excess(log_moments(phi, about, log_q), log_w, log_b, log_q)
    step = known.value / known.slope
    # where every length is nearly a fixed point, a step is noise
    log_q = np.where(np.abs(step) < 1e-8, log_q - step, log_q)
    return log_q, log_moments(phi, about, log_q)


def _local(phi: Activation, about: Features, *scalars: AnyArray) -> dict[str, AnyArray]:
    """What vanishes at a fixed point, and the fields of its record, as functions of the gains and of (ln q, 1 - c)."""
    sigma_w, sigma_b, q0, log_q, distance = scalars
    log_w, log_b = log_square(sigma_w), log_square(sigma_b)
    moments = log_moments(phi, about, log_q)
    length = log_length_map(moments, log_w, log_b, log_q)
    ordered = distance == 0
    apart = jnp.where(ordered, 1.0, distance)
    found = log_pair(phi, about, log_q, apart, rule(about))
    slope = length.pair_share * jnp.exp(moments.near_slope)
    return {
        "length": length.log_ratio,
        "correlation": length.pair_share * found.gap / apart - 1.0,
        "first": _first_length(sigma_w, sigma_b, q0),
        "slope": jnp.exp(log_w + moments.log_growth) * moments.length_power,
        "chi_1": jnp.exp(log_w + moments.log_slope),
        "chi_c": jnp.where(ordered, slope, length.pair_share * found.slope),
    }


def _derivatives_at(phi: Activation, about: Features, numbers: tuple[AnyArray, ...], found: FixedPoint) -> FixedPoint:
    """Derivatives of one record in the numbers, by the implicit function theorem."""
    known = jnp.isfinite(found.log_q)
    log_q = jnp.where(known, found.log_q, jnp.where(found.log_q > 0, LOG_LONGEST, LOG_SHORTEST))
    distance = 1.0 - found.c
    by = derivatives(lambda phi, *scalars: _local(phi, about, *scalars), phi, numbers, (log_q, distance))
    outer = {name: slopes[:-2] for name, slopes in by.items()}
    excess = by["length"][-2]
    # where every length is a fixed point it is the first layer's
    marginal = jnp.abs(excess) <= ROUNDING
    moved = jnp.where(marginal, outer["first"], -outer["length"] / jnp.where(marginal, 1.0, excess))
    d_log_q = jnp.where(known, moved, 0.0)
    along = by["correlation"][-1]
    apart = -(outer["correlation"] + by["correlation"][-2] * d_log_q) / jnp.where(distance == 0, 1.0, along)
    d_distance = jnp.where(distance == 0, 0.0, apart)

    def total(name: str) -> AnyArray:
        return outer[name] + by[name][-2] * d_log_q + by[name][-1] * d_distance

    def of_scale(scale: AnyArray, chi: AnyArray, name: str) -> AnyArray:
        # xi = -1/ln chi
        return jnp.where(jnp.isfinite(scale), scale**2 / chi, 0.0) * total(name)

    slope = jnp.where(found.xi_q == 0, 1.0, jnp.exp(-1.0 / found.xi_q))
    sign = jnp.sign(jnp.log(found.chi_1))
    missing = jnp.isnan(found.log_q)
    slopes = FixedPoint(
        q=jnp.where(known, found.q, 0.0) * d_log_q,
        c=-d_distance,
        chi_1=total("chi_1"),
        chi_c=total("chi_c"),
        xi_q=of_scale(found.xi_q, slope, "slope"),
        xi_c=of_scale(found.xi_c, found.chi_c, "chi_c"),
        xi_grad=-sign * of_scale(found.xi_grad, found.chi_1, "chi_1"),
        stable=jnp.zeros_like(d_log_q),
        log_q=d_log_q,
    )
    return FixedPoint(*(jnp.where(missing, 0.0, slope) for slope in slopes))


def _jacobian(phi: Activation, about: Features, record: tuple[AnyArray, ...], *numbers: AnyArray) -> FixedPoint:
    found = FixedPoint(*record)
    one = lambda found: _derivatives_at(phi, about, numbers, found)
    return one(found) if found.q.ndim == 0 else jax.vmap(one)(found)


_fixed_point = differentiable(_solve_one, _jacobian)
_fixed_points = differentiable(_solve_all, _jacobian)


def fixed_points(activation: AnyActivation, sigma_w: ArrayLike, sigma_b: ArrayLike, q0: ArrayLike = 1.0) -> FixedPoint:
    """All fixed points of the length map, ascending in q, stable or not.

    q* = sigma_w^2 V(q*) + sigma_b^2 (Poole et al. 2016, eq. 3). gelu and silu have three just below
    sigma_w^2 = 2: the outer two are stable, and which one a network reaches depends on its input's length.

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        q0: mean square of the input; matters only where every length is a fixed point (relu at sigma_w^2 = 2,
            sigma_b = 0), where the one it leads to is returned.

    Returns:
        A record with a leading axis of 8: the fixed points, 0 among them, then NaN. All NaN
        where the length grows without bound.

    Raises:
        ValueError: if a gain is negative or not finite.

    Example:
        >>> point = jax.jit(lambda: fixed_points("gelu", 1.995**0.5, 0.4))()
        >>> [f"{q:.3f}" for q in point.q if q == q], point.stable[:3].tolist()
        (['1.566', '2.173', '41.458'], [True, False, True])
    """
    phi = get(activation)
    check_gains(sigma_w, sigma_b)
    return _fixed_points(phi, sigma_w, sigma_b, q0)


def fixed_point(activation: AnyActivation, sigma_w: ArrayLike, sigma_b: ArrayLike, q0: ArrayLike = 1.0) -> FixedPoint:
    """The fixed point that a network reaches from inputs of mean square q0.

    The next one above or below the first layer's length q_1 = sigma_w^2 q0 + sigma_b^2, whichever way the length
    map points there. With c* the stable correlation, chi_1 = sigma_w^2 M(q*), chi_c the correlation map's slope at
    c*, and depth scales xi = -1/ln(slope) (Schoenholz et al. 2017, eqs. 7-9); xi_grad = 1/|ln chi_1|.

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        q0: mean square of the input, >= 0.

    Returns:
        The record, scalars. q = inf where the length grows without bound (relu, sigma_w^2 > 2); the other fields
        are then the limits along the way.

    Raises:
        ValueError: if a gain is negative or not finite.

    Example:
        >>> point = jax.jit(lambda: fixed_point("tanh", 1.3, 0.3))()
        >>> f"q* = {point.q:.4f}, c* = {point.c:.3f}, chi_1 = {point.chi_1:.4f}"
        'q* = 0.6070, c* = 1.000, chi_1 = 0.9398'
    """
    phi = get(activation)
    check_gains(sigma_w, sigma_b)
    return _fixed_point(phi, sigma_w, sigma_b, q0)
