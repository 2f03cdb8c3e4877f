"""Rows of a graded matrix whose scales are close, and their singular values by small SVDs.

Rows that are far apart in scale are nearly singular vectors. Rows that disturb each other by more
than a tolerance are partners; the SVD of a block that contains them settles them together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstab import decompositions
from jaxstab.norms.meshes import varying_like
from jaxstab.spectra.graded import Graded, difference

# sizes of blocks, besides the whole matrix; a row uses the first size whose product with REACH
# exceeds the row's range of partners
BLOCKS = (24, 64, 160, 400)
REACH = 0.6
# nats between the edge of a window of scales and the rows that it settles
MARGIN = 0.5


class Care(NamedTuple):
    """Tolerances of settled values, and the range of scales of one SVD.

    Attributes:
        angles: True if the tolerance bounds the error of vectors, as an angle; False if it bounds
            the error of values, which is the square of the angle.
        tolerance: disturbance above which two rows are partners, by bytes of the dtype.
        window: range of scales in one SVD, in nats, by bytes of the dtype; limited as an SVD rounds
            to eps times the largest value.
    """

    angles: bool
    tolerance: dict[int, float]
    window: dict[int, float]


# for values alone: errors in ln s
OF_VALUES = Care(False, {4: 7.5e-5, 8: 2.5e-11}, {4: 7.8, 8: 13.0})
# for vectors: angles
OF_VECTORS = Care(True, {4: 1e-4, 8: 1e-9}, {4: 6.0, 8: 10.0})


class Neighbours(NamedTuple):
    """Rows in the order of their scales, with their partners and errors.

    Attributes:
        order: indices into the graded matrix.
        logs: d in that order.
        low: rounding error of `logs`.
        rows: X with rows and columns in that order.
        first: index of the first partner of each row, itself included.
        last: index of the last partner.
        left: error of ln s by partners, until a block settles the row.
        ignored: error of ln s by all other rows.
    """

    order: Int[Array, " m"]
    logs: Float[Array, " m"]
    low: Float[Array, " m"]
    rows: Float[Array, "m m"]
    first: Int[Array, " m"]
    last: Int[Array, " m"]
    left: Float[Array, " m"]
    ignored: Float[Array, " m"]

    def within(self, window: float, top: Int[Array, "..."]) -> Bool[Array, " m"]:
        """Check whether the partners of each row lie within a window of scales from row `top` on."""
        return self.logs[self.last] > self.logs[top] - window + 2 * MARGIN


class Settled(NamedTuple):
    """Values found so far, in the order of `Neighbours`.

    Attributes:
        logs: ln s.
        error: bound on the error of ln s.
        left: as in `Neighbours`; 0 for settled rows.
        vectors: left singular vectors of diag(e^d) X in that order; None without vectors.
    """

    logs: Float[Array, " m"]
    error: Float[Array, " m"]
    left: Float[Array, " m"]
    vectors: Float[Array, "m m"] | None


def disturbances(
    rows: Float[Array, "m m"],
    logs: Float[Array, " m"],
    low: Float[Array, " m"],
    angles: bool = False,
) -> Float[Array, "m m"]:
    """Bound the effect of pairs of rows on each other's ln s, or on each other's vectors.

    Args:
        rows: X; the diagonal is ignored.
        logs: d, descending.
        low: rounding error of d.
        angles: True to bound the angles by which vectors turn, in [0, 1].

    Returns:
        Symmetric matrix of bounds.
    """
    # [[a, a e], [0, b]] has ln s off by less than e, and by e^2 / (1 - (b/a)^2) where a is larger
    finite = jnp.where(
        jnp.isfinite(logs), logs, jnp.min(jnp.where(jnp.isfinite(logs), logs, jnp.inf))
    )
    gap = difference((finite[:, None], low[:, None]), (finite[None], low[None]))
    smaller = jnp.exp(-jnp.abs(gap))
    entry = (
        jnp.abs(rows)
        * jnp.where(gap < 0, smaller, 1.0)
        * (1 - jnp.eye(len(logs), dtype=rows.dtype))
    )
    entry = jnp.maximum(entry, entry.T)
    apart = 1 - smaller**2
    angle = jnp.where(entry < apart, entry / jnp.where(apart == 0, 1.0, apart), 1.0)
    angle = jnp.where(entry == 0, 0.0, angle)
    if angles:
        return angle
    return entry * angle


def neighbours(graded: Graded, care: Care) -> Neighbours:
    """Sort rows by scale and find rows that disturb each other beyond the tolerance.

    Args:
        graded: diag(e^d) X, square.
        care: tolerances.

    Returns:
        The sorted rows, with the range of partners of each.
    """
    size = len(graded.logs)
    tolerance = care.tolerance[graded.logs.dtype.itemsize]
    order = jnp.argsort(-graded.logs)
    index = jnp.arange(size)
    logs = graded.logs[order]
    low = graded.low[order]
    rows = graded.rows[order][:, order]
    by_value = disturbances(rows, logs, low)
    if care.angles:
        disturbing = disturbances(rows, logs, low, angles=True)
    else:
        disturbing = by_value
    partners = (disturbing > tolerance) & jnp.isfinite(logs)[:, None] & jnp.isfinite(logs)[None]
    itself = index[:, None] == index[None]
    first = jax.lax.cummin(
        jnp.min(jnp.where(partners | itself, index[None], size), axis=1), reverse=True
    )
    # partners are mutual
    last = jnp.searchsorted(first, index, side="right").astype(index.dtype) - 1
    left = jnp.sum(by_value, axis=1, where=partners)
    # a pair that disturbs no value may still turn vectors
    left = jnp.where(jnp.any(partners, axis=1), jnp.maximum(left, jnp.finfo(left.dtype).tiny), 0.0)
    ignored = jnp.sum(by_value, axis=1, where=~partners)
    return Neighbours(order, logs, low, rows, first, last, left, ignored)


def settle(near: Neighbours, care: Care) -> Settled:
    """Compute the values of undisturbed rows from their scales, and other values by SVDs of blocks.

    Args:
        near: sorted rows with their partners.
        care: tolerances.

    Returns:
        Values and vectors in the order of `near`.
    """
    # A block begins at a row's first partner and holds all rows that disturb the row, with scales
    # cut to a window in which an SVD is accurate. Small blocks settle rows with near partners
    # first, then larger blocks settle the rest.
    size = len(near.logs)
    dtype = near.logs.dtype
    window = care.window[dtype.itemsize]
    vectors = jnp.eye(size, dtype=dtype) if care.angles else None
    state = Settled(near.logs + near.low, jnp.zeros_like(near.logs), near.left, vectors)
    state = varying_like(state, near.logs)
    deep = near.within(window, near.first)
    reach = near.last - near.first
    for width in (*(block for block in BLOCKS if block < size), size):
        most = size
        if width < size:
            most = int(REACH * width)
        within = deep & (reach < most)

        def some(state: Settled, within: Array = within) -> Array:
            return jnp.any(within & (state.left > 0))

        def step(state: Settled, within: Array = within, width: int = width) -> Settled:
            row = jnp.argmax(within & (state.left > 0))
            return _block(near, state, row, width, window)

        state = jax.lax.while_loop(some, step, state)
    return state


def _block(
    near: Neighbours, state: Settled, row: Int[Array, ""], width: int, window: float
) -> Settled:
    """Settle the rows of one block, which starts at the first partner of a row."""
    size = len(near.logs)
    dtype = near.logs.dtype
    top = near.first[row]
    begin = jnp.clip(top, 0, size - width)

    def part(vector: Array) -> Array:
        return jax.lax.dynamic_slice(vector, (begin,), (width,))

    def whole(vector: Array, like: Array) -> Array:
        return jax.lax.dynamic_update_slice(like, vector, (begin,))

    below = difference((part(near.logs), part(near.low)), (near.logs[top], near.low[top]))
    scale = jnp.exp(jnp.clip(below - MARGIN, -window, 0))
    matrix = scale[:, None] * jax.lax.dynamic_slice(near.rows, (begin, begin), (width, width))
    index = jnp.arange(size)
    stands = (
        (index >= row) & (near.last < begin + width) & near.within(window, top) & (state.left > 0)
    )
    vectors = state.vectors
    if vectors is None:
        s = decompositions.singular_values(matrix)
    else:
        u, s, _ = decompositions.svd(matrix)
        columns = jax.lax.dynamic_slice(vectors, (0, begin), (size, width))
        turned = jax.lax.dynamic_update_slice(jnp.zeros_like(columns), u, (begin, 0))
        columns = jnp.where(part(stands)[None], turned, columns)
        vectors = jax.lax.dynamic_update_slice(vectors, columns, (0, begin))
    logs = whole(jnp.log(s) + (MARGIN + near.low[top]) + near.logs[top], state.logs)
    # an SVD rounds to eps times the largest
    error = whole(jnp.finfo(dtype).eps * s[0] / s, state.error)
    return Settled(
        jnp.where(stands, logs, state.logs),
        jnp.where(stands, error, state.error),
        jnp.where(stands, 0.0, state.left),
        vectors,
    )
