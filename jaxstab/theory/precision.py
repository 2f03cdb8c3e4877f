"""Theory is computed in float64, compiled once per activation, whatever precision its caller has."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxstab.activations import Activation
from jaxstab.theory.features import features


def compiled(*static: str) -> Callable[[Callable], Callable]:
    """Decorate a function of (phi, about, *numbers): one float64 program for each activation.

    JAX's default is float32, in which fixed points near criticality lose all digits. The program runs in float64, and
    its results come back in the dtype of the numbers.

    Args:
        static: names of the keyword arguments that are static.

    Returns:
        The decorator. What it makes takes (phi, *numbers, **static).
    """

    def decorate(function: Callable) -> Callable:
        program = jax.jit(function, static_argnames=("about", *static))

        @functools.wraps(function)
        def call(phi: Activation, *numbers: Any, **settings: Any) -> Any:
            about = features(phi)
            dtype = _dtype(*numbers)
            with jax.enable_x64(True):
                # the activation's own parameters are traced like the numbers
                phi, *wide = jax.tree.map(_widened, (phi, *numbers))
                results = program(phi, about, *wide, **settings)
                return jax.tree.map(functools.partial(_narrowed, dtype=dtype), results)

        return call

    return decorate


def _dtype(*numbers: Any) -> DTypeLike:
    """The widest floating dtype among arrays, JAX's default where there is none."""
    dtypes = (jnp.result_type(number) for number in numbers if hasattr(number, "dtype"))
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return max(floating, key=lambda dtype: dtype.itemsize, default=jnp.result_type(float))


def _widened(number: Any) -> jax.Array:
    return jnp.asarray(number).astype(jnp.float64)


def _narrowed(result: jax.Array, dtype: DTypeLike) -> jax.Array:
    return result.astype(dtype) if jnp.issubdtype(result.dtype, jnp.floating) else result
