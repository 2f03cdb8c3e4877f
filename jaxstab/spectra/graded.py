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

from jaxstab.norms import unit

# error in ln s that sweeps and SVDs may leave, by bytes of the dtype
ACCURACY = {4: 3e-4, 8: 1e-10}
# QR sweeps before each attempt at settling the rest, and attempts
SWEEPS, ROUNDS = 2, 10
# sizes of the blocks whose SVDs settle neighbours, and the inner rows that each settles
BLOCKS = ((12, 2), (32, 16))
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
        noise: squared error of ln of each row gathered from rounding; inf where a row is not told from zero.
    """

    logs: Float[Array, " m"]
    low: Float[Array, " m"]
    rows: Float[Array, "m k"]
    noise: Float[Array, " m"]


class Product(NamedTuple):
    """A product of factors as basis diag(e^logs) rows.

    Attributes:
        basis: Q, orthonormal columns.
        graded: the rest.
        rank: directions that no exact zeros have killed.
        tilt: squared angle by which rounding may have turned column j of the basis towards column i > j.
    """

    basis: Float[Array, "n m"]
    graded: Graded
    rank: Int[Array, ""]
    tilt: Float[Array, "m m"]

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


def identity(n: int, dtype: jnp.dtype) -> Product:
    """The empty product.

    Args:
        n: its size.
        dtype: of its factors.

    Returns:
        The product.
    """
    eye, zeros = jnp.eye(n, dtype=dtype), jnp.zeros(n, dtype)
    return Product(eye, Graded(zeros, zeros, eye, zeros), jnp.asarray(n), jnp.zeros_like(eye))


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


def _difference(one: tuple[Array, Array], other: tuple[Array, Array]) -> Array:
    """Of two logarithms in two parts each."""
    return (one[0] - other[0]) + (one[1] - other[1])


def _coupling(
    r: Float[Array, "p m"], graded: Graded, within: Bool[Array, " m"]
) -> tuple[Float[Array, " p"], Float[Array, " p"], Float[Array, "p m"]]:
    """R diag(e^d) as diag(e^d') C: d' in two parts, and C."""
    size = len(r)
    d, low = graded.logs[:size], graded.low[:size]
    diagonal = jnp.diagonal(r)
    alive = within[:size] & (diagonal != 0) & (d != -jnp.inf)
    pivot = jnp.log(jnp.abs(jnp.where(alive, diagonal, 1.0)))
    # the sum with what it rounds off (Kahan 1965)
    start, step = jnp.where(alive, d, 0.0), pivot + low
    logs = start + step
    low = jnp.where(alive, step - (logs - start), 0.0)
    # in logarithms, where the factors of a product in range need not be
    some = alive[:, None] & (r != 0) & (graded.logs != -jnp.inf)[None]
    columns, rows = (graded.logs[None], graded.low[None]), (start[:, None], graded.low[:size, None])
    exponent = jnp.log(jnp.where(some, jnp.abs(r), 1.0)) - pivot[:, None] + _difference(columns, rows)
    coupling = jnp.where(some, jnp.sign(r) * jnp.exp(jnp.where(some, exponent, 0.0)), 0.0)
    return jnp.where(alive, logs, -jnp.inf), low, coupling


def _rounded(
    r: Float[Array, "m m"], longest: Float[Array, ""], alive: Bool[Array, " m"], tilt: Float[Array, "m m"], size: int
) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """Squared errors of ln |r_ii| where columns of R Q are rounded to eps sqrt(size) longest, and tilts after it."""
    # To first order E R^-1 disturbs the product: its diagonal ln |r_ii| at once, what is below turns directions, which
    # goes unseen until a layer contracts the one and not the other: column j of the basis, tilted by t towards i, then
    # gains t r_ji where r_jj is left
    r = jnp.where(alive[:, None] & alive[None], r / longest, jnp.eye(len(r), dtype=r.dtype))
    pivot = jnp.abs(jnp.diagonal(r))
    known = jnp.where(pivot == 0, jnp.nan, pivot)
    inverse = jax.scipy.linalg.solve_triangular(r, jnp.eye(len(r), dtype=r.dtype))
    fresh = size * jnp.finfo(r.dtype).eps ** 2 * jnp.sum(inverse**2, axis=0)
    square = fresh + jnp.sum(tilt.T * jnp.triu(r / known[:, None], 1) ** 2, axis=1)
    error = jnp.sqrt(jnp.where(square < 1, square, 0.0))
    # a pivot within rounding may be nothing at all
    noise = jnp.where(alive, jnp.where(square < 1, jnp.log1p(-error) ** 2, jnp.inf), 0.0)
    tilt = tilt * (pivot[:, None] / known[None]) ** 2 + fresh[None]
    return noise, jnp.where(jnp.tril(alive[:, None] & alive[None], -1), jnp.where(tilt < LOST, tilt, LOST), 0.0)


def _absorb(
    factor: Float[Array, "n m"], graded: Graded, rank: Int[Array, ""], tilt: Float[Array, "m m"]
) -> tuple[Float[Array, "n p"], Graded, Float[Array, "p p"]]:
    """factor diag(e^d) X as Q diag(e^d') X', p = min(n, m); rows from `rank` on are exactly zero."""
    lengths = jax.vmap(unit, in_axes=1)(factor)[1]
    order, graded = _sorted(lengths, graded)
    factor, within = factor[:, order], jnp.arange(len(order)) < rank
    q, r = jnp.linalg.qr(_independent(factor, within))
    r = jnp.where(within[None], r, q.T @ factor)
    logs, low, coupling = _coupling(r, graded, within)
    # what products round is relative to the longest column, and so is what QR rounds of the others at most
    kept, alive = len(r), logs != -jnp.inf
    square, longest = jax.lax.stop_gradient((r[:, :kept], jnp.exp(jnp.max(lengths))))
    tilt = tilt[order[:kept]][:, order[:kept]]
    noise, tilt = _rounded(square, jnp.where(longest == 0, 1.0, longest), alive, tilt, size=len(order))
    return q, Graded(logs, low, coupling @ graded.rows, graded.noise[:kept] + noise), tilt


def _sweep(graded: Graded) -> Graded:
    """diag(e^d) X as diag(e^d') X' for the transpose of what an orthonormal factor on the right leaves of it."""
    within = jnp.arange(len(graded.logs)) < jnp.sum(graded.logs != -jnp.inf)
    # sorted beforehand, so that rows and columns of what comes out belong to each other
    _, graded = _sorted(jax.vmap(unit)(graded.rows)[1], graded)
    r = jnp.linalg.qr(_independent(graded.rows.T, within), mode="r")
    return Graded(*_coupling(jnp.where(within[None], r, 0.0), graded, within), graded.noise)


def _sweeps(graded: Graded, count: int) -> Graded:
    return jax.lax.scan(lambda graded, _: (_sweep(graded), None), graded, None, length=count)[0]


@jax.custom_jvp
def log_values(graded: Graded) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """ln of the singular values of diag(e^logs) rows, descending, and how far off they may be.

    Args:
        graded: as many rows as columns, or fewer.

    Returns:
        The logarithms and their errors.
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
    alive = jnp.isfinite(logs)
    # a value not told from zero may belong below any that follows
    noise = jax.lax.cummax(swept.noise[jnp.argsort(-swept.logs)])
    rounding = jnp.sqrt(noise) + jnp.finfo(dtype).eps * jnp.abs(jnp.where(alive, logs, 0.0))
    order = jnp.argsort(-logs)
    return logs[order], jnp.where(alive, rounding + accuracy + left + ignored, 0.0)[order]


@log_values.defjvp
def _log_values_jvp(primals: tuple[Graded], tangents: tuple[Graded]) -> tuple[tuple, tuple]:
    # values move with their own sweeps, right where they are apart
    values, error = log_values(*primals)
    swept, moved = jax.jvp(lambda graded: _sweeps(_sweep(graded), DERIVATIVE_SWEEPS), primals, tangents)
    order = jnp.argsort(-(swept.logs + swept.low))
    return (values, error), ((moved.logs + moved.low)[order], jnp.zeros_like(error))


def _disturbance(rows: Float[Array, "m m"], logs: Float[Array, " m"], low: Float[Array, " m"]) -> Float[Array, "m m"]:
    """How far two rows may move each other's ln s, at most."""
    # [[a, a e], [0, b]] has ln s off by less than e, and by e^2 / (1 - (b/a)^2) where a is larger
    finite = jnp.where(jnp.isfinite(logs), logs, jnp.min(jnp.where(jnp.isfinite(logs), logs, jnp.inf)))
    gap = _difference((finite[:, None], low[:, None]), (finite[None], low[None]))
    entry = jnp.abs(rows) * jnp.exp(jnp.minimum(gap, 0.0)) * (1 - jnp.eye(len(logs), dtype=rows.dtype))
    entry = jnp.maximum(entry, entry.T)
    apart = jnp.where(gap == 0, 1.0, -jnp.expm1(-2 * jnp.abs(gap)))
    return jnp.minimum(entry, jnp.where(gap == 0, jnp.inf, entry**2 / apart))


def _settle(graded: Graded) -> tuple[Float[Array, " m"], Float[Array, " m"], Float[Array, " m"]]:
    """ln of the singular values in the order of the logs, how far off those left unsettled may be, and all others."""
    # Rows that no other disturbs are there already. The others come from SVDs of blocks around them, small ones, larger
    # ones, at last of the whole as often as needed, scales cut to a window in which an SVD is accurate. A block has to
    # hold whatever disturbs a row.
    m, dtype = len(graded.logs), graded.logs.dtype
    accuracy = ACCURACY[dtype.itemsize]
    window = -jnp.log(jnp.finfo(dtype).eps / accuracy)
    order, index = jnp.argsort(-graded.logs), jnp.arange(m)
    logs, low, rows = graded.logs[order], graded.low[order], graded.rows[order][:, order]
    disturbance = _disturbance(rows, logs, low)
    partners = (disturbance > accuracy / 4) | (index[:, None] == index[None])
    first = jax.lax.cummin(jnp.argmax(partners, axis=1), reverse=True)
    last = jax.lax.cummax(m - 1 - jnp.argmax(partners[:, ::-1], axis=1))
    left = jnp.where(jnp.isfinite(logs), jnp.sum(disturbance, axis=1, where=partners), 0.0)
    ignored = jnp.where(jnp.isfinite(logs), jnp.sum(disturbance, axis=1, where=~partners), 0.0)

    def values(begin: Array, width: int, row: Array) -> tuple[Array, Array]:
        """Logarithms of a block by SVD, and for which of all rows from `row` down they stand."""
        part = jax.lax.dynamic_slice(rows, (begin, begin), (width, width))
        near, near_low = (jax.lax.dynamic_slice(leaf, (begin,), (width,)) for leaf in (logs, low))
        top = first[row]
        scale = jnp.exp(jnp.clip(_difference((near, near_low), (logs[top], low[top])) - MARGIN, -window, 0))
        s = jnp.linalg.svd(scale[:, None] * part, compute_uv=False)
        deep = logs[last] > logs[top] - window + 2 * MARGIN
        stands = (index >= row) & (first >= begin) & (last < begin + width) & deep
        return jnp.log(s) + (MARGIN + low[top]) + logs[top], stands

    def blocks(width: int, stride: int) -> Callable[[Array], tuple[Array, Array]]:
        """Every `stride` rows from a block of `width` around them."""
        pad = (width - stride) // 2

        def block(core: Array) -> tuple[Array, Array]:
            begin = jnp.clip(core - pad, 0, m - width)
            inner = jnp.minimum(core + jnp.arange(stride), m - 1)
            found, stands = values(begin, width, core)
            return found[inner - begin], stands[inner]

        def settle(_: Array) -> tuple[Array, Array]:
            found, stands = jax.vmap(block)(stride * jnp.arange(-(-m // stride)))
            return found.ravel()[:m], stands.ravel()[:m]

        return settle

    whole = lambda left: values(jnp.asarray(0), m, jnp.argmax(left > 0))
    state = (logs + low, left)
    for width, stride in BLOCKS:
        if width < m:
            state = _while_helpful(blocks(width, stride), *state, times=1)
    return *_while_helpful(whole, *state, times=m), ignored


def _while_helpful(step: Callable, found: Array, left: Array, times: int) -> tuple[Array, Array]:
    """Values of a step, where they stand, while they leave less to do; under vmap only if an element needs it."""

    def again(state: tuple) -> tuple:
        found, left, _, done = state
        better, stands = step(left)
        less = jnp.where(stands, 0.0, left)
        return jnp.where(stands & (left > 0), better, found), less, jnp.any(less < left), done + 1

    left_over = lambda state: jnp.any(state[1] > 0) & state[2] & (state[3] < times)
    return jax.lax.while_loop(left_over, again, (found, left, jnp.asarray(True), jnp.asarray(0)))[:2]
