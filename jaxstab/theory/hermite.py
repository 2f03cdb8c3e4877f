r"""Hermite series of activations, phi(sqrt(q) u) = sum_k c_k h_k(u), and their kernel maps.

With normalised Hermite polynomials h_k the kernel map at correlation c is E phi(z1) phi(z2) =
sum_k c_k^2 c^k (Daniely, Frostig & Singer 2016).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxstab.activations import Activation, Mixture, get
from jaxstab.arguments import explained
from jaxstab.checks import check_count
from jaxstab.theory.features import Features
from jaxstab.theory.maps import AnyActivation
from jaxstab.theory.moments import inside, log_moments, variance
from jaxstab.theory.panels import density, flat, gaussian_panels, legendre
from jaxstab.theory.precision import compiled


class KernelMap(NamedTuple):
    """Summary of a kernel map at one length.

    Attributes:
        power: E phi^2.
        mean_share: c_0^2 / E phi^2, the share of the mean.
        beta_0: c_1^2 / sum_{k >= 1} c_k^2, the share of the linear part in the variance (Joudaki &
            Hofmann 2025).
        chi_1: q E phi'^2 / E phi^2, which is chi_1 at the gain that keeps the length.
    """

    power: Float[Array, ""]
    mean_share: Float[Array, ""]
    beta_0: Float[Array, ""]
    chi_1: Float[Array, ""]


@compiled(table=True)
def _kernel_map(phi: Activation, about: Features, q: Array) -> KernelMap:
    log_q = jnp.log(q)
    moments = log_moments(phi, about, log_q)
    growth = jnp.exp(moments.near_growth)
    share = moments.mean**2 / growth
    linear = moments.mean_slope**2 / variance(phi, about, log_q, about.nodes)
    return KernelMap(
        jnp.exp(moments.log_length), share, linear, jnp.exp(moments.log_slope - moments.log_growth)
    )


@explained
def kernel_map(activation: AnyActivation, q: ArrayLike = 1.0) -> KernelMap:
    """Compute the power of an activation, its mean and linear shares, and chi_1 at kept length.

    Args:
        activation: name, `Activation` or elementwise callable.
        q: length, > 0.

    Returns:
        The four numbers of `KernelMap`.

    Example:
        >>> found = kernel_map("relu")
        >>> [f"{value:.6f}" for value in found]
        ['0.500000', '0.318310', '0.733471', '1.000000']
    """
    return _kernel_map(get(activation), q)


@compiled("count")
def _coefficients(phi: Activation, about: Features, q: Array, count: int) -> Array:
    root = jnp.sqrt(jnp.exp(inside(jnp.log(q))))
    u, weights = flat(
        gaussian_panels(about, jnp.zeros_like(q), root, None),
        legendre(about.nodes.single, about.power),
    )
    weights = weights * density(u)
    values = phi.fn(root * u) * weights / jnp.sum(weights)
    # h_{k+1} = (u h_k - sqrt(k) h_{k-1}) / sqrt(k + 1)
    polynomials = [jnp.ones_like(u), u]
    for k in range(1, count):
        polynomials.append((u * polynomials[k] - k**0.5 * polynomials[k - 1]) / (k + 1) ** 0.5)
    return jnp.stack([jnp.sum(values * polynomial) for polynomial in polynomials[:count]])


@explained
def hermite_coefficients(
    activation: AnyActivation, count: int, q: ArrayLike = 1.0
) -> Float[Array, " k"]:
    """Compute the coefficients c_0, c_1, ... of phi(sqrt(q) u) in normalised Hermite polynomials.

    Args:
        activation: name, `Activation` or elementwise callable.
        count: number of coefficients, in [1, 64].
        q: length, > 0.

    Returns:
        Coefficients; the squares of all of them sum to E phi^2.

    Raises:
        ValueError: if count is out of range, or the activation is a mixture.

    Example:
        >>> [f"{value:.4f}" for value in hermite_coefficients("relu", 3)]
        ['0.3989', '0.5000', '0.2821']
    """
    phi = get(activation)
    count = check_count("count", count, 1)
    if count > 64:
        raise ValueError(f"count must be in [1, 64], got {count}")
    if isinstance(phi, Mixture):
        raise ValueError(f"activation must be one activation, got the mixture {phi.name}")
    return _coefficients(phi, q, count=count)
