"""Mean-field maps: one layer of an infinitely wide network as a map of length q and correlation c.

Poole et al. 2016 (arXiv:1606.05340) and Schoenholz et al. 2017 (arXiv:1611.01232), with
V(q) = E phi(sqrt(q) u)^2 and M(q) = E phi'(sqrt(q) u)^2. Gains sigma_w and sigma_b are standard deviations.
Every function takes scalars; `jax.vmap` makes grids of them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxstab.activations import Activation, get, probe
from jaxstab.theory.quadrature import LONGEST, SHORTEST, expectation, pair_expectation

AnyActivation = str | Activation | Callable[[Array], Array]


def _float(x: ArrayLike) -> Array:
    return jnp.asarray(x, jnp.result_type(x, float))


def _inside(q: Array) -> Array:
    return jnp.clip(q, SHORTEST, LONGEST)


def _beyond(q: Array) -> Array:
    # activations that send a net to such lengths grow linearly, so V grows as q
    return jnp.maximum(q / LONGEST, 1.0)


def second_moment(activation: AnyActivation, q: ArrayLike) -> Float[Array, ""]:
    """V(q) = E phi(sqrt(q) u)^2.

    Args:
        activation: name, `Activation` or elementwise callable.
        q: length, in [0, inf].

    Returns:
        V(q).

    Example:
        >>> print(f"{second_moment('relu', 3.0):.4f}")
        1.5000
    """
    phi, q = get(activation), _float(q)
    inside = _inside(q)
    if phi.kernel is not None:
        return phi.kernel(inside, jnp.ones_like(inside))[0] * _beyond(q)
    return expectation(lambda z: phi(z) ** 2, phi, inside) * _beyond(q)


def second_moment_slope(activation: AnyActivation, q: ArrayLike) -> Float[Array, ""]:
    """V'(q) = E[phi(z) phi'(z) z] / q with z = sqrt(q) u.

    This is M(q) + E[phi phi''] only where phi is smooth; in this form the kinks of hard_tanh count.

    Args:
        activation: name, `Activation` or elementwise callable.
        q: length, in [0, inf].

    Returns:
        dV/dq.

    Example:
        >>> print(f"{second_moment_slope('relu', 3.0):.4f}")
        0.5000
    """
    phi, q = get(activation), _inside(_float(q))
    kernel = phi.kernel
    if kernel is not None:
        return jax.grad(lambda q: kernel(q, jnp.ones_like(q))[0])(q)
    return expectation(lambda z: phi(z) * phi.derivative(z) * (z / jnp.sqrt(q)), phi, q) / jnp.sqrt(q)


def derivative_moment(activation: AnyActivation, q: ArrayLike) -> Float[Array, ""]:
    """M(q) = E phi'(sqrt(q) u)^2.

    Args:
        activation: name, `Activation` or elementwise callable.
        q: length, in [0, inf].

    Returns:
        M(q); sigma_w^2 M(q) is the factor of the mean squared gradient per layer.

    Example:
        >>> print(f"{derivative_moment('relu', 3.0):.4f}")
        0.5000
    """
    phi, q = get(activation), _inside(_float(q))
    if phi.kernel is not None:
        return phi.kernel(q, jnp.ones_like(q))[1]
    return expectation(lambda z: phi.derivative(z) ** 2, phi, q)


# below this distance from c = 1 the pair integrals continue linearly: their integrand degenerates to one dimension
_COINCIDENT = 1e-9


def _kernel(phi: Activation, q: Array, c: Array) -> tuple[Array, Array]:
    """E phi(z1) phi(z2) and E phi'(z1) phi'(z2) at length q (inside the range) and correlation c."""
    if phi.kernel is not None:
        return phi.kernel(q, c)
    apart = jnp.clip(c, -1.0 + _COINCIDENT, 1.0 - max(_COINCIDENT, 4 * float(jnp.finfo(q.dtype).eps)))
    covariance = pair_expectation(phi.fn, phi, q, apart)
    derivative = pair_expectation(phi.derivative, phi, q, apart)
    return covariance + q * derivative * (c - apart), derivative


def length_map(activation: AnyActivation, sigma_w: ArrayLike, sigma_b: ArrayLike, q: ArrayLike) -> Float[Array, ""]:
    """One layer's map of the length, q' = sigma_w^2 V(q) + sigma_b^2 (Poole et al. 2016, eq. 3).

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        q: length, in [0, inf].

    Returns:
        The next layer's length.

    Example:
        >>> print(f"{length_map('relu', 2**0.5, 0.0, 3.0):.4f}")
        3.0000
    """
    return _float(sigma_w) ** 2 * second_moment(activation, q) + _float(sigma_b) ** 2


def correlation_map(
    activation: AnyActivation, sigma_w: ArrayLike, sigma_b: ArrayLike, q: ArrayLike, c: ArrayLike
) -> Float[Array, ""]:
    """One layer's map of the correlation of two inputs of equal length q (Poole et al. 2016, eq. 5).

    c' = (sigma_w^2 E phi(z1) phi(z2) + sigma_b^2) / q', with q' the length map at q: at a length fixed point q' = q.

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        q: length, in [0, inf].
        c: correlation, in [-1, 1].

    Returns:
        The next layer's correlation.

    Example:
        >>> print(f"{correlation_map('relu', 2**0.5, 0.0, 1.0, 0.0):.4f}")
        0.3183
    """
    phi, q = get(activation), _float(q)
    covariance = _kernel(phi, _inside(q), _float(c))[0] * _beyond(q)
    shared = _float(sigma_w) ** 2 * covariance + _float(sigma_b) ** 2
    return shared / length_map(phi, sigma_w, sigma_b, q)


def correlation_slope(
    activation: AnyActivation, sigma_w: ArrayLike, sigma_b: ArrayLike, q: ArrayLike, c: ArrayLike
) -> Float[Array, ""]:
    """Slope of the correlation map, dc'/dc = sigma_w^2 q E[phi'(z1) phi'(z2)] / q'.

    At a length fixed point this is sigma_w^2 E[phi' phi'], and chi_1 at c = 1; where the length still grows
    (relu, sigma_w^2 > 2) it stays below the gradient's factor.

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        q: length, in [0, inf].
        c: correlation, in [-1, 1].

    Returns:
        The slope.

    Example:
        >>> print(f"{correlation_slope('relu', 2.0, 0.0, 1.0, 1.0):.4f}")
        1.0000
    """
    phi, q, c = get(activation), _inside(_float(q)), _float(c)
    same = derivative_moment(phi, q)
    derivative = jnp.where(c >= 1.0, same, _kernel(phi, q, c)[1])
    return _float(sigma_w) ** 2 * derivative * (q / length_map(phi, sigma_w, sigma_b, q))


def saturation(activation: AnyActivation, q: ArrayLike, threshold: float) -> Float[Array, ""]:
    """Share of units, h ~ N(0, q), whose |phi'(h)| is at most `threshold` times its maximum.

    Args:
        activation: name, `Activation` or elementwise callable.
        q: length, in [0, inf].
        threshold: fraction in [0, 1) of max |phi'|; 0 asks for units that are exactly dead.

    Returns:
        The share, in [0, 1], to 3e-4 / sqrt(q) for each edge between flat and steep; exact at kinks.

    Example:
        >>> print(f"{saturation('hard_tanh', 1.0, 0.0):.3f}")
        0.317
    """
    phi, q = get(activation), _inside(_float(q))
    z = probe(q.dtype)
    flat = (jnp.abs(phi.derivative(z)) <= threshold * phi.steepest(q.dtype)).astype(q.dtype)
    # room for 64 edges of the flat set: sin has 50 within +-20
    edges = jnp.nonzero(flat[1:] != flat[:-1], size=64, fill_value=len(z) - 1)[0]
    right = jnp.minimum(edges + 1, len(z) - 1)
    below = jax.scipy.stats.norm.cdf((z[edges] + z[right]) / 2 / jnp.sqrt(q))
    # each edge switches the indicator from there to the right
    return flat[0] + jnp.sum((flat[right] - flat[edges]) * (1 - below))
