r"""Moments, extremes and densities of singular values from products with a Jacobian.

Moments are means over random probes (Hutchinson 1989). Extremes come from a block bidiagonalisation
J V = U B (Golub & Kahan 1965; Golub, Luk & Overton 1981), fully reorthogonalised. The density is a
mean of Gauss quadratures, one per probe (stochastic Lanczos quadrature: Ubaru, Chen & Saad 2017).
Means over probes have standard errors, and Ritz values have residuals.

J is scaled by a power of two, so that the largest values may have any magnitude. Values below about
eps times the largest cannot be resolved by a Krylov space; `log_singular_values` resolves them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from jaxstab import decompositions
from jaxstab.arguments import explained
from jaxstab.checks import check_count
from jaxstab.norms.logarithms import times_power, unit
from jaxstab.norms.meshes import varying_like
from jaxstab.precision import at_full_precision
from jaxstab.records import Estimate, standard_error
from jaxstab.spectra.krylov import orthonormal, sphere
from jaxstab.spectra.operators import Operator

LN2 = math.log(2)


class Moments(NamedTuple):
    """Moments of the squared singular values, mean over all of them, zeros included.

    Attributes:
        log_mean: ln E s^(2k) for k = 1..orders.
        relative_error: standard error of E s^(2k) over probes, divided by E s^(2k); NaN for a
            single probe.
        effective_rank: participation ratio (sum s^2)^2 / sum s^4, in [1, size] up to its error; a
            ratio of means, whose bias falls as 1/probes.
        effective_rank_error: standard error of the effective rank, to first order.
    """

    log_mean: Float[Array, " order"]
    relative_error: Float[Array, " order"]
    effective_rank: Float[Array, ""]
    effective_rank_error: Float[Array, ""]


class Extremes(NamedTuple):
    """Largest singular values with their vectors, and bounds on the smallest.

    Attributes:
        log_s: ln s, descending; each at most the singular value of its rank.
        relative_error: bound on |s - sigma| / s for some singular value sigma, from the residual;
            inf for s = 0.
        left: u, of unit length; |J v - s u| and |J^T u - s v| are within the error too.
        right: v, of unit length.
        log_smallest_at_most: ln of an upper bound on the smallest singular value, which is not
            estimated.
        log_condition_at_least: ln of a lower bound on the condition number.
    """

    log_s: Float[Array, " top"]
    relative_error: Float[Array, " top"]
    left: Float[Array, "top rows"]
    right: Float[Array, "top columns"]
    log_smallest_at_most: Float[Array, ""]
    log_condition_at_least: Float[Array, ""]


class Density(NamedTuple):
    """Distribution of singular values as point masses, one Gauss quadrature per probe.

    Attributes:
        log_s: nodes ln s, ascending; -inf below rounding of the largest.
        weights: share of singular values at each node, of sum 1 in each probe.
    """

    log_s: Float[Array, "probe node"]
    weights: Float[Array, "probe node"]

    def cdf(self, log_s: Float[ArrayLike, "..."]) -> Estimate:
        """Compute the share of singular values at or below given values.

        The share includes half of the weight at a node, and is linear in ln s between nodes. The
        true share includes between none and all of that weight (Chebyshev, Markov and Stieltjes:
        Golub & Meurant 2010, section 2). Values below rounding count as zero.

        Args:
            log_s: ln s, of any shape.

        Returns:
            The share in [0, 1] with its standard error over probes, which does not include the
            error of the quadrature.

        Example:
            >>> even = Density(jnp.linspace(-1.0, 1.0, 101)[None], jnp.full((1, 101), 1 / 101))
            >>> round(float(even.cdf(-0.5).value), 2)
            0.25
        """
        log_s = jnp.asarray(log_s, self.log_s.dtype)
        each = jax.vmap(lambda nodes, weights: _share(nodes, weights, log_s.ravel()))(*self)
        return Estimate(
            jnp.mean(each, 0).reshape(log_s.shape), standard_error(each.T).reshape(log_s.shape)
        )

    def quantile(self, share: Float[ArrayLike, "..."]) -> Estimate:
        """Compute quantiles of ln s, the inverse of `cdf`.

        Args:
            share: share of singular values below, in [0, 1], of any shape.

        Returns:
            ln s, -inf within the share of zeros; standard errors from the quantiles one standard
            error of the share to either side (Woodruff 1952), not finite where a side is -inf.

        Raises:
            ValueError: if a concrete share is outside [0, 1].

        Example:
            >>> even = Density(jnp.linspace(-1.0, 1.0, 101)[None], jnp.full((1, 101), 1 / 101))
            >>> even.quantile(jnp.asarray([0.25, 0.5])).value.round(2).tolist()
            [-0.5, 0.0]
        """
        share = jnp.asarray(share, self.log_s.dtype)
        if not isinstance(share, jax.core.Tracer) and not bool(
            jnp.all((share >= 0) & (share <= 1))
        ):
            raise ValueError(f"share must be in [0, 1], got {share.tolist()}")
        grid = jnp.sort(self.log_s.ravel())
        below = self.cdf(grid).value
        alive = jnp.isfinite(grid)
        lowest = jnp.min(jnp.where(alive, grid, jnp.inf))
        zeros = self.cdf(jnp.full((), -jnp.inf, grid.dtype)).value

        def invert(share: Array) -> Array:
            return jnp.where(
                (share <= zeros) & (zeros > 0),
                -jnp.inf,
                jnp.interp(share, below, jnp.where(alive, grid, lowest)),
            )

        value = invert(share)
        error = self.cdf(value).standard_error
        return Estimate(
            value,
            (invert(jnp.minimum(share + error, 1)) - invert(jnp.maximum(share - error, 0))) / 2,
        )


class _Bidiagonal(NamedTuple):
    """Block bidiagonalisation J V = U B 2^exponent, J^T U = V B^T 2^exponent + residual."""

    left: Float[Array, "p rows"]
    matrix: Float[Array, "p p"]
    right: Float[Array, "p columns"]
    residual: Float[Array, "b b"]
    exponent: Int[Array, ""]


@explained
@at_full_precision
def moments(operator: Operator, key: Key[Array, ""], probes: int = 16, orders: int = 2) -> Moments:
    """Estimate moments E s^(2k) = E |w_k|^2, w_0 random, w_k = J w_(k-1) or J^T w_(k-1).

    Hutchinson 1989 with w_0 uniform on the unit sphere, on the smaller side of J: unbiased for any
    spectrum. One probe errs by at most sqrt(2 / R) relative, R the participation ratio of the
    s^(2k) (Avron & Toledo 2011, on Gaussian probes); errors are correlated between orders.

    Args:
        operator: the Jacobian.
        key: PRNG key of the probes.
        probes: number of random vectors, >= 1; 2 or more for standard errors.
        orders: highest k, >= 2, and number of products with J or J^T.

    Returns:
        Record of `log_mean`, ln E s^(2k), its `relative_error`, the `effective_rank` (sum s^2)^2 /
        sum s^4, and `effective_rank_error`.

    Raises:
        ValueError: if probes < 1 or orders < 2.

    Example:
        >>> from jaxstab import networks, spectra
        >>> net = networks.mlp(depth=50, width=32, activation="identity", weights="orthogonal")
        >>> params = net.init(jax.random.key(0), jnp.ones(32), sigma_w=0.5)
        >>> jacobian = spectra.jacobian(net, params, jnp.ones(32), from_layer=0)
        >>> found = moments(jacobian, jax.random.key(1))
        >>> (found.log_mean / jnp.log(2.0)).round(3).tolist(), round(float(found.effective_rank), 3)
        ([-100.0, -200.0], 32.0)
    """
    check_count("probes", probes, 1)
    check_count("orders", orders, 2)
    operator = _tall(operator)
    w = sphere(operator, key, probes)
    scale = jnp.zeros(probes, operator.dtype)
    logs = []
    for order in range(orders):
        if order % 2:
            w, exponent = operator.adjoint(w)
        else:
            w, exponent = operator.apply(w)
        w, length = jax.vmap(unit)(w)
        scale = scale + length + LN2 * exponent.astype(w.dtype)
        logs.append(2 * scale)
    log_samples = jnp.stack(logs)
    log_mean = jax.nn.logsumexp(log_samples, axis=1) - math.log(probes)
    relative = jnp.exp(log_samples - jnp.where(jnp.isneginf(log_mean), 0.0, log_mean)[:, None])
    rank = operator.size * jnp.exp(2 * log_mean[0] - log_mean[1])
    return Moments(
        log_mean,
        standard_error(relative),
        rank,
        rank * standard_error((2 * relative[0] - relative[1])[None])[0],
    )


@explained
@at_full_precision
def extremes(
    operator: Operator, key: Key[Array, ""], top: int = 1, steps: int = 8, block: int | None = None
) -> Extremes:
    r"""Compute the largest singular values and vectors by block bidiagonalisation.

    After block * steps products with J and as many with J^T, J V = U B and J^T U = V B^T + a
    residual. The SVD of B gives s, u, v with J v = s u and |J^T u - s v| = r (with J^T in place of
    a wide J). So a singular value lies within r of s, plus rounding (Golub & Van Loan 2013, section
    8.1, on [[0, J], [J^T, 0]]). The values s interlace with the singular values: the i-th is at
    most the i-th of J, and the last is at least the smallest of J. A value is missed only if the
    random start has no component in its direction, or if the value is not yet resolved from others.
    A block of at least `top` vectors finds multiple values.

    Derivatives are those of the computed numbers, including the Krylov space. For coinciding values
    only the sum has a derivative; the derivative of a value of 0 is 0. Vectors have derivatives,
    and values second derivatives, where values are distinct.

    Args:
        operator: the Jacobian.
        key: PRNG key of the start.
        top: wanted number of values, in [1, size].
        steps: number of blocks of the Krylov space, >= 1; errors fall exponentially with it.
        block: number of vectors per block, >= 1; None for top + 6. If block * steps exceeds the
            number of singular values, one block computes all values.

    Returns:
        Record of `log_s`, `relative_error`, `left` and `right` of the largest values, and the
        bounds `log_smallest_at_most` and `log_condition_at_least`.

    Raises:
        ValueError: if a setting is out of range, or block * steps < top.

    Example:
        >>> from jaxstab import networks, spectra
        >>> net = networks.mlp(depth=3, width=64, activation="relu")
        >>> params = net.init(jax.random.key(0), jnp.ones(64), sigma_w=2**0.5)
        >>> jacobian = spectra.jacobian(net, params, jnp.ones(64))
        >>> found = extremes(jacobian, jax.random.key(1), top=3)
        >>> bool(jnp.all(found.relative_error < 1e-3)), found.left.shape
        (True, (3, 64))
    """
    if block is None:
        block = top + 6
    for name, size in (("top", top), ("steps", steps), ("block", block)):
        check_count(name, size, 1)
    if top > operator.size:
        raise ValueError(
            f"top must be at most the number of singular values, {operator.size}, got {top}"
        )
    if block * steps < top:
        raise ValueError(f"block * steps must be at least top = {top}, got {block} * {steps}")
    if block * steps > operator.size:
        block = operator.size
        steps = 1
    tall = _tall(operator)
    start = jax.random.normal(key, (block, tall.columns), tall.dtype)
    reduced = _bidiagonalise(tall, start, steps)
    p, s, qt = decompositions.svd(reduced.matrix)
    square = jnp.sum((p[-block:, :top].T @ reduced.residual) ** 2, axis=1)
    # the root of 1 in place of 0 has a finite gradient
    residual = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), square)
    # rounding of a product is relative to the largest value and grows with the number of terms
    rounding = jnp.finfo(s.dtype).eps * math.sqrt(tall.rows + tall.columns) * s[0]
    error = jnp.where(
        s[:top] > 0, (residual + rounding) / jnp.where(s[:top] > 0, s[:top], 1.0), jnp.inf
    )
    left = p[:, :top].T @ reduced.left
    right = qt[:top] @ reduced.right
    offset = LN2 * reduced.exponent.astype(s.dtype)
    smallest = jnp.log(s[-1] + rounding) + offset
    none = s[:top] == 0
    log_s = jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1.0, s[:top]))) + offset
    if tall.rows != operator.rows:
        left, right = right, left
    return Extremes(log_s, error, left, right, smallest, log_s[0] - smallest)


@explained
@at_full_precision
def density(operator: Operator, key: Key[Array, ""], probes: int = 8, steps: int = 20) -> Density:
    """Estimate the distribution of singular values by stochastic Lanczos quadrature.

    A random unit vector v weights each squared singular value with a share of mean 1/size.
    Bidiagonalisation of J from v gives B. The squares of the singular values of B, weighted by the
    squared first entries of the right vectors, are the Gauss quadrature of that measure (Golub &
    Meurant 2010, chapter 7), exact for polynomials in s^2 of degree 2 steps - 1.

    Args:
        operator: the Jacobian.
        key: PRNG key of the probes.
        probes: number of random vectors, >= 1; 2 or more for standard errors.
        steps: number of nodes per probe, >= 1, capped at the number of singular values.

    Returns:
        Nodes and weights, for shares by `Density.cdf` and quantiles by `Density.quantile`.

    Raises:
        ValueError: if probes or steps < 1.

    Example:
        >>> from jaxstab import networks, spectra
        >>> net = networks.mlp(depth=3, width=32)
        >>> params = net.init(jax.random.key(0), jnp.ones(32))
        >>> density(spectra.jacobian(net, params, jnp.ones(32)), jax.random.key(1)).log_s.shape
        (8, 20)
    """
    check_count("probes", probes, 1)
    check_count("steps", steps, 1)
    tall = _tall(operator)
    steps = min(steps, tall.columns)

    def quadrature(v: Array) -> tuple[Array, Array, Array]:
        reduced = _bidiagonalise(tall, v[None], steps)
        _, s, qt = decompositions.svd(reduced.matrix)
        return s[::-1], qt[::-1, 0] ** 2, LN2 * reduced.exponent.astype(s.dtype)

    s, weights, offset = jax.vmap(quadrature)(sphere(tall, key, probes))
    seen = s > jnp.finfo(s.dtype).eps * math.sqrt(tall.rows + tall.columns) * s[:, -1:]
    log_s = jnp.where(seen, jnp.log(jnp.where(seen, s, 1.0)) + offset[:, None], -jnp.inf)
    return Density(jnp.where(jnp.isnan(s), s, log_s), weights)


def _share(
    nodes: Float[Array, " node"], weights: Float[Array, " node"], log_s: Float[Array, " x"]
) -> Array:
    """Compute one probe's share of singular values at or below each log_s."""
    dead = jnp.isneginf(nodes)
    zeros = jnp.sum(weights, where=dead)
    middle = jnp.where(dead, zeros, jnp.cumsum(weights) - weights / 2)
    # zeros are a step at the first other node
    first = jnp.min(jnp.where(dead, jnp.inf, nodes))
    return jnp.interp(log_s, jnp.where(dead, first, nodes), middle, left=zeros, right=1.0)


