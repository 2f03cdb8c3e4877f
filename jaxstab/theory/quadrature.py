"""Gaussian expectations to near machine precision, for any activation, at any length.

E f(sqrt(q) u) has features of two widths: the Gaussian's (1, in u) and the activation's (1/sqrt(q), around its kinks
or its centre). A rule of fixed nodes misses the second as q grows; here every panel starts at a kink and its nodes
are graded towards it, u = kink +- scale (e^t - 1), Gauss-Legendre in t. 64 nodes a panel give 1e-13 for lengths from
1e-4 to 1e6. Panels move with q, so that derivatives with respect to q are exact across kinks too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxstab.activations import Activation

Function = Callable[[Array], Array]

# exp(-9^2 / 2) = 3e-18: what lies beyond is below the rounding of what lies within
_REACH = 9.0
_NODES = 64
# two dimensions: 48 nodes leave 1e-9 at a correlation of 1 - 1e-6 and 1e-12 at 0.9
_NODES_2D = 48
# no grading finer than this: unresolved detail of width 1e-4 and less has weight below rounding in what is asked
_FINEST = 1e-4

# lengths outside are continued by the activation's linear growth (above) or its value at the edge (below)
SHORTEST, LONGEST = 1e-24, 1e24


def _density(u: Array) -> Array:
    return jnp.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)


def _graded_panels(
    breaks: Float[Array, " k"], low: Array, high: Array, scale: Array, nodes: int
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Nodes and weights on [low, high], two half-panels per break, graded towards the break."""
    x, w = (jnp.asarray(a, breaks.dtype) for a in np.polynomial.legendre.leggauss(nodes))
    middle = (breaks[1:] + breaks[:-1]) / 2
    ends = jnp.concatenate([low[None], middle, middle, high[None]])
    starts = jnp.concatenate([breaks, breaks])
    span = jnp.log1p(jnp.abs(ends - starts) / scale)
    steps = scale * jnp.exp(span[:, None] * ((x + 1) / 2)[None])
    points = starts[:, None] + jnp.sign(ends - starts)[:, None] * (steps - scale)
    return points.ravel(), (span[:, None] * steps * (w / 2)[None]).ravel()


def _centres(activation: Activation) -> tuple[float, ...]:
    return activation.kinks or (0.0,)


def expectation(function: Function, activation: Activation, q: Float[Array, ""]) -> Float[Array, ""]:
    """E f(sqrt(q) u), u standard normal.

    Args:
        function: f, elementwise, smooth except at the activation's kinks.
        activation: says where f may have kinks, and that it varies on a scale of order 1 around them.
        q: variance, in [SHORTEST, LONGEST].

    Returns:
        The expectation.
    """
    root = jnp.sqrt(q)
    reach = jnp.asarray(_REACH, q.dtype)
    breaks = jnp.clip(jnp.asarray(_centres(activation), q.dtype) / root, -reach, reach)
    scale = jnp.clip(1.0 / root, _FINEST, 1.0)
    u, weights = _graded_panels(breaks, -reach, reach, scale, _NODES)
    return jnp.sum(function(root * u) * _density(u) * weights)


def pair_expectation(
    function: Function, activation: Activation, q: Float[Array, ""], c: Float[Array, ""]
) -> Float[Array, ""]:
    """E f(z1) f(z2), z1 and z2 jointly normal with mean 0, variance q and correlation c.

    With x, y independent, z = a +- b y for a = sqrt(q (1 + c) / 2) x and b = sqrt(q (1 - c) / 2): kinks lie at
    |y| = |a - kink| / b, and the outer integrand has them at the kinks' midpoints.

    Args:
        function: f, as in `expectation`.
        activation: as in `expectation`.
        q: variance, in [SHORTEST, LONGEST].
        c: correlation, in (-1, 1).

    Returns:
        The expectation.
    """
    centres = _centres(activation)
    spread = jnp.sqrt(q * (1 + c) / 2)
    b = jnp.sqrt(q * (1 - c) / 2)
    reach = jnp.asarray(_REACH, q.dtype)
    middles = jnp.asarray(sorted({(i + j) / 2 for i in centres for j in centres}), q.dtype)
    outer_reach = reach * spread
    a, outer = _graded_panels(
        jnp.clip(middles, -outer_reach, outer_reach),
        -outer_reach,
        outer_reach,
        jnp.clip(b, _FINEST * jnp.maximum(1.0, spread), 1.0 + _FINEST * spread),
        _NODES_2D,
    )
    inner_scale = jnp.clip(1.0 / b, _FINEST, 1.0)

    def inner(a: Array) -> Array:
        breaks = jnp.sort(jnp.minimum(jnp.abs(a - jnp.asarray(centres, q.dtype)) / b, reach))
        y, weights = _graded_panels(breaks, jnp.zeros_like(reach), reach, inner_scale, _NODES_2D)
        # the integrand is even in y
        return 2 * jnp.sum(function(a + b * y) * function(a - b * y) * _density(y) * weights)

    return jnp.sum(jax.vmap(inner)(a) * _density(a / spread) / spread * outer)
