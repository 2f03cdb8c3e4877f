"""The curve of `free_products` on which lambda = s^2 is real, in the resolvent m(w) = E d / (w - d)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# bisections: the angle to the last digit of float64
_HALVINGS = 52
# moduli of w, relative to the largest d, that are scanned for the range of the grid
_SCANNED = 256
_LOWEST = 1e-12
# largest share of singular values below the lowest point
_TAIL = 1e-6


class Factor(NamedTuple):
    """Parameters of the curve.

    Attributes:
        d: values of the atoms of the law of sigma_w^2 phi'^2.
        share: shares of the atoms, which sum to 1.
        depth: number of layers L.
        gaussian: g, 1 for Gaussian and 0 for orthogonal weights.
    """

    d: Float[Array, " k"]
    share: Float[Array, " k"]
    depth: Float[Array, ""]
    gaussian: int


class _Resolvent(NamedTuple):
    """Real parts of m and 1 + m at w = r e^(i theta), and b = -Im m."""

    m: Float[Array, " n"]
    one_plus_m: Float[Array, " n"]
    b: Float[Array, " n"]


def _resolvent(factor: Factor, r: Array, theta: Array) -> _Resolvent:
    d = factor.d[None]
    share = factor.share[None]
    r = r[:, None]
    theta = theta[:, None]
    # |w - d|^2 without cancellation near the axis
    weight = share / jnp.maximum(
        (r - d) ** 2 + 4 * r * d * jnp.sin(theta / 2) ** 2, jnp.finfo(d.dtype).tiny
    )
    cosine = r * jnp.cos(theta)
    sine = r * jnp.sin(theta)
    mean = lambda values: jnp.sum(weight * values, axis=1)
    return _Resolvent(mean(d * (cosine - d)), mean(r**2 - d * cosine), mean(d * sine))


def _angle(factor: Factor, resolvent: _Resolvent, theta: Array) -> Array:
    """Compute arg lambda, which is negative below the angle where lambda is real."""
    outer = -jnp.arctan2(resolvent.b, resolvent.one_plus_m)
    inner = -jnp.arctan2(resolvent.b, resolvent.m)
    return factor.depth * (theta + factor.gaussian * outer) + (factor.depth - 1) * (inner - outer)


def real_angle(factor: Factor, r: Array) -> Array:
    """Find the angle of w at which lambda is real.

    Args:
        factor: parameters of the curve.
        r: moduli |w|.

    Returns:
        Angles, 0 where the density is 0.
    """

    def halve(_: Array | int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        below = _angle(factor, _resolvent(factor, r, middle), middle) < 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    return jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(r), jnp.full_like(r, np.pi)))[1]


def law_at(factor: Factor, r: Array, theta: Array) -> tuple[Array, Array, Array]:
    """Compute the law at w = r e^(i theta).

    Args:
        factor: parameters of the curve.
        r: moduli |w|.
        theta: angles at which lambda is real.

    Returns:
        ln lambda, the share above it, and the density of ln lambda.
    """
    resolvent = _resolvent(factor, r, theta)
    depth = factor.depth
    size = jnp.log(jnp.hypot(resolvent.one_plus_m, resolvent.b))
    log_lambda = depth * (jnp.log(r) + factor.gaussian * size) + (depth - 1) * (
        jnp.log(jnp.hypot(resolvent.m, resolvent.b)) - size
    )
    outer = -jnp.arctan2(resolvent.b, resolvent.one_plus_m)
    w_d = jnp.arctan2((r * jnp.sin(theta))[:, None], (r * jnp.cos(theta))[:, None] - factor.d[None])
    turned = jnp.sum(factor.share[None] * (w_d - theta[:, None]), axis=1)
    above = depth * turned + (depth - 1) * outer + factor.gaussian * depth * (-resolvent.b - outer)
    return log_lambda, jnp.clip(above / np.pi, 0, 1), resolvent.b / np.pi


def _upper_edge(factor: Factor, r: Array, theta: Array) -> Array:
    """Find the largest |w| with density > 0, between two neighbours in r."""
    little = jnp.asarray(jnp.finfo(r.dtype).eps ** 0.5, r.dtype)[None]
    last = jnp.max(jnp.where(theta > 10 * little[0], jnp.arange(len(r)), 0))

    def halve(_: Array | int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = jnp.sqrt(low * high)
        inside = _angle(factor, _resolvent(factor, middle[None], little), little)[0] < 0
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    return jax.lax.fori_loop(0, _HALVINGS, halve, (r[last], r[last + 1]))[0]


def moduli(factor: Factor, points: int) -> Array:
    """Choose moduli |w| of the continuous part of the law.

    Args:
        factor: parameters of the curve.
        points: number of moduli.

    Returns:
        Moduli, ascending to the upper edge, dense at both ends.
    """
    # the edge is about L mu_2 / mu_1, and mu_2 / mu_1 at most the largest d
    scan = jnp.max(factor.d) * jnp.geomspace(
        _LOWEST, 4 * (factor.depth + 1), _SCANNED, dtype=factor.d.dtype
    )
    theta = real_angle(factor, scan)
    edge = _upper_edge(factor, scan, theta)
    _, above, _ = law_at(factor, scan, theta)
    first = jnp.max(jnp.where(above >= above[0] - _TAIL, jnp.arange(_SCANNED), 0))
    low = jnp.log(jnp.minimum(scan[first], edge / 2))
    high = jnp.log(edge)
    return jnp.exp(
        low + (high - low) * (1 - jnp.cos(jnp.linspace(0, np.pi, points, dtype=factor.d.dtype))) / 2
    )
