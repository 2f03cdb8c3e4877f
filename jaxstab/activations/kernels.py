r"""Gaussian kernels in closed form.

A kernel maps (q, c) to E phi(z1) phi(z2) and E phi'(z1) phi'(z2), for jointly normal z1, z2 of mean
0, variance q and correlation c in [-1, 1]. By Price's theorem d/dc E phi phi = q E phi' phi'. This
theorem is the derivative rule where automatic differentiation would divide by sqrt(1 - c^2).
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxstab.derivatives import custom_jvp


def _identity(q: Array, c: Array) -> tuple[Array, Array]:
    """Kernel of phi(z) = z."""
    return q * c, jnp.ones_like(q * c)


# ---- straight lines that meet at 0: the arc-cosine kernels of Cho & Saul 2009, eq. 6 ------------


def _sine(c: Array) -> Array:
    # the factors keep the digits of 1 - c and 1 + c that 1 - c^2 loses
    c = jnp.clip(c, -1.0, 1.0)
    return jnp.sqrt((1.0 - c) * (1.0 + c))


def _opening(c: Array) -> Array:
    """Compute pi - arccos c, accurate at both ends."""
    return jnp.arctan2(_sine(c), -jnp.clip(c, -1.0, 1.0))


def _series(delta: Array, coefficients: list[float]) -> Array:
    """Compute sum_k coefficients[k] delta^(2k) by Horner's rule."""
    total = jnp.zeros_like(delta)
    for coefficient in reversed(coefficients):
        total = total * delta**2 + coefficient
    return total


def _factorial(n: int) -> float:
    return float(np.prod(np.arange(1.0, n + 1)))


# series of (sin(d) - d cos(d)) / d^3, to 1e-17 for d <= 1
_CUBIC = [(-1.0) ** (k + 1) * 2 * k / _factorial(2 * k + 1) for k in range(1, 10)]
# series of (d (2 + cos 2d) - 1.5 sin 2d) / d^5, to 1e-17 for d <= 1
_QUINTIC = [
    (-1.0) ** k * (k - 1) * 2.0 ** (2 * k + 1) / _factorial(2 * k + 1) for k in range(2, 14)
]


@custom_jvp
def _both_positive(c: Array) -> Array:
    """Compute P(z1 > 0, z2 > 0)."""
    return _opening(c) / (2 * np.pi)


@_both_positive.defjvp
def _both_positive_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (c,), (dc,) = primals, tangents
    # 1 / sine is infinite at c = +-1: with the floor its product with a tangent of 0 is 0, not NaN;
    # the floor stays a normal number where a compiler multiplies another divisor into it
    sine = jnp.maximum(2 * np.pi * _sine(c), float(jnp.finfo(c.dtype).tiny) * 2.0**10)
    return _both_positive(c), dc / sine


@custom_jvp
def _product_of_hinges(c: Array) -> Array:
    """Compute E relu(z1) relu(z2) at q = 1."""
    delta = _opening(c)
    # near c = -1 both terms are delta and their difference delta^3 / 3
    small = jnp.minimum(delta, 1.0)
    direct = _sine(c) + delta * jnp.clip(c, -1.0, 1.0)
    return jnp.where(delta < 1.0, small**3 * _series(small, _CUBIC), direct) / (2 * np.pi)


@_product_of_hinges.defjvp
def _product_of_hinges_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (c,), (dc,) = primals, tangents
    return _product_of_hinges(c), _both_positive(c) * dc


@custom_jvp
def _product_of_squares(c: Array) -> Array:
    """Compute E relu(z1)^2 relu(z2)^2 at q = 1."""
    delta = _opening(c)
    cosine = jnp.clip(c, -1.0, 1.0)
    small = jnp.minimum(delta, 1.0)
    direct = 3 * _sine(c) * cosine + delta * (1 + 2 * cosine**2)
    return jnp.where(delta < 1.0, small**5 * _series(small, _QUINTIC), direct) / (2 * np.pi)


@_product_of_squares.defjvp
def _product_of_squares_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (c,), (dc,) = primals, tangents
    return _product_of_squares(c), 4 * _product_of_hinges(c) * dc


def _leaky_relu(q: Array, c: Array, slope: float | Array = 0.0) -> tuple[Array, Array]:
    """Kernel of phi(z) = z for z > 0 and slope z below; relu at slope 0, |z| at slope -1."""
    # phi(z) = slope z + (1 - slope) relu(z), and E z1 relu(z2) = q c / 2
    rest = (1 - slope) ** 2
    covariance = q * (slope * c + rest * _product_of_hinges(c))
    return covariance, (slope + rest * _both_positive(c)) * jnp.ones_like(q)


def _relu(q: Array, c: Array) -> tuple[Array, Array]:
    """Kernel of phi(z) = max(z, 0)."""
    return q * _product_of_hinges(c), _both_positive(c) * jnp.ones_like(q)


def _absolute(q: Array, c: Array) -> tuple[Array, Array]:
    """Kernel of phi(z) = |z|."""
    return _leaky_relu(q, c, -1.0)


def _relu_squared(q: Array, c: Array) -> tuple[Array, Array]:
    """Kernel of phi(z) = max(z, 0)^2."""
    return q**2 * _product_of_squares(c), 4 * q * _product_of_hinges(c)


# ---- entire functions ---------------------------------------------------------------------------


def _erf(q: Array, c: Array) -> tuple[Array, Array]:
    """Kernel of the error function, Williams 1997, eq. 11, with unit weights."""
    scale = 1 + 2 * q
    # scale - 2qc and scale + 2qc, in a form that does not cancel at large q
    below = 1 + 2 * q * (1 - c)
    above = 1 + 2 * q * (1 + c)
    # arcsin(2qc / scale) as an arctan, which is steep nowhere
    cosine = jnp.sqrt(below / scale) * jnp.sqrt(above / scale)
    covariance = 2 / np.pi * jnp.arctan2(2 * (q / scale) * c, cosine)
    return covariance, 4 / np.pi / jnp.sqrt(below) / jnp.sqrt(above)


@custom_jvp
def _even_and_odd(q: Array, c: Array) -> tuple[Array, Array]:
    """Compute e^-q cosh(q c) and e^-q sinh(q c)."""
    size = jnp.abs(c)
    near = jnp.exp(-q * (1 - size))
    # expm1 keeps the digits of a small q that near - far loses
    odd = -near * jnp.expm1(-2 * q * size) / 2
    return near * (1 + jnp.exp(-2 * q * size)) / 2, jnp.where(c >= 0, odd, -odd)


@_even_and_odd.defjvp
def _even_and_odd_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    q, c = primals
    dq, dc = tangents
    even, odd = _even_and_odd(q, c)
    near = (1 - c) * jnp.exp(-q * (1 - c)) / 2
    far = (1 + c) * jnp.exp(-q * (1 + c)) / 2
    d_even = q * odd * dc - (near + far) * dq
    d_odd = q * even * dc + (far - near) * dq
    return (even, odd), (d_even, d_odd)


def _sin(q: Array, c: Array) -> tuple[Array, Array]:
    """Kernel of the sine."""
    even, odd = _even_and_odd(q, c)
    return odd, even


def _cos(q: Array, c: Array) -> tuple[Array, Array]:
    """Kernel of the cosine."""
    return _even_and_odd(q, c)


BY_NAME: dict[str, Callable[..., tuple[Array, Array]]] = {
    "identity": _identity,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "erf": _erf,
    "sin": _sin,
    "cos": _cos,
    "abs": _absolute,
    "relu_squared": _relu_squared,
}
