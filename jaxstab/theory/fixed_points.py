"""Fixed points of the length and correlation maps, and the depth scales around them.

All of it is in ln q and in 1 - c. Moments on the grid of lengths do not depend on the gains: under `vmap` over gains
they are computed once. Roots carry their derivative by one Newton step at the end (implicit function theorem).
"""

import functools

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, ArrayLike

from jaxstab.activations import Activation, get
from jaxstab.checks import check_gains
from jaxstab.records import FixedPoint
from jaxstab.theory.features import Features, Nodes
from jaxstab.theory.maps import AnyActivation, log_length_map, log_square, log_sum
from jaxstab.theory.moments import LOG_LONGEST, LOG_SHORTEST, LogMoments, inside, log_moments, log_pair
from jaxstab.theory.precision import compiled
from jaxstab.theory.quadrature import ACCURACY
from jaxstab.theory.roots import LOG_LENGTHS, Function, Known, Root, Samples, all_roots, next_root, tolerance

# a rule of few nodes brings 1 - c* to about 1e-5 of itself, from where two steps of the fine one suffice
_START_STEPS, _STEPS = 6, 3


def on_grid(phi: Activation, about: Features) -> LogMoments:
    """Moments on the grid of lengths.

    Args:
        phi: the activation.
        about: its features.

    Returns:
        The moments, along the grid.
    """
    return jax.vmap(functools.partial(log_moments, phi, about))(jnp.asarray(LOG_LENGTHS))


def _excess(moments: LogMoments, log_w: Array, log_b: Array, log_q: Array) -> Known:
    """ln (q'/q), zero at a fixed point, and its slope in ln q."""
    length = log_length_map(moments, log_w, log_b, log_q)
    slope = jnp.exp(length.log_share + moments.log_growth) * moments.length_power - 1.0
    return Known(length.log_ratio, slope, moments)


def _length_function(phi: Activation, about: Features, log_w: Array, log_b: Array) -> Function:
    return lambda log_q: _excess(log_moments(phi, about, log_q), log_w, log_b, log_q)


def _length_samples(moments: LogMoments, log_w: Array, log_b: Array) -> Samples:
    grid = jnp.asarray(LOG_LENGTHS)
    known = jax.vmap(_excess, (0, None, None, 0))(moments, log_w, log_b, grid)
    return Samples(grid, known.value, known.slope)


def depth_scale(chi: Array) -> Array:
    """-1/ln chi, inf where chi is 1 to working precision.

    Args:
        chi: factor per layer.

    Returns:
        Layers.
    """
    rate = jnp.log(jnp.abs(chi))
    critical = jnp.abs(rate) <= tolerance(rate.dtype)
    return jnp.where(critical, jnp.inf, -1.0 / jnp.where(critical, 1.0, rate))


