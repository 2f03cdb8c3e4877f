"""Logarithms of lengths that no float range can hold."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


def unit(v: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, ""]]:
    """Split an array, taken as one vector, into its direction and the logarithm of its length.

    Args:
        v: any shape.

    Returns:
        v / |v| and ln |v|; (0, -inf) where v is zero.

    Example:
        >>> direction, length = unit(jnp.asarray([3e-30, 4e-30], jnp.float32))
        >>> direction.round(3).tolist(), round(float(length / jnp.log(10.0)), 2)
        ([0.6000000238418579, 0.800000011920929], -29.3)
    """
    # the scale cancels: a derivative through it is rounding at best, and NaN where XLA compares
    # recomputed values
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v)))
    zero = largest == 0
    scale = jnp.where(zero, 1.0, largest)
    scaled = v / scale
    # the root is taken of 1 where there is nothing, so that its gradient stays finite
    length = jnp.sqrt(jnp.where(zero, 1.0, jnp.sum(scaled**2)))
    return scaled / length, jnp.where(zero, -jnp.inf, jnp.log(scale) + jnp.log(length))


def times_power(
    values: Float[Array, "..."], exponent: Int[Array, "..."] | int
) -> Float[Array, "..."]:
    """Multiply by a power of two, values 2^exponent, without rounding.

    `jnp.ldexp` does so on the bits of a float, with a derivative rule. JAX before 0.12 forgets such
    rules in loops that are differentiated twice, and bits have no derivative.

    Args:
        values: any shape.
        exponent: integers that broadcast to it.

    Returns:
        The products; 0 where values are 0, whatever the exponent.

    Example:
        >>> float(times_power(jnp.asarray(3.0), -2))
        0.75
    """
    info = jnp.finfo(values.dtype)
    left = jnp.asarray(exponent)
    # 2^exponent may leave the range of floats where the product does not; three powers within it
    # reach from its one end to the other
    for _ in range(3):
        part = jnp.clip(left, info.minexp, info.maxexp - 1)
        left = left - part
        field = (part.astype(f"int{info.bits}") + (info.maxexp - 1)) << info.nmant
        values = values * jax.lax.bitcast_convert_type(field, values.dtype)
    return values


class Product(NamedTuple):
    """Matrix left^T right that is not multiplied out, such as the gradient of a dense kernel.

    Attributes:
        left: what the layer read, one vector per example.
        right: the gradient of what it gave, likewise.
    """

    left: Float[Array, "*batch n_in"]
    right: Float[Array, "*batch n_out"]

    @property
    def full(self) -> Float[Array, "n_in n_out"]:
        """Matrix, multiplied out."""
        if self.left.ndim == 1:
            return jnp.outer(self.left, self.right)
        left, right = (side.reshape(-1, side.shape[-1]) for side in self)
        return left.T @ right

    @property
    def log_norm(self) -> Float[Array, ""]:
        """Logarithm of its norm; of one example ln(|left| |right|), without the matrix."""
        if self.left.ndim == 1:
            return unit(self.left)[1] + unit(self.right)[1]
        (left, in_left), (right, in_right) = (
            jax.vmap(unit)(side.reshape(-1, side.shape[-1])) for side in self
        )
        logs = in_left + in_right
        # the largest term has norm 1: what is lost below the float range is below its rounding
        largest = jax.lax.stop_gradient(jnp.max(logs))
        largest = jnp.where(largest == -jnp.inf, 0, largest)
        square = jnp.sum((_transposed(left) @ (right * jnp.exp(logs - largest)[:, None])) ** 2)
        # the logarithm is taken of 1 where there is nothing, so that its gradient stays finite
        return jnp.where(
            square == 0, -jnp.inf, jnp.log(jnp.where(square == 0, 1, square)) / 2 + largest
        )


def _transposed(left: Float[Array, "batch n"]) -> Float[Array, "n batch"]:
    # a product that transposes its left factor by itself is half as fast where XLA's pool has
    # threads to spare, as decompositions need
    return jax.lax.optimization_barrier(left.T)


def log_norm(tree: PyTree) -> Float[Array, ""]:
    """Compute ln of the norm of all leaves together.

    Args:
        tree: arrays and `Product`s; leaves that are no numbers, as PRNG keys have in the place of a
            gradient, do not count.

    Returns:
        ln of the norm; -inf where all is zero.

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
