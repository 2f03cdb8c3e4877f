r"""Eigenvalues of a symmetric matrix from products: both ends, the trace, the density.

The ends come from a block Lanczos process with full reorthogonalisation (Golub & Underwood 1977),
A V = V T + a residual. The process keeps the whole Krylov space, block * steps * n entries, so that
one run of products gives both ends with bounds on their errors. LOBPCG keeps three blocks, but
needs more products and finds one end at a time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from jaxstab import decompositions
from jaxstab.arguments import explained
from jaxstab.checks import check_count
from jaxstab.curvature.lanczos import levelled, rounding, tridiagonalise, within_krylov_space
from jaxstab.norms.logarithms import times_power
from jaxstab.norms.meshes import varying_like
from jaxstab.precision import at_full_precision
from jaxstab.records import Estimate, standard_error
from jaxstab.spectra.krylov import sphere
from jaxstab.spectra.matrix_free import Density
from jaxstab.spectra.operators import Operator


class Extremes(NamedTuple):
    """Both ends of a spectrum.

    Attributes:
        largest: largest eigenvalues, descending; each at most the eigenvalue of its rank.
        largest_error: bound on the distance to some eigenvalue, from the residual |A v - value v|.
        largest_vectors: v, of unit length, with entries in the order of `ravel`.
        smallest: smallest eigenvalues, ascending, which may be negative; each at least the
            eigenvalue of its rank.
        smallest_error: as `largest_error`.
        smallest_vectors: as `largest_vectors`.
    """

    largest: Float[Array, " top"]
    largest_error: Float[Array, " top"]
    largest_vectors: Float[Array, "top n"]
    smallest: Float[Array, " bottom"]
    smallest_error: Float[Array, " bottom"]
    smallest_vectors: Float[Array, "bottom n"]


class EigenvalueDensity(NamedTuple):
    """Distribution of eigenvalues as point masses, one Gauss quadrature per probe.

    Attributes:
        eigenvalues: nodes, ascending.
        weights: share of the eigenvalues at each node, of sum 1 in each probe.
    """

    eigenvalues: Float[Array, "probe node"]
    weights: Float[Array, "probe node"]

    def cdf(self, values: Float[ArrayLike, "..."]) -> Estimate:
        """Compute the share of eigenvalues at or below given values.

        The share includes half of the weight at a node, and is linear between nodes.

        Args:
            values: values of any shape.

        Returns:
            The share in [0, 1] with its standard error over probes, which does not include the
            error of the quadrature.

        Example:
            >>> even = EigenvalueDensity(jnp.linspace(-1.0, 1.0, 101)[None], jnp.full((1, 101), 1 / 101))
            >>> round(float(even.cdf(0.5).value), 2)
            0.75
        """
        return Density(self.eigenvalues, self.weights).cdf(values)


@explained
@at_full_precision
def extremes(
    operator: Operator,
    key: Key[Array, ""],
    top: int = 1,
    bottom: int = 0,
    steps: int = 20,
    block: int | None = None,
    start: Float[Array, "b n"] | None = None,
) -> Extremes:
    """Compute the largest and smallest eigenvalues with their vectors, by block Lanczos.

    For an eigenpair (theta, s) of T and v = V s, |A v - theta v| = r is the length of the residual
    times the last block of s, so that an eigenvalue lies within r of theta (Parlett 1998, section
    4.5), plus rounding. A value is missed only if the start has no component in its direction, or
    if the value is not yet resolved from others. A block finds as many copies of a multiple
    eigenvalue as it has vectors.

    Args:
        operator: symmetric operator, such as `hessian`.
        key: PRNG key of the start.
        top: number of largest values, >= 0.
        bottom: number of smallest values, >= 0; top + bottom is in [1, size].
        steps: number of blocks of the Krylov space, >= 1. Errors fall exponentially with it; the
            number of products is block * steps.
        block: number of vectors per block, >= 1; None for 1. If block * steps exceeds the size, one
            block computes all values.
        start: first vectors in place of random ones, such as those of an earlier, similar matrix.

    Returns:
        Values, vectors and bounds.

    Raises:
        ValueError: if the operator is not square, a setting is out of range, or block * steps < top
            + bottom.

    Example:
        >>> from jaxstab import curvature
        >>> scales = jnp.asarray([-2.0, 0.5, 1.0, 3.0])
        >>> operator = curvature.hessian(lambda w: jnp.sum(scales * w**2) / 2, jnp.ones(4))
        >>> found = extremes(operator, jax.random.key(0), top=1, bottom=1)
        >>> [round(float(value), 4) for value in (found.largest[0], found.smallest[0])]
        [3.0, -2.0]
    """
    check_square(operator)
    size = operator.columns
    check_count("top", top, 0)
    check_count("bottom", bottom, 0)
    check_count("steps", steps, 1)
    if block is None:
        block = 1
    block = check_count("block", block, 1)
    if not 1 <= top + bottom <= size:
        raise ValueError(
            f"top + bottom must be in [1, {size}], the number of eigenvalues, got {top} + {bottom}"
        )
    if block * steps < top + bottom:
        raise ValueError(
            f"block * steps must be at least top + bottom = {top + bottom}, got {block} * {steps}"
        )
    if block * steps > size:
        block = size
        steps = 1
    begun = jax.random.normal(key, (block, size), operator.dtype)
    if start is not None:
        if start.ndim != 2 or start.shape[1] != size:
            raise ValueError(
                f"start must be vectors of {size} entries, one per row, got shape {start.shape}"
            )
        begun = jnp.concatenate([start.astype(operator.dtype), begun])[:block]
    reduced = tridiagonalise(operator, begun, steps)
    theta, s = decompositions.eigh(reduced.matrix)
    residual = jnp.linalg.norm(reduced.residual.T @ s[-block:], axis=0)
    values = times_power(theta, reduced.exponent)
    errors = times_power(residual + rounding(theta, size), reduced.exponent)

    def some(chosen: slice) -> tuple[Array, Array, Array]:
        return values[chosen], errors[chosen], s.T[chosen] @ reduced.vectors

    return Extremes(*some(slice(None, -top - 1, -1)), *some(slice(None, bottom)))


class Largest(NamedTuple):
    """Largest eigenvalue, value 2^exponent, of unlimited range.

    Attributes:
        value: the eigenvalue over 2^exponent.
        error: bound on the distance to some eigenvalue, over 2^exponent.
        exponent: exponent of value and error.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]
    exponent: Int[Array, ""]