def _stable_distance(
    phi: Activation, about: Features, log_q: Array, share: Array, moments: LogMoments
) -> tuple[Array, Array]:
    """1 - c* of the stable correlation in [0, 1], and the correlation map's slope there.

    With d = 1 - c the map is d' = share gap(d), and r(d) = share gap(d)/d falls from share E phi'^2 at d = 0: it is
    convex, as its coefficients in c are squared Hermite coefficients of phi. The one root of r = 1 is stable; where
    r <= 1 everywhere, d = 0 is.

    Newton runs in the root of d, in which r falls linearly from d = 0 for kinked phi, and starts from the chord.

    Returns:
        1 - c*, and the slope.
    """
    slope = share * jnp.exp(moments.near_slope)
    ordered = slope <= 1.0 + tolerance(slope.dtype)

    def excess(nodes: Nodes, root: Array) -> tuple[Array, Array, Array]:
        """r - 1, its derivative in the root of d, and the map's slope."""
        found = log_pair(phi, about, log_q, root**2, nodes)
        ratio = share * found.gap / root**2
        chi = share * found.slope
        return ratio - 1.0, 2 * (chi - ratio) / root, chi

    def step(nodes: Nodes, _: Array | int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        highest, root = state
        value, derivative, _ = excess(nodes, root)
        highest = jnp.where(value > 0, highest, root)
        new = root - value / jnp.where(derivative == 0, 1.0, derivative)
        return highest, jnp.clip(new, root / 4, highest)

    start = slope - 1.0
    end = share * (jnp.exp(moments.near_growth) - moments.mean**2 * jnp.exp(-inside(log_q))) - 1.0
    chord = jnp.where(jnp.isfinite(start) & ~ordered, start / jnp.where(ordered, 1.0, start - end), 1.0)
    highest = stop_gradient(jnp.sqrt(jnp.clip(chord, 1e-18, 1.0)))
    root = jax.lax.fori_loop(0, _START_STEPS, functools.partial(step, about.start), (highest, highest))[1]

    def last_step(root: Array, _: None) -> tuple[Array, tuple[Array, Array, Array]]:
        """A step that carries derivatives: those of a Newton step from a root are the implicit function's."""
        value, derivative, chi = excess(about.nodes, root)
        derivative = stop_gradient(jnp.where(derivative == 0, 1.0, derivative))
        return jnp.clip(root - value / derivative, root / 4, 1.0), (root, derivative, chi)

    root, along = jax.lax.scan(last_step, stop_gradient(root), None, length=_STEPS)
    before, derivative, chi = (values[-1] for values in along)
    distance = root**2
    if about.check is not None:
        other, _, other_chi = excess(about.check, before)
        unsure = jnp.abs(other / derivative + root - before) * 2 * root + jnp.abs(other_chi - chi) > ACCURACY
        distance = jnp.where(unsure, jnp.nan, distance)
        chi = jnp.where(unsure, jnp.nan, chi)
    return jnp.where(ordered, 0.0, distance), jnp.where(ordered, slope, chi)


def _around(phi: Activation, about: Features, sigma_w: Array, sigma_b: Array, root: Root, log_q: Array) -> FixedPoint:
    """The record of the fixed point at length q: the root's, or 0 or inf with the limits on the way; NaN gives NaN."""
    nowhere = jnp.isnan(log_q)
    log_w = log_square(sigma_w)
    at, moments = root.log_q, root.known.moments
    length = log_length_map(moments, log_w, log_square(sigma_b), at)
    slope = jnp.exp(log_w + moments.log_growth) * moments.length_power
    chi_1 = jnp.exp(log_w + moments.log_slope)
    distance, chi_c = _stable_distance(phi, about, at, length.pair_share, moments)
    fields = (1.0 - distance, chi_1, chi_c, depth_scale(slope), depth_scale(chi_c))
    c, chi_1, chi_c, xi_q, xi_c = (jnp.where(nowhere, jnp.nan, field) for field in fields)
    return FixedPoint(
        q=jnp.exp(log_q),
        c=c,
        chi_1=chi_1,
        chi_c=chi_c,
        xi_q=xi_q,
        xi_c=xi_c,
        xi_grad=jnp.abs(depth_scale(chi_1)),
        stable=(jnp.abs(slope) < 1.0 - tolerance(slope.dtype)) & (log_q < jnp.inf),
        log_q=log_q,
    )


def vanishes(phi: Activation) -> Array:
    """Whether phi(0) = 0, so that a signal of length 0 stays one.

    Args:
        phi: the activation.

    Returns:
        Whether.
    """
    return phi(jnp.zeros(1))[0] == 0


@compiled()
def _fixed_points(phi: Activation, about: Features, sigma_w: Array, sigma_b: Array, q0: Array) -> FixedPoint:
    log_w, log_b = log_square(sigma_w), log_square(sigma_b)
    f = _length_function(phi, about, log_w, log_b)
    roots, found, marginal = all_roots(f, _length_samples(on_grid(phi, about), log_w, log_b))
    log_q = jnp.where(found, roots.log_q, jnp.nan)
    first = log_sum(log_w + jnp.log(q0), log_b)
    # a signal without length keeps it; where every length is a fixed point it is the input's
    at_zero = (sigma_b == 0) & vanishes(phi)
    rolled = jax.tree.map(lambda values: jnp.roll(values, 1), roots)
    roots = jax.tree.map(lambda some, other: jnp.where(at_zero | marginal, some, other), rolled, roots)
    log_q = jnp.where(at_zero, jnp.roll(log_q, 1).at[0].set(-jnp.inf), log_q)
    log_q = jnp.where(marginal, jnp.full_like(log_q, jnp.nan).at[0].set(first), log_q)
    special = jnp.where(marginal, first, LOG_SHORTEST)
    there = Root(special, f(special))
    roots = jax.tree.map(lambda one, many: jnp.where(at_zero | marginal, many.at[0].set(one), many), there, roots)
    return jax.vmap(lambda root, log_q: _around(phi, about, sigma_w, sigma_b, root, log_q))(roots, log_q)


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


@compiled()
def _fixed_point(phi: Activation, about: Features, sigma_w: Array, sigma_b: Array, q0: Array) -> FixedPoint:
    log_w, log_b = log_square(sigma_w), log_square(sigma_b)
    f = _length_function(phi, about, log_w, log_b)
    samples = _length_samples(on_grid(phi, about), log_w, log_b)
    first = log_sum(log_w + jnp.log(q0), log_b)
    root, log_q = next_root(f, samples, first, (LOG_SHORTEST, LOG_LONGEST))
    return _around(phi, about, sigma_w, sigma_b, root, log_q)


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
