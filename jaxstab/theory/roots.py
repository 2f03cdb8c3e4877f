"""Roots of smooth functions of ln q: bracketed on one grid of lengths, then polished by a guarded Newton iteration."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# E phi(sqrt(q) u)^2 is analytic in ln q within pi/2 of the real axis: it has no finer features. Beyond the range of
# quadrature there are only powers of q
_CORE = np.linspace(-28.0, 28.0, 281)
_FAR = np.geomspace(30.0, 12_000.0, 24)
LOG_LENGTHS = np.concatenate([-_FAR[::-1], _CORE, _FAR])
# room for the roots of one function
CAPACITY = 8
# Newton steps of a root, more than a bracket of the grid's spacing needs
_STEPS = 9

# ln q -> value and slope
Function = Callable[[Array], tuple[Array, Array]]


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


def polished(f: Function, low: Float[Array, ""], high: Float[Array, ""], sign: Float[Array, ""]) -> Float[Array, ""]:
    """The root between low, where f has this sign, and high, where it has not.

    Args:
        f: the function.
        low: one end, which may be the greater.
        high: the other.
        sign: of f at low.

    Returns:
        The root.
    """

    def step(_: Array | int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, at = state
        value, slope = f(at)
        before = jnp.sign(value) == sign
        low, high = jnp.where(before, at, low), jnp.where(before, high, at)
        new = at - value / jnp.where(slope == 0, 1.0, slope)
        guarded = (slope != 0) & ((new - low) * (new - high) <= 0)
        return low, high, jnp.where(guarded, new, (low + high) / 2)

    return jax.lax.fori_loop(0, _STEPS, step, (low, high, low))[2]


def implicit(root: Float[Array, ""], value: Float[Array, ""], slope: Float[Array, ""]) -> Float[Array, ""]:
    """One Newton step from a root: its value moves by rounding, its derivative is that of the implicit function.

    Args:
        root: of the function.
        value: of the function there, differentiable in its parameters.
        slope: of the function there.

    Returns:
        The root.
    """
    slope = jax.lax.stop_gradient(slope)
    usable = jnp.isfinite(root) & (jnp.abs(slope) > tolerance(slope.dtype)) & jnp.isfinite(value)
    step = jnp.where(usable, value, 0.0) / jnp.where(usable, slope, 1.0)
    return jnp.where(jnp.isfinite(root), root - step, root)


def _first(mask: Bool[Array, " n"], count: int) -> tuple[Array, Bool[Array, " count"]]:
    """Places of the first `count` that hold, and whether there are so many."""
    total = jnp.cumsum(mask.astype(jnp.int32))
    wanted = jnp.arange(1, count + 1, dtype=jnp.int32)
    hits = (total[None] == wanted[:, None]) & mask[None]
    return jax.lax.argmax(hits.astype(jnp.int32), 1, jnp.int32), jnp.any(hits, 1)


def all_roots(f: Function, samples: Samples) -> tuple[Float[Array, " capacity"], Bool[Array, ""]]:
    """All roots on the grid.

    Two roots in one cell show as an extremum there, which joins the grid.

    Args:
        f: the function.
        samples: it on the grid.

    Returns:
        CAPACITY roots ascending, NaN behind them; and whether the function is zero all along.
    """
    inside, where, _ = turning_points(samples)
    cells, found = _first(inside, CAPACITY)
    extrema = jnp.where(found, where[cells], samples.log_q[-1])
    at_extrema = jnp.where(found, jax.vmap(f)(extrema)[0], samples.value[-1])
    log_q = jnp.concatenate([samples.log_q, extrema])
    sign = signs(jnp.concatenate([samples.value, at_extrema]))
    log_q, sign = jax.lax.sort((log_q, sign), num_keys=1)
    # a stretch of zeros takes the sign before it, so that rounding makes no roots
    held = jax.lax.associative_scan(_last_nonzero, jnp.where(jnp.isnan(sign), 0.0, sign))
    cells, found = _first(held[1:] * held[:-1] < 0, CAPACITY)
    roots = jax.vmap(lambda cell: polished(f, log_q[cell], log_q[cell + 1], held[cell]))(cells)
    return jnp.where(found, roots, jnp.nan), jnp.all(signs(samples.value) == 0)


def _last_nonzero(before: Array, after: Array) -> Array:
    return jnp.where(after == 0, before, after)


def next_root(f: Function, samples: Samples, start: Float[Array, ""]) -> Float[Array, ""]:
    """The root that a map q -> q e^f moves towards from a length: up where f > 0 there, down where f < 0.

    Args:
        f: the function.
        samples: it on the grid.
        start: ln q.

    Returns:
        The root; the start where it is one; inf or -inf where there is none; NaN where f is not known on the way.
    """
    value, _ = f(start)
    direction = signs(value)
    grid, sign = samples.log_q, signs(samples.value)
    ahead = (grid - start) * direction > 0
    distance = jnp.abs(grid - start)
    crossed = ahead & (sign * direction < 0)
    nearest = jnp.min(jnp.where(crossed, distance, jnp.inf))
    # two roots in one cell: an extremum of the other sign, or one too close to zero for a cubic to tell
    inside, where, extreme = turning_points(samples)
    doubtful = inside & ((where - start) * direction > 0) & (extreme * direction < 1e-4)
    away = jnp.where(doubtful, jnp.abs(where - start), jnp.inf)
    turn = start + direction * jnp.min(away)
    known = jnp.isfinite(turn) & (jnp.abs(turn - start) < nearest)
    turn = jnp.where(known, turn, start)
    touched = known & (signs(f(turn)[0]) * direction < 0)
    nearest = jnp.where(touched, jnp.abs(turn - start), nearest)
    # the last length before it
    before = jnp.max(jnp.where(ahead & (distance < nearest), distance, 0.0))
    blind = jnp.any(ahead & (distance < nearest) & jnp.isnan(sign)) | jnp.isnan(value)
    none = ~jnp.isfinite(nearest)
    low = start + direction * before
    high = start + direction * jnp.where(none, before, nearest)
    root = polished(f, low, high, direction)
    root = jnp.where(none, direction * jnp.inf, root)
    root = jnp.where(direction == 0, start, root)
    return jnp.where(blind, jnp.nan, root)
