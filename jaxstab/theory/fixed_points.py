"""Fixed points of the length and correlation maps, the depth scales around them, and the critical line.

Roots are bracketed on one fixed logarithmic grid of lengths, whose moments do not depend on the gains (under `vmap`
over gains they are computed once), then bisected; one Newton step at the end carries the implicit derivative.
Call these under `jax.jit`: eager, the first call compiles some hundred small operations, one at a time.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from jaxstab.activations import Activation, get
from jaxstab.checks import check_gains
from jaxstab.records import CriticalPoint, FixedPoint
from jaxstab.theory.maps import (
    AnyActivation,
    _float,
    correlation_map,
    correlation_slope,
    derivative_moment,
    length_map,
    second_moment,
    second_moment_slope,
)
from jaxstab.theory.quadrature import LONGEST, SHORTEST

# lengths searched: 25 a decade; roots outside are reported as 0 or inf
_LOG10_LENGTHS = (-10.0, 12.0, 551)
# from a tenth to 1e-16 of the root
_HALVINGS = 50
# more fixed points of one map than any activation known to us has
CAPACITY = 8


def _tolerance(q: Array) -> Array:
    return jnp.asarray(64 * jnp.finfo(q.dtype).eps, q.dtype)


def _lengths(dtype: jnp.dtype) -> Array:
    return jnp.logspace(*_LOG10_LENGTHS, dtype=dtype)


# Loops run over module-level steps that carry their function as a `Partial`, whose static part is cached per
# activation: JAX then recognises the loop, and an eager second call compiles nothing.


def _halve(_: Array | int, state: tuple[Partial, Array, Array, Array]) -> tuple[Partial, Array, Array, Array]:
    f, sign, low, high = state
    middle = jnp.sqrt(low * high)
    left = jnp.sign(f(middle)) == sign
    return f, sign, jnp.where(left, middle, low), jnp.where(left, high, middle)


def _bisect(f: Partial, low: Array, high: Array) -> Array:
    """Root of f between positive brackets, by bisection of ln q; f is vectorised over brackets."""
    _, _, low, high = jax.lax.fori_loop(0, _HALVINGS, _halve, (f, jnp.sign(f(low)), low, high))
    return jnp.sqrt(low * high)


def _roots(f: Partial, slope: Partial, scale: Partial) -> tuple[Array, Array]:
    """All sign changes of f on the grid of lengths, bisected.

    Values within rounding of `scale` count as zero. Two roots between neighbouring lengths show as a slope that
    changes sign there: the extremum between them joins the grid.

    Returns:
        CAPACITY roots ascending, NaN behind them; and whether f is zero all along.
    """
    q = _lengths(jnp.result_type(float))
    rising = jnp.sign(slope(q))
    turning = jnp.nonzero(rising[1:] != rising[:-1], size=CAPACITY, fill_value=len(q) - 2)[0]
    q = jnp.sort(jnp.concatenate([q, _bisect(slope, q[turning], q[turning + 1])]))
    value = f(q)
    sign = jnp.where(jnp.abs(value) <= _tolerance(q) * scale(q), 0.0, jnp.sign(value)).astype(q.dtype)
    # a stretch of zeros takes the sign before it, so that rounding makes no roots
    held = jax.lax.associative_scan(_last_nonzero, sign)
    cells = jnp.nonzero(held[1:] * held[:-1] < 0, size=CAPACITY, fill_value=len(q))[0]
    found = cells < len(q)
    cells = jnp.minimum(cells, len(q) - 2)
    return jnp.where(found, _bisect(f, q[cells], q[cells + 1]), jnp.nan), jnp.all(sign == 0)


def _last_nonzero(before: Array, after: Array) -> Array:
    return jnp.where(after == 0, before, after)


@functools.cache
def _length_functions(phi: Activation) -> tuple[Callable, Callable, Callable]:
    """The length map's excess over q, its slope, and the size of its terms, as functions of (w, b, q [n])."""
    moment = jax.vmap(functools.partial(second_moment, phi))
    moment_slope = jax.vmap(functools.partial(second_moment_slope, phi))
    return (
        lambda w, b, q: w**2 * moment(q) + b**2 - q,
        lambda w, b, q: w**2 * moment_slope(q) - 1.0,
        lambda w, b, q: w**2 * moment(q) + b**2 + q,
    )


def _newton(f: Callable[[Array], Array], slope: Array, root: Array) -> Array:
    """One Newton step from a root: zero in value, it carries the root's derivative by the implicit function theorem."""
    usable = jnp.isfinite(root) & (jnp.abs(slope) > _tolerance(root))
    at = jnp.where(jnp.isfinite(root), root, 1.0)
    return jnp.where(usable, at - f(at) / jnp.where(usable, stop_gradient(slope), 1.0), root)


