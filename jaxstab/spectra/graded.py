r"""Products of matrices in logarithms, and the singular values of what is left of them.

A product F_L ... F_1 is carried as Q diag(e^d) X, Q orthonormal, X of rows of order 1. One more factor: F Q = Q' R by
QR, columns ordered by what they weigh, then d' = d + ln |r_ii| and X' = (e^{-d'} R e^{d}) X, whose every exponent is at
most of order 0. What is left in the end, diag(e^d) X, is small and graded: QR sweeps on its transpose, the same step
again, turn d into the logarithms of the singular values (Stewart 1997, ETNA 5:29-47) as far as values are apart;
those that are close are settled by small SVDs of their neighbourhood.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstab import decompositions

# error in ln s that sweeps and SVDs may leave, by bytes of the dtype
ACCURACY = {4: 3e-4, 8: 1e-10}
# QR sweeps before each attempt at settling the rest, and attempts
SWEEPS, ROUNDS = 2, 10
# sizes of the blocks whose SVDs settle neighbours, besides the whole; each for rows with partners within this share
BLOCKS, REACH = (24, 64, 160, 400), 0.6
# nats between the edge of a window of scales and the rows that count
MARGIN = 0.5
# QR sweeps for derivatives: those of values g nats apart are off by e^(-2 g n)
DERIVATIVE_SWEEPS = 12
# squared angles are cut here: far beyond what is known of a direction, far from where float32 ends
LOST = 1e25


class Graded(NamedTuple):
    """diag(e^(logs + low)) rows: what is left of a product when its orthonormal factor is taken off.

    Attributes:
        logs: d; -inf where a direction is killed.
        low: what rounding would lose of d, as sums over a thousand layers lose digits that differences need.
        rows: X.
        noise: squared error of ln of each row gathered from rounding; inf where a row is not told from zero. None
            where nobody asks.
    """

    logs: Float[Array, " m"]
    low: Float[Array, " m"]
    rows: Float[Array, "m k"]
    noise: Float[Array, " m"] | None


class Product(NamedTuple):
    """A product of factors as basis diag(e^logs) rows.

    Attributes:
        basis: Q, orthonormal columns.
        graded: the rest.
        rank: directions that no exact zeros have killed.
        tilt: squared angle by which rounding may have turned column j of the basis towards column i > j. None where
            nobody asks for errors.
    """

    basis: Float[Array, "n m"]
    graded: Graded
    rank: Int[Array, ""]
    tilt: Float[Array, "m m"] | None

    def then(self, pushed: Float[Array, "p m"], rank: Int[Array, ""]) -> "Product":
        """The product with one more factor F on its left.

        Args:
            pushed: F basis.
            rank: at least that of `pushed`, from the exact zeros of F.

        Returns:
            The product.
        """
        rank = jnp.minimum(self.rank, rank)
        basis, graded, tilt = _absorb(pushed, self.graded, rank, self.tilt)
        return Product(basis, graded, rank, tilt)


def identity(n: int, dtype: jnp.dtype, errors: bool = True) -> Product:
    """The empty product.

    Args:
        n: its size.
        dtype: of its factors.
        errors: whether to keep account of rounding: a triangular inverse for every factor.

    Returns:
        The product.
    """
    eye, zeros = jnp.eye(n, dtype=dtype), jnp.zeros(n, dtype)
    noise, tilt = (zeros, jnp.zeros_like(eye)) if errors else (None, None)
    return Product(eye, Graded(zeros, zeros, eye, noise), jnp.asarray(n), tilt)


def rank(factor: Float[Array, "n m"]) -> Int[Array, ""]:
    """Rank of a factor in general position, from its rows and columns that are not exactly zero.

    Args:
        factor: the matrix.

    Returns:
        The smaller count.
    """
    live = factor != 0
    return jnp.minimum(jnp.any(live, axis=0).sum(), jnp.any(live, axis=1).sum())


def pushed(
    push: Callable[[Array], Array], h: Float[Array, " n"], basis: Float[Array, "n m"]
) -> tuple[Float[Array, "p m"], Int[Array, ""]]:
    """F basis for a layer's Jacobian F that is not formed, and what `rank` gives of it.

    Args:
        push: v -> F v, linear.
        h: anything of v's shape and dtype.
        basis: orthonormal columns.

    Returns:
        The product, and its rank in general position.
    """
    found = jax.vmap(push, 1, 1)(basis)
    # a unit that nothing goes through: seen by a row vector in general position
    probe = jnp.cos(jnp.arange(1, len(found) + 1, dtype=found.dtype))
    through = jax.linear_transpose(push, h)(probe)[0]
    return found, jnp.minimum(jnp.sum(through != 0), jnp.any(found != 0, axis=1).sum())


def _sorted(lengths: Float[Array, " m"], graded: Graded) -> tuple[Int[Array, " m"], Graded]:
    """Rows of most weight first, and their order."""
    weight = lengths + graded.logs
    order = jnp.argsort(-jnp.where(jnp.isnan(weight), -jnp.inf, weight))
    return order, jax.tree.map(lambda leaf: leaf[order], graded)


def _independent(factor: Float[Array, "n m"], within: Bool[Array, " m"]) -> Float[Array, "n m"]:
    # columns beyond the rank depend on those before; any others in their place leave the leading part of QR as it is,
    # and its derivative finite
    rows, columns = (jnp.arange(1, size + 1, dtype=factor.dtype) for size in factor.shape)
    return jnp.where(within[None], factor, jnp.cos(rows[:, None] * columns[None]))


@jax.custom_jvp
def _qr(factor: Float[Array, "n m"], within: Bool[Array, " m"]) -> tuple[Float[Array, "n p"], Float[Array, "p m"]]:
    """QR, whose derivative takes columns beyond the rank to be any."""
    q, r = decompositions.qr(factor)
    return q, r


@_qr.defjvp
def _qr_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    factor, within = primals

    def independent(factor: Array) -> tuple[Array, Array]:
        q, r = decompositions.qr(_independent(factor, within))
        return q, jnp.where(within[None], r, q.T @ factor)

    return jax.jvp(independent, (factor,), tangents[:1])


def _difference(one: tuple[Array, Array], other: tuple[Array, Array]) -> Array:
    """Of two logarithms in two parts each."""
    return (one[0] - other[0]) + (one[1] - other[1])


def _coupling(
    r: Float[Array, "p m"], graded: Graded, lengths: Float[Array, " m"], within: Bool[Array, " m"]
) -> tuple[Float[Array, " p"], Float[Array, " p"], Float[Array, "p m"]]:
    """R diag(e^d) as diag(e^d') C: d' in two parts, and C; R's columns are of these lengths, of any unit."""
    size = len(r)
    d, low = graded.logs[:size], graded.low[:size]
    diagonal = jnp.diagonal(r)
    alive = within[:size] & (diagonal != 0) & (d != -jnp.inf)
    pivot = jnp.log(jnp.abs(jnp.where(alive, diagonal, 1.0)))
    # the sum with what it rounds off (Kahan 1965)
    start, step = jnp.where(alive, d, 0.0), pivot + low
    logs = start + step
    low = jnp.where(alive, step - (logs - start), 0.0)
    # columns of R made of order 1 first: e^d can leave the float range where what it weighs does not, but columns of
    # less weight come later
    columns = (lengths != -jnp.inf) & (graded.logs != -jnp.inf)
    lengths, d = jnp.where(columns, lengths, 0.0), jnp.where(columns, graded.logs, 0.0)
    exponent = _difference((d[None], graded.low[None]), (start[:, None], graded.low[:size, None]))
    exponent = exponent + (lengths[None] - pivot[:, None])
    some = alive[:, None] & columns[None] & (r != 0)
    coupling = jnp.where(some, r * jnp.exp(-lengths)[None] * jnp.exp(jnp.where(some, exponent, 0.0)), 0.0)
    return jnp.where(alive, logs, -jnp.inf), low, coupling


def _rounded(
    r: Float[Array, "m k"], longest: Float[Array, ""], alive: Bool[Array, " m"], tilt: Float[Array, "m m"]
) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """Squared errors of ln |r_ii|, columns of Q R rounded to eps sqrt(k) times the longest, and tilts after it."""
    # To first order E R^-1 disturbs the product: its diagonal ln |r_ii| at once, what is below turns directions, which
    # goes unseen until a layer contracts the one and not the other: column j of the basis, tilted by t towards i, then
    # gains t r_ji where r_jj is left
    eye, rounding = jnp.eye(len(r), dtype=r.dtype), r.shape[1] ** 0.5 * jnp.finfo(r.dtype).eps
    r = jnp.where(alive[:, None] & alive[None], r[:, : len(r)] / jnp.where(longest == 0, 1.0, longest), eye)
    pivot = jnp.abs(jnp.diagonal(r))
    known = jnp.where(pivot == 0, jnp.nan, pivot)
    fresh = rounding**2 * jnp.sum(decompositions.solve_triangular(r, eye) ** 2, axis=0)
    square = fresh + jnp.sum(tilt.T * jnp.triu(r / known[:, None], 1) ** 2, axis=1)
    error = jnp.sqrt(jnp.where(square < 1, square, 0.0))
    # a pivot within rounding may be nothing at all
    noise = jnp.where(alive, jnp.where(square < 1, jnp.log1p(-error) ** 2, jnp.inf), 0.0)
    tilt = tilt * (pivot[:, None] / known[None]) ** 2 + fresh[None]
    return noise, jnp.where(jnp.tril(alive[:, None] & alive[None], -1), jnp.where(tilt < LOST, tilt, LOST), 0.0)


def _lengths(vectors: Float[Array, "..."], axis: int) -> Float[Array, " m"]:
    """Logarithms of lengths of vectors along an axis; a constant to derivatives, as all that depends on it cancels."""
    vectors = jax.lax.stop_gradient(vectors)
    largest = jnp.max(jnp.abs(vectors), axis)
    scale = jnp.where(largest == 0, 1.0, largest)
    return jnp.log(largest) + jnp.log(jnp.sum((vectors / jnp.expand_dims(scale, axis)) ** 2, axis)) / 2


def _absorb(
    factor: Float[Array, "n m"], graded: Graded, rank: Int[Array, ""], tilt: Float[Array, "m m"] | None
) -> tuple[Float[Array, "n p"], Graded, Float[Array, "p p"] | None]:
    """factor diag(e^d) X as Q diag(e^d') X', p = min(n, m); rows from `rank` on are exactly zero."""
    lengths = _lengths(factor, axis=0)
    order, graded = _sorted(lengths, graded)
    factor, lengths, within = factor[:, order], lengths[order], jnp.arange(len(order)) < rank
    q, r = _qr(factor, within)
    logs, low, coupling = _coupling(r, graded, lengths, within)
    noise = graded.noise
    if noise is not None and tilt is not None:
        # what products round is relative to the longest column, and so is what QR rounds of the others at most
        kept = order[: len(r)]
        square, longest = jax.lax.stop_gradient((r, jnp.exp(jnp.max(lengths))))
        more, tilt = _rounded(square, longest, logs != -jnp.inf, tilt[kept][:, kept])
        noise = noise[: len(r)] + more
    return q, Graded(logs, low, coupling @ graded.rows, noise), tilt


def _sweep(graded: Graded) -> Graded:
    """diag(e^d) X as diag(e^d') X' for the transpose of what an orthonormal factor on the right leaves of it."""
    within = jnp.arange(len(graded.logs)) < jnp.sum(graded.logs != -jnp.inf)
    # sorted beforehand, so that rows and columns of what comes out belong to each other
    lengths = _lengths(graded.rows, axis=1)
    order, graded = _sorted(lengths, graded)
    _, r = _qr(graded.rows.T, within)
    return Graded(*_coupling(jnp.where(within[None], r, 0.0), graded, lengths[order], within), graded.noise)


def _sweeps(graded: Graded, count: int) -> Graded:
    return jax.lax.scan(lambda graded, _: (_sweep(graded), None), graded, None, length=count)[0]


@jax.custom_jvp
def log_values(graded: Graded) -> tuple[Float[Array, " m"], Float[Array, " m"] | None]:
    """ln of the singular values of diag(e^logs) rows, descending, and how far off they may be.

    Args:
        graded: as many rows as columns, or fewer.

    Returns:
        The logarithms and their errors; None for these where no account was kept of rounding.
    """

    def again(state: tuple) -> tuple:
        graded = _sweeps(state[0], SWEEPS)
        return graded, *_settle(graded), state[-1] + 1

    dtype = graded.logs.dtype
    accuracy, unknown = ACCURACY[dtype.itemsize], jnp.full_like(graded.logs, jnp.inf)
    unsettled = lambda state: jnp.any(state[2] > accuracy) & (state[-1] < ROUNDS)
    # the first sweep makes rows square
    start = (_sweep(graded), unknown, unknown, unknown, jnp.asarray(0))
    swept, logs, left, ignored, _ = jax.lax.while_loop(unsettled, again, start)
    order, alive = jnp.argsort(-logs), jnp.isfinite(logs)
    if swept.noise is None:
        return logs[order], None
    # a value not told from zero may belong below any that follows
    noise = jax.lax.cummax(swept.noise[jnp.argsort(-swept.logs)])
    rounding = jnp.sqrt(noise) + jnp.finfo(dtype).eps * jnp.abs(jnp.where(alive, logs, 0.0))
    # SVDs of larger blocks round more
    settled = accuracy * max(1.0, (len(logs) / 8) ** 0.5) + left + ignored
    return logs[order], jnp.where(alive, rounding + settled, 0.0)[order]


@log_values.defjvp
def _log_values_jvp(primals: tuple[Graded], tangents: tuple[Graded]) -> tuple[tuple, tuple]:
    # values move with their own sweeps, right where they are apart
    values, error = log_values(*primals)
    swept, moved = jax.jvp(lambda graded: _sweeps(_sweep(graded), DERIVATIVE_SWEEPS), primals, tangents)
    order = jnp.argsort(-(swept.logs + swept.low))
    return (values, error), ((moved.logs + moved.low)[order], None if error is None else jnp.zeros_like(error))


def _disturbance(rows: Float[Array, "m m"], logs: Float[Array, " m"], low: Float[Array, " m"]) -> Float[Array, "m m"]:
    """How far two rows may move each other's ln s, at most; logs descend."""
    # [[a, a e], [0, b]] has ln s off by less than e, and by e^2 / (1 - (b/a)^2) where a is larger
    finite = jnp.where(jnp.isfinite(logs), logs, jnp.min(jnp.where(jnp.isfinite(logs), logs, jnp.inf)))
    gap = _difference((finite[:, None], low[:, None]), (finite[None], low[None]))
    smaller = jnp.exp(-jnp.abs(gap))
    entry = jnp.abs(rows) * jnp.where(gap < 0, smaller, 1.0) * (1 - jnp.eye(len(logs), dtype=rows.dtype))
    entry = jnp.maximum(entry, entry.T)
    apart = 1 - smaller**2
    return entry * jnp.where(entry < apart, entry / jnp.where(apart == 0, 1.0, apart), 1.0)


def _settle(graded: Graded) -> tuple[Float[Array, " m"], Float[Array, " m"], Float[Array, " m"]]:
    """ln of the singular values in the order of the logs, how far off those left unsettled may be, and all others."""
    # Rows that no other disturbs are there already. The others come from SVDs of blocks that begin where a row's first
    # partner is, scales cut to a window in which an SVD is accurate: small blocks for rows with near partners, as many
    # as it takes, then larger ones. A block has to hold whatever disturbs a row.
    m, dtype = len(graded.logs), graded.logs.dtype
    accuracy = ACCURACY[dtype.itemsize]
    window = -jnp.log(jnp.finfo(dtype).eps / accuracy)
    order, index = jnp.argsort(-graded.logs), jnp.arange(m)
    logs, low, rows = graded.logs[order], graded.low[order], graded.rows[order][:, order]
    disturbance = _disturbance(rows, logs, low)
    partners = (disturbance > accuracy / 4) | (index[:, None] == index[None])
    first = jax.lax.cummin(jnp.min(jnp.where(partners, index[None], m), axis=1), reverse=True)
    # partners are mutual
    last = jnp.searchsorted(first, index, side="right").astype(index.dtype) - 1
    left = jnp.where(jnp.isfinite(logs), jnp.sum(disturbance, axis=1, where=partners), 0.0)
    ignored = jnp.where(jnp.isfinite(logs), jnp.sum(disturbance, axis=1, where=~partners), 0.0)
    deep = lambda top: logs[last] > logs[top] - window + 2 * MARGIN

    def block(width: int, row: Array, found: Array, left: Array) -> tuple[Array, Array]:
        """What a block from `row`'s first partner on settles, all rows up to there excepted."""
        top = first[row]
        begin = jnp.clip(top, 0, m - width)
        part = jax.lax.dynamic_slice(rows, (begin, begin), (width, width))
        near, near_low = (jax.lax.dynamic_slice(leaf, (begin,), (width,)) for leaf in (logs, low))
        scale = jnp.exp(jnp.clip(_difference((near, near_low), (logs[top], low[top])) - MARGIN, -window, 0))
        s = decompositions.singular_values(scale[:, None] * part)
        values = jax.lax.dynamic_update_slice(found, jnp.log(s) + (MARGIN + low[top]) + logs[top], (begin,))
        stands = (index >= row) & (last < begin + width) & deep(top) & (left > 0)
        return jnp.where(stands, values, found), jnp.where(stands, 0.0, left)

    found = logs + low
    for width in (*(size for size in BLOCKS if size < m), m):
        within = deep(first) & (last - first < (int(REACH * width) if width < m else m))
        found, left = _while_any(within, lambda row, *state, width=width: block(width, row, *state), found, left)
    return found, left, ignored


def _while_any(which: Bool[Array, " m"], step: Callable, found: Array, left: Array) -> tuple[Array, Array]:
    """Steps from the first row of these with something left; each step leaves that one nothing."""
    more = lambda state: jnp.any(which & (state[1] > 0))
    return jax.lax.while_loop(more, lambda state: step(jnp.argmax(which & (state[1] > 0)), *state), (found, left))
