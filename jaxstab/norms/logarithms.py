"""Logarithms of lengths beyond the float range, and the dtypes in which lengths are summed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


def unit(v: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, ""]]:
    """Split an array, taken as one vector, into its direction and the logarithm of its length.

    Args:
        v: array of any shape.

    Returns:
        v / |v| and ln |v|; (0, -inf) for zero.

    Example:
        >>> direction, length = unit(jnp.asarray([3e-30, 4e-30], jnp.float32))
        >>> direction.round(3).tolist(), round(float(length / jnp.log(10.0)), 2)
        ([0.6000000238418579, 0.800000011920929], -29.3)
    """
    # the scale cancels, so that its derivative is only rounding, or NaN where XLA compares
    # recomputed values
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v)))
    zero = largest == 0
    scale = jnp.where(zero, 1.0, largest)
    scaled = v / scale
    # the root of 1 in place of 0 has a finite gradient
    length = jnp.sqrt(jnp.where(zero, 1.0, jnp.sum(scaled**2)))
    return scaled / length, jnp.where(zero, -jnp.inf, jnp.log(scale) + jnp.log(length))


def times_power(
    values: Float[Array, "..."], exponent: Int[Array, "..."] | int
) -> Float[Array, "..."]:
    """Multiply by a power of two, values 2^exponent, without rounding.

    `jnp.ldexp` changes the bits of a float, with a derivative rule. JAX before 0.12 forgets such
    rules in loops that are differentiated twice, and bits have no derivative.

    Args:
        values: array of any shape.
        exponent: integers that broadcast to the shape of values.

    Returns:
        The products; 0 for zero values and any exponent.

    Example:
        >>> float(times_power(jnp.asarray(3.0), -2))
        0.75
    """
    info = jnp.finfo(values.dtype)
    left = jnp.asarray(exponent)
    # 2^exponent may leave the float range where the product does not; three powers within the range
    # span it from end to end
    for _ in range(3):
        part = jnp.clip(left, info.minexp, info.maxexp - 1)
        left = left - part
        field = (part.astype(f"int{info.bits}") + (info.maxexp - 1)) << info.nmant
        values = values * jax.lax.bitcast_convert_type(field, values.dtype)
    return values


class Product(NamedTuple):
    """Matrix left^T right in factored form, such as the gradient of a dense kernel.

    Attributes:
        left: input of the layer, one vector per example.
        right: gradient of the layer's output, one vector per example.
    """

    left: Float[Array, "*batch n_in"]
    right: Float[Array, "*batch n_out"]

    @property
    def full(self) -> Float[Array, "n_in n_out"]:
        """The product as a matrix."""
        if self.left.ndim == 1:
            return jnp.outer(self.left, self.right)
        left, right = (side.reshape(-1, side.shape[-1]) for side in self)
        return left.T @ right

    @property
    def log_norm(self) -> Float[Array, ""]:
        """Logarithm of the norm of the matrix; ln(|left| |right|) for one example."""
        if self.left.ndim == 1:
            return unit(self.left)[1] + unit(self.right)[1]
        (left, in_left), (right, in_right) = (
            jax.vmap(unit)(side.reshape(-1, side.shape[-1])) for side in self
        )
        logs = in_left + in_right
        # terms lost below the float range are below the rounding of the largest term, of norm 1
        largest = jax.lax.stop_gradient(jnp.max(logs))
        largest = jnp.where(largest == -jnp.inf, 0, largest)
        square = jnp.sum((_transposed(left) @ (right * jnp.exp(logs - largest)[:, None])) ** 2)
        # the logarithm of 1 in place of 0 has a finite gradient
        return jnp.where(
            square == 0, -jnp.inf, jnp.log(jnp.where(square == 0, 1, square)) / 2 + largest
        )


def _transposed(left: Float[Array, "batch n"]) -> Float[Array, "n batch"]:
    # a product that transposes its left factor itself is half as fast in a pool of XLA with spare
    # threads, as needed by decompositions
    return jax.lax.optimization_barrier(left.T)


def log_norm(tree: PyTree) -> Float[Array, ""]:
    """Compute ln of the norm of all leaves together.

    Args:
        tree: arrays and `Product`s; leaves of dtype float0, the gradients of PRNG keys, do not
            count.

    Returns:
        ln of the norm; -inf if all leaves are zero.

    Example:
        >>> round(float(jnp.exp(log_norm({"w": jnp.asarray([3.0]), "b": jnp.asarray([4.0])}))), 4)
        5.0
    """
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Product))
    logs = [
        leaf.log_norm if isinstance(leaf, Product) else unit(leaf)[1]
        for leaf in leaves
        if isinstance(leaf, Product) or leaf.dtype != jax.dtypes.float0
    ]
    if not logs:
        return jnp.full((), -jnp.inf)
    return jax.nn.logsumexp(2 * jnp.stack(logs)) / 2


def wide_enough(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype in which numbers of a dtype are summed and compared.

    Args:
        dtype: any dtype.

    Returns:
        float64 for float64, float32 for all others.
    """
    if dtype == jnp.float64:
        return jnp.dtype(jnp.float64)
    return jnp.dtype(jnp.float32)


def floating(value: Array) -> Float[Array, "..."]:
    """Convert numbers to at least float32, and complex numbers to pairs.

    Args:
        value: numbers of any dtype.

    Returns:
        The numbers, with a last axis of two for complex ones.
    """
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        value = jnp.stack([value.real, value.imag], -1)
    return value.astype(wide_enough(value.dtype))
