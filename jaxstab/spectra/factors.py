"""One factor of a product: its rank, its range, the lengths of its columns and its QR."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstab import decompositions
from jaxstab.derivatives import custom_jvp
from jaxstab.norms.logarithms import times_power
from jaxstab.precision import at_full_precision


def factor_rank(
    factor: Float[Array, "n m"], alive: Bool[Array, " n"] | None = None
) -> Int[Array, ""]:
    """Compute the rank of a factor in general position from its nonzero rows and columns.

    Args:
        factor: the matrix.
        alive: mask of columns that count; None for all.

    Returns:
        The smaller number of nonzero rows and columns.
    """
    live = factor != 0
    if alive is not None:
        live = live & alive[None]
    return jnp.minimum(jnp.any(live, axis=0).sum(), jnp.any(live, axis=1).sum())


def in_range(factor: Float[Array, "n m"]) -> tuple[Float[Array, "n m"], Int[Array, ""]]:
    """Scale a matrix by a power of 2, so that products with it neither over- nor underflow.

    Args:
        factor: matrix of finite entries.

    Returns:
        The scaled matrix, and the power of 2 that restores the original. The matrix is unchanged if
        its largest entry is far from the ends of the float range.
    """
    info = jnp.finfo(factor.dtype)
    bits = jax.lax.bitcast_convert_type(factor, f"uint{info.bits}")
    kept = info.nmant
    mantissa = bits & jnp.asarray(2**kept - 1, bits.dtype)
    # XLA flushes subnormal floats to zero
    subnormal = ((bits << 1) >> (kept + 1) == 0) & (mantissa != 0)
    tiny = jnp.where(
        subnormal,
        mantissa.astype(factor.dtype) * jnp.where(bits >> (info.bits - 1) == 1, -1, 1),
        0.0,
    )
    lowest = info.minexp - kept
    largest = jnp.frexp(jnp.max(jnp.abs(jax.lax.stop_gradient(factor))))[1]
    largest = jnp.where(
        jnp.all(factor == 0), jnp.frexp(jnp.max(jnp.abs(tiny)))[1] + lowest, largest
    )
    reach = 3 * info.maxexp // 4
    target = jnp.where(jnp.any(subnormal), reach, jnp.clip(largest, -reach, reach))
    by = jnp.where(jnp.isfinite(jnp.max(jnp.abs(factor))), target - largest, 0)
    by = jnp.where(jnp.all((factor == 0) & ~subnormal), 0, by)
    scaled = times_power(factor, by) + jax.lax.stop_gradient(times_power(tiny, by + lowest))
    return scaled, -by


def log_lengths(vectors: Float[Array, "..."], axis: int) -> Float[Array, " m"]:
    """Compute ln of the lengths of vectors along an axis.

    The derivative is set to 0, as final results do not depend on these lengths.

    Args:
        vectors: the vectors.
        axis: axis along which each vector lies.

    Returns:
        The logarithms.
    """
    vectors = jax.lax.stop_gradient(vectors)
    largest = jnp.max(jnp.abs(vectors), axis)
    scale = jnp.where(largest == 0, 1.0, largest)
    return (
        jnp.log(largest) + jnp.log(jnp.sum((vectors / jnp.expand_dims(scale, axis)) ** 2, axis)) / 2
    )


@custom_jvp
def qr(
    factor: Float[Array, "n m"], within: Bool[Array, " m"]
) -> tuple[Float[Array, "n p"], Float[Array, "p m"]]:
    """Decompose by QR, with a derivative that keeps the rank.

    Args:
        factor: the matrix, with p = min(n, m).
        within: mask of columns that are not killed; other columns count as dependent on earlier
            ones.

    Returns:
        Q and R.
    """
    q, r = decompositions.qr(factor)
    return q, r


@qr.defjvp
@at_full_precision
def _qr_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    factor, within = primals
    q, r = qr(factor, within)
    size = len(r)
    moved = q.T @ tangents[0]
    # a column with a zero pivot has no direction
    alive = within[:size] & (jnp.diagonal(r) != 0)
    triangle = jnp.where(alive[:, None] & alive[None], r[:, :size], jnp.eye(size, dtype=r.dtype))
    relative = _over(jnp.where(alive[None], moved[:, :size], 0.0), triangle)
    below = jnp.tril(relative, -1)
    turn = below - below.T
    moved_q = q @ turn
    if q.shape[0] > size:
        outside = jnp.where(alive[None], tangents[0][:, :size] - q @ moved[:, :size], 0.0)
        moved_q = moved_q + _over(outside, triangle)
    moved_r = moved - turn @ r
    upper = jnp.triu(moved_r)
    kept = jnp.concatenate([alive, jnp.zeros(r.shape[1] - size, bool)])
    return (q, r), (moved_q, jnp.where(kept[None], upper, moved_r))


def _over(matrix: Float[Array, "n p"], triangle: Float[Array, "p p"]) -> Float[Array, "n p"]:
    """Compute matrix triangle^-1."""
    return decompositions.solve_triangular(triangle, matrix.T, transpose=True).T