@explained
@at_full_precision
def largest(operator: Operator, key: Key[Array, ""], steps: int = 20) -> Largest:
    """Compute the largest eigenvalue by Lanczos steps that keep three vectors.

    Without reorthogonalisation the Krylov basis loses orthogonality only towards converged
    eigenvectors, whose values then appear twice; the largest value stays right (Paige 1980). Memory
    and time besides the products are those of three vectors; `extremes` keeps all vectors.

    Args:
        operator: symmetric operator, such as `hessian`.
        key: PRNG key of the start.
        steps: number of products, >= 1.

    Returns:
        The eigenvalue with the bound of `extremes`.

    Raises:
        ValueError: if the operator is not square, or steps < 1.

    Example:
        >>> from jaxstab import curvature
        >>> scales = jnp.asarray([-2.0, 0.5, 1.0, 3.0])
        >>> operator = curvature.hessian(lambda w: jnp.sum(scales * w**2) / 2, jnp.ones(4))
        >>> found = largest(operator, jax.random.key(0))
        >>> round(float(times_power(found.value, found.exponent)), 4)
        3.0
    """
    check_square(operator)
    steps = min(check_count("steps", steps, 1), operator.columns)
    start = sphere(operator, key, 1)

    def step(state: tuple, index: Array) -> tuple[tuple, tuple[Array, Array]]:
        before, v, beta, exponent = state
        product = operator.apply(v)
        exponent = jnp.where(index == 0, levelled(product, None)[1], exponent)
        w = levelled(product, exponent)[0] - beta * before
        alpha = jnp.sum(v * w)
        w = w - alpha * v
        length = jnp.linalg.norm(w)
        # an exhausted space continues with zeros
        after = w / jnp.where(length > 0, length, jnp.ones_like(length))
        return (v, after, length, exponent), (alpha, length)

    first = (jnp.zeros_like(start), start, jnp.zeros((), start.dtype), jnp.zeros((), jnp.int32))
    first = varying_like(first, jax.eval_shape(operator.apply, start))
    (*_, exponent), (alpha, beta) = jax.lax.scan(step, first, jnp.arange(steps))
    # values beyond an exhausted space must not exceed the largest
    exhausted = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), beta[:-1] == 0])) > 0
    alpha = jnp.where(exhausted, alpha[0], alpha)
    matrix = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    theta, s = decompositions.eigh(matrix)
    error = beta[-1] * jnp.abs(s[-1, -1]) + rounding(theta, operator.columns)
    return Largest(theta[-1], error, exponent)


