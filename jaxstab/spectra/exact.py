"""All singular values of Jacobians, from any layer to every wanted depth in one pass.

Singular values of the Jacobian J_L = F_L ... F_1 F_0 of a deep chain span hundreds of nats.
`singular_values` forms and decomposes the product, which is fast, but rounding loses all but the
largest values. `log_singular_values` carries the product in logarithms, see `graded`, and resolves
all values.
"""

from functools import partial
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab import decompositions
from jaxstab.arguments import explained
from jaxstab.checks import Count, Depths, check_floating
from jaxstab.networks import Chain, Here, Params
from jaxstab.networks.views import at_one_input
from jaxstab.norms.meshes import varying_like
from jaxstab.precision import at_full_precision
from jaxstab.spectra import graded
from jaxstab.spectra.depths import at_depths, check_layers, count_values, together, unequal
from jaxstab.spectra.factors import factor_rank, in_range
from jaxstab.spectra.graded_values import log_values, log_values_with_errors


class LogSpectrum(NamedTuple):
    """Logarithms of singular values with their errors.

    Attributes:
        log_s: ln s, descending; -inf for directions that exact zeros have killed.
        error: estimated error of ln s against exact arithmetic on the same layer Jacobians. The
            Jacobians are taken at the states of a forward pass in working precision; the rounding
            of that pass, which a chaotic network amplifies, is not included. The estimate is five
            times the first-order effect on ln s of random perturbations of every layer, of the size
            of its rounding. Its median is 30 times the true error. It is 0 where exact zeros have
            killed a direction (underflow included), NaN where ln s is NaN, and inf where a value
            cannot be distinguished from zero, with ln s as an upper bound. The last case occurs for
            the smallest values of saturated networks, where one layer's values span more than
            1 / eps.
    """

    log_s: Float[Array, "depth m"]
    error: Float[Array, "depth m"]


@explained
@at_full_precision
def product_log_singular_values(factors: Float[Array, "layers n n"]) -> Float[Array, " n"]:
    """Compute ln of the singular values of a product factors[L-1] ... factors[1] factors[0].

    A row or column of exact zeros gives a singular value of 0, so -inf. Any other loss of rank is
    resolved only to working precision: such a value lies about ln(eps) below its neighbours.

    Args:
        factors: square matrices, first factor applied first.

    Returns:
        The logarithms, descending. Their accuracy depends on the product; `log_singular_values`
        states errors. The derivative is that of an SVD of the product, and 0 for -inf. For
        coinciding values only the sum of the derivatives is defined.

    Raises:
        ValueError: if the factors are not a stack of square floating matrices.

    Example:
        >>> tiny = jnp.stack([jnp.diag(jnp.asarray([1e-30, 1.0, 1e-20]))] * 100)
        >>> (product_log_singular_values(tiny) / jnp.log(10.0)).round(1).tolist()
        [0.0, -2000.0, -3000.0]
    """
    factors = jnp.asarray(factors)
    if factors.ndim != 3 or factors.shape[1] != factors.shape[2] or 0 in factors.shape:
        raise ValueError(
            f"factors must be a stack of square matrices [layers, n, n], got shape {factors.shape}"
        )
    check_floating("factors", factors.dtype)

    def layer(product: graded.Product, factor: Array) -> tuple[graded.Product, None]:
        scaled, power = in_range(factor)
        pushed = scaled @ product.basis
        most = jnp.minimum(factor_rank(scaled), factor_rank(pushed, product.alive))
        return product.then(pushed, most, power=power), None

    start = graded.identity(factors.shape[1], factors.dtype, errors=False)
    start = varying_like(start, factors)
    product, _ = jax.lax.scan(layer, start, factors)
    return log_values(product.graded)


@overload
def log_singular_values(
    chain: Chain,
    params: Params,
    x: Float[Array, " d_in"],
    depths: Depths,
    from_layer: Count | None = None,
    readout: bool = False,
    errors: Literal[False] = False,
) -> Float[Array, "depth m"]: ...
@overload
def log_singular_values(
    chain: Chain,
    params: Params,
    x: Float[Array, " d_in"],
    depths: Depths,
    from_layer: Count | None = None,
    readout: bool = False,
    *,
    errors: Literal[True],
) -> LogSpectrum: ...
@at_one_input
def log_singular_values(
    chain: Chain,
    params: Params,
    x: Float[Array, " d_in"],
    depths: Depths,
    from_layer: Count | None = None,
    readout: bool = False,
    errors: bool = False,
) -> Float[Array, "depth m"] | LogSpectrum:
    """Compute ln of the singular values of dh_L/dx for every wanted depth L.

    Derivatives are those of an SVD of the same Jacobian, also where values are close, and 0 for
    -inf. For coinciding values, only the sum of the derivatives is defined; each derivative depends
    on the SVD's choice of vectors. Second derivatives are right where values are distinct.

    Args:
        chain: the network; see `networks.flatten` where a block mixes examples.
        params: parameters of the network.
        x: one input.
        depths: wanted depths L, ascending, each in [from_layer, depth of the chain].
        from_layer: k for dh_L/dh_k; None for dh_L/dx, the embedding included.
        readout: whether to include the readout; the network of depth L is the first L blocks with
            the same readout.
        errors: whether to estimate the error of each value, which takes longer.

    Returns:
        Logarithms, descending, as many as the smaller of the numbers of rows and columns; -inf for
        directions killed exactly. For relu, the number of finite values is the smallest count of
        active units in any layer. With errors=True, the record of `log_s` and `error`.

    Raises:
        ValueError: if depths are not ascending integers within the chain, from_layer is not in
            [0, first depth], or x is not floating.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=100, width=16, activation="identity", weights="orthogonal")
        >>> params = net.init(jax.random.key(0), jnp.ones(20), sigma_w=0.01)
        >>> measure = jax.jit(lambda x: log_singular_values(net, params, x, [100], from_layer=0, errors=True))
        >>> found = measure(jnp.ones(20))
        >>> float(jnp.abs(found.log_s / jnp.log(10.0) + 200).max()) < 0.001
        True
    """
    log_s, error = _log_spectrum(chain, params, x, depths, from_layer, readout, errors)
    if errors:
        return LogSpectrum(log_s, error)
    return log_s


