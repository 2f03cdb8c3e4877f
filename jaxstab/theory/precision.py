"""Float64 evaluation of theory, in NumPy for concrete numbers and compiled inside a trace."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from jaxstab.activations import Activation
from jaxstab.activations.activation import concrete
from jaxstab.norms.meshes import varying_like
from jaxstab.theory import host
from jaxstab.theory.features import Features, features
from jaxstab.theory.tables import tabulated


def compiled(
    *static: str, at_once: bool = False, table: bool = False, by_parameters: bool = False
) -> Callable[[Callable], Callable]:
    """Decorate a function of (phi, about, *numbers) to run in float64, one program per activation.

    In float32, JAX's default, fixed points near criticality lose all digits. Results are returned
    in the dtype of the numbers.

    Args:
        static: names of static keyword arguments.
        at_once: whether the function takes NumPy arrays too; if so, concrete numbers are not
            compiled.
        table: whether the function looks up moments in a table.
        by_parameters: whether the function differentiates in the activation's parameters, concrete
            or not.

    Returns:
        Decorator. The decorated function takes (phi, *numbers, **static).
    """

    def decorate(function: Callable) -> Callable:
        program = _program(function, *static)

        @functools.wraps(function)
        def call(phi: Activation, *numbers: Any, **settings: Any) -> Any:
            dtype = common_dtype(*numbers)
            plain = concrete(phi)
            constant = not (by_parameters and jax.tree.leaves(phi))
            about = known(plain) if table and constant else features(plain)
            phi = plain if constant else phi
            if at_once and not host.is_traced((phi, numbers)):
                return narrowed(in_numpy(function, phi, about, *numbers, **settings), dtype)
            wide = jax.config.read("jax_enable_x64")
            with jax.enable_x64(True):
                return narrowed(program(phi, *numbers, about=about, wide=wide, **settings), dtype)

        return call

    return decorate


def _program(function: Callable, *static: str) -> Callable:
    """Compile a function, with options for fast compiling where its numbers are concrete."""

    def ordered(
        phi: Activation | None,
        *numbers: Any,
        about: Features,
        same: Activation | None,
        **settings: Any,
    ) -> Any:
        return function(same if phi is None else phi, about, *numbers, **settings)

    names = ("about", "same", *static)
    inner = jax.jit(ordered, static_argnames=names)

    @functools.cache
    def outermost() -> Callable:
        return jax.jit(ordered, static_argnames=names, compiler_options=host.quick_options())

    def call(phi: Activation, *numbers: Any, wide: bool, **settings: Any) -> Any:
        # an activation without array parameters is static
        arrays = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(phi))
        traced, same = (phi, None) if arrays else (None, phi)
        if host.is_traced((phi, numbers)):
            given = jax.tree.map(widened, (traced, *numbers))
            # under shard_map some numbers vary over devices and some do not: let all vary
            given = varying_like(given, given)
            leaves, structure = jax.tree.flatten(given)

            def of_leaves(*leaves: Array) -> Any:
                results = inner(*jax.tree.unflatten(structure, leaves), same=same, **settings)
                return varying_like(results, leaves)

            # functions of arrays are elementwise, and their Jacobians would be large
            if wide or any(leaf.ndim for leaf in leaves):
                return inner(*given, same=same, **settings)
            return by_jacobian(of_leaves)(*leaves)
        # evaluates concrete numbers inside a trace too
        with jax.core.eval_context():
            return outermost()(*jax.tree.map(widened, (traced, *numbers)), same=same, **settings)

    return call


def by_jacobian(function: Callable[..., PyTree[Float[Array, "..."]]]) -> Callable[..., PyTree]:
    """Make a float64 function of scalars differentiable where float64 is switched off.

    JAX transposes a program in the precision of the caller's reverse pass: float32 zeros then meet
    float64 cotangents. Here forward mode computes the Jacobian, and the reverse pass transposes
    only products with the Jacobian.

    Args:
        function: function of scalars that returns arrays.

    Returns:
        The same function, differentiable to any order.
    """
    held = jax.custom_jvp(function)

    def twice(*scalars: Float[Array, ""]) -> tuple[PyTree, PyTree]:
        value = function(*scalars)
        return value, value

    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[PyTree, PyTree]:
        moved = [place for place, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]
        with jax.enable_x64(True):
            jacobian = by_jacobian(jax.jacfwd(twice, argnums=tuple(moved), has_aux=True))
            slopes, value = jacobian(*primals)

            def along(_: Array, slopes: tuple[Array, ...]) -> Array:
                return sum(
                    slope * tangents[place] for slope, place in zip(slopes, moved, strict=True)
                )

            return value, jax.tree.map(along, value, slopes)

    held.defjvp(rule, symbolic_zeros=True)
    return held


def known(phi: Activation) -> Features:
    """Find the features of an activation, with a table of moments where possible.

    Args:
        phi: activation.

    Returns:
        Features; without a table where parameters are traced.
    """
    if host.is_traced(phi):
        return features(phi)
    return tabulated(phi)


def in_numpy(
    function: Callable, phi: Activation, about: Features, *numbers: Any, **settings: Any
) -> Any:
    """Call a function with NumPy arrays in float64.

    Args:
        function: function of (phi, about, *numbers).
        phi: activation.
        about: features of the activation.
        numbers: concrete numbers.
        settings: further keyword arguments.

    Returns:
        Result of the function.
    """
    wide = [np.asarray(number, np.float64) for number in numbers]
    with np.errstate(all="ignore"):
        return function(phi, about, *wide, **settings)


def common_dtype(*numbers: Any) -> DTypeLike:
    """Choose the widest floating dtype among arrays.

    Args:
        numbers: arrays and Python numbers.

    Returns:
        The dtype; JAX's default where no array is floating.
    """
    dtypes = (jnp.result_type(number) for number in numbers if hasattr(number, "dtype"))
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return max(floating, key=lambda dtype: dtype.itemsize, default=jnp.result_type(float))


def widened(number: Any) -> jax.Array:
    """Convert a number to float64.

    Args:
        number: number, traced or concrete.

    Returns:
        Float64 JAX array.
    """
    if isinstance(number, jax.Array):
        return number.astype(jnp.float64)
    return jnp.asarray(np.asarray(number, np.float64))


def narrowed(results: Any, dtype: DTypeLike) -> Any:
    """Convert results to the precision of the caller.

    Args:
        results: pytree of NumPy or JAX arrays.
        dtype: dtype of floating results.

    Returns:
        Pytree of JAX arrays.
    """

    def narrow(result: Any) -> jax.Array:
        floating = jnp.issubdtype(result.dtype, jnp.floating)
        if isinstance(result, jax.Array):
            if floating:
                return result.astype(dtype)
            return result
        return jnp.asarray(np.asarray(result, dtype if floating else result.dtype))

    return jax.tree.map(narrow, results)
