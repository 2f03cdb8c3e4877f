r"""Measure: singular values of input-output Jacobians, in logarithms that no float range can hold.

The Jacobian J_L = F_L ... F_1 F_0 of a deep chain spans hundreds of nats: formed and decomposed, all but its largest
singular values drown in rounding. Here it is carried as

    J_l = Q diag(e^d) X,    Q orthonormal, X of rows of order 1,

through the layers: F Q = Q' R by QR (columns ordered by what they will weigh), then d' = d + ln |r_ii| and
X' = (e^{-d'} R e^{d}) X, whose every exponent is at most of order 0. What is left, diag(e^d) X, is small and graded:
QR sweeps on its transpose, the same step again, turn d into the logarithms of the singular values (Stewart 1997,
ETNA 5:29-47), and an SVD of the part within float range of the largest settles values too close for the sweeps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstab.checks import check_depths, check_floating
from jaxstab.networks import Chain, Params
from jaxstab.norms import unit
from jaxstab.records import Spectrum

Precision = str | jax.lax.Precision

# values whose logarithms differ by g are left wrong by about g e^{-2 g n} after n sweeps: 0.2 / n at the worst g
SWEEPS = 8


class _Graded(NamedTuple):
    """diag(e^logs) rows: what is left of a product when its orthonormal factor is taken off."""

    logs: Float[Array, " m"]
    rows: Float[Array, "m k"]


def _absorb(factor: Float[Array, "n m"], graded: _Graded, rank: Int[Array, ""]) -> tuple[Float[Array, "n m"], _Graded]:
    """factor diag(e^d) X as Q diag(e^d') X', n >= m; rows from `rank` on are exactly zero."""
    d, x = graded
    weight = jax.vmap(unit, in_axes=1)(factor)[1] + d
    order = jnp.argsort(-jnp.where(jnp.isnan(weight), -jnp.inf, weight))
    d, x = d[order], x[order]
    factor, within = factor[:, order], jnp.arange(len(d)) < rank
    # columns beyond the rank depend on those before; any others in their place leave the leading part of QR as it is,
    # and its derivative finite
    rows, columns = (jnp.arange(1, size + 1, dtype=factor.dtype) for size in factor.shape)
    others = jnp.cos(rows[:, None] * columns[None])
    q, r = jnp.linalg.qr(jnp.where(within[None], factor, others))
    r = jnp.where(within[None], r, q.T @ factor)
    diagonal = jnp.diagonal(r)
    alive = within & (diagonal != 0) & (d != -jnp.inf)
    pivot = jnp.abs(jnp.where(alive, diagonal, 1.0))
    logs = jnp.where(alive, d + jnp.log(pivot), -jnp.inf)
    # in logarithms, where the factors of a product in range need not be
    some = alive[:, None] & (r != 0) & (d != -jnp.inf)[None]
    exponent = jnp.log(jnp.where(some, jnp.abs(r), 1.0)) + d[None] - jnp.where(alive, logs, 0.0)[:, None]
    coupling = jnp.where(some, jnp.sign(r) * jnp.exp(jnp.where(some, exponent, 0.0)), 0.0)
    return q, _Graded(logs, coupling @ x)


class _Product(NamedTuple):
    """A product of factors as basis diag(e^logs) rows, and the rank it has left."""

    basis: Float[Array, "n m"]
    graded: _Graded
    rank: Int[Array, ""]

    def then(self, factor: Float[Array, "n n"]) -> "_Product":
        """The product with one more factor on its left."""
        rank = jnp.minimum(self.rank, _rank(factor))
        return _Product(*_absorb(factor @ self.basis, self.graded, rank), rank)


def _finish(graded: _Graded, sweeps: int) -> Float[Array, " m"]:
    """ln of the singular values of diag(e^logs) rows, descending."""
    eye = jnp.eye(graded.logs.shape[0], dtype=graded.rows.dtype)
    rank = jnp.sum(graded.logs != -jnp.inf)

    def sweep(graded: _Graded, _: None) -> tuple[_Graded, None]:
        return _absorb(graded.rows.T, graded._replace(rows=eye), rank)[1], None

    graded, _ = jax.lax.scan(sweep, graded, None, length=sweeps)
    logs = graded.logs
    top = jnp.max(logs)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    near = jnp.linalg.svd(jnp.exp(logs - top)[:, None] * graded.rows, compute_uv=False)
    # eps^(1/3) of the largest: there the SVD's absolute error is a relative one of eps^(2/3)
    inside = logs >= top + jnp.log(jnp.finfo(logs.dtype).eps) / 3
    return -jnp.sort(-jnp.where(inside, jnp.log(jnp.where(inside, near, 1.0)) + top, logs))


def product_log_singular_values(
    factors: Float[Array, "layers n n"], sweeps: int = SWEEPS, precision: Precision = "highest"
) -> Float[Array, " n"]:
    """ln of the singular values of factors[L-1] ... factors[1] factors[0], whatever their range.

    A row or column of exact zeros makes exact zeros of the product, -inf here. Any other loss of rank is seen only
    to working precision: such a value lies about ln(eps) below its neighbours.

    Args:
        factors: square matrices, first factor applied first.
        sweeps: QR sweeps at the end; more for closer values far below the largest.
        precision: of the matrix products, as in `jax.default_matmul_precision`.

    Returns:
        The logarithms, descending.

    Raises:
        ValueError: if the factors are not a stack of square floating matrices, or sweeps < 1.

    Example:
        >>> tiny = jnp.stack([jnp.diag(jnp.asarray([1e-30, 1.0, 1e-20]))] * 100)
        >>> (product_log_singular_values(tiny) / jnp.log(10.0)).round(1).tolist()
        [0.0, -2000.0, -3000.0]
    """
    factors = jnp.asarray(factors)
    if factors.ndim != 3 or factors.shape[1] != factors.shape[2] or 0 in factors.shape:
        raise ValueError(f"factors must be a stack of square matrices [layers, n, n], got shape {factors.shape}")
    _check_sweeps(sweeps)
    check_floating("factors", factors.dtype)
    n = factors.shape[1]

    with jax.default_matmul_precision(precision):
        eye = jnp.eye(n, dtype=factors.dtype)
        nothing = _Product(eye, _Graded(jnp.zeros(n, factors.dtype), eye), jnp.asarray(n))
        product, _ = jax.lax.scan(lambda product, factor: (product.then(factor), None), nothing, factors)
        return _finish(product.graded, sweeps)


def log_singular_values(
    chain: Chain,
    params: Params,
    x: Float[Array, " d_in"],
    depths: Sequence[int],
    sweeps: int = SWEEPS,
    precision: Precision = "highest",
) -> Float[Array, "depth m"]:
    """ln of the singular values of dh_L/dx, input to layer L's pre-activation, for every wanted depth L in one pass.

    Args:
        chain: the network; blocks of one width.
        params: its parameters.
        x: one input.
        depths: depths L wanted, each in [0, depth of the chain], ascending.
        sweeps: QR sweeps at the end of each depth.
        precision: of the matrix products, as in `jax.default_matmul_precision`.

    Returns:
        The logarithms, descending, m = min(width, d_in); -inf for directions killed exactly: the finite ones number
        the smallest count of active units on the way (relu).

    Raises:
        ValueError: if depths are not ascending integers within the chain, sweeps < 1 or x is not floating.

    Example:
        >>> from jaxstab import networks
        >>> mlp = networks.MLP(depth=100, width=16, activation="identity", weights="orthogonal")
        >>> params = networks.init(mlp, jax.random.key(0), jnp.ones(20), sigma_w=0.01)
        >>> log_s = log_singular_values(networks.chain(mlp), params, jnp.ones(20), [100])
        >>> float(jnp.abs(log_s / jnp.log(10.0) + 202).max()) < 0.001
        True
    """
    check_depths(depths, params.depth)
    _check_sweeps(sweeps)
    check_floating("x", jnp.result_type(x))
    with jax.default_matmul_precision(precision):
        start = _embedded(chain, params, x)
        # one slot per wanted depth, and a last one for every other layer to write to
        slots = jnp.full(params.depth + 1, len(depths)).at[jnp.asarray(depths)].set(jnp.arange(len(depths)))
        kept = jax.tree.map(lambda leaf: jnp.zeros((len(depths) + 1, *leaf.shape), leaf.dtype), start.graded)

        def keep(kept: _Graded, graded: _Graded, slot: Array) -> _Graded:
            put = lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, slot, 0)
            return jax.tree.map(put, kept, graded)

        def layer(carry: tuple, at: tuple) -> tuple[tuple, None]:
            h, product, kept = carry
            block, slot = at
            product = product.then(jax.jacfwd(chain.block, argnums=1)(block, h))
            return (chain.block(block, h), product, keep(kept, product.graded, slot)), None

        first = (chain.embed(params, x), start, keep(kept, start.graded, slots[0]))
        (_, _, kept), _ = jax.lax.scan(layer, first, (params.blocks, slots[1:]))
        wanted = jax.tree.map(lambda leaf: leaf[:-1], kept)
        return jax.vmap(lambda graded: _finish(graded, sweeps))(wanted)


def singular_values(
    chain: Chain,
    params: Params,
    x: Float[Array, " d_in"],
    depths: Sequence[int],
    sweeps: int = SWEEPS,
    precision: Precision = "highest",
) -> Float[Array, "depth m"]:
    """Singular values of dh_L/dx for every wanted depth L: exp of `log_singular_values`, under- and overflow included.

    Args:
        chain: the network; blocks of one width.
        params: its parameters.
        x: one input.
        depths: depths L wanted, each in [0, depth of the chain], ascending.
        sweeps: QR sweeps at the end of each depth.
        precision: of the matrix products, as in `jax.default_matmul_precision`.

    Returns:
        The values, descending, m = min(width, d_in).

    Raises:
        ValueError: as `log_singular_values`.
    """
    return jnp.exp(log_singular_values(chain, params, x, depths, sweeps, precision))


def spectrum(
    chain: Chain, params: Params, x: Float[Array, " d_in"], depths: Sequence[int], sweeps: int = SWEEPS
) -> Spectrum:
    """`log_singular_values` with their mean square, as the record that theory predicts too.

    Args:
        chain: the network; blocks of one width.
        params: its parameters.
        x: one input.
        depths: depths L wanted, ascending.
        sweeps: QR sweeps at the end of each depth.

    Returns:
        The record, [depth, index].

    Raises:
        ValueError: as `log_singular_values`.
    """
    log_s = log_singular_values(chain, params, x, depths, sweeps)
    return Spectrum(log_s, jax.nn.logsumexp(2 * log_s, axis=-1) - jnp.log(log_s.shape[-1]))


def _embedded(chain: Chain, params: Params, x: Float[Array, " d_in"]) -> _Product:
    """Q diag(e^d) X of the embedding's Jacobian [width, d_in], an orthonormal factor on its right taken off if wide."""
    # rows by reverse mode where they are fewer
    jacobian = jax.jacrev(lambda x: chain.embed(params, x))(x)
    rank = _rank(jacobian)
    if jacobian.shape[0] < jacobian.shape[1]:
        jacobian = jnp.linalg.qr(jacobian.T, mode="r").T
    size = jacobian.shape[1]
    graded = _Graded(jnp.zeros(size, jacobian.dtype), jnp.eye(size, dtype=jacobian.dtype))
    return _Product(*_absorb(jacobian, graded, rank), rank)


def _rank(factor: Float[Array, "n m"]) -> Int[Array, ""]:
    """Rank of a factor in general position, from its rows and columns that are not exactly zero."""
    live = factor != 0
    return jnp.minimum(jnp.any(live, axis=0).sum(), jnp.any(live, axis=1).sum())


def _check_sweeps(sweeps: int) -> None:
    if sweeps < 1:
        raise ValueError(f"sweeps must be >= 1, got {sweeps}")
