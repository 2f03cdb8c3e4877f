"""Spectra of single layers, norms of partial Jacobians, and the alignment of neighbours.

F_l = dh_l/dh_{l-1} is the Jacobian of block l alone, l = 1..L. A partial Jacobian is a product of
consecutive layers, dh_l/dh_m = F_l ... F_{m+1}. Singular values of a single layer are in the float
range and come from an SVD; products are carried at norm 1, with the logarithm of the norm.
Functions take one network and one input; the caller vmaps. A block that mixes examples goes through
`networks.flatten` first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxstab import decompositions, networks
from jaxstab.checks import check_floating, integer
from jaxstab.networks import Chain, Here, Params
from jaxstab.networks.views import at_one_input
from jaxstab.norms.logarithms import unit
from jaxstab.norms.meshes import varying_like
from jaxstab.records import standard_error
from jaxstab.spectra.factors import factor_rank


class LogEstimate(NamedTuple):
    """Logarithm of a Monte-Carlo mean of positive samples.

    Attributes:
        log_value: ln of the mean of the samples.
        standard_error: standard error of log_value to first order, that of the mean / mean; NaN for
            one sample.
    """

    log_value: Float[Array, " layer"]
    standard_error: Float[Array, " layer"]


class Alignment(NamedTuple):
    """Alignment of the output directions of layer l with the input directions of l+1, l = 1..L-1.

    F_l = U_l diag(s_l) V_l^T. For coinciding singular values (as of an orthogonal layer) the
    vectors, and so `overlap`, are arbitrary; `excess` is not.

    Attributes:
        overlap: |V_{l+1}^T U_l|; entry ij in [0, 1] is the overlap of output direction j of layer l
            with input direction i of layer l+1. Squares in a row or column sum to 1. For random
            alignment the mean square is 1/n and the mean about sqrt(2 / (pi n)).
        excess: ln of |F_{l+1} F_l|_F^2 against its mean over random rotations between the two
            layers, |F_{l+1}|_F^2 |F_l|_F^2 / n. About 0 for random alignment, at most ln n,
            negative where layer l+1 damps what layer l amplifies; NaN where a layer is zero.
    """

    overlap: Float[Array, "pair n n"]
    excess: Float[Array, " pair"]


@at_one_input
def local_log_singular_values(
    chain: Chain, params: Params, x: Float[Array, " d_in"]
) -> Float[Array, "layer n"]:
    """Compute ln of the singular values of every block's Jacobian F_l = dh_l/dh_{l-1}.

    Values of a layer are accurate to about eps times the largest. All L Jacobians, n x n, are held
    in memory at once.

    Args:
        chain: the network; blocks of one width.
        params: parameters of the network, depth L.
        x: one input.

    Returns:
        The logarithms for l = 1..L, descending; -inf for directions killed exactly (relu).

    Raises:
        ValueError: if x is not floating.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=3, width=4, activation="identity", weights="orthogonal")
        >>> params = net.init(jax.random.key(0), jnp.ones(5), sigma_w=2.0)
        >>> log_s = jax.jit(local_log_singular_values, static_argnums=0)(net, params, jnp.ones(5))
        >>> bool(jnp.allclose(log_s, jnp.log(2.0), atol=1e-5))
        True
    """
    jacobians = _jacobians(chain, params, x)
    s = decompositions.singular_values(jacobians)
    dead = jnp.arange(s.shape[-1])[None] >= jax.vmap(factor_rank)(jacobians)[:, None]
    # ln 1 in place of ln 0, so that the gradient is zero and not NaN
    dead = dead | (s == 0)
    return jnp.where(dead, -jnp.inf, jnp.log(jnp.where(dead, 1.0, s)))


@at_one_input
def log_apjn(
    chain: Chain,
    params: Params,
    x: Float[Array, " d_in"],
    first: int = 0,
    key: Key[Array, ""] | None = None,
    probes: int = 16,
) -> LogEstimate:
    """Compute ln of the squared norms J^{m,l} = |dh_l/dh_m|_F^2 / n, for every l >= m = `first`.

    The averaged norm (APJN) of Doshi, He & Gromov 2023 (arXiv 2111.12143) is the mean of J over
    draws of the parameters, which the caller computes: vmap over draws, then
    `jax.nn.logsumexp(..., axis=0) - jnp.log(draws)`. In critical networks J is bounded or grows as
    a power of l; otherwise it changes as exp(l / xi). ln J neither over- nor underflows at any
    depth. n is the size of the state h, which includes later layers for "dense" skips.

    With a key, J is estimated without a matrix, as the mean of |dh_l/dh_m u|^2 over random unit u:
    E n |A u|^2 = |A|_F^2 for u = signs / sqrt(n) (Hutchinson 1990). Each probe is propagated at
    unit length and costs about a forward pass. All layers share the probes, so their errors are
    correlated. The variance of one sample is 2 (|A^T A|_F^2 - sum of squares of its diagonal) /
    n^2, at most 2 J^2. Deep in a chaotic network one singular value dominates, the samples are
    skewed, and the error from few probes is too small.

    Args:
        chain: the network; blocks of one width.
        params: parameters of the network, depth L.
        x: one input.
        first: layer m in [0, L] to differentiate by.
        key: PRNG key of the probes; None for exact norms from the whole matrix.
        probes: number of probes, >= 1; one gives no standard error.

    Returns:
        Record of `log_value`, ln J^{m,l} for l = 0..L, and its `standard_error`, 0 for exact norms:
        NaN below m. ln J is 0 at m, and -inf where the Jacobian is zero.

    Raises:
        ValueError: if first is not an integer in [0, L], probes < 1, or x is not floating.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=200, width=4, activation="identity", weights="orthogonal")
        >>> params = net.init(jax.random.key(0), jnp.ones(4), sigma_w=0.01)
        >>> found = jax.jit(log_apjn, static_argnums=0)(net, params, jnp.ones(4))
        >>> round(float(found.log_value[200] / jnp.log(10.0)), 1)
        -800.0
    """
    _check_first(first, params.depth)
    check_floating("x", jnp.result_type(x))
    if probes < 1:
        raise ValueError(f"probes must be >= 1, got {probes}")
    h = networks.state(chain, params, x, first)
    n = jnp.asarray(h.shape[0], h.dtype)
    if key is None:
        eye = jnp.eye(h.shape[0], dtype=h.dtype)
        _, logs = _push(chain, params, h, eye[None], first, params.depth)
        exact = 2 * logs[:, 0] - jnp.log(n)
        return LogEstimate(_after(first, exact), _after(first, jnp.zeros_like(exact)))
    signs = jax.random.rademacher(key, (probes, 1, h.shape[0]), h.dtype) / jnp.sqrt(n)
    _, logs = _push(chain, params, h, signs, first, params.depth)
    log_mean = jax.nn.logsumexp(2 * logs, axis=1) - jnp.log(jnp.asarray(probes, h.dtype))
    ratios = jnp.exp(2 * logs - jnp.where(jnp.isfinite(log_mean), log_mean, 0.0)[:, None])
    return LogEstimate(_after(first, log_mean), _after(first, standard_error(ratios)))


@at_one_input
def alignment(chain: Chain, params: Params, x: Float[Array, " d_in"]) -> Alignment:
    """Compute overlaps |V_{l+1}^T U_l| of singular vectors and their effect on the product.

    F_{l+1} F_l = U_{l+1} diag(s_{l+1}) (V_{l+1}^T U_l) diag(s_l) V_l^T. The theory of random
    products assumes a random middle factor (freeness); training aligns it. The definition is
    jaxstab's own. Only overlaps of distinct singular values have derivatives.

    Args:
        chain: the network; blocks of one width, depth >= 2.
        params: parameters of the network.
        x: one input.

    Returns:
        Record of `overlap`, |V_{l+1}^T U_l|, and `excess`, ln of |F_{l+1} F_l|_F^2 against its mean
        over random rotations between the layers, with a row for each pair of layers.

    Raises:
        ValueError: if the chain has only one block, or x is not floating.
    """
    if params.depth < 2:
        raise ValueError(
            f"alignment is between layers and needs a chain of depth >= 2, got {params.depth}"
        )
    jacobians = _jacobians(chain, params, x)
    u, _, vt = decompositions.svd(jacobians)
    overlap = vt[1:] @ u[:-1]
    # from the products, since overlaps are arbitrary and have no derivative where singular values
    # coincide; at unit length |F_l|_F cancels
    directions, log_norms = jax.vmap(unit)(jacobians)
    joint = jax.vmap(unit)(directions[1:] @ directions[:-1])[1]
    alive = jnp.isfinite(log_norms[1:]) & jnp.isfinite(log_norms[:-1])
    width = jnp.asarray(jacobians.shape[-1], jacobians.dtype)
    excess = jnp.where(alive, 2 * joint + jnp.log(width), jnp.nan)
    return Alignment(jnp.abs(overlap), excess)


def _jacobians(chain: Chain, params: Params, x: Float[Array, " d_in"]) -> Float[Array, "layer n n"]:
    check_floating("x", jnp.result_type(x))

    def jacobian(carry: None, here: Here) -> tuple[None, Array]:
        eye = varying_like(jnp.eye(here.h.shape[0], dtype=here.h.dtype), here.h)
        return carry, jax.vmap(here.push, 1, 1)(eye)

    return networks.upwards(chain, params, chain.embed(params, x), jacobian, None, first=1)[1]


def _push(
    chain: Chain,
    params: Params,
    h: Float[Array, " n"],
    tangents: Float[Array, "set some n"],
    first: int,
    last: int,
) -> tuple[tuple[Array, Array], Float[Array, "layer set"]]:
    """Propagate tangents from h_first to h_last at norm 1, with ln of the norm at every layer."""

    def scaled(tangents: Array, logs: Array) -> tuple[Array, Array]:
        directions, grown = jax.vmap(unit)(tangents)
        return directions, logs + grown

    def layer(carry: tuple[Array, Array], here: Here) -> tuple[tuple, Array]:
        directions, logs = carry
        pushed = scaled(jax.vmap(jax.vmap(here.push))(directions), logs)
        return pushed, pushed[1]

    start = scaled(tangents, jnp.zeros(tangents.shape[0], tangents.dtype))
    start = varying_like(start, h)
    end, logs = networks.upwards(chain, params, h, layer, start, first=first + 1, last=last)
    if logs is None:
        return start, start[1][None]
    return end, jnp.concatenate([start[1][None], logs])


def _after(first: int, values: Float[Array, " later"]) -> Float[Array, " layer"]:
    return jnp.concatenate([jnp.full(first, jnp.nan, values.dtype), values])


def _check_first(first: int, last: int) -> None:
    whole = integer(first)
    if whole is None or not 0 <= whole <= last:
        raise ValueError(f"first must be an integer in [0, {last}], got {first}")
