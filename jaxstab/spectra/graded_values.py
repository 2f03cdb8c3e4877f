r"""Singular values and vectors of the graded matrix G = diag(e^d) X that `graded` leaves.

QR sweeps on its transpose, the step of `graded` again, turn d into the logarithms of the singular
values (Stewart 1997, ETNA 5:29-47) as far as values are apart: each shrinks the entry between
values g nats apart by e^(-2g). Values that are close are settled by small SVDs of their
neighbourhood.

The derivative is that of an SVD. With G = U diag(s) V^T and W = diag(e^d) U diag(1/s), whose
entries are of order 1,

    d ln s_i = [W^T (diag(dd) X + dX) V]_ii,

so no scale leaves the float range. Vectors come from the same sweeps and SVDs: V is a product of
orthonormal factors, and W = X^-T V.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstab import decompositions
from jaxstab.derivatives import custom_jvp
from jaxstab.norms.meshes import varying_like
from jaxstab.precision import at_full_precision
from jaxstab.spectra.graded import Graded, coupled, difference, log_lengths, qr, sorted_rows

# QR sweeps in a round, and rounds at most until all that is left can be settled by SVDs
SWEEPS = 2
ROUNDS = 10
# sizes of the blocks whose SVDs settle neighbours, besides the whole; each for rows with partners
# within this share
BLOCKS = (24, 64, 160, 400)
REACH = 0.6
# nats between the edge of a window of scales and the rows that count
MARGIN = 0.5
# stated error over the root mean square of what the perturbations do
EXCESS = 5.0
# from this error on, a value cannot be distinguished from zero
UNKNOWN = 0.5


class Care(NamedTuple):
    """Tolerances: when two values count as settled, and which scales one SVD covers.

    Attributes:
        angles: whether what is compared with the tolerance is the angle by which two vectors are
            off, not the error of their values, which is its square.
        tolerance: below it, two values are partners no more; by bytes of the dtype.
        window: nats of scales in one SVD, which rounds to eps times the largest; by bytes of the
            dtype.
    """

    angles: bool
    tolerance: dict[int, float]
    window: dict[int, float]


# for values alone: errors in ln s
OF_VALUES = Care(False, {4: 7.5e-5, 8: 2.5e-11}, {4: 7.8, 8: 13.0})
# for vectors: angles
OF_VECTORS = Care(True, {4: 1e-4, 8: 1e-9}, {4: 6.0, 8: 10.0})


class Directions(NamedTuple):
    """Singular values of diag(e^d) X and their vectors.

    Attributes:
        logs: ln s, descending; -inf where a direction is killed.
        left: W = diag(e^d) U diag(1/s), a column for each value; zero where it is killed.
        right: V, orthonormal columns.
        error: how far off ln s may be for what sweeps and SVDs leave.
    """

    logs: Float[Array, " m"]
    left: Float[Array, "m m"]
    right: Float[Array, "k m"]
    error: Float[Array, " m"]


class Swept(NamedTuple):
    """Graded matrix after QR sweeps.

    Attributes:
        graded: the rest, square.
        turn: product of the orthonormal factors that the sweeps removed on the right, after the
            first; None where vectors are not wanted.
        rounds: how many so far.
    """

    graded: Graded
    turn: Float[Array, "m m"] | None
    rounds: Int[Array, ""]


class Neighbours(NamedTuple):
    """Rows in the order of their scales, and which of them are not yet settled.

    Attributes:
        order: indices into the graded matrix.
        logs: d in that order.
        low: what rounding lost of it.
        rows: X in that order, rows and columns.
        first: for each row the first index of those that it must share a block with.
        last: the last one.
        left: how far off ln s may be for want of a block.
        ignored: how far off it may be for all other rows.
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
        """Tell whether the partners of each row lie within a window of scales from row `top` on."""
        return self.logs[self.last] > self.logs[top] - window + 2 * MARGIN


class Settled(NamedTuple):
    """Values found so far, in the order of `Neighbours`.

    Attributes:
        logs: ln s.
        error: how far off they may be.
        left: as in `Neighbours`, 0 where a block has been.
        vectors: left singular vectors of diag(e^d) X in that order. None where nobody asks for
            them.
    """

    logs: Float[Array, " m"]
    error: Float[Array, " m"]
    left: Float[Array, " m"]
    vectors: Float[Array, "m m"] | None


@custom_jvp
def log_values(graded: Graded) -> Float[Array, " m"]:
    """Compute ln of the singular values of diag(e^d) X, descending.

    Args:
        graded: as many rows as columns, or fewer.

    Returns:
        The logarithms; -inf where a direction is killed, whose derivative is 0. Derivatives are
        those of an SVD: where values coincide they are those of whatever vectors it finds, and only
        their sum means something.
    """
    return _decompose(graded, OF_VALUES).logs


