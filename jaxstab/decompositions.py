"""Matrix decompositions that cannot hang on a CPU: one matrix at a time, on one BLAS thread.

jaxlib 0.10 and 0.11 divide a stack of matrices among the threads of XLA's pool, and the dividing
thread waits. Two such calls at once, from two devices or side by side in one program, deadlock a
small pool: every thread waits for work that is queued behind it. A call with a single matrix uses
no other thread. On a CPU a stack is therefore a loop over its matrices, also under `jax.vmap`.
Other platforms decompose the whole stack.

Matrices are real. Derivatives agree with `jax.numpy.linalg`. The vectors of equal values have no
derivative: the rules leave out their rotation within their span, on which no function of the span
depends.
"""

import functools
import string
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Float

from jaxstab.checks import check_floating
from jaxstab.derivatives import custom_jvp
from jaxstab.devices import one_lapack_thread
from jaxstab.precision import at_full_precision

Arrays = tuple[Array, ...]
Decomposition = Callable[..., Arrays]

# least width at which BLAS's own threads speed up a single decomposition
WIDE = 768


def singular_values(a: Float[ArrayLike, "*batch m n"]) -> Float[Array, "*batch k"]:
    """Compute singular values, descending.

    Args:
        a: matrices.

    Returns:
        Singular values [*batch, k], k = min(m, n).

    Raises:
        ValueError: if a matrix is not of float32 or float64.

    Example:
        >>> jax.vmap(singular_values)(jnp.ones((3, 2, 2))).round(3).tolist()
        [[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]
    """
    return _values(_floating(a))


def svd(a: Float[ArrayLike, "*batch m n"]) -> tuple[Array, Array, Array]:
    """Compute the thin singular value decomposition a = u diag(s) vt.

    Args:
        a: matrices.

    Returns:
        u [*batch, m, k], s [*batch, k] and vt [*batch, k, n], k = min(m, n).

    Raises:
        ValueError: if a matrix is not of float32 or float64.

    Example:
        >>> u, s, vt = svd(jnp.diag(jnp.asarray([3.0, 4.0])))
        >>> s.tolist()
        [4.0, 3.0]
    """
    u, s, vt = _svd(_floating(a))
    return u, s, vt


def qr(a: Float[ArrayLike, "*batch m n"]) -> tuple[Array, Array]:
    """Compute the thin decomposition a = q r, q with orthonormal columns, r upper triangular.

    Args:
        a: matrices.

    Returns:
        q [*batch, m, k] and r [*batch, k, n], k = min(m, n).

    Raises:
        ValueError: if a matrix is not of float32 or float64.

    Example:
        >>> q, r = qr(jnp.diag(jnp.asarray([3.0, 4.0])))
        >>> jnp.abs(r).tolist()
        [[3.0, 0.0], [0.0, 4.0]]
    """
    q, r = _qr(_floating(a))
    return q, r


def eigenvalues(a: Float[ArrayLike, "*batch n n"]) -> Float[Array, "*batch n"]:
    """Compute eigenvalues of symmetric matrices, ascending.

    Args:
        a: matrices, replaced by their symmetric part (a + a^T) / 2.

    Returns:
        Eigenvalues [*batch, n].

    Raises:
        ValueError: if a matrix is not of float32 or float64.

    Example:
        >>> eigenvalues(jnp.ones((2, 2))).round(3).tolist()
        [0.0, 2.0]
    """
    return _eigenvalues(_floating(a))


def eigh(a: Float[ArrayLike, "*batch n n"]) -> tuple[Array, Array]:
    """Compute ascending eigenvalues and eigenvectors of symmetric matrices, a = v diag(w) v^T.

    Args:
        a: matrices, replaced by their symmetric part (a + a^T) / 2.

    Returns:
        Eigenvalues [*batch, n] and eigenvectors [*batch, n, n], one per column.

    Raises:
        ValueError: if a matrix is not of float32 or float64.

    Example:
        >>> values, vectors = eigh(jnp.ones((2, 2)))
        >>> [round(float(entry), 3) for entry in jnp.abs(vectors[:, 1])]
        [0.707, 0.707]
    """
    values, vectors = _eigh(_floating(a))
    return values, vectors


def solve_triangular(
    r: Float[ArrayLike, "*batch n n"], b: Float[ArrayLike, "*batch n k"], transpose: bool = False
) -> Float[Array, "*batch n k"]:
    """Solve r x = b, or r^T x = b, for upper triangular r.

    Args:
        r: matrices; entries below the diagonal count as zero.
        b: right-hand sides.
        transpose: True to solve with r^T.

    Returns:
        Solutions x [*batch, n, k].

    Raises:
        ValueError: if a matrix is not of float32 or float64.

    Example:
        >>> solve_triangular(2 * jnp.eye(2), jnp.ones((2, 1))).ravel().tolist()
        [0.5, 0.5]
    """
    r = _floating(r)
    b = _floating(b)
    upper = jnp.triu(r)

    def product(x: Array) -> Array:
        return (upper.mT if transpose else upper) @ x

    def solve(_: Callable, b: Array) -> Array:
        return _solve(transpose)(r, b)[0]

    def solve_transposed(_: Callable, b: Array) -> Array:
        return _solve(not transpose)(r, b)[0]

    # supplies the transpose and derivative that the custom batching rule of `_solve` forbids
    return jax.lax.custom_linear_solve(product, b, solve, solve_transposed)


