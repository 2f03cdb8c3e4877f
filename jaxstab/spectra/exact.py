r"""Measure: singular values of input-output Jacobians, in logarithms that no float range can hold.

The Jacobian J_L = F_L ... F_1 F_0 of a deep chain spans hundreds of nats: formed and decomposed, all but its largest
singular values drown in rounding. Here it is carried as

    J_l = Q diag(e^d) X,    Q orthonormal, X of rows of order 1,

through the layers: F Q = Q' R by QR (columns ordered by what they will weigh), then d' = d + ln |r_ii| and
X' = (e^{-d'} R e^{d}) X, whose every exponent is at most of order 0. What is left, diag(e^d) X, is small and graded:
QR sweeps on its transpose, the same step again, turn d into the logarithms of the singular values (Stewart 1997,
ETNA 5:29-47) as far as values are apart; those that are close are settled by small SVDs of their neighbourhood.
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

# rows whose logarithms differ by g are coupled by about e^{-2 g n} after n sweeps; those closer are settled by SVDs
SWEEPS = 6
# values on either side that the first SVD of each value looks at
NEIGHBOURS = 4


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
        # sorted beforehand, so that rows and columns of what comes out belong to each other
        weight = jax.vmap(unit)(graded.rows)[1] + graded.logs
        order = jnp.argsort(-jnp.where(jnp.isnan(weight), -jnp.inf, weight))
        logs, rows = graded.logs[order], graded.rows[order]
        return _absorb(rows.T, _Graded(logs, eye), rank)[1], None

    graded, _ = jax.lax.scan(sweep, graded, None, length=sweeps)
    # a value that neighbours disturb moves with the sweeps' derivative, right where values are apart
    settled = jax.lax.stop_gradient(_settle(jax.lax.stop_gradient(graded), sweeps) - graded.logs)
    return -jnp.sort(-(graded.logs + jnp.where(jnp.isnan(settled), 0.0, settled)))


def _settle(graded: _Graded, sweeps: int) -> Float[Array, " m"]:
    """ln of the singular values of diag(e^logs) rows, rows nearly the identity, in its own order."""
    # Values further apart than `apart` no longer see each other. Each comes from the SVD of the block of its NEIGHBOURS
    # on either side, scales beyond `apart` cut off. Where more of them are closer than that, it comes from the SVD of
    # the whole, cut to a window of scales in which the SVD is accurate; window after window from the top.
    size, dtype = graded.logs.shape[0], graded.logs.dtype
    digits = -jnp.log(jnp.finfo(dtype).eps)
    # after n sweeps, rows g nats apart are coupled by e^(-2 g n); below 6 sweeps that is more than rounding
    window = digits / 3
    apart = window / max(sweeps, 6)
    order = jnp.argsort(-graded.logs)
    logs, rows = graded.logs[order], graded.rows[order][:, order]
    alive = jnp.isfinite(logs)
    ends = jnp.full(NEIGHBOURS, jnp.inf, dtype)
    around = jnp.concatenate([ends, logs, -ends])
    padded = jnp.pad(rows, NEIGHBOURS) + jnp.diag(jnp.pad(jnp.zeros(size, dtype), NEIGHBOURS, constant_values=1))

    def values(rows: Array, logs: Array, centre: Array, low: Array, high: Array) -> Array:
        return jnp.linalg.svd(jnp.exp(jnp.clip(logs - centre, low, high))[:, None] * rows, compute_uv=False)

    def block(i: Array) -> tuple[Array, Array]:
        width = 2 * NEIGHBOURS + 1
        part = jax.lax.dynamic_slice(padded, (i, i), (width, width))
        near, centre = jax.lax.dynamic_slice(around, (i,), (width,)), jnp.where(alive[i], logs[i], 0.0)
        s = values(part, near, centre, -apart, apart)[NEIGHBOURS]
        alone = (near[0] - centre >= apart) & (centre - near[-1] >= apart)
        return jnp.log(jnp.where(alive[i], s, 1.0)) + centre, alone

    found, done = jax.vmap(block)(jnp.arange(size))

    def whole(state: tuple[Array, Array]) -> tuple[Array, Array]:
        found, done = state
        centre = logs[jnp.argmin(done)]
        s = values(rows, logs, centre, apart - window, apart)
        inside = ~done & (logs > centre - (window - 3 * apart))
        return jnp.where(inside, jnp.log(jnp.where(inside, s, 1.0)) + centre, found), done | inside

    found, _ = jax.lax.while_loop(lambda state: ~jnp.all(state[1]), whole, (found, done | ~alive))
    return jnp.zeros_like(found).at[order].set(jnp.where(alive, found, logs))


def product_log_singular_values(
    factors: Float[Array, "layers n n"], sweeps: int = SWEEPS, precision: Precision = "highest"
) -> Float[Array, " n"]:
    """ln of the singular values of factors[L-1] ... factors[1] factors[0], whatever their range.

    A row or column of exact zeros makes exact zeros of the product, -inf here. Any other loss of rank is seen only
    to working precision: such a value lies about ln(eps) below its neighbours.

    Args:
        factors: square matrices, first factor applied first.
        sweeps: QR sweeps at the end; fewer than 6 leave errors beyond rounding, more leave less to settle by SVDs.
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
        >>> log_s = jax.jit(lambda x: log_singular_values(networks.chain(mlp), params, x, [100]))(jnp.ones(20))
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
