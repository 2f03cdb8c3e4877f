"""Fixed points of the length and correlation maps of a block, and their derivatives.

All equations are in ln q and 1 - c. Moments on the grid of lengths do not depend on the gains and
are tabulated once. Derivatives of roots follow from the implicit function theorem.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from jaxstab.activations import Activation
from jaxstab.checks import check_gains, check_inputs, check_one_point
from jaxstab.records import FixedPoint
from jaxstab.theory import host
from jaxstab.theory.block_maps import Gains, batch_state, gains_of
from jaxstab.theory.block_moments import block_moments, on_grid
from jaxstab.theory.blocks import Block, Form, block_of, far, grid_of, is_at_once, parted, vanishes
from jaxstab.theory.features import Features
from jaxstab.theory.host import AnyArray
from jaxstab.theory.implicit import derivatives, differentiable
from jaxstab.theory.laws import AnyBlock, Law, as_law
from jaxstab.theory.maps import log_length_map, log_sum
from jaxstab.theory.moments import LOG_LONGEST, LOG_SHORTEST, LogMoments, log_pair
from jaxstab.theory.quadrature import rule
from jaxstab.theory.ranges import in_range
from jaxstab.theory.reasons import unsolvable
from jaxstab.theory.roots import CAPACITY, ROUNDING, Function, Known, Samples, all_roots, next_root
from jaxstab.theory.scales import Slopes, around, paired_at, with_skip


def _excess(moments: LogMoments, gains: Gains, log_x: AnyArray) -> Known:
    """Compute ln (x'/x), which is 0 at a fixed point, and its slope in ln x."""
    xp = host.namespace(*gains, log_x)
    length = log_length_map(moments, gains.weight, gains.bias, log_x)
    slope = xp.exp(length.log_share + moments.log_growth) * moments.length_power - 1.0
    return Known(length.log_ratio, slope, moments)


def _length_function(block: Block, gains: Gains) -> Function:
    return lambda log_x: _excess(block_moments(block, log_x), gains, log_x)


def _length_samples(block: Block, gains: Gains) -> Samples:
    grid = grid_of(block)
    known = _excess(on_grid(block), gains, grid)
    return Samples(grid, known.value, known.slope)


def _first_length(gains: Gains, q0: AnyArray) -> AnyArray:
    """Compute ln x of the first layer."""
    return log_sum(gains.embed + host.namespace(q0).log(q0), gains.bias)


def _still(block: Block, gains: Gains) -> AnyArray:
    """Flag the points at which a residual block is the identity map."""
    xp = host.namespace(*gains)
    nothing = (gains.weight == -np.inf) & (gains.own_bias == -np.inf)
    if block.law.skip == "rezero":
        nothing = nothing | (xp.asarray(block.law.alpha) == 0)
    return nothing


def _solve_one(
    form: Form,
    phi: Activation,
    about: Features,
    sigma_w: AnyArray,
    sigma_b: AnyArray,
    q0: AnyArray,
    *numbers: AnyArray,
) -> FixedPoint:
    xp = host.namespace(sigma_w, sigma_b, q0, *numbers)
    block = block_of(form, phi, about, numbers)
    gains = gains_of(block, sigma_w, sigma_b)
    first = _first_length(gains, q0)
    # q = 0 is a fixed point here
    empty = (sigma_b == 0) & ((sigma_w == 0) | (q0 == 0)) & vanishes(block)
    if block.law.residual:
        still = _still(block, gains)
        log_x = xp.where(still, first, xp.where(empty, -np.inf, np.inf))
        log_root = xp.where(
            still, xp.maximum(first, LOG_SHORTEST), xp.where(empty, LOG_SHORTEST, far(block))
        )
        log_x = in_range(log_x, sigma_w, sigma_b, q0)
        return around(block, gains, log_root, block_moments(block, log_root), log_x)
    f = _length_function(block, gains)
    samples = _length_samples(block, gains)
    first = xp.maximum(first, samples.log_q[0])
    root, log_x = next_root(f, samples, first, (LOG_SHORTEST, LOG_LONGEST))
    log_root = root.log_q
    moments = root.known.moments
    if xp is np and about.table is not None:
        log_root, moments = _by_quadrature(block, gains, log_root)
    log_x = xp.where(xp.isfinite(log_x), log_root, log_x)
    log_x = in_range(xp.where(empty, -np.inf, log_x), sigma_w, sigma_b, q0)
    return around(block, gains, log_root, moments, log_x)


def _solve_all(
    form: Form,
    phi: Activation,
    about: Features,
    sigma_w: AnyArray,
    sigma_b: AnyArray,
    q0: AnyArray,
    *numbers: AnyArray,
) -> FixedPoint:
    xp = host.namespace(sigma_w, sigma_b, q0, *numbers)
    block = block_of(form, phi, about, numbers)
    gains = gains_of(block, sigma_w, sigma_b)
    at_zero = (sigma_b == 0) & vanishes(block)
    leading = np.arange(CAPACITY) == 0
    if block.law.residual:
        # from every other length the length grows without bound
        marginal = _still(block, gains)
        log_x = xp.full(CAPACITY, np.nan)
        inner = xp.full(CAPACITY, far(block))
    else:
        roots, is_root, marginal = all_roots(
            _length_function(block, gains), _length_samples(block, gains)
        )
        log_x = xp.where(is_root, roots.log_q, np.nan)
        inner = roots.log_q
    # q = 0 may be a fixed point; where every length is one, the input's length is returned
    first = _first_length(gains, q0)
    special = at_zero | marginal
    named = xp.where(marginal, first, -np.inf)
    log_x = xp.where(
        special, xp.where(leading, named, xp.where(marginal, np.nan, xp.roll(log_x, 1))), log_x
    )
    log_roots = xp.where(
        xp.isfinite(log_x), log_x, xp.where(special & leading, LOG_SHORTEST, inner)
    )
    if xp is np and about.table is not None and not block.law.residual:
        log_roots, moments = _by_quadrature(block, gains, log_roots)
        log_x = xp.where(xp.isfinite(log_x), log_roots, log_x)
    else:
        moments = block_moments(block, log_roots)
    return around(block, gains, log_roots, moments, in_range(log_x, sigma_w, sigma_b, q0))


def _by_quadrature(block: Block, gains: Gains, log_x: AnyArray) -> tuple[AnyArray, LogMoments]:
    """Refine roots of a table to the accuracy of quadrature; return the roots and moments there."""
    block = block._replace(about=block.about._replace(table=None))
    known = _excess(block_moments(block, log_x), gains, log_x)
    step = known.value / known.slope
    # where every length is nearly a fixed point, a step is noise
    log_x = np.where(np.abs(step) < 1e-8, log_x - step, log_x)
    return log_x, block_moments(block, log_x)


def _local(form: Form, phi: Activation, about: Features, *scalars: AnyArray) -> dict[str, AnyArray]:
    """Compute the two residuals at (ln x, 1 - c), 0 at a fixed point, and the record's fields."""
    sigma_w, sigma_b, q0, *numbers, log_x, distance = scalars
    block = block_of(form, phi, about, tuple(numbers))
    gains = gains_of(block, sigma_w, sigma_b)
    moments = block_moments(block, log_x)
    length = log_length_map(moments, gains.weight, gains.bias, log_x)
    growth = jnp.exp(gains.weight + moments.log_growth)
    slope = growth * moments.length_power
    log_q = log_x
    if block.law.norm == "batch":
        log_q, apart = batch_state(block, log_x, moments, gains)
        correlation = distance - apart
        chi_c = slope
    else:
        paired = paired_at(block, gains, log_x, moments, length)
        ordered = distance == 0
        apart = jnp.where(ordered, 1.0, distance)
        pair = log_pair(phi, about, paired.log_z, apart, rule(about))
        field = 0.0 if paired.field is None else paired.field / apart
        correlation = paired.share * pair.gap / apart + field - 1.0
        at_one = paired.share * jnp.exp(paired.moments.near_slope)
        chi_c = jnp.where(ordered, at_one, paired.share * pair.slope)
    branch = Slopes(slope, jnp.exp(gains.weight + moments.log_slope), chi_c)
    slopes = with_skip(block, length.log_ratio, branch)
    return {
        "length": length.log_ratio,
        "correlation": correlation,
        "first": _first_length(gains, q0),
        "log_q": log_q,
        "slope": slopes.length,
        "chi_1": slopes.chi_1,
        "chi_c": slopes.chi_c,
    }


def _derivatives_at(
    form: Form, phi: Activation, about: Features, numbers: tuple[AnyArray, ...], point: FixedPoint
) -> FixedPoint:
    """Compute the derivatives of one record in the numbers, by the implicit function theorem."""
    law = form.law
    known = jnp.isfinite(point.log_q)
    distance = point.distance
    longest = LOG_LONGEST
    log_x = jnp.where(known, point.log_q, 0.0)
    if law.norm == "batch":
        log_x = log_x + jnp.log(distance)
    if law.residual:
        longest = far(block_of(form, phi, about, numbers[3:]))
    log_x = jnp.where(known, log_x, jnp.where(point.log_q > 0, longest, LOG_SHORTEST))
    of_scalars = lambda phi, *scalars: _local(form, phi, about, *scalars)
    by = derivatives(of_scalars, phi, numbers, (log_x, distance))
    outer = {name: slopes[:-2] for name, slopes in by.items()}
    excess = by["length"][-2]
    # where every length is a fixed point, the root is the first layer's length
    marginal = jnp.abs(excess) <= ROUNDING
    if law.residual:
        marginal = jnp.ones_like(marginal)
    moved = jnp.where(marginal, outer["first"], -outer["length"] / jnp.where(marginal, 1.0, excess))
    d_log_x = jnp.where(known, moved, 0.0)
    along = by["correlation"][-1]
    apart = -(outer["correlation"] + by["correlation"][-2] * d_log_x) / jnp.where(
        distance == 0, 1.0, along
    )
    d_distance = jnp.where(distance == 0, 0.0, apart)

    def total(name: str) -> AnyArray:
        return outer[name] + by[name][-2] * d_log_x + by[name][-1] * d_distance

    def of_scale(scale: AnyArray, chi: AnyArray, name: str) -> AnyArray:
        # xi = -1/ln chi
        return jnp.where(jnp.isfinite(scale), scale**2 / chi, 0.0) * total(name)

    slope = jnp.where(point.xi_q == 0, 1.0, jnp.exp(-1.0 / point.xi_q))
    sign = jnp.sign(jnp.log(point.chi_1))
    missing = jnp.isnan(point.log_q)
    d_log_q = jnp.where(known, total("log_q"), 0.0)
    slopes = FixedPoint(
        q=jnp.where(known, point.q, 0.0) * d_log_q,
        c=-d_distance,
        chi_1=total("chi_1"),
        chi_c=total("chi_c"),
        xi_q=of_scale(point.xi_q, slope, "slope"),
        xi_c=of_scale(point.xi_c, point.chi_c, "chi_c"),
        xi_grad=-sign * of_scale(point.xi_grad, point.chi_1, "chi_1"),
        stable=jnp.zeros_like(d_log_q),
        log_q=d_log_q,
        distance=d_distance,
    )
    return FixedPoint(*(jnp.where(missing, 0.0, slope) for slope in slopes))


def _jacobian(
    form: Form, phi: Activation, about: Features, record: tuple[AnyArray, ...], *numbers: AnyArray
) -> FixedPoint:
    point = FixedPoint(*record)
    one = lambda found: _derivatives_at(form, phi, about, numbers, found)
    if point.q.ndim == 0:
        return one(point)
    return jax.vmap(one)(point)


@functools.cache
def _solver(solve: Callable[..., FixedPoint], form: Form) -> Callable[..., FixedPoint]:
    at_once = is_at_once(form.law)
    return differentiable(
        functools.partial(solve, form), functools.partial(_jacobian, form), at_once=at_once
    )


def _solved(
    solve: Callable[..., FixedPoint], law: Law, shape: tuple[int, ...], *gains: ArrayLike
) -> FixedPoint:
    """Solve for the record of a law; all fields are NaN where the law has no fixed point."""
    if unsolvable(law):
        unknown = jnp.full(shape, jnp.nan)
        return FixedPoint(*[unknown] * len(FixedPoint._fields))._replace(
            stable=jnp.zeros(shape, bool)
        )
    form, numbers = parted(law)
    return _solver(solve, form)(law.activation, *gains, *numbers)


def fixed_points(
    block: AnyBlock, sigma_w: ArrayLike, sigma_b: ArrayLike, q0: ArrayLike = 1.0
) -> FixedPoint:
    """Find all fixed points of the length map, stable or unstable, ascending in q.

    q* = sigma_w^2 V(q*) + sigma_b^2 (Poole et al. 2016, eq. 3). gelu and silu have three just below
    sigma_w^2 = 2. The outer two are stable; the input's length decides which of the two a network
    reaches.

    Args:
        block: `law` of a block, or a chain that carries one; for a plain block also the
            activation, as name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        q0: mean square of the input, >= 0; used only where every length is a fixed point (relu at
            sigma_w^2 = 2, sigma_b = 0). There the fixed point reached from q0 is returned.

    Returns:
        Record with a leading axis of 8: the fixed points, q = 0 included, padded with NaN. All NaN
        where the length grows without bound.

    Raises:
        ValueError: if a gain is negative or not finite, q0 is negative, or one is an array.

    Example:
        >>> point = jax.jit(lambda: fixed_points("gelu", 1.995**0.5, 0.4))()
        >>> [f"{q:.3f}" for q in point.q if q == q], point.stable[:3].tolist()
        (['1.566', '2.173', '41.458'], [True, False, True])
    """
    check_one_point(sigma_w=sigma_w, sigma_b=sigma_b)
    check_gains(sigma_w, sigma_b)
    check_inputs(q0)
    return _solved(_solve_all, as_law(block), (CAPACITY,), sigma_w, sigma_b, q0)


def fixed_point(
    block: AnyBlock, sigma_w: ArrayLike, sigma_b: ArrayLike, q0: ArrayLike = 1.0
) -> FixedPoint:
    """Find the fixed point that a network reaches from inputs of mean square q0.

    It is the next fixed point above or below the first layer's length sigma_w^2 q0 + sigma_b^2, in
    the direction of the length map there. c* is the stable correlation, chi_1 = sigma_w^2 M(q*),
    chi_c the correlation map's slope at c*. Depth scales are xi = -1/ln(slope) (Schoenholz et al.
    2017, eqs. 7-9) and xi_grad = 1/|ln chi_1|.

    Args:
        block: `law` of a block, or a chain that carries one; for a plain block also the
            activation, as name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        q0: mean square of the input, >= 0.

    Returns:
        Record of scalars. q = inf where the length grows without bound (relu, sigma_w^2 > 2); the
        other fields are then their limits as q grows.

    Raises:
        ValueError: if a gain is negative or not finite, q0 is negative, or one is an array.

    Example:
        >>> point = jax.jit(lambda: fixed_point("tanh", 1.3, 0.3))()
        >>> f"q* = {point.q:.4f}, c* = {point.c:.3f}, chi_1 = {point.chi_1:.4f}"
        'q* = 0.6070, c* = 1.000, chi_1 = 0.9398'
    """
    check_one_point(sigma_w=sigma_w, sigma_b=sigma_b)
    check_gains(sigma_w, sigma_b)
    check_inputs(q0)
    return _solved(_solve_one, as_law(block), (), sigma_w, sigma_b, q0)
