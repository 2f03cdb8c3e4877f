r"""Products of matrices in logarithms.

A product F_L ... F_1 is carried as Q diag(e^d) X with Q orthonormal and rows of X of order 1. The
next factor F is multiplied in by QR of F Q = Q' R, columns ordered by weight:

    d' = d + ln |r_ii|,    X' = (e^{-d'} R e^{d}) X,

where no exponent exceeds order 0. `graded_values` takes the singular values of diag(e^d) X.

Errors are estimated by derivatives. Rounding perturbs every factor by about eps times the sums in
its products and its QR. A few random perturbations of that size are propagated as tangents of Q, d
and X; their effect on ln s estimates the effect of rounding.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstab.norms.logarithms import times_power
from jaxstab.norms.meshes import varying_like
from jaxstab.spectra.factors import log_lengths, qr

# number of random perturbations; four understate the errors of 1 % of values for products of equal
# factors
PROBES = 8
# bound on perturbations, beyond any known direction and within the range of float32
LOST = 1e9


class Graded(NamedTuple):
    """Matrix diag(e^(logs + low)) rows: a product without its orthonormal factor.

    Attributes:
        logs: d; -inf for killed directions.
        low: rounding error of d, to be added, since sums over a thousand layers lose digits that
            differences need.
        rows: X.
    """

    logs: Float[Array, "*probe m"]
    low: Float[Array, "*probe m"]
    rows: Float[Array, "*probe m k"]


class Disturbed(NamedTuple):
    """Tangents of a product along random perturbations of the size of its factors' rounding.

    Attributes:
        basis: tangents of Q.
        graded: tangents of d and X.
        draws: normal numbers from which the perturbations are made.
        factors: number of factors so far.
    """

    basis: Float[Array, "probe n m"]
    graded: Graded
    draws: Float[Array, "probe n n"]
    factors: Int[Array, ""]


class Traces(NamedTuple):
    """Quantities of one step from which its rounding is estimated.

    Attributes:
        sums: root of the sum of squares of the terms of each entry of X.
        residual: F Q - Q' R.
    """

    sums: Float[Array, "m k"]
    residual: Float[Array, "p n"]


class Product(NamedTuple):
    """Product of factors, as basis diag(e^logs) rows.

    Attributes:
        basis: Q, orthonormal columns.
        graded: d and X.
        rank: number of directions that no exact zeros have killed.
        disturbed: tangents along random perturbations; None without errors.
    """

    basis: Float[Array, "n m"]
    graded: Graded
    rank: Int[Array, ""]
    disturbed: Disturbed | None

    @property
    def alive(self) -> Bool[Array, " m"]:
        """Mask of the columns of the basis that are not zero."""
        return self.graded.logs != -jnp.inf

    def then(
        self,
        pushed: Float[Array, "p m"],
        rank: Int[Array, ""],
        factor: Float[Array, "p n"] | None = None,
        power: Int[Array, ""] | None = None,
    ) -> "Product":
        """Multiply by one more factor F from the left.

        Args:
            pushed: F basis.
            rank: upper bound on the rank of F on the live directions, from its exact zeros.
            factor: F, needed for errors.
            power: exponent of a factor F 2^power; None for 0.

        Returns:
            The product.
        """
        rank = jnp.minimum(self.rank, rank)

        def absorbed(pushed: Array, graded: Graded) -> tuple[Array, Graded, Traces]:
            return _absorb(pushed, graded, rank, power)

        if self.disturbed is None or factor is None:
            basis, graded, _ = absorbed(pushed, self.graded)
            return Product(basis, graded, rank, None)
        (basis, graded, traces), along = jax.linearize(absorbed, pushed, self.graded)
        disturbed = _followed(self, self.disturbed, pushed, factor, basis, traces, along)
        return Product(basis, graded, rank, jax.lax.stop_gradient(disturbed))


def identity(n: int, dtype: jnp.dtype, errors: bool = True, most: int | None = None) -> Product:
    """Make the empty product.

    Args:
        n: size of the product.
        dtype: dtype of the factors.
        errors: whether to estimate rounding, which costs several times as much.
        most: rows of the largest factor that follows; None for n.

    Returns:
        The product.
    """
    eye = jnp.eye(n, dtype=dtype)
    zeros = jnp.zeros(n, dtype)
    graded = Graded(zeros, zeros, eye)
    if not errors:
        return Product(eye, graded, jnp.asarray(n), None)
    size = max(n, most or n)
    draws = jax.random.normal(jax.random.key(0), (PROBES, size, size), dtype)
    none = jnp.zeros((PROBES, n, n), dtype)
    still = Graded(none[:, 0], none[:, 0], none)
    return Product(eye, graded, jnp.asarray(n), Disturbed(none, still, draws, jnp.asarray(0)))


def pushed(
    push: Callable[[Array], Array],
    h: Float[Array, " n"],
    basis: Float[Array, "n m"],
    alive: Bool[Array, " m"] | None = None,
) -> tuple[Float[Array, "p m"], Int[Array, ""]]:
    """Compute F basis, and the rank of F, without forming the Jacobian F of a layer.

    Args:
        push: v -> F v, linear.
        h: vector of v's shape and dtype.
        basis: orthonormal columns.
        alive: mask of columns that count; None for all.

    Returns:
        F basis, and the rank of F in general position.
    """
    columns = jax.vmap(push, 1, 1)(basis)
    # a row vector in general position finds units that pass nothing
    probe = jnp.cos(jnp.arange(1, len(columns) + 1, dtype=columns.dtype))
    through = jax.linear_transpose(push, h)(varying_like(probe, columns))[0]
    live = columns != 0
    if alive is not None:
        live = live & alive[None]
    return columns, jnp.minimum(jnp.sum(through != 0), jnp.any(live, axis=1).sum())


def sorted_rows(lengths: Float[Array, " m"], graded: Graded) -> tuple[Int[Array, " m"], Graded]:
    """Sort rows by weight, the heaviest first.

    Args:
        lengths: logarithms of the weights of the rows besides e^d.
        graded: the rows.

    Returns:
        Order of the rows, and the sorted rows.
    """
    weight = lengths + graded.logs
    order = jnp.argsort(-jnp.where(jnp.isnan(weight), -jnp.inf, weight))
    return order, jax.tree.map(lambda leaf: leaf[order], graded)


def difference(one: tuple[Array, Array], other: tuple[Array, Array]) -> Array:
    """Subtract logarithms that are stored in two parts.

    Args:
        one: the first logarithm, with its rounding error.
        other: the second logarithm, with its rounding error.

    Returns:
        The difference.
    """
    return (one[0] - other[0]) + (one[1] - other[1])


def coupled(
    r: Float[Array, "p m"],
    graded: Graded,
    lengths: Float[Array, " m"],
    within: Bool[Array, " m"],
    power: Int[Array, ""] | None = None,
) -> tuple[Float[Array, " p"], Float[Array, " p"], Float[Array, "p m"]]:
    """Write R diag(e^d) as diag(e^d') C.

    Args:
        r: R.
        graded: d in two parts.
        lengths: logarithms of the lengths of the columns of R, in any unit.
        within: mask of columns that are not killed.
        power: exponent of a multiple R 2^power; None for 0.

    Returns:
        d' in two parts, and C.
    """
    size = len(r)
    info = jnp.finfo(r.dtype)
    d = graded.logs[:size]
    low = graded.low[:size]
    diagonal = jnp.diagonal(r)
    alive = within[:size] & (diagonal != 0) & (d != -jnp.inf)
    pivot = jnp.log(jnp.abs(jnp.where(alive, diagonal, 1.0)))
    if power is None:
        grown = pivot
    else:
        grown = _log_of_multiple(diagonal, pivot, power)
    # the sum with its rounding error (Kahan 1965)
    start = jnp.where(alive, d, 0.0)
    step = grown + low
    logs = start + step
    low = jnp.where(alive, step - (logs - start), 0.0)
    # columns of R are scaled to order 1 first, since e^d alone can leave the float range
    columns = (lengths != -jnp.inf) & (graded.logs != -jnp.inf)
    lengths = jnp.where(columns, lengths, 0.0)
    d = jnp.where(columns, graded.logs, 0.0)
    exponent = difference((d[None], graded.low[None]), (start[:, None], graded.low[:size, None]))
    exponent = exponent + (lengths[None] - pivot[:, None])
    # the exponent is far above 0 only where R is zero
    exponent = jnp.minimum(exponent, info.maxexp / 4)
    coupling = r * jnp.exp(-lengths)[None] * jnp.exp(exponent)
    coupling = jnp.where(alive[:, None] & columns[None], coupling, 0.0)
    return jnp.where(alive, logs, -jnp.inf), low, coupling


def _log_of_multiple(
    values: Float[Array, " m"], logs: Float[Array, " m"], power: Int[Array, ""]
) -> Float[Array, " m"]:
    """Compute ln |values 2^power| without the loss of digits in a sum of two logarithms."""
    info = jnp.finfo(values.dtype)
    multiple = jnp.abs(jax.lax.stop_gradient(times_power(values, power)))
    held = (multiple > info.tiny) & (multiple < info.max)
    added = power.astype(values.dtype) * jnp.log(jnp.asarray(2.0, values.dtype))
    added = jnp.where(
        held, jnp.log(jnp.where(held, multiple, 1.0)) - jax.lax.stop_gradient(logs), added
    )
    return logs + added


def _absorb(
    factor: Float[Array, "n m"], graded: Graded, rank: Int[Array, ""], power: Int[Array, ""] | None
) -> tuple[Float[Array, "n p"], Graded, Traces]:
    """Write factor diag(e^d) X as Q diag(e^d') X', with traces of the rounding."""
    # rows from `rank` on are exactly zero
    lengths = log_lengths(factor, axis=0)
    order, graded = sorted_rows(lengths, graded)
    factor = factor[:, order]
    lengths = lengths[order]
    within = jnp.arange(len(order)) < rank
    # Householder's QR keeps the digits of small rows below large ones, not above them (Cox & Higham
    # 1998)
    by_size = jnp.argsort(-jnp.max(jnp.abs(factor), axis=1))
    q, r = qr(factor[by_size], within)
    logs, low, coupling = coupled(r, graded, lengths, within, power)
    sums = jnp.sqrt(coupling**2 @ graded.rows**2)
    inverse = jnp.argsort(by_size)
    residual = (factor[by_size] - q @ r)[inverse][:, jnp.argsort(order)]
    traces = jax.lax.stop_gradient(Traces(sums, residual))
    return q[inverse], Graded(logs, low, coupling @ graded.rows), traces


def _followed(
    product: Product,
    before: Disturbed,
    pushed: Float[Array, "p m"],
    factor: Float[Array, "p n"],
    basis: Float[Array, "p q"],
    traces: Traces,
    along: Callable[[Array, Graded], tuple[Array, Graded, Traces]],
) -> Disturbed:
    """Propagate the perturbations through one more factor and add the factor's rounding."""
    # root sums of squares of the terms of two products, with the basis and with R, each with an
    # independent rounding of about eps
    r = basis.T @ pushed
    unit = jnp.max(jnp.abs(pushed), axis=0, keepdims=True)
    unit = jnp.where(unit == 0, 1.0, unit)
    size = jnp.max(jnp.abs(factor))
    size = jnp.where(size == 0, 1.0, size)
    by_basis = size * jnp.sqrt((factor / size) ** 2 @ product.basis**2)
    by_r = unit * jnp.sqrt(basis**2 @ (r / unit) ** 2)
    eps = jnp.finfo(pushed.dtype).eps
    rounding = eps * (by_basis + by_r + jnp.abs(pushed)) + jnp.abs(traces.residual)
    # the draws are shifted for every factor, so that no entry repeats soon
    shift = before.factors * 7 + 1
    draws = jnp.roll(jnp.roll(before.draws, shift, 1), 3 * shift, 2)
    moved = factor @ before.basis + rounding[None] * draws[:, : pushed.shape[0], : pushed.shape[1]]
    moved_basis, moved_graded, _ = jax.vmap(along)(moved, before.graded)
    logs = moved_graded.logs + moved_graded.low
    rows, columns = traces.sums.shape
    by_rows = eps * traces.sums[None] * draws[:, -rows:, -columns:]
    moved_graded = Graded(logs, jnp.zeros_like(logs), moved_graded.rows + by_rows)
    return Disturbed(
        _cut(moved_basis), jax.tree.map(_cut, moved_graded), before.draws, before.factors + 1
    )


def _cut(moved: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(jnp.abs(moved) < LOST, moved, LOST)