@log_values.defjvp
@at_full_precision
def _log_values_jvp(primals: tuple[Graded], tangents: tuple[Graded]) -> tuple[Array, Array]:
    (graded,), (moved,) = primals, tangents
    triplets = directions(graded)
    return triplets.logs, jnp.sum(
        triplets.left * (_moved_rows(graded, moved) @ triplets.right), axis=0
    )


@custom_jvp
def directions(graded: Graded) -> Directions:
    """Compute singular values and vectors of diag(e^d) X.

    Args:
        graded: as many rows as columns, or fewer.

    Returns:
        The record; its derivative sets that of vectors of coinciding values to 0.
    """
    return _decompose(graded, OF_VECTORS)


@directions.defjvp
@at_full_precision
def _directions_jvp(
    primals: tuple[Graded], tangents: tuple[Graded]
) -> tuple[Directions, Directions]:
    # with P = W^T dM V, dV = V B and dU = U A: s_i P_ij = A_ij s_j - s_i B_ij, and the same with i
    # and j exchanged
    (graded,), (moved,) = primals, tangents
    triplets = directions(graded)
    alive = triplets.logs != -jnp.inf
    change = _moved_rows(graded, moved)
    relative = triplets.left.T @ change @ triplets.right
    logs = jnp.where(alive, triplets.logs, 0.0)
    # (s_j / s_i)^2 for j below i, 0 beside a killed value; each pair once, from the side of the
    # larger
    below = jnp.tril(jnp.ones_like(relative, bool), -1).T
    ratio = jnp.where(
        below & alive[None], jnp.exp(jnp.where(below, 2 * (logs[None] - logs[:, None]), 0.0)), 0.0
    )
    apart = jnp.where(ratio < 1, 1 - ratio, jnp.inf)
    pair = below & alive[:, None]
    right_turn = jnp.where(pair, -(ratio * relative.T + relative) / apart, 0.0)
    right_turn = right_turn - right_turn.T
    right = triplets.right @ right_turn
    # beyond the columns of V
    outside = change.T @ triplets.left
    right = right + outside - triplets.right @ (triplets.right.T @ outside)
    # S A S^-1: above the diagonal by the smaller value, below it by the larger
    upper = jnp.where(pair & alive[None], -(relative + relative.T) / apart, 0.0)
    lower = jnp.where(pair & alive[None], ratio * (relative.T + right_turn.T), 0.0).T
    shift = jnp.where(alive, jnp.diagonal(relative), 0.0)
    left = triplets.left @ (upper + lower) - triplets.left * shift[None]
    left = left + (moved.logs + moved.low)[:, None] * triplets.left
    return triplets, Directions(shift, left, right, jnp.zeros_like(shift))


def _moved_rows(graded: Graded, moved: Graded) -> Float[Array, "m k"]:
    """Compute the tangent diag(dd) X + dX of rows that are not zero."""
    alive = graded.logs != -jnp.inf
    change = (moved.logs + moved.low)[:, None] * graded.rows + moved.rows
    return jnp.where(alive[:, None], change, 0.0)