def _floating(a: ArrayLike) -> Array:
    dtype = jnp.result_type(a)
    check_floating("a matrix", dtype)
    if dtype.itemsize < 4:
        raise ValueError(
            f"a matrix must be of float32 or float64, got {dtype}; convert layers of fewer bits to "
            "float32"
        )
    return jnp.asarray(a)


@custom_jvp
def _values(a: Array) -> Array:
    return _one_by_one(_lapack_values, ranks=(1,), cuda=_dilated_values)(a)[0]


@_values.defjvp
@at_full_precision
def _values_jvp(primals: Arrays, tangents: tuple) -> tuple[Array, Array]:
    u, s, vt = svd(*primals)
    return s, jnp.einsum("...mk,...mn,...kn->...k", u, tangents[0], vt)


@custom_jvp
def _svd(a: Array) -> Arrays:
    return _one_by_one(_lapack_svd, ranks=(2, 1, 2))(a)


@_svd.defjvp
@at_full_precision
def _svd_jvp(primals: Arrays, tangents: tuple) -> tuple[Arrays, Arrays]:
    # Townsend 2016, "Differentiating the singular value decomposition"; the part of da outside the
    # span of u or v rotates that span
    u, s, vt = svd(*primals)
    inside = u.mT @ tangents[0] @ vt.mT
    gap = (s[..., None, :] - s[..., :, None]) * (s[..., None, :] + s[..., :, None])
    turn = _reciprocal(gap)
    du = u @ (turn * (inside * s[..., None, :] + s[..., :, None] * inside.mT))
    dv = vt.mT @ (turn * (s[..., :, None] * inside + inside.mT * s[..., None, :]))
    if u.shape[-2] > s.shape[-1]:
        beyond = tangents[0] @ vt.mT
        du = du + (beyond - u @ (u.mT @ beyond)) * _reciprocal(s)[..., None, :]
    if vt.shape[-1] > s.shape[-1]:
        beyond = jnp.asarray(tangents[0]).mT @ u
        dv = dv + (beyond - vt.mT @ (vt @ beyond)) * _reciprocal(s)[..., None, :]
    return (u, s, vt), (du, jnp.diagonal(inside, axis1=-2, axis2=-1), dv.mT)


@custom_jvp
def _qr(a: Array) -> Arrays:
    return _one_by_one(_lapack_qr, ranks=(2, 2))(a)


@_qr.defjvp
@at_full_precision
def _qr_jvp(primals: Arrays, tangents: tuple) -> tuple[Arrays, Arrays]:
    # da R^-1 = dQ + Q dR R^-1; Q^T dQ is antisymmetric and dR R^-1 upper triangular
    q, r = qr(*primals)
    k = r.shape[-2]
    da = jnp.asarray(tangents[0])
    square = r[..., :k]
    scaled = solve_triangular(square, da[..., :k].mT, transpose=True).mT
    along = q.mT @ scaled
    below = jnp.tril(along, -1)
    turned = below - below.mT
    dq = scaled - q @ (along - turned)
    # columns of a wide matrix beyond its square part obey r = q^T a
    beyond = q.mT @ da[..., k:] + dq.mT @ (q @ r[..., k:])
    dr = jnp.concatenate([jnp.triu((along - turned) @ square), beyond], axis=-1)
    return (q, r), (dq, dr)


@custom_jvp
def _eigenvalues(a: Array) -> Array:
    return _one_by_one(_lapack_eigh, ranks=(1, 2))(a)[0]


@_eigenvalues.defjvp
@at_full_precision
def _eigenvalues_jvp(primals: Arrays, tangents: tuple) -> tuple[Array, Array]:
    values, vectors = _eigh(*primals)
    return values, jnp.einsum("...mk,...mn,...nk->...k", vectors, tangents[0], vectors)


@custom_jvp
def _eigh(a: Array) -> Arrays:
    return _one_by_one(_lapack_eigh, ranks=(1, 2))(a)


@_eigh.defjvp
@at_full_precision
def _eigh_jvp(primals: Arrays, tangents: tuple) -> tuple[Arrays, Arrays]:
    values, vectors = _eigh(*primals)
    da = jnp.asarray(tangents[0])
    inside = vectors.mT @ ((da + da.mT) / 2) @ vectors
    turn = _reciprocal(values[..., None, :] - values[..., :, None])
    return (values, vectors), (jnp.diagonal(inside, axis1=-2, axis2=-1), vectors @ (turn * inside))