@explained
@at_full_precision
def density(
    operator: Operator, key: Key[Array, ""], probes: int = 8, steps: int = 20
) -> EigenvalueDensity:
    """Estimate the distribution of eigenvalues by stochastic Lanczos quadrature (Ubaru et al. 2017).

    A random unit vector v weights each eigenvalue with a share of mean 1/n. The eigenvalues of the
    tridiagonal matrix from v, weighted by the squared first entries of its eigenvectors, are the
    Gauss quadrature of that measure, exact for polynomials of degree 2 steps - 1.

    Args:
        operator: symmetric operator.
        key: PRNG key of the probes.
        probes: number of random vectors, >= 1; 2 or more for standard errors.
        steps: number of nodes per probe, >= 1, capped at the size of the matrix.

    Returns:
        Nodes and weights, for shares by `EigenvalueDensity.cdf`.

    Raises:
        ValueError: if the operator is not square, or probes or steps < 1.

    Example:
        >>> from jaxstab import curvature
        >>> operator = curvature.hessian(lambda w: jnp.sum(w**2), jnp.ones(50))
        >>> found = density(operator, jax.random.key(0), probes=2, steps=1)
        >>> found.eigenvalues.round(3).tolist(), found.weights.round(3).tolist()
        ([[2.0], [2.0]], [[1.0], [1.0]])
    """
    check_square(operator)
    check_count("probes", probes, 1)
    steps = min(check_count("steps", steps, 1), operator.columns)

    def quadrature(v: Float[Array, " n"]) -> tuple[Array, Array]:
        reduced = tridiagonalise(operator, v[None], steps)
        matrix, count = within_krylov_space(reduced.matrix, operator.columns)
        theta, s = decompositions.eigh(matrix)
        theta = jnp.where(jnp.arange(steps) < count, theta, theta[count - 1])
        return times_power(theta, reduced.exponent), s[0] ** 2

    # one at a time, since a product holds the residuals of its gradient
    return EigenvalueDensity(*jax.lax.map(quadrature, sphere(operator, key, probes)))


@explained
@at_full_precision
def trace(operator: Operator, key: Key[Array, ""], probes: int = 16) -> Estimate:
    r"""Estimate the trace by leave-one-out estimates, XTrace (Epperly, Tropp & Webber 2024).

    With Y = A Omega and Q_i an orthonormal basis of Y without its column i, each probe gives

        t_i = tr(Q_i^T A Q_i) + (n - m + 1) r_i^T A r_i / |r_i|^2,    r_i = (1 - Q_i Q_i^T) omega_i.

    The first term is exact on the span of the other probes, and the second is Hutchinson's unbiased
    estimate of the rest. m probes take 2 m products. If few eigenvalues hold most of the trace, as
    for Hessians, the error is far below Hutchinson's.

    Args:
        operator: symmetric operator.
        key: PRNG key of the probes.
        probes: number of probes m, >= 1, capped at the size of the matrix; 2 or more for a standard
            error.

    Returns:
        The trace. The standard error treats the estimates, which share products, as independent.

    Raises:
        ValueError: if the operator is not square, or probes < 1.

    Example:
        >>> from jaxstab import curvature
        >>> operator = curvature.hessian(lambda w: jnp.sum(w[:3] ** 2), jnp.ones(100))
        >>> round(float(trace(operator, jax.random.key(0), probes=8).value), 3)
        6.0
    """
    check_square(operator)
    m = min(check_count("probes", probes, 1), operator.columns)
    omega = jax.random.normal(key, (m, operator.columns), operator.dtype)
    y, exponent = levelled(operator.apply(omega), None)
    q, r = decompositions.qr(y.T)
    z, _ = levelled(operator.apply(q.T), exponent)
    # s_i is orthogonal to the span of the other columns of r: Q_i Q_i^T = Q (1 - s_i s_i^T) Q^T
    eye = varying_like(jnp.eye(m, dtype=r.dtype), r)
    s = _unit_columns(decompositions.solve_triangular(_invertible(r), eye, transpose=True))
    h = z @ q
    w = q.T @ omega.T
    x = w - s * jnp.sum(s * w, axis=0, keepdims=True)
    along = jnp.trace(h) - jnp.sum(s * (h @ s), axis=0)
    rest = omega - x.T @ q.T
    beyond = jnp.sum(rest * (y - x.T @ z), axis=1)
    length = jnp.sum(rest**2, axis=1)
    each = along + (operator.columns - m + 1) * beyond / length
    samples = times_power(each, exponent)
    return Estimate(jnp.mean(samples), standard_error(samples))


def check_square(operator: Operator) -> None:
    """Check that an operator has as many rows as columns.

    Args:
        operator: the operator.

    Raises:
        ValueError: if operator is not square, or no `Operator`.
    """
    if not isinstance(operator, Operator):
        raise ValueError(
            "operator must be products with a matrix, such as curvature.hessian(...), got a "
            f"{type(operator).__name__}"
        )
    if operator.rows != operator.columns:
        raise ValueError(
            f"operator must be symmetric, got {operator.rows} rows and {operator.columns} columns"
        )


def _invertible(r: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """Raise the diagonal of a triangle to the size of rounding, so that it is invertible."""
    diagonal = jnp.diag(r)
    least = jnp.finfo(r.dtype).eps * jnp.max(jnp.abs(diagonal))
    least = jnp.where(least > 0, least, jnp.ones((), r.dtype))
    return r + jnp.diag(
        jnp.where(jnp.abs(diagonal) < least, least - diagonal, jnp.zeros((), r.dtype))
    )


def _unit_columns(a: Float[Array, "m m"]) -> Float[Array, "m m"]:
    # scaled first, so that columns may have any magnitude
    a = a / jnp.max(jnp.abs(a), axis=0, keepdims=True)
    return a / jnp.linalg.norm(a, axis=0, keepdims=True)