def _length_roots(phi: Activation, sigma_w: Array, sigma_b: Array) -> tuple[Array, Array]:
    """Positive length fixed points (CAPACITY, NaN behind), and whether every length is one (relu, sigma_w^2 = 2)."""
    gains = stop_gradient((sigma_w, sigma_b))
    excess, slope, scale = (Partial(f, *gains) for f in _length_functions(phi))
    roots, marginal = _roots(excess, slope, scale)
    return _newton(Partial(_length_functions(phi)[0], sigma_w, sigma_b), slope(roots), roots), marginal


def _depth_scale(chi: Array) -> Array:
    """-1/ln chi, inf where chi is 1 to working precision."""
    rate = jnp.log(jnp.abs(chi))
    critical = jnp.abs(rate) <= _tolerance(rate)
    return jnp.where(critical, jnp.inf, -1.0 / jnp.where(critical, 1.0, rate))


@functools.cache
def _correlation_functions(phi: Activation) -> tuple[Callable, Callable]:
    """The correlation map's excess over c and its slope, as functions of (w, b, q, c)."""
    return (
        lambda w, b, q, c: correlation_map(phi, w, b, q, c) - c,
        lambda w, b, q, c: correlation_slope(phi, w, b, q, c) - 1.0,
    )


def _climb(state: tuple[Partial, Partial, Array, Array, Array]) -> tuple[Partial, Partial, Array, Array, Array]:
    excess, slope, c, _, n = state
    new = jnp.clip(c - excess(c) / slope(c), 0.0, 1.0)
    return excess, slope, new, jnp.abs(new - c), n + 1


def _climbing(state: tuple[Partial, Partial, Array, Array, Array]) -> Array:
    _, _, c, change, n = state
    return (change > _tolerance(c) / 16) & (n < 60)


def _stable_correlation(phi: Activation, sigma_w: Array, sigma_b: Array, q: Array) -> Array:
    """The stable c* in [0, 1] of the correlation map at length q."""
    # The map is convex on [0, 1] (its coefficients are squared Hermite coefficients of phi), so Newton from 0 climbs to
    # the lowest root without overshooting, and that root is 1 exactly when the slope at 1 is at most 1.
    excess, slope = (Partial(f, *stop_gradient((sigma_w, sigma_b, q))) for f in _correlation_functions(phi))
    one = jnp.ones_like(q)
    ordered = slope(one) <= _tolerance(q)
    start = (excess, slope, jnp.where(ordered, one, 0.0), jnp.where(ordered, 0.0, one), jnp.asarray(0))
    c = stop_gradient(jax.lax.while_loop(_climbing, _climb, start)[2])
    polished = _newton(Partial(_correlation_functions(phi)[0], sigma_w, sigma_b, q), slope(c), c)
    return jnp.where(ordered, one, polished)


def _around(phi: Activation, sigma_w: Array, sigma_b: Array, q: Array) -> FixedPoint:
    """The record of the fixed point at length q (0 and inf allowed, NaN gives NaN)."""
    nowhere = jnp.isnan(q)
    at = jnp.clip(jnp.where(nowhere, 1.0, q), SHORTEST, LONGEST)
    slope = sigma_w**2 * second_moment_slope(phi, at)
    c = _stable_correlation(phi, sigma_w, sigma_b, at)
    chi_1 = sigma_w**2 * derivative_moment(phi, at)
    chi_c = correlation_slope(phi, sigma_w, sigma_b, at, c)
    known = lambda field: jnp.where(nowhere, jnp.nan, field)
    return FixedPoint(
        q=q,
        c=known(c),
        chi_1=known(chi_1),
        chi_c=known(chi_c),
        xi_q=known(_depth_scale(slope)),
        xi_c=known(_depth_scale(chi_c)),
        xi_grad=known(jnp.abs(_depth_scale(chi_1))),
        stable=(jnp.abs(slope) < 1.0 - _tolerance(q)) & jnp.isfinite(q),
    )


def _candidates(phi: Activation, sigma_w: Array, sigma_b: Array, q0: ArrayLike) -> Array:
    """All length fixed points ascending, NaN behind: 0, the positive ones; where every length is one, the input's."""
    roots, marginal = _length_roots(phi, sigma_w, sigma_b)
    at_zero = (sigma_b == 0) & (phi(jnp.zeros_like(sigma_b)) == 0)
    roots = jnp.sort(jnp.where(at_zero, jnp.roll(roots, 1).at[0].set(0.0), roots))
    first = length_map(phi, sigma_w, sigma_b, _first_length(sigma_w, sigma_b, q0))
    return jnp.where(marginal, jnp.full_like(roots, jnp.nan).at[0].set(first), roots)


def _first_length(sigma_w: Array, sigma_b: Array, q0: ArrayLike) -> Array:
    return sigma_w**2 * _float(q0) + sigma_b**2


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
        A record with a leading axis of CAPACITY = 8: the fixed points in [1e-10, 1e12] and 0, then NaN. All NaN
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
    w, b = _float(sigma_w), _float(sigma_b)
    return jax.vmap(lambda q: _around(phi, w, b, q))(_candidates(phi, w, b, q0))


