r"""Jacobian by the parameters of a model that is a function f(params, x).

The layers of a function are unknown. A row of the kernel Theta = J J^T is therefore one pullback
and one push through the whole batch, which is linearised once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from jaxstab.checks import check_count, check_floating
from jaxstab.curvature.vectors import ravel
from jaxstab.networks import MLP, Chain
from jaxstab.precision import at_full_precision
from jaxstab.spectra.operators import Operator, Scaled, scaled


def is_function(model: Any) -> TypeGuard[Callable]:
    """Check whether a model is a function (params, x) -> y, and no chain, MLP or module.

    Args:
        model: any object.

    Returns:
        True for a callable without `init` and `apply`.
    """
    module = hasattr(model, "init") and hasattr(model, "apply")
    return callable(model) and not module and not isinstance(model, Chain | MLP)


class _Linear(NamedTuple):
    """Outputs of a model, and products with its Jacobian and the transpose."""

    y: Float[Array, "batch ..."]
    vector: Float[Array, " n"]
    push: Callable[[Float[Array, " n"]], Float[Array, " rows"]]
    pull: Callable[[Float[Array, " rows"]], Float[Array, " n"]]


def _linear(model: Callable, params: PyTree, x: PyTree) -> _Linear:
    vector, unravel = ravel(params)
    shapes = jax.eval_shape(model, params, x)
    if not hasattr(shapes, "shape") or not shapes.shape:
        raise ValueError(f"model must return one array [batch, ...], got {str(shapes)[:80]}")
    check_floating("y", shapes.dtype)

    def rows(vector: Float[Array, " n"]) -> Float[Array, " rows"]:
        return model(unravel(vector), x).ravel()

    y, push = jax.linearize(rows, vector)
    transposed = jax.linear_transpose(push, vector)
    pull = Partial(_first, Partial(transposed))
    return _Linear(y.reshape(shapes.shape), vector, push, pull)


def _first(transposed: Callable, u: Float[Array, " rows"]) -> Float[Array, " n"]:
    return transposed(u)[0]


@at_full_precision
def kernel_of_function(
    model: Callable, params: PyTree, x: PyTree, chunk_size: int | None = None
) -> Float[Array, "rows rows"]:
    """Compute the tangent kernel of a function, `chunk_size` rows at a time.

    Args:
        model: (params, x [batch, ...]) -> y [batch, ...].
        params: any pytree, differentiated by its floating leaves.
        x: a batch, any pytree.
        chunk_size: number of rows at a time, >= 1; None for 1.

    Returns:
        Theta, symmetric, in the order of y.ravel().

    Raises:
        ValueError: if chunk_size < 1, or the model returns no floating batch.
    """
    if chunk_size is None:
        chunk_size = 1
    size = check_count("chunk_size", chunk_size, 1)
    linear = _linear(model, params, x)
    places = jnp.arange(linear.y.size)

    def row(place: Array) -> Float[Array, " rows"]:
        unit = (places == place).astype(linear.y.dtype)
        return linear.push(linear.pull(unit))

    kernel = jax.lax.map(row, places, batch_size=min(size, len(places)))
    # symmetric up to rounding
    return (kernel + kernel.T) / 2


def jacobian_of_function(model: Callable, params: PyTree, x: PyTree) -> Operator:
    """Make the Jacobian of a function's outputs by its parameters as an operator.

    Args:
        model: as in `kernel_of_function`.
        params: as in `kernel_of_function`.
        x: as in `kernel_of_function`.

    Returns:
        The operator, with rows in the order of y.ravel() and columns in the order of `ravel`.

    Raises:
        ValueError: as `kernel_of_function`.
    """
    linear = _linear(model, params, x)

    @at_full_precision
    def apply(v: Float[Array, "k n"]) -> Scaled:
        return scaled(jax.lax.map(linear.push, v), jnp.zeros(len(v), jnp.int32))

    @at_full_precision
    def adjoint(u: Float[Array, "k rows"]) -> Scaled:
        return scaled(jax.lax.map(linear.pull, u), jnp.zeros(len(u), jnp.int32))

    return Operator(apply, adjoint, linear.y.size, linear.vector.size, linear.vector.dtype)
