"""Theory is computed in float64, compiled once per activation, whatever precision its caller has."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxstab.activations import Activation
from jaxstab.theory.features import features

_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


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
        names = ("about", *static)
        program = jax.jit(function, static_argnames=names)

        @functools.cache
        def at_once() -> Callable:
            """The program of calls that are not jitted, for which compiling is most of the time."""
            return jax.jit(function, static_argnames=names, compiler_options=_quick_options())

        @functools.wraps(function)
        def call(phi: Activation, *numbers: Any, **settings: Any) -> Any:
            about = features(phi)
            dtype = _dtype(*numbers)
            with jax.enable_x64(True):
                # the activation's own parameters are traced like the numbers
                traced = _traced(phi, numbers)
                phi, *wide = jax.tree.map(_widened, (phi, *numbers))
                results = (program if traced else at_once())(phi, about, *wide, **settings)
                return jax.tree.map(functools.partial(_narrowed, dtype=dtype), results)

        return call

    return decorate


@functools.cache
def _quick_options() -> dict[str, bool | int] | None:
    """Options that make compiling four times cheaper, if this XLA knows them."""
    try:
        jax.jit(jnp.negative, compiler_options=_QUICK)(0.0)
    except RuntimeError:
        return None
    return _QUICK


def _traced(*arguments: Any) -> bool:
    """Whether something around is being traced, whose program has compiler options of its own."""
    leaves = (*jax.tree.leaves(arguments), jnp.zeros(()))
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def _dtype(*numbers: Any) -> DTypeLike:
    """The widest floating dtype among arrays, JAX's default where there is none."""
    dtypes = (jnp.result_type(number) for number in numbers if hasattr(number, "dtype"))
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return max(floating, key=lambda dtype: dtype.itemsize, default=jnp.result_type(float))


def _widened(number: Any) -> jax.Array:
    return jnp.asarray(number).astype(jnp.float64)


def _narrowed(result: jax.Array, dtype: DTypeLike) -> jax.Array:
    return result.astype(dtype) if jnp.issubdtype(result.dtype, jnp.floating) else result
