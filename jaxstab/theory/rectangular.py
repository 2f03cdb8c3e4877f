r"""Singular values of a deep Jacobian whose widths change from layer to layer.

Layers l = 1..L map n_(l-1) to n_l units, r_l = n_l / n_0. Let lambda = s^2 and
tau(lambda) = tr J^T J (lambda - J^T J)^-1 / n_0. A layer's diagonal D^2 of law d satisfies
m(w_l) = tau / r_l, m(w) = E d / (w - d). S-transforms multiply at equal dimension, and tau is the
same in all dimensions (Burda et al. 2010, arXiv:1007.3594; Benaych-Georges 2009):

    lambda = prod_(l<L) w_l  prod_(l=1..L) 1 / S_l  prod_(0<l<L) tau / (r_l + tau),

    1 / S_l = (r_l / r_(l-1)) (1 + tau / r_l)                          Gaussian,
              r_l / r_(l-1)                                            orthogonal, n_l >= n_(l-1),
              (r_l / r_(l-1)) (1 + tau / r_l) / (1 + tau / r_(l-1))    orthogonal, n_l < n_(l-1).

The density of ln lambda is -Im tau / pi, and the share above lambda is Im G / pi, where
G = int tau dln(lambda) is a sum of logarithms. At lambda < 0 the equations are real and monotone,
and are bisected. From there lambda turns about 0 to the positive axis, in steps of Newton's method.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxstab.theory import host
from jaxstab.theory.host import AnyArray
from jaxstab.theory.precision import common_dtype, narrowed, widened
from jaxstab.theory.widths import Widths

# points on the negative axis, and halvings of each bisection
_SCANNED = 128
_HALVINGS = 70
# points of a grid for the upper edge, and refinements of the grid
_ZOOMED = 128
_ZOOMS = 4
# share of J's rank that the scan of the negative axis leaves out at each end
_LEAST = 1e-8
# ratio of successive angles of lambda on the way from pi to 0, their number, and Newton steps each
_TURN = 0.72
_TURNS = 52
_STEPS = 6
# residual of ln lambda below which Newton's method has converged
_CONVERGED = 1e-7
# largest share of singular values below the lowest point
_TAIL = 1e-6


class Curve(NamedTuple):
    """Points of the law.

    Attributes:
        log_lambda: ln lambda, ascending to the upper edge.
        above: share of the singular values above lambda.
        density: density of ln lambda.
        zeros: share of singular values that are exactly zero.
    """

    log_lambda: Float[Array, " n"]
    above: Float[Array, " n"]
    density: Float[Array, " n"]
    zeros: Float[Array, ""]


class _Net(NamedTuple):
    """Parameters of the equations.

    Attributes:
        d: values of the squared slopes.
        share: share of the units with each value.
        sizes: distinct r_l of layers 0..L-1.
        counts: number of layers with each size.
        ratios: r of the factors 1 + tau / r of lambda.
        powers: exponents of the factors.
        junctions: L - 1, the power of tau.
        log_scale: the constant of ln lambda.
    """

    d: Float[Array, " k"]
    share: Float[Array, " k"]
    sizes: Float[Array, " size"]
    counts: Float[Array, " size"]
    ratios: Float[Array, " factor"]
    powers: Float[Array, " factor"]
    junctions: int
    log_scale: float


class _Point(NamedTuple):
    """Point of the curve: ln w of every distinct width, and ln(-tau)."""

    log_w: Complex[Array, " size"]
    log_t: Complex[Array, ""]


def curve(d: AnyArray, share: AnyArray, widths: Widths, points: int) -> Curve:
    """Compute points of the law, on the range of all but 1e-6 of the nonzero singular values.

    Args:
        d: values of sigma_w^2 phi'^2.
        share: share of the units with each value.
        widths: widths of the layers.
        points: number of points.

    Returns:
        Points of the law.
    """
    dtype = common_dtype(d)
    if not host.is_traced((d, share)):
        # merge equal atoms: a piecewise linear phi has two slopes, not one per node
        values, which = np.unique(np.asarray(d), return_inverse=True)
        share = np.bincount(which, np.asarray(share, float))
        d = values
    with jax.enable_x64(True):
        solved = _solved_curve(widened(d), widened(share), widths, points)
    return narrowed(solved, dtype)


def _net(d: Array, share: Array, widths: Widths) -> _Net:
    powers = widths.powers
    return _Net(
        d,
        share,
        jnp.asarray(widths.distinct),
        jnp.asarray(widths.counts, float),
        jnp.asarray(list(powers), float),
        jnp.asarray(list(powers.values()), float),
        len(widths.ratios) - 2,
        widths.log_scale,
    )


def _curve(d: Array, share: Array, widths: Widths, points: int) -> Curve:
    net = _net(d, share, widths)
    alive = 1 - jnp.sum(jnp.where(d == 0, share, 0.0))
    rank = jnp.minimum(widths.ratios[-1], alive * min(widths.ratios[:-1]))
    # -tau, from little of the rank (large lambda) to nearly all of it
    logit = jnp.linspace(1.0, -1.0, _SCANNED) * np.log(_LEAST)
    log_t = jnp.log(rank) - jnp.log1p(jnp.exp(-logit))
    log_w = jax.vmap(lambda log_t: _negative_w(net, log_t))(log_t)

    def law_from(log_w: Array, log_t: Array, log_lambda: Array) -> tuple[Array, Array]:
        start = _Point(jax.lax.complex(log_w, jnp.full_like(log_w, np.pi)), _complex(log_t))
        turned = _turned(net, start, log_lambda)
        above = jnp.clip(_above(net, turned), 0.0, rank)
        return above, jnp.maximum(jnp.exp(turned.log_t).imag, 0.0) / np.pi

    log_lambda = jax.vmap(lambda log_w, log_t: _log_size(net, log_w, log_t))(log_w, log_t)
    above, _ = jax.vmap(law_from)(log_w, log_t, log_lambda)
    log_edge = _log_edge(net)
    # log_lambda descends along the scan
    complete = above >= rank - _TAIL * widths.values
    lowest = jnp.max(jnp.where(complete, log_lambda, log_lambda[-1]))
    lowest = jnp.minimum(lowest, log_edge - 1e-3)
    along = (1 - jnp.cos(jnp.linspace(0, np.pi, points))) / 2
    wanted = lowest + (log_edge - 1e-9 - lowest) * along

    def between(values: Array) -> Array:
        return jnp.interp(wanted, log_lambda[::-1], values[::-1])

    starts = jax.vmap(between, 1, 1)(log_w), between(log_t)
    above, density = jax.vmap(law_from)(*starts, wanted)
    values = widths.values
    return Curve(wanted, above / values, density / values, 1 - rank / values)


_solved_curve = host.program(_curve, "widths", "points")


def _complex(x: Array) -> Array:
    return jax.lax.complex(x, jnp.zeros_like(x))


class _Resolvent(NamedTuple):
    """m(w) and dm / dln w."""

    m: Array
    slope: Array


def _resolvent(net: _Net, log_w: Array) -> _Resolvent:
    w = jnp.exp(log_w)
    # in real numbers, as complex division is several times slower
    across = w.real - net.d
    up = w.imag
    size = across**2 + up**2
    weight = net.share * net.d / size
    m = jax.lax.complex(jnp.sum(weight * across), -up * jnp.sum(weight))
    weight = weight / size
    square = jax.lax.complex(
        jnp.sum(weight * (across - up) * (across + up)), -2 * up * jnp.sum(weight * across)
    )
    return _Resolvent(m, -w * square)


def _factors(net: _Net, tau: Array) -> Array:
    """Compute ln(1 + tau / r) of every factor."""
    return jnp.log(1 + tau / _complex(net.ratios))


def _log_lambda(net: _Net, point: _Point) -> Array:
    """Compute ln lambda, with a continuous imaginary part in [0, pi]."""
    factors = jnp.sum(_complex(net.powers) * _factors(net, -jnp.exp(point.log_t)))
    # tau lies below the real axis: ln tau = ln(-tau) - i pi
    log_tau = point.log_t - 1j * np.pi
    own = jnp.sum(_complex(net.counts) * point.log_w)
    return own + net.junctions * log_tau + factors + net.log_scale


def _log_size(net: _Net, log_w: Array, log_t: Array) -> Array:
    """Compute ln |lambda| on the negative axis."""
    factors = jnp.sum(net.powers * jnp.log1p(-jnp.exp(log_t) / net.ratios))
    return jnp.sum(net.counts * log_w) + net.junctions * log_t + factors + net.log_scale


def _above(net: _Net, point: _Point) -> Array:
    """Compute Im G / pi, the share of n_0 values above lambda."""
    tau = -jnp.exp(point.log_t)

    def own(log_w: Array) -> Array:
        return jnp.sum(net.share * jnp.log(1 - _complex(net.d) / jnp.exp(log_w)).imag)

    # int tau dln(1 + tau / r) = tau - r ln(1 + tau / r)
    beside = tau.imag - net.ratios * _factors(net, tau).imag
    diagonals = jnp.sum(net.counts * net.sizes * jax.vmap(own)(point.log_w))
    whole = diagonals + net.junctions * tau.imag + jnp.sum(net.powers * beside)
    return whole / np.pi


def _halved(below: Callable[[Array], Array], low: float, high: float) -> Array:
    """Bisect for the place at which a condition ceases to hold."""

    def halve(_: Array | int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        holds = below(middle)
        return jnp.where(holds, middle, ends[0]), jnp.where(holds, ends[1], middle)

    ends = jnp.asarray(low), jnp.asarray(high)
    return jax.lax.fori_loop(0, _HALVINGS, halve, ends)[0]


def _negative_w(net: _Net, log_t: Array) -> Array:
    """Solve E d / (|w| + d) = t / r for ln |w| of every distinct width, at lambda < 0."""
    scale = jnp.log(jnp.max(net.d))

    def of_size(size: Array) -> Array:
        def below(log_w: Array) -> Array:
            m = jnp.sum(net.share * net.d / (jnp.exp(scale + log_w) + net.d))
            return m > jnp.exp(log_t) / size

        return scale + _halved(below, -80.0, 60.0)

    return jax.vmap(of_size)(net.sizes)


def _log_edge(net: _Net) -> Array:
    """Find ln of the upper edge, the least lambda on the branch with tau > 0 and w above all d."""
    largest = jnp.max(net.d)

    def log_lambda(log_t: Array) -> Array:
        def log_w(size: Array) -> Array:
            def below(log_gap: Array) -> Array:
                # w - d = (d_max - d) + gap
                apart = (largest - net.d) + largest * jnp.exp(log_gap)
                return jnp.sum(net.share * net.d / apart) > jnp.exp(log_t) / size

            return jnp.log(largest) + jnp.logaddexp(_halved(below, -60.0, 40.0), 0.0)

        own = jnp.sum(net.counts * jax.vmap(log_w)(net.sizes))
        factors = jnp.sum(net.powers * jnp.log1p(jnp.exp(log_t) / net.ratios))
        return own + net.junctions * log_t + factors + net.log_scale

    low = jnp.asarray(-30.0)
    high = jnp.asarray(30.0)
    for _ in range(_ZOOMS):
        grid = jnp.linspace(low, high, _ZOOMED)
        values = jax.vmap(log_lambda)(grid)
        rises = values[1:] > values[:-1]
        first = jnp.where(jnp.any(rises), jnp.argmax(rises), _ZOOMED - 1)
        edge = values[first]
        low = grid[jnp.maximum(first - 1, 0)]
        high = grid[jnp.minimum(first + 1, _ZOOMED - 1)]
    return edge


def _turned(net: _Net, start: _Point, log_size: Array) -> _Point:
    """Follow a point from ln lambda = log_size + i pi to log_size."""
    sizes = _complex(net.sizes)
    counts = _complex(net.counts)
    powers = _complex(net.powers)
    ratios = _complex(net.ratios)

    def newton(point: _Point, target: Array) -> tuple[_Point, Array]:
        """Take one Newton step; return the new point and the residual before the step."""
        tau = -jnp.exp(point.log_t)
        m, slope = jax.vmap(lambda log_w: _resolvent(net, log_w))(point.log_w)
        missed = (tau / sizes - m) / slope
        residual = target - _log_lambda(net, point)
        # dln(lambda) / dln(tau)
        turned = tau / sizes / slope
        along = net.junctions + jnp.sum(powers * tau / (ratios + tau)) + jnp.sum(counts * turned)
        step = (residual - jnp.sum(counts * missed)) / along
        new = _Point(point.log_w + missed + turned * step, point.log_t + step)
        return new, jnp.abs(residual) + jnp.max(jnp.abs(missed))

    def turn(good: _Point, angle: Array) -> tuple[_Point, None]:
        """Move to an angle; keep the last point where Newton's method does not converge."""
        target = jax.lax.complex(log_size, angle)

        def unfinished(state: tuple[_Point, Array, Array]) -> Array:
            _, size, steps = state
            return (size >= _CONVERGED) & (steps < _STEPS)

        def step(state: tuple[_Point, Array, Array]) -> tuple[_Point, Array, Array]:
            new, size = newton(state[0], target)
            return new, size, state[2] + 1

        first = newton(good, target)[0], jnp.full_like(angle, jnp.inf), jnp.asarray(1)
        new, size, _ = jax.lax.while_loop(unfinished, step, first)
        below = jnp.exp(new.log_t).imag >= -_CONVERGED
        upper = jnp.all(new.log_w.imag >= -_CONVERGED)
        holds = (size < _CONVERGED) & below & upper
        kept = [jnp.where(holds, ours, theirs) for ours, theirs in zip(new, good, strict=True)]
        return _Point(*kept), None

    # the last angle is not 0: in a gap, rounding would choose the branch of real logarithms
    angles = np.pi * _TURN ** np.arange(_TURNS)
    return jax.lax.scan(turn, start, jnp.asarray(angles))[0]
