r"""Singular values and vectors of a graded matrix G = diag(e^d) X from `graded`.

QR sweeps on the transpose, with the step of `graded`, make d converge to the logarithms of the
singular values (Stewart 1997, ETNA 5:29-47): each sweep shrinks the entry between values g nats
apart by e^(-2g). Close values are settled by small SVDs, see `neighbours`.

The derivative is that of an SVD. With G = U diag(s) V^T and W = diag(e^d) U diag(1/s), of entries
of order 1,

    d ln s_i = [W^T (diag(dd) X + dX) V]_ii,

so no scale leaves the float range. Vectors come from the same sweeps and SVDs: V is a product of
orthonormal factors, and W = X^-T V.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstab import decompositions
from jaxstab.derivatives import custom_jvp
from jaxstab.precision import at_full_precision
from jaxstab.spectra.factors import log_lengths, qr
from jaxstab.spectra.graded import Graded, coupled, sorted_rows
from jaxstab.spectra.neighbours import (
    OF_VALUES,
    OF_VECTORS,
    Care,
    disturbances,
    neighbours,
    settle,
)

# QR sweeps in a round
SWEEPS = 2
# largest number of rounds before SVDs settle the rest
ROUNDS = 10
# stated error in units of the root mean square effect of the perturbations
EXCESS = 5.0
# values with a larger error cannot be distinguished from zero
UNKNOWN = 0.5


class Directions(NamedTuple):
    """Singular values and vectors of diag(e^d) X.

    Attributes:
        logs: ln s, descending; -inf for killed directions.
        left: W = diag(e^d) U diag(1/s), a column for each value; zero for killed directions.
        right: V, orthonormal columns.
        error: bound on the error of ln s after sweeps and SVDs.
    """

    logs: Float[Array, " m"]
    left: Float[Array, "m m"]
    right: Float[Array, "k m"]
    error: Float[Array, " m"]


class Swept(NamedTuple):
    """Graded matrix after QR sweeps.

    Attributes:
        graded: the swept matrix, square.
        turn: product of the orthonormal factors that the sweeps removed on the right, after the
            first; None without vectors.
        rounds: number of rounds so far.
    """

    graded: Graded
    turn: Float[Array, "m m"] | None
    rounds: Int[Array, ""]


@custom_jvp
def log_values(graded: Graded) -> Float[Array, " m"]:
    """Compute ln of the singular values of diag(e^d) X, descending.

    Args:
        graded: matrix with no more rows than columns.

    Returns:
        The logarithms; -inf with derivative 0 for killed directions. Derivatives are those of an
        SVD; for coinciding values only the sum of the derivatives is defined.
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
        graded: matrix with no more rows than columns.

    Returns:
        The record. The derivative of the vectors of coinciding values is set to 0.
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
    # (s_j / s_i)^2 for s_j < s_i, each pair once; 0 for a killed value
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
    """Compute `log_values` with errors.

    Args:
        graded: matrix with no more rows than columns.
        disturbed: tangents along random perturbations of the size of rounding.
        rank: number of directions that no exact zeros have killed.

    Returns:
        Logarithms and errors. Errors have no derivative. They are 0 for directions that exact zeros
        have killed, inf for values that cannot be distinguished from zero, and NaN for NaN values.
    """
    triplets = directions(graded)
    return triplets.logs, _error(*jax.lax.stop_gradient((graded, disturbed, triplets)), rank)


def _error(
    graded: Graded, disturbed: Graded, triplets: Directions, rank: Float[Array, ""]
) -> Float[Array, " m"]:
    eps = jnp.finfo(graded.logs.dtype).eps
    alive = triplets.logs != -jnp.inf
    logs = jnp.where(alive, triplets.logs, 0.0)
    # rounding of the QRs of the sweeps is relative to the length of a row
    lengths = jnp.sqrt(jnp.mean(graded.rows**2, axis=1, keepdims=True))
    draws = jax.random.normal(jax.random.key(1), disturbed.rows.shape, lengths.dtype)
    disturbed = disturbed._replace(rows=disturbed.rows + SWEEPS * eps * lengths[None] * draws)
    changes = jax.vmap(_moved_rows, (None, 0))(graded, disturbed)
    relative = jnp.einsum("ji,pjk,kl->pil", triplets.left, changes, triplets.right)
    own = jnp.diagonal(relative, axis1=1, axis2=2) ** 2
    # perturbations of close values act on each other too
    others = jax.vmap(disturbances, (0, None, None))(relative, triplets.logs, jnp.zeros_like(logs))
    square = jnp.mean(own + jnp.sum(others**2, axis=2), axis=0)
    rounding = EXCESS * jnp.sqrt(square) + triplets.error + eps * jnp.abs(logs)
    # a value that cannot be distinguished from zero may be smaller than all later values
    resolved = alive & (rounding < UNKNOWN)
    lost = jax.lax.cummax(jnp.where(resolved, 0, 1)) == 1
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
        near = neighbours(swept.graded, care)
        return jnp.any((near.left > 0) & ~near.within(window, near.first)) & (swept.rounds < ROUNDS)

    swept = jax.lax.while_loop(unsettled, _round, _round(start))
    near = neighbours(swept.graded, care)
    settled = settle(near, care)
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
    """Sweep twice, since each sweep transposes the matrix."""
    graded = swept.graded
    turn = swept.turn
    for other_side in (True, False):
        order, graded = sorted_rows(log_lengths(graded.rows, axis=1), graded)
        q, _, graded = _sweep(graded)
        if turn is not None:
            turn = turn[:, order] if other_side else turn @ q
    return Swept(graded, turn, swept.rounds + 1)
