"""Roots of smooth functions of ln q: bracketed on one grid of lengths, then polished by a guarded Newton iteration."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from jaxstab.theory.moments import LogMoments

# E phi(sqrt(q) u)^2 is analytic in ln q within pi/2 of the real axis: it has no finer features. Beyond the range of
# quadrature there are only powers of q
_CORE = np.linspace(-28.0, 28.0, 281)
_FAR = np.geomspace(30.0, 12_000.0, 24)
LOG_LENGTHS = np.concatenate([-_FAR[::-1], _CORE, _FAR])
# room for the roots of one function
CAPACITY = 8
# Newton steps of a root, more than a bracket of the grid's spacing needs
_STEPS = 9


class Known(NamedTuple):
    """What a function knows at a length.

    Attributes:
        value: of the function.
        slope: of the function in ln q.
        moments: of the activation.
    """

    value: Float[Array, "*n"]
    slope: Float[Array, "*n"]
    moments: LogMoments


class Root(NamedTuple):
    """A root.

    Attributes:
        log_q: ln q.
        known: there.
    """

    log_q: Float[Array, "*n"]
    known: Known


Function = Callable[[Array], Known]


class Samples(NamedTuple):
    """A function on the grid.

    Attributes:
        log_q: the grid, ascending.
        value: of the function.
        slope: of the function.
    """

    log_q: Float[Array, " n"]
    value: Float[Array, " n"]
    slope: Float[Array, " n"]


def tolerance(dtype: jnp.dtype) -> float:
    """What counts as rounding.

    Args:
        dtype: of the numbers.

    Returns:
        The largest relative rounding.
    """
    return 64 * float(jnp.finfo(dtype).eps)


def signs(value: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """-1, 0 or 1; within rounding 0.

    Args:
        value: of a function that is a logarithm.

    Returns:
        Its sign.
    """
    return jnp.where(jnp.abs(value) <= tolerance(value.dtype), 0.0, jnp.sign(value))


def turning_points(samples: Samples) -> tuple[Bool[Array, " cell"], Float[Array, " cell"], Float[Array, " cell"]]:
    """Cells of the grid in which the function has an extremum, by the cubic through values and slopes.

    Args:
        samples: the function on the grid.

    Returns:
        Whether a cell has one, where, and its value.
    """
    left, right = samples.log_q[:-1], samples.log_q[1:]
    width = right - left
    low, high = samples.value[:-1], samples.value[1:]
    start, end = samples.slope[:-1] * width, samples.slope[1:] * width
    inside = start * end < 0
    rise = high - low
    # cubic: low + start t + second t^2 + third t^3
    second = 3 * rise - 2 * start - end
    third = start + end - 2 * rise
    root = jnp.sqrt(jnp.maximum(second**2 - 3 * third * start, 0.0))
    denominator = second + jnp.where(second >= 0, root, -root)
    safe = jnp.where(denominator == 0, 1.0, denominator)
    near, far = -start / safe, -safe / jnp.where(third == 0, 1.0, 3 * third)
    t = jnp.where((near > 0) & (near < 1), near, jnp.clip(far, 0.0, 1.0))
    value = low + t * (start + t * (second + t * third))
    return inside, left + t * width, value


def polished(
    f: Function, start: Float[Array, ""], low: Float[Array, ""], high: Float[Array, ""], sign: Float[Array, ""]
) -> Root:
    """The root between low, where f has this sign, and high, where it has not.

    Every step carries derivatives: those of a Newton step from a root are those of the implicit function.

    Args:
        f: the function.
        start: the root itself where the sign is 0.
        low: one end, which may be the greater.
        high: the other.
        sign: of f at low; 0 to stay at the start.

    Returns:
        The root, and what f knows there.
    """

    def step(state: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], Root]:
        low, high, at = state
        found = f(at)
        slope = stop_gradient(found.slope)
        before = jnp.sign(found.value) == sign
        low, high = jnp.where(before, stop_gradient(at), low), jnp.where(before, high, stop_gradient(at))
        usable = (jnp.abs(slope) > tolerance(slope.dtype)) & jnp.isfinite(found.value)
        new = at - jnp.where(usable, found.value, 0.0) / jnp.where(usable, slope, 1.0)
        inside = (new - low) * (new - high) <= tolerance(slope.dtype)
        new = jnp.where(usable & inside, new, jnp.where(usable, (low + high) / 2, at))
        return (low, high, jnp.where(sign == 0, start, new)), Root(at, found)

    low, high = stop_gradient((low, high))
    # from short lengths, where a map's excess is steep, one step comes near
    first = jnp.where(sign == 0, start, jnp.minimum(low, high))
    (_, _, last), along = jax.lax.scan(step, (low, high, first), None, length=_STEPS)
    return jax.tree.map(lambda values: values[-1], along)._replace(log_q=last)


def _first(mask: Bool[Array, " n"], count: int) -> tuple[Array, Bool[Array, " count"]]:
    """Places of the first `count` that hold, and whether there are so many."""
    total = jnp.cumsum(mask.astype(jnp.int32))
    wanted = jnp.arange(1, count + 1, dtype=jnp.int32)
    hits = (total[None] == wanted[:, None]) & mask[None]
    return jax.lax.argmax(hits.astype(jnp.int32), 1, jnp.int32), jnp.any(hits, 1)


def all_roots(f: Function, samples: Samples) -> tuple[Root, Bool[Array, " capacity"], Bool[Array, ""]]:
    """All roots on the grid.

    Two roots in one cell show as an extremum there, which joins the grid.

    Args:
        f: the function.
        samples: it on the grid.

    Returns:
        CAPACITY roots ascending; which of them there are; and whether the function is zero all along.
    """
    samples = stop_gradient(samples)
    inside, where, _ = turning_points(samples)
    cells, found = _first(inside, CAPACITY)
    extrema = jnp.where(found, where[cells], samples.log_q[-1])
    at_extrema = jnp.where(found, stop_gradient(jax.vmap(f)(extrema).value), samples.value[-1])
    log_q = jnp.concatenate([samples.log_q, extrema])
    sign = signs(jnp.concatenate([samples.value, at_extrema]))
    log_q, sign = jax.lax.sort((log_q, sign), num_keys=1)
    # a stretch of zeros takes the sign before it, so that rounding makes no roots
    held = jax.lax.associative_scan(_last_nonzero, jnp.where(jnp.isnan(sign), 0.0, sign))
    cells, found = _first(held[1:] * held[:-1] < 0, CAPACITY)

    def root(cell: Array, found: Array) -> Root:
        low, high = log_q[cell], log_q[cell + 1]
        return polished(f, jnp.zeros_like(low), low, high, jnp.where(found, held[cell], 0.0))

    return jax.vmap(root)(cells, found), found, jnp.all(signs(samples.value) == 0)


def _last_nonzero(before: Array, after: Array) -> Array:
    return jnp.where(after == 0, before, after)


def next_root(
    f: Function, samples: Samples, start: Float[Array, ""], ends: tuple[float, float]
) -> tuple[Root, Float[Array, ""]]:
    """The root that a map q -> q e^f moves towards from a length: up where f > 0 there, down where f < 0.

    Args:
        f: the function.
        samples: it on the grid.
        start: ln q.
        ends: lengths that stand for 0 and inf.

    Returns:
        The root, which is the start where that is one, and an end where there is none; and ln q: the root's, inf or
        -inf where there is none, NaN where f is not known on the way.
    """
    samples, fixed = stop_gradient(samples), stop_gradient(start)
    grid, sign = samples.log_q, signs(samples.value)
    # two roots in one cell: an extremum of the other sign, or one too close to zero for a cubic to tell
    inside, where, extreme = turning_points(samples)
    above = jnp.min(jnp.where(inside & (where > fixed) & (extreme < 1e-4), where, jnp.inf))
    below = jnp.max(jnp.where(inside & (where < fixed) & (extreme > -1e-4), where, -jnp.inf))
    turns = jnp.stack([fixed, above, below])
    values = stop_gradient(jax.vmap(f)(jnp.where(jnp.isfinite(turns), turns, 0.0)).value)
    direction = signs(values[0])
    turn = jnp.where(direction > 0, above, below)
    touched = jnp.isfinite(turn) & (signs(jnp.where(direction > 0, values[1], values[2])) * direction < 0)

    ahead = (grid - fixed) * direction > 0
    distance = jnp.abs(grid - fixed)
    nearest = jnp.min(jnp.where(ahead & (sign * direction < 0), distance, jnp.inf))
    nearest = jnp.minimum(nearest, jnp.where(touched, jnp.abs(turn - fixed), jnp.inf))
    passed = ahead & (distance < nearest)
    blind = jnp.any(passed & jnp.isnan(sign)) | jnp.isnan(values[0])
    none = ~jnp.isfinite(nearest)
    low = fixed + direction * jnp.max(jnp.where(passed & ~none, distance, 0.0))
    high = fixed + direction * jnp.where(none, 0.0, nearest)
    end = jnp.where(direction > 0, ends[1], ends[0])
    root = polished(f, jnp.where(none & (direction != 0), end, start), low, high, jnp.where(none, 0.0, direction))
    log_q = jnp.where(none & (direction != 0), direction * jnp.inf, root.log_q)
    return root, jnp.where(blind, jnp.nan, log_q)
