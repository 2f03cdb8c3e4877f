"""Block Lanczos process of a symmetric operator, with full reorthogonalisation."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstab import decompositions
from jaxstab.norms.logarithms import times_power
from jaxstab.norms.meshes import varying_like
from jaxstab.spectra.krylov import orthonormal
from jaxstab.spectra.operators import Operator, Scaled


class Tridiagonal(NamedTuple):
    """Result of the process: A V = 2^exponent V T, up to a residual in the last block.

    Attributes:
        vectors: V, orthonormal, a vector per row.
        matrix: T, block tridiagonal.
        residual: part of A V outside of V, in terms of the next orthonormal vectors.
        exponent: power of two that keeps T within the float range.
    """

    vectors: Float[Array, "p n"]
    matrix: Float[Array, "p p"]
    residual: Float[Array, "b b"]
    exponent: Int[Array, ""]


def rounding(theta: Float[Array, " p"], size: int) -> Float[Array, ""]:
    """Estimate the rounding error of a product, which is relative to the largest eigenvalue.

    Args:
        theta: computed eigenvalues.
        size: number of entries of a vector.

    Returns:
        The error of a product with a unit vector.
    """
    return jnp.finfo(theta.dtype).eps * math.sqrt(2 * size) * jnp.max(jnp.abs(theta))


def levelled(
    product: Scaled, exponent: Int[Array, ""] | None
) -> tuple[Float[Array, "k n"], Int[Array, ""]]:
    """Scale the vectors of a product to one common power of two.

    Args:
        product: vectors and their exponents.
        exponent: the common exponent; None for the exponent of the largest vector.

    Returns:
        The vectors and the exponent.
    """
    y, exponents = product
    if exponent is None:
        exponent = jnp.max(jnp.where(jnp.any(y != 0, axis=1), exponents, jnp.min(exponents)))
    return times_power(y, (exponents - exponent)[:, None]), exponent


def tridiagonalise(operator: Operator, start: Float[Array, "b n"], steps: int) -> Tridiagonal:
    """Run block Lanczos from the span of some vectors; every new block is orthonormal to all before it.

    Args:
        operator: symmetric operator.
        start: vectors, one per row.
        steps: number of products with a block.

    Returns:
        The tridiagonal matrix and its basis.
    """
    size = start.shape[0]
    dtype = operator.dtype
    total = size * steps

    def step(state: tuple, index: Array) -> tuple[tuple, None]:
        vectors, matrix, v, _, exponent = state
        vectors = jax.lax.dynamic_update_slice_in_dim(vectors, v, index, 0)
        product = operator.apply(v)
        # random vectors find the largest value up to a small factor
        exponent = jnp.where(index == 0, levelled(product, None)[1], exponent)
        v, inside, own = orthonormal(levelled(product, exponent)[0], vectors)
        matrix = jax.lax.dynamic_update_slice_in_dim(matrix, inside, index, 0)
        return (vectors, matrix, v, own, exponent), None

    def zeros(*shape: int) -> Array:
        return jnp.zeros(shape, dtype)

    nothing = (zeros(total, operator.columns), zeros(total, total))
    first = (*nothing, decompositions.qr(start.T)[0].T, zeros(size, size), jnp.zeros((), jnp.int32))
    first = varying_like(first, jax.eval_shape(operator.apply, start))
    (vectors, lower, _, residual, exponent), _ = jax.lax.scan(step, first, size * jnp.arange(steps))
    # row i holds v_j^T A v_i, j <= i; the upper half is symmetric
    below = jnp.tril(lower, -1)
    return Tridiagonal(vectors, below + below.T + jnp.diag(jnp.diag(lower)), residual, exponent)


def within_krylov_space(
    matrix: Float[Array, "k k"], columns: int
) -> tuple[Float[Array, "k k"], Int[Array, ""]]:
    """Cut a tridiagonal matrix where the Krylov space ends.

    Args:
        matrix: T of blocks of one vector.
        columns: number of columns of the operator.

    Returns:
        T with rows beyond the end decoupled, and the number of rows up to the end.
    """
    # Vectors beyond the end are rounding, and their Ritz values repeat earlier values. Equal values
    # have no derivative, so distinct values without weight, above all others, replace them.
    size = len(matrix)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix)))
    links = jnp.abs(jnp.diagonal(matrix, -1))
    # the same threshold as for directions without derivative in `orthonormal`
    linked = links > 32 * jnp.finfo(matrix.dtype).eps * math.sqrt(columns) * largest
    alive = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(linked).astype(bool)])
    above = jnp.diag(largest * (4 + jnp.arange(size, dtype=matrix.dtype)))
    return jnp.where(alive[:, None] & alive[None], matrix, above), jnp.sum(alive)