def log_values_with_errors(
    graded: Graded, disturbed: Graded, rank: Float[Array, ""]
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Compute `log_values` with their errors.

    Args:
        graded: as many rows as columns, or fewer.
        disturbed: its tangents along random perturbations of about what rounding does.
        rank: directions that no exact zeros have killed.

    Returns:
        The logarithms and their errors. Errors have no derivative. They are 0 for directions that
        exact zeros have killed, inf where a value cannot be distinguished from zero, and NaN where
        it is NaN.
    """
    triplets = directions(graded)
    return triplets.logs, _error(*jax.lax.stop_gradient((graded, disturbed, triplets)), rank)


def _error(
    graded: Graded, disturbed: Graded, triplets: Directions, rank: Float[Array, ""]
) -> Float[Array, " m"]:
    eps = jnp.finfo(graded.logs.dtype).eps
    alive = triplets.logs != -jnp.inf
    logs = jnp.where(alive, triplets.logs, 0.0)
    # the QRs of the sweeps round relative to the length of a row
    lengths = jnp.sqrt(jnp.mean(graded.rows**2, axis=1, keepdims=True))
    draws = jax.random.normal(jax.random.key(1), disturbed.rows.shape, lengths.dtype)
    disturbed = disturbed._replace(rows=disturbed.rows + SWEEPS * eps * lengths[None] * draws)
    changes = jax.vmap(_moved_rows, (None, 0))(graded, disturbed)
    relative = jnp.einsum("ji,pjk,kl->pil", triplets.left, changes, triplets.right)
    own = jnp.diagonal(relative, axis1=1, axis2=2) ** 2
    # close values move each other too
    others = jax.vmap(disturbances, (0, None, None))(relative, triplets.logs, jnp.zeros_like(logs))
    square = jnp.mean(own + jnp.sum(others**2, axis=2), axis=0)
    rounding = EXCESS * jnp.sqrt(square) + triplets.error + eps * jnp.abs(logs)
    # a value not told from zero may belong below any that follows
    told = alive & (rounding < UNKNOWN)
    lost = jax.lax.cummax(jnp.where(told, 0, 1)) == 1
    error = jnp.where(lost, jnp.inf, rounding)
    error = jnp.where(jnp.arange(len(alive)) < rank.astype(int), error, 0.0)
    return jnp.where(jnp.isnan(triplets.logs), jnp.nan, error)


def _decompose(graded: Graded, care: Care) -> Directions:
    """Decompose diag(e^d) X; vectors have no columns unless `care` asks for their angles."""
    order, graded = sorted_rows(log_lengths(graded.rows, axis=1), graded)
    # the first sweep makes rows square
    q, r, rest = _sweep(graded)
    size = len(rest.logs)
    start = Swept(rest, jnp.eye(size, dtype=q.dtype) if care.angles else None, jnp.asarray(0))
    window = care.window[q.dtype.itemsize]

    def unsettled(swept: Swept) -> Array:
        near = _neighbours(swept.graded, care)
        return jnp.any((near.left > 0) & ~near.within(window, near.first)) & (swept.rounds < ROUNDS)

    swept = jax.lax.while_loop(unsettled, _round, _round(start))
    near = _neighbours(swept.graded, care)
    settled = _settled(near, care)
    best = jnp.argsort(-settled.logs)
    logs = settled.logs[best]
    error = (settled.error + settled.left + near.ignored)[best]
    alive = logs != -jnp.inf
    error = jnp.where(alive, error, 0.0)
    if swept.turn is None or settled.vectors is None:
        none = jnp.zeros((size, 0), logs.dtype)
        return Directions(logs, none, none, error)
    turn = swept.turn[:, near.order] @ settled.vectors[:, best]
    living = graded.logs[:size] != -jnp.inf
    triangle = jnp.where(living[:, None] & living[None], r, jnp.eye(size, dtype=r.dtype))
    left = decompositions.solve_triangular(triangle, turn)
    left = jnp.where(living[:, None] & alive[None], left, 0.0)
    return Directions(logs, left[jnp.argsort(order)], q @ turn, error)


def _sweep(graded: Graded) -> tuple[Array, Array, Graded]:
    """Sweep once: with diag(e^d) X = R^T Q^T, return Q, R and R^T as diag(e^d) X'."""
    within = jnp.arange(len(graded.logs)) < jnp.sum(graded.logs != -jnp.inf)
    q, r = qr(graded.rows.T, within)
    lengths = log_lengths(graded.rows, axis=1)
    return q, r, Graded(*coupled(jnp.where(within[None], r, 0.0), graded, lengths, within))


def _round(swept: Swept) -> Swept:
    """Sweep twice, so that rows are rows again."""
    graded = swept.graded
    turn = swept.turn
    for other_side in (True, False):
        order, graded = sorted_rows(log_lengths(graded.rows, axis=1), graded)
        q, _, graded = _sweep(graded)
        if turn is not None:
            turn = turn[:, order] if other_side else turn @ q
    return Swept(graded, turn, swept.rounds + 1)


def disturbances(
    rows: Float[Array, "m m"],
    logs: Float[Array, " m"],
    low: Float[Array, " m"],
    angles: bool = False,
) -> Float[Array, "m m"]:
    """Bound how far two rows move each other's ln s, or turn each other's vectors.

    Args:
        rows: X, whose diagonal is left out.
        logs: d, descending.
        low: what rounding lost of d.
        angles: whether to say by which angle they turn, in [0, 1].

    Returns:
        The estimate for each pair, symmetric.
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


def _neighbours(graded: Graded, care: Care) -> Neighbours:
    """Sort rows by scale and find those that disturb each other beyond the tolerance."""
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


def _settled(near: Neighbours, care: Care) -> Settled:
    """Take undisturbed rows as they are, and the others from SVDs of blocks."""
    # A block begins where a row's first partner is, its scales cut to a window in which an SVD is
    # accurate: small blocks for rows with near partners, as many as it takes, then larger ones. It
    # holds whatever disturbs a row.
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
