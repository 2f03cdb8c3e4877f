"""Elementwise functions whose first and second derivatives keep their digits in the tails."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxstab.derivatives import custom_jvp

Function = Callable[[Array], Array]


def _with_derivative(phi: Function, derivative: Function) -> Function:
    """Give phi a derivative that keeps its digits in the tails."""
    known = custom_jvp(phi)

    @known.defjvp
    def rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        return known(*primals), derivative(*primals) * tangents[0]

    return known


def _bell_from_exponentials(z: Array) -> Array:
    decay = jnp.exp(-jnp.abs(z))
    return decay / (1.0 + decay) ** 2


def _slope_of_bell(z: Array) -> Array:
    return -_bell(z) * _tanh(z / 2)


def _slope_of_tanh(z: Array) -> Array:
    return 4.0 * _bell(2.0 * z)


def _softplus_from_exponentials(z: Array) -> Array:
    return jnp.logaddexp(z, 0.0)


def _slope_of_softsign(z: Array) -> Array:
    return (1.0 + jnp.abs(z)) ** -2


# derivative of the sigmoid; a rule of its own, as |z| has no derivative at 0
_bell: Function = _with_derivative(_bell_from_exponentials, _slope_of_bell)
# in float32, 1 - tanh^2 rounds to 0 from |z| = 9 on, and units would seem dead
_tanh: Function = _with_derivative(jnp.tanh, _slope_of_tanh)
_sigmoid: Function = _with_derivative(jax.nn.sigmoid, _bell)
_softplus = _with_derivative(_softplus_from_exponentials, _sigmoid)
# JAX's expm1(z) + 1 rounds to 0 from z = -17 on
_expm1 = _with_derivative(jnp.expm1, jnp.exp)
# autodiff would give a difference of two terms near 1 / |z|
_softsign = _with_derivative(jax.nn.soft_sign, _slope_of_softsign)


def _swish(z: Array, beta: float | Array = 1.0) -> Array:
    """Compute z sigmoid(beta z), Ramachandran et al. 2017."""
    return z * _sigmoid(beta * z)


def _quick_gelu(z: Array) -> Array:
    """Compute z sigmoid(1.702 z)."""
    return _swish(z, 1.702)


def _gelu(z: Array) -> Array:
    """Compute z P(u < z), Hendrycks & Gimpel 2016."""
    return jax.nn.gelu(z, approximate=False)


def _gelu_tanh(z: Array) -> Array:
    """Compute the usual approximation of gelu, Hendrycks & Gimpel 2016."""
    return z * _sigmoid(np.sqrt(8 / np.pi).item() * (z + 0.044715 * z**3))


def _mish(z: Array) -> Array:
    """Compute z tanh(softplus(z)), Misra 2019."""
    return z * _tanh(_softplus(z))


def _log_sigmoid(z: Array) -> Array:
    """Compute ln sigmoid(z)."""
    return -_softplus(-z)


def _leaky_relu(z: Array, slope: float | Array) -> Array:
    """Compute z for z > 0, slope z below."""
    return jnp.where(z > 0, z, slope * z)


def _elu(z: Array, alpha: float | Array = 1.0) -> Array:
    """Compute z for z > 0, alpha (e^z - 1) below, Clevert et al. 2016."""
    return jnp.where(z > 0, z, alpha * _expm1(jnp.where(z > 0, 0.0, z)))


def _celu(z: Array, alpha: float | Array = 1.0) -> Array:
    """Compute z for z > 0, alpha (e^(z / alpha) - 1) below, Barron 2017."""
    return jnp.where(z > 0, z, alpha * _expm1(jnp.where(z > 0, 0.0, z) / alpha))


def _selu(z: Array) -> Array:
    """Compute elu scaled for mean 0 and variance 1 at its fixed point, Klambauer et al. 2017."""
    return 1.0507009873554805 * _elu(z, 1.6732632423543772)


def _relu_squared(z: Array) -> Array:
    """Compute max(z, 0)^2, So et al. 2021."""
    return jax.nn.relu(z) ** 2


def _squareplus_from_roots(z: Array) -> Array:
    root = jnp.sqrt(z**2 + 4.0)
    return jnp.where(z > 0, (z + root) / 2, 2 / (root + jnp.abs(z)))


def _slope_of_squareplus(z: Array) -> Array:
    return _squareplus(z) / jnp.sqrt(z**2 + 4.0)


# Barron 2021
_squareplus: Function = _with_derivative(_squareplus_from_roots, _slope_of_squareplus)


def _identity(z: Array) -> Array:
    """Return z."""
    return z


# parameters of a function are keyword arguments
BY_NAME: dict[str, Callable[..., Array]] = {
    "identity": _identity,
    "relu": jax.nn.relu,
    "leaky_relu": _leaky_relu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "erf": jax.lax.erf,
    "hard_tanh": jax.nn.hard_tanh,
    "gelu": _gelu,
    "silu": _swish,
    "softplus": _softplus,
    "elu": _elu,
    "selu": _selu,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "abs": jnp.abs,
    "celu": _celu,
    "gelu_tanh": _gelu_tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "log_sigmoid": _log_sigmoid,
    "mish": _mish,
    "quick_gelu": _quick_gelu,
    "relu6": jax.nn.relu6,
    "relu_squared": _relu_squared,
    "softsign": _softsign,
    "squareplus": _squareplus,
}

# where the function or one of its derivatives jumps
KINKS: dict[str, tuple[float, ...]] = {
    "relu": (0.0,),
    "leaky_relu": (0.0,),
    "hard_tanh": (-1.0, 1.0),
    "elu": (0.0,),
    "selu": (0.0,),
    "abs": (0.0,),
    "celu": (0.0,),
    "hard_sigmoid": (-3.0, 3.0),
    "hard_silu": (-3.0, 3.0),
    "relu6": (0.0, 6.0),
    "relu_squared": (0.0,),
    "softsign": (0.0,),
}