def _log_spectrum(
    chain: Chain,
    params: Params,
    x: Float[Array, " d_in"],
    depths: Depths,
    from_layer: Count | None,
    readout: bool,
    errors: bool,
) -> tuple:
    depths = check_layers(params, x, depths, from_layer)
    if len(depths) > 1 and unequal(params):
        apart = [_log_spectrum(chain, params, x, [d], from_layer, readout, errors) for d in depths]
        values_apart, errors_apart = zip(*apart, strict=True)
        if not errors:
            return together(values_apart, depths), None
        return together(values_apart, depths), together(errors_apart, depths)

    def start(jacobian: Array | None, h: Array) -> graded.Product:
        if jacobian is None:
            return varying_like(graded.identity(h.shape[0], h.dtype, errors), h)
        rank = factor_rank(jacobian)
        # an orthonormal factor on the right of a wide one changes no singular value
        if jacobian.shape[0] < jacobian.shape[1]:
            jacobian = decompositions.qr(jacobian.T)[1].T
        empty = graded.identity(jacobian.shape[1], h.dtype, errors, most=jacobian.shape[0])
        empty = varying_like(empty, h)
        return empty.then(jacobian, rank, jacobian)

    def layer(product: graded.Product, here: Here) -> graded.Product:
        pushed, rank = graded.pushed(here.push, here.h, product.basis, product.alive)
        if not errors:
            return product.then(pushed, rank, None)
        eye = varying_like(jnp.eye(here.h.shape[0], dtype=here.h.dtype), here.h)
        return product.then(pushed, rank, jax.vmap(here.push, 1, 1)(eye))

    def end(h: Array, product: graded.Product) -> tuple:
        if readout:
            jacobian = jax.jacrev(lambda h: chain.readout(params, h))(h)
            product = product.then(jacobian @ product.basis, factor_rank(jacobian), jacobian)
        if product.disturbed is None:
            return (product.graded,)
        return product.graded, product.disturbed.graded, product.rank.astype(h.dtype)

    def values(kept: tuple) -> tuple:
        if errors:
            return log_values_with_errors(*kept)
        return log_values(*kept), None

    kept = at_depths(chain, params, x, depths, from_layer, start, layer, end)
    # one depth at a time, as the number of SVDs depends on the depth
    log_s, error = jax.lax.map(values, kept)
    # a layer narrower than both ends kills the values beyond its width
    killed = count_values(chain, params, x, depths[0], from_layer, readout) - log_s.shape[1]
    log_s = jnp.pad(log_s, ((0, 0), (0, killed)), constant_values=-jnp.inf)
    if errors:
        error = jnp.pad(error, ((0, 0), (0, killed)))
    return log_s, error


@at_one_input
def singular_values(
    chain: Chain,
    params: Params,
    x: Float[Array, " d_in"],
    depths: Depths,
    from_layer: Count | None = None,
    readout: bool = False,
) -> Float[Array, "depth m"]:
    """Compute the singular values of dh_L/dx for every wanted depth L by an SVD of each Jacobian.

    The fastest method for values that span a short range. Values below about eps sqrt(width depth)
    times the largest are rounding, and values beyond the float range are lost.
    `log_singular_values` has neither limit.

    Args:
        chain: the network; see `networks.flatten` where a block mixes examples.
        params: parameters of the network.
        x: one input.
        depths: wanted depths L, ascending, each in [from_layer, depth of the chain].
        from_layer: k for dh_L/dh_k; None for dh_L/dx, the embedding included.
        readout: whether to include the readout, as in `log_singular_values`.

    Returns:
        Singular values, descending.

    Raises:
        ValueError: as `log_singular_values`.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=3, width=16, activation="identity", weights="orthogonal")
        >>> params = net.init(jax.random.key(0), jnp.ones(16), sigma_w=2.0)
        >>> s = singular_values(net, params, jnp.ones(16), [1, 3], from_layer=0)
        >>> s.shape, s.max(axis=1).round(2).tolist()
        ((2, 16), [2.0, 8.0])
    """
    depths = check_layers(params, x, depths, from_layer)
    if len(depths) > 1 and unequal(params):
        one = partial(
            singular_values,
            chain,
            params,
            x,
            from_layer=from_layer,
            readout=readout,
        )
        return together([one([depth]) for depth in depths], depths)

    # the transposed product, one row per input, follows the layout of W in memory
    def start(jacobian: Array | None, h: Array) -> Array:
        if jacobian is None:
            return jnp.eye(h.shape[0], dtype=h.dtype)
        return jacobian.T

    def end(h: Array, rows: Array) -> Array:
        if not readout:
            return rows
        return rows @ jax.jacrev(lambda h: chain.readout(params, h))(h).T

    def layer(rows: Array, here: Here) -> Array:
        return jax.vmap(here.push)(rows)

    return decompositions.singular_values(
        at_depths(chain, params, x, depths, from_layer, start, layer, end)
    )
