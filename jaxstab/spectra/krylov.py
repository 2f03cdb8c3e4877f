"""Krylov spaces of blocks of vectors: random starts and full reorthogonalisation."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxstab import decompositions
from jaxstab.derivatives import custom_jvp
from jaxstab.norms.meshes import varying_like
from jaxstab.precision import at_full_precision
from jaxstab.spectra.operators import Operator

Split = tuple[Float[Array, "b n"], Float[Array, "b p"], Float[Array, "b b"]]


def orthonormal(w: Float[Array, "b n"], basis: Float[Array, "p n"]) -> Split:
    """Split vectors into their part within a basis and a part orthogonal to it: w = inside basis + own q.

    Derivatives are those of the spans, not of a choice of vectors: dq has no part within q, so that
    d own need not be triangular. A direction of q that is only rounding has only the derivative
    that keeps it orthogonal to the basis.

    Args:
        w: vectors, one per row.
        basis: orthonormal rows, or rows of zero.

    Returns:
        q, orthonormal and orthogonal to the basis; inside; own, lower triangular.

    Example:
        >>> q, inside, own = orthonormal(jnp.asarray([[3.0, 4.0]]), jnp.asarray([[1.0, 0.0]]))
        >>> jnp.abs(q).tolist(), inside.tolist(), jnp.abs(own).tolist()
        ([[0.0, 1.0]], [[3.0]], [[4.0]])
    """
    q, inside, own = _orthonormal(w, basis)
    return q, inside, own


@custom_jvp
def _orthonormal(w: Array, basis: Array) -> Split:
    def project(state: tuple, _: None) -> tuple[tuple, None]:
        q, inside, own = state
        along = q @ basis.T
        r, step = decompositions.qr((q - along @ basis).T)
        return (r.T, inside + own @ along, own @ step.T), None

    # the second pass removes rounding; vectors that are only rounding need a third
    b = w.shape[0]
    p = basis.shape[0]
    nothing = (w, jnp.zeros((b, p), w.dtype), jnp.eye(b, dtype=w.dtype))
    nothing = varying_like(nothing, (w, basis))
    return jax.lax.scan(project, nothing, None, length=3)[0]


@_orthonormal.defjvp
@at_full_precision
def _orthonormal_jvp(primals: tuple, tangents: tuple) -> tuple[Split, Split]:
    # dw = d inside basis + inside d basis + d own q + own dq; dq has no part within q, and its part
    # within the basis keeps q orthogonal to the basis
    w, basis = primals
    dw = jnp.asarray(tangents[0])
    d_basis = jnp.asarray(tangents[1])
    q, inside, own = _orthonormal(w, basis)
    moved = dw - inside @ d_basis
    d_inside = dw @ basis.T + w @ d_basis.T
    d_own = moved @ q.T
    beyond = moved - (moved @ basis.T) @ basis - d_own @ q
    dq = _solved_where_alive(w, own, beyond) - (q @ d_basis.T) @ basis
    return (q, inside, own), (dq, d_inside, d_own)


def _solved_where_alive(w: Array, own: Array, beyond: Array) -> Array:
    """Solve own x = beyond, with x = 0 for directions that are only rounding of w."""
    diagonal = jnp.abs(jnp.diagonal(own))
    largest = jnp.sqrt(jnp.max(jnp.sum(w**2, axis=1)))
    # a product of many layers rounds more than once
    rounding = 32 * jnp.finfo(w.dtype).eps * math.sqrt(w.shape[1]) * largest
    alive = diagonal > jax.lax.stop_gradient(rounding)
    lower = jnp.where(alive[:, None], own, 0.0) + jnp.diag(jnp.where(alive, 0.0, 1.0))
    right = jnp.where(alive[:, None], beyond, 0.0)

    def product(x: Array) -> Array:
        return lower @ x

    def solve(_: Callable, b: Array) -> Array:
        return decompositions.solve_triangular(lower.T, b, transpose=True)

    def solve_transposed(_: Callable, b: Array) -> Array:
        return decompositions.solve_triangular(lower.T, b)

    # lower is triangular, but its derivative is not: the product restores it
    return jax.lax.custom_linear_solve(product, right, solve, solve_transposed)


def sphere(operator: Operator, key: Key[Array, ""], probes: int) -> Float[Array, "probe columns"]:
    """Draw vectors uniformly from the unit sphere.

    Args:
        operator: matrix that multiplies the vectors.
        key: PRNG key.
        probes: number of vectors.

    Returns:
        Unit vectors, one per row.
    """
    drawn = jax.random.normal(key, (probes, operator.columns), operator.dtype)
    return drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
