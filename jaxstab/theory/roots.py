"""Roots of smooth functions of ln q, bracketed on a grid and polished by guarded Newton steps."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxstab.theory import host
from jaxstab.theory.host import AnyArray
from jaxstab.theory.moments import LogMoments

# E phi(sqrt(q) u)^2 is analytic in ln q within pi/2 of the real axis, so it has no finer features;
# outside the range of quadrature it is a power of q
_CORE = np.linspace(-28.0, 28.0, 281)
_FAR = np.geomspace(30.0, 12_000.0, 24)
LOG_LENGTHS = np.concatenate([-_FAR[::-1], _CORE, _FAR])
# largest number of roots of one function
CAPACITY = 8
# Newton steps for a root, more than a bracket of the grid's spacing needs
_STEPS = 12


class Known(NamedTuple):
    """Value of a function at a length.

    Attributes:
        value: value of the function.
        slope: derivative of the function in ln q.
        moments: moments of the activation.
    """

    value: Float[AnyArray, "*n"]
    slope: Float[AnyArray, "*n"]
    moments: LogMoments


class Root(NamedTuple):
    """A root.

    Attributes:
        log_q: ln q.
        known: value of the function at the root.
    """

    log_q: Float[AnyArray, "*n"]
    known: Known


Function = Callable[[AnyArray], Known]


class Samples(NamedTuple):
    """A function on the grid.

    Attributes:
        log_q: grid of ln q, ascending.
        value: values of the function.
        slope: derivatives of the function in ln q.
    """

    log_q: Float[AnyArray, " n"]
    value: Float[AnyArray, " n"]
    slope: Float[AnyArray, " n"]


# size below which a logarithm counts as 0
ROUNDING = 64 * float(np.finfo(np.float64).eps)


def signs(value: Float[AnyArray, "*n"]) -> Float[AnyArray, "*n"]:
    """Compute signs, which are 0 within rounding of 0.

    Args:
        value: values of a function that is a logarithm.

    Returns:
        Signs -1, 0 or 1.
    """
    xp = host.namespace(value)
    return xp.where(xp.abs(value) <= ROUNDING, 0.0, xp.sign(value))


def turning_points(
    samples: Samples,
) -> tuple[Bool[AnyArray, " cell"], Float[AnyArray, " cell"], Float[AnyArray, " cell"]]:
    """Find extrema in cells of the grid, by the cubic through values and slopes.

    Args:
        samples: the function on the grid.

    Returns:
        Booleans: True where a cell has an extremum; ln q of the extremum; value there.
    """
    xp = host.namespace(*samples)
    left = samples.log_q[:-1]
    right = samples.log_q[1:]
    width = right - left
    low = samples.value[:-1]
    high = samples.value[1:]
    start = samples.slope[:-1] * width
    end = samples.slope[1:] * width
    inside = start * end < 0
    rise = high - low
    # cubic: low + start t + second t^2 + third t^3
    second = 3 * rise - 2 * start - end
    third = start + end - 2 * rise
    root = xp.sqrt(xp.maximum(second**2 - 3 * third * start, 0.0))
    denominator = second + xp.where(second >= 0, root, -root)
    safe = xp.where(denominator == 0, 1.0, denominator)
    near = -start / safe
    far = -safe / xp.where(third == 0, 1.0, 3 * third)
    t = xp.where((near > 0) & (near < 1), near, xp.clip(far, 0.0, 1.0))
    value = low + t * (start + t * (second + t * third))
    return inside, left + t * width, value


def polished(
    f: Function,
    start: Float[AnyArray, "*n"],
    low: Float[AnyArray, "*n"],
    high: Float[AnyArray, "*n"],
    sign: Float[AnyArray, "*n"],
) -> Root:
    """Polish the roots between low, where f has the given sign, and high, where it has not.

    Args:
        f: the function.
        start: returned as the root where the sign is 0.
        low: one end, which may exceed the other end.
        high: other end.
        sign: sign of f at low; 0 to return `start`.

    Returns:
        Roots, and the values of f there.
    """
    xp = host.namespace(start, low, high, sign)

    def step(
        state: tuple[AnyArray, AnyArray, AnyArray],
    ) -> tuple[tuple[AnyArray, AnyArray, AnyArray], Root]:
        low, high, root = state
        sample = f(root)
        before = xp.sign(sample.value) == sign
        low = xp.where(before, root, low)
        high = xp.where(before, high, root)
        usable = (xp.abs(sample.slope) > ROUNDING) & xp.isfinite(sample.value)
        new = root - xp.where(usable, sample.value, 0.0) / xp.where(usable, sample.slope, 1.0)
        inside = (new - low) * (new - high) <= ROUNDING
        new = xp.where(usable & inside, new, xp.where(usable, (low + high) / 2, root))
        return (low, high, xp.where(sign == 0, start, new)), Root(root, sample)

    # start at the shorter length, where the excess is steep and one step comes close
    first = xp.where(sign == 0, start, xp.minimum(low, high))
    return host.repeat(_STEPS, step, (low, high, first))


def _first(mask: Bool[AnyArray, " n"], count: int) -> tuple[AnyArray, Bool[AnyArray, " count"]]:
    """Find the places of the first `count` True values; booleans tell which exist."""
    xp = host.namespace(mask)
    total = xp.cumsum(mask.astype(np.int32), dtype=np.int32)
    wanted = np.arange(1, count + 1, dtype=np.int32)
    hits = (total[None] == wanted[:, None]) & mask[None]
    return host.first_true(hits), xp.any(hits, 1)


def all_roots(
    f: Function, samples: Samples
) -> tuple[Root, Bool[AnyArray, " capacity"], Bool[AnyArray, ""]]:
    """Find all roots on the grid.

    An extremum inside a cell, which may hide two roots, is added to the grid.

    Args:
        f: the function.
        samples: the function on the grid.

    Returns:
        CAPACITY roots, ascending; booleans that tell which of them exist; boolean: True where the
        function is 0 on the whole grid.
    """
    xp = host.namespace(*samples)
    inside, where, _ = turning_points(samples)
    cells, found = _first(inside, CAPACITY)
    extrema = xp.where(found, where[cells], samples.log_q[-1])
    at_extrema = xp.where(found, f(extrema).value, samples.value[-1])
    log_q = xp.concatenate([samples.log_q, extrema])
    sign = signs(xp.concatenate([samples.value, at_extrema]))
    order = host.order(log_q)
    log_q = log_q[order]
    sign = xp.where(xp.isnan(sign), 0.0, sign)[order]
    # zeros take the sign before them, so that rounding makes no roots
    latest = host.running_maximum(
        xp.where(sign == 0, np.int32(0), np.arange(len(sign), dtype=np.int32))
    )
    held = sign[latest]
    cells, found = _first(held[1:] * held[:-1] < 0, CAPACITY)
    low = log_q[cells]
    high = log_q[cells + 1]
    roots = polished(f, xp.zeros_like(low), low, high, xp.where(found, held[cells], 0.0))
    return roots, found, xp.all(signs(samples.value) == 0)


def next_root(
    f: Function, samples: Samples, start: Float[AnyArray, ""], ends: tuple[float, float]
) -> tuple[Root, Float[AnyArray, ""]]:
    """Find the root towards which a map q -> q e^f moves: up where f > 0, down where f < 0.

    Args:
        f: the function.
        samples: the function on the grid.
        start: ln q of the first length.
        ends: ln of the lengths that stand for 0 and inf.

    Returns:
        Root, which is the start where f is 0 there, and an end where there is no root; and ln q of
        the root, +-inf where there is no root, NaN where f is NaN on the way.
    """
    xp = host.namespace(start, *samples)
    grid = samples.log_q
    sign = signs(samples.value)
    # two roots hide in a cell whose extremum has the other sign, or is too close to 0 for a cubic
    inside, where, extreme = turning_points(samples)
    above = xp.min(xp.where(inside & (where > start) & (extreme < 1e-4), where, np.inf))
    below = xp.max(xp.where(inside & (where < start) & (extreme > -1e-4), where, -np.inf))
    turns = xp.stack([start, above, below])
    values = f(xp.where(xp.isfinite(turns), turns, 0.0)).value
    direction = signs(values[0])
    turn = xp.where(direction > 0, above, below)
    touched = xp.isfinite(turn) & (
        signs(xp.where(direction > 0, values[1], values[2])) * direction < 0
    )

    ahead = (grid - start) * direction > 0
    distance = xp.abs(grid - start)
    nearest = xp.min(xp.where(ahead & (sign * direction < 0), distance, np.inf))
    nearest = xp.minimum(nearest, xp.where(touched, xp.abs(turn - start), np.inf))
    passed = ahead & (distance < nearest)
    blind = xp.any(passed & xp.isnan(sign)) | xp.isnan(values[0])
    none = ~xp.isfinite(nearest)
    low = start + direction * xp.max(xp.where(passed & ~none, distance, 0.0))
    high = start + direction * xp.where(none, 0.0, nearest)
    end = xp.where(direction > 0, ends[1], ends[0])
    root = polished(
        f, xp.where(none & (direction != 0), end, start), low, high, xp.where(none, 0.0, direction)
    )
    log_q = xp.where(none & (direction != 0), direction * np.inf, root.log_q)
    return root, xp.where(blind, np.nan, log_q)