def _bidiagonalise(operator: Operator, start: Float[Array, "b columns"], steps: int) -> _Bidiagonal:
    """Bidiagonalise by block Golub-Kahan steps from the span of `start`, fully reorthogonalised."""
    size = start.shape[0]
    dtype = operator.dtype
    total = size * steps

    def step(state: tuple, index: Array) -> tuple[tuple, None]:
        left, matrix, right, v, _, exponent = state
        right = jax.lax.dynamic_update_slice_in_dim(right, v, index, 0)
        y, exponents = operator.apply(v)
        # random vectors find the largest value up to a small factor
        largest = jnp.where(
            jnp.any(y != 0, axis=1), exponents, jnp.iinfo(exponents.dtype).min
        ).max()
        exponent = jnp.where((index == 0) & jnp.any(y != 0), largest, exponent)
        u, inside, own = orthonormal(times_power(y, (exponents - exponent)[:, None]), left)
        left = jax.lax.dynamic_update_slice_in_dim(left, u, index, 0)
        columns = jax.lax.dynamic_update_slice_in_dim(inside, own, index, 1).T
        matrix = jax.lax.dynamic_update_slice_in_dim(matrix, columns, index, 1)
        z, exponents = operator.adjoint(u)
        v, _, residual = orthonormal(times_power(z, (exponents - exponent)[:, None]), right)
        return (left, matrix, right, v, residual, exponent), None

    first = (
        jnp.zeros((total, operator.rows), dtype),
        jnp.zeros((total, total), dtype),
        jnp.zeros((total, operator.columns), dtype),
        decompositions.qr(start.T)[0].T,
        jnp.zeros((size, size), dtype),
        jnp.zeros((), jnp.int32),
    )
    first = varying_like(first, jax.eval_shape(operator.apply, start))
    (left, matrix, right, _, residual, exponent), _ = jax.lax.scan(
        step, first, size * jnp.arange(steps)
    )
    return _Bidiagonal(left, matrix, right, residual, exponent)


def _tall(operator: Operator) -> Operator:
    """Return the operator or its transpose, so that every singular value has a right vector."""
    if operator.rows >= operator.columns:
        return operator
    return operator.transpose