def _reciprocal(gap: Array) -> Array:
    """Compute 1 / gap, with 0 for a gap of 0."""
    none = gap == 0
    return jnp.where(none, 0.0, 1 / jnp.where(none, 1.0, gap))


def _lapack_values(a: Array) -> Arrays:
    return (jax.lax.linalg.svd(a, compute_uv=False),)


def _dilated_values(a: Array) -> Arrays:
    """Compute singular values as eigenvalues of [[0, a], [a^T, 0]], to rounding of the largest."""
    # CUDA decomposes a stack of symmetric matrices in one call, but an SVD matrix by matrix
    m, n = a.shape[-2:]
    above = jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, n), (m, 0)])
    eigenvalues = jnp.linalg.eigvalsh(above + above.mT, symmetrize_input=False)
    largest = eigenvalues[..., ::-1][..., : min(m, n)]
    return (jnp.maximum(largest, 0),)


def _lapack_svd(a: Array) -> Arrays:
    u, s, vt = jax.lax.linalg.svd(a, full_matrices=False)
    return u, s, vt


def _lapack_qr(a: Array) -> Arrays:
    q, r = jax.lax.linalg.qr(a, full_matrices=False)
    return q, r


def _lapack_eigh(a: Array) -> Arrays:
    vectors, values = jax.lax.linalg.eigh(a)
    return values, vectors


def _solve(transpose: bool) -> Decomposition:
    def lapack(r: Array, b: Array) -> Arrays:
        return (
            jax.lax.linalg.triangular_solve(
                r, b, left_side=True, lower=False, transpose_a=transpose
            ),
        )

    return _one_by_one(lapack, ranks=(2,))


def _one_by_one(
    decompose: Decomposition, ranks: tuple[int, ...], cuda: Decomposition | None = None
) -> Decomposition:
    """Make a decomposition of stacks [*batch, m, n] that keeps no thread of a CPU waiting."""

    @custom_vmap
    def stacked(*stacks: Array) -> Arrays:
        if min(stacks[0].shape[-2:]) < WIDE and jax.default_backend() == "cpu":
            one_lapack_thread()
        if stacks[0].ndim == 2:
            return decompose(*stacks)
        shared_out = functools.partial(_shared_out, decompose, ranks)
        results: Arrays = jax.lax.platform_dependent(
            *stacks, cpu=shared_out, cuda=cuda or decompose, default=decompose
        )
        return results

    @stacked.def_vmap
    def batched(
        size: int, in_batched: list[bool], *stacks: Array
    ) -> tuple[Arrays, tuple[bool, ...]]:
        whole = (
            stack if has_axis else jnp.broadcast_to(stack, (size, *stack.shape))
            for stack, has_axis in zip(stacks, in_batched, strict=True)
        )
        return stacked(*whole), (True,) * len(ranks)

    return stacked


def _in_turn(decompose: Decomposition, *stacks: Array) -> Arrays:
    """Decompose matrix by matrix."""
    batch = stacks[0].shape[:-2]
    flat = [stack.reshape(-1, *stack.shape[-2:]) for stack in stacks]
    results = jax.lax.map(lambda matrices: decompose(*matrices), flat)
    return tuple(result.reshape(*batch, *result.shape[1:]) for result in results)


def _shared_out(decompose: Decomposition, ranks: tuple[int, ...], *stacks: Array) -> Arrays:
    """Decompose matrix by matrix on each device that holds part of the stacks."""
    in_turn = functools.partial(_in_turn, decompose)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes:
        # within a shard_map each device already sees only its own part
        return in_turn(*stacks)
    if mesh.explicit_axes:
        own = PartitionSpec(*jax.typeof(stacks[0]).sharding.spec[:-2])
        results: Arrays = jax.shard_map(in_turn, in_specs=own, out_specs=own)(*stacks)
        return results
    # the sharding of the stacks is known only when the compiler partitions the program
    partitioned = custom_partitioning(in_turn)
    batch_rank = stacks[0].ndim - 2
    letters = iter(string.ascii_lowercase)
    sides = [[next(letters) for _ in range(rank)] for rank in (*(2 for _ in stacks), *ranks)]
    terms = [" ".join(["...", *side]) for side in sides]

    def partition(mesh: jax.sharding.Mesh, arguments: tuple, results: tuple) -> tuple:
        batch = arguments[0].sharding.spec[:batch_rank]
        own = NamedSharding(mesh, PartitionSpec(*batch))
        return mesh, in_turn, (own,) * len(results), (own,) * len(arguments)

    partitioned.def_partition(
        partition,
        sharding_rule=f"{', '.join(terms[: len(stacks)])} -> {', '.join(terms[len(stacks) :])}",
        need_replication_factors=tuple(letter for side in sides for letter in side),
    )
    shared: Arrays = partitioned(*stacks)
    return shared
