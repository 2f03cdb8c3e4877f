"""Derivatives of roots by the implicit function theorem, from one evaluation at the root."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxstab.activations import Activation
from jaxstab.activations.activation import concrete
from jaxstab.derivatives import custom_jvp
from jaxstab.theory import host
from jaxstab.theory.precision import common_dtype, compiled, narrowed, widened

# solve returns the record of a root, jacobian the record's derivatives in the arguments
Solve = Callable[..., Any]
Jacobian = Callable[..., Any]


def differentiable(solve: Solve, jacobian: Jacobian, at_once: bool = True) -> Callable[..., Any]:
    """Make a root finder differentiable in its numbers and in the parameters of the activation.

    Args:
        solve: (phi, about, *numbers) -> record, a named tuple of arrays, NumPy or traced.
        jacobian: (phi, about, record, *numbers) -> record of derivatives of every field in the
            leaves of (phi, numbers), along a new last axis.
        at_once: whether `solve` takes NumPy arrays; if not, a call with concrete numbers is
            compiled too.

    Returns:
        Differentiable function of (phi, *numbers).
    """
    solution = compiled(at_once=at_once, table=True)(solve)
    slopes = compiled(table=True, by_parameters=True)(jacobian)

    @functools.cache
    def with_rule(static: Activation | None, structure: Any) -> Callable[..., Any]:
        def activation(leaves: tuple[Array, ...]) -> Activation:
            if static is not None:
                return static
            return jax.tree.unflatten(structure, leaves)

        def found(leaves: tuple[Array, ...], numbers: tuple[Array, ...]) -> Any:
            return solution(activation(leaves), *numbers)

        solved = custom_jvp(found)

        @solved.defjvp
        def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
            leaves, numbers = primals
            with jax.enable_x64(True):
                if host.is_traced(primals):
                    record = solved(leaves, numbers)
                else:
                    # in NumPy: `solved` would compile
                    with jax.core.eval_context():
                        record = found(leaves, numbers)
                by_leaf = slopes(activation(leaves), tuple(record), *numbers)
                along = jax.tree.leaves(tangents)
                tangent = (_tangent(*pair, along) for pair in zip(record, by_leaf, strict=True))
                return record, type(record)(*tangent)

        return solved

    def call(phi: Activation, *numbers: Any) -> Any:
        phi = concrete(phi)
        if not host.is_traced((phi, numbers)):
            return solution(phi, *numbers)
        with jax.enable_x64(True):
            leaves, structure = jax.tree.flatten(jax.tree.map(widened, phi))
            wide = tuple(map(widened, numbers))
            if host.is_traced(phi):
                record = with_rule(None, structure)(tuple(leaves), wide)
            else:
                record = with_rule(phi, None)((), wide)
            return narrowed(record, common_dtype(*numbers))

    return call


def derivatives(
    function: Callable[..., Any],
    phi: Activation,
    numbers: tuple[Array, ...],
    unknowns: tuple[Array, ...],
) -> Any:
    """Differentiate a function of (phi, *numbers, *unknowns) in all its scalars.

    Args:
        function: function that returns a pytree of scalars.
        phi: activation.
        numbers: scalars.
        unknowns: scalars.

    Returns:
        Pytree with a vector for each scalar: derivatives in the traced parameters of phi, in the
        numbers, and in the unknowns.
    """
    leaves, structure = jax.tree.flatten(phi if host.is_traced(phi) else None)
    given = jnp.stack([*leaves, *numbers, *unknowns])

    def of_vector(vector: Array) -> Any:
        scalars = [vector[place] for place in range(len(given))]
        traced = jax.tree.unflatten(structure, scalars[: len(leaves)])
        return function(phi if traced is None else traced, *scalars[len(leaves) :])

    return jax.jacfwd(of_vector)(given)


def _tangent(value: Array, by_leaf: Float[Array, "*n leaf"], along: list[Array]) -> Any:
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return np.zeros(value.shape, jax.dtypes.float0)
    # slices of a NumPy array need no compiling
    rates: Any = by_leaf if host.is_traced(by_leaf) else np.asarray(by_leaf)
    total = jnp.zeros_like(value)
    for place, tangent in enumerate(along):
        total = total + rates[..., place] * tangent
    return total
