"""Krylov spaces of blocks of vectors: random starts and full reorthogonalisation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxstab import decompositions
from jaxstab.norms.meshes import varying_like
from jaxstab.spectra.operators import Operator


def orthonormal(
    w: Float[Array, "b n"], basis: Float[Array, "p n"]
) -> tuple[Float[Array, "b n"], Float[Array, "b p"], Float[Array, "b b"]]:
    """Split vectors into what a basis spans and what it does not: w = inside basis + own q.

    Args:
        w: vectors, one per row.
        basis: orthonormal rows, or rows of zero.

    Returns:
        q, orthonormal and orthogonal to the basis; inside; own.

    Example:
        >>> q, inside, own = orthonormal(jnp.asarray([[3.0, 4.0]]), jnp.asarray([[1.0, 0.0]]))
        >>> jnp.abs(q).tolist(), inside.tolist(), jnp.abs(own).tolist()
        ([[0.0, 1.0]], [[3.0]], [[4.0]])
    """

    def project(state: tuple, _: None) -> tuple[tuple, None]:
        q, inside, own = state
        along = q @ basis.T
        r, step = decompositions.qr((q - along @ basis).T)
        return (r.T, inside + own @ along, own @ step.T), None

    # the second time for rounding, the third where what was left of w was nothing but rounding
    b = w.shape[0]
    p = basis.shape[0]
    nothing = (w, jnp.zeros((b, p), w.dtype), jnp.eye(b, dtype=w.dtype))
    nothing = varying_like(nothing, (w, basis))
    return jax.lax.scan(project, nothing, None, length=3)[0]


def sphere(operator: Operator, key: Key[Array, ""], probes: int) -> Float[Array, "probe columns"]:
    """Draw vectors of unit length that point in any direction alike.

    Args:
        operator: the matrix that they are for.
        key: PRNG key.
        probes: how many.

    Returns:
        The vectors.
    """
    drawn = jax.random.normal(key, (probes, operator.columns), operator.dtype)
    return drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