def fixed_point(activation: AnyActivation, sigma_w: ArrayLike, sigma_b: ArrayLike, q0: ArrayLike = 1.0) -> FixedPoint:
    """The fixed point that a network reaches from inputs of mean square q0.

    The next one above or below the first layer's length q_1 = sigma_w^2 q0 + sigma_b^2, whichever way the length
    map points there. With c* the stable correlation, chi_1 = sigma_w^2 M(q*), chi_c the correlation map's slope at
    c*, and depth scales xi = -1/ln(slope) (Schoenholz et al. 2017, eqs. 7-9); xi_grad = 1/|ln chi_1|.

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        q0: mean square of the input, > 0.

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
    w, b = _float(sigma_w), _float(sigma_b)
    first = _first_length(w, b, q0)
    drift = length_map(phi, w, b, first) - first
    points = _candidates(phi, w, b, q0)
    # first is a fixed point itself where the drift is rounding
    slack = _tolerance(first) * first
    above = jnp.min(jnp.where(points >= first - slack, points, jnp.inf))
    below = jnp.max(jnp.where(points <= first + slack, points, -jnp.inf))
    reached = jnp.where((drift > 0) & (jnp.abs(drift) > slack), above, jnp.where(below >= 0, below, above))
    return _around(phi, w, b, reached)


@functools.cache
def _critical_functions(phi: Activation) -> tuple[Callable, Callable, Callable]:
    """The excess of q - V/M over sigma_b^2, its slope, and the size of its terms, as functions of (b, q [n])."""

    def bias(q: Array) -> Array:
        return q - second_moment(phi, q) / derivative_moment(phi, q)

    def size(q: Array) -> Array:
        return q + second_moment(phi, q) / derivative_moment(phi, q)

    return (
        lambda b, q: jax.vmap(bias)(q) - b**2,
        lambda b, q: jax.vmap(jax.grad(bias))(q),
        lambda b, q: jax.vmap(size)(q),
    )


def critical_points(activation: AnyActivation, sigma_b: ArrayLike) -> CriticalPoint:
    """All gains at which chi_1 = 1 on a length fixed point, ascending in q, and whether a network stays there.

    Along the critical line sigma_w^2 = 1/M(q) and sigma_b^2 = q - V(q)/M(q). For gelu and silu at small sigma_b
    the point sits on a length fixed point that repels: it is listed, and not usable.

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_b: bias standard deviation, >= 0.

    Returns:
        A record with a leading axis of CAPACITY + 1; NaN where there is none. The last entry is the one at q = inf.

    Raises:
        ValueError: if sigma_b is negative or not finite.

    Example:
        >>> point = jax.jit(lambda: critical_points("tanh", 0.05**0.5))()
        >>> print(f"sigma_w^2 = {point.sigma_w[0] ** 2:.5f} at q = {point.q[0]:.5f}, usable: {point.usable[0]}")
        sigma_w^2 = 1.76095 at q = 0.57005, usable: True
    """
    phi = get(activation)
    check_gains(0.0, sigma_b)
    b = _float(sigma_b)
    excess, slope, scale = (Partial(f, stop_gradient(b)) for f in _critical_functions(phi))
    roots, marginal = _roots(excess, slope, scale)
    roots = _newton(Partial(_critical_functions(phi)[0], b), slope(roots), roots)
    at_zero = (b == 0) & (phi(jnp.zeros_like(b)) == 0)
    roots = jnp.where(at_zero, jnp.roll(roots, 1).at[0].set(0.0), roots)
    roots = jnp.where(marginal, jnp.full_like(roots, jnp.nan).at[0].set(1.0), roots)
    derivative = jax.vmap(functools.partial(derivative_moment, phi))
    longest = jnp.asarray(LONGEST, roots.dtype)
    grows_linearly = second_moment(phi, longest) / longest > _tolerance(roots)
    q = jnp.append(roots, jnp.where(grows_linearly & ~marginal, jnp.inf, jnp.nan))
    at = jnp.clip(jnp.where(jnp.isnan(q), 1.0, q), SHORTEST, LONGEST)
    sigma_w = jnp.where(jnp.isnan(q), jnp.nan, 1.0 / jnp.sqrt(derivative(at)))
    repels = sigma_w**2 * jax.vmap(functools.partial(second_moment_slope, phi))(at) > 1.0 + _tolerance(q)
    # at 0 the slope is 1 whatever the drift beside it: gelu's lengths leave, tanh's come back
    beside = jnp.asarray(1e-4, q.dtype)
    leaves = sigma_w**2 * second_moment(phi, beside) / beside > 1.0 + _tolerance(q)
    repels |= (q == 0) & leaves
    every_length = derivative(_lengths(q.dtype))
    scale_free = jnp.ptp(every_length) <= _tolerance(q) * jnp.max(every_length)
    return CriticalPoint(sigma_w, q, ~jnp.isnan(q) & ~repels & (jnp.isfinite(q) | scale_free))


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
