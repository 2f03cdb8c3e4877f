"""Euclidean norms as logarithms: right for any magnitude a float can hold, with a gradient at zero that is not NaN."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def unit(v: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, ""]]:
    """The direction and the logarithm of the length of an array taken as one vector.

    Args:
        v: any shape.

    Returns:
        v / |v| and ln |v|; (0, -inf) where v is zero.

    Example:
        >>> direction, length = unit(jnp.asarray([3e-30, 4e-30], jnp.float32))
        >>> direction.round(3).tolist(), round(float(length / jnp.log(10.0)), 2)
        ([0.6000000238418579, 0.800000011920929], -29.3)
    """
    largest = jnp.max(jnp.abs(v))
    zero = largest == 0
    scale = jnp.where(zero, 1.0, largest)
    scaled = v / scale
    # the root is taken of 1 where there is nothing, so that its gradient stays finite
    length = jnp.sqrt(jnp.where(zero, 1.0, jnp.sum(scaled**2)))
    return scaled / length, jnp.where(zero, -jnp.inf, jnp.log(scale) + jnp.log(length))


def log_norm(tree: PyTree) -> Float[Array, ""]:
    """The logarithm of the norm of all leaves together.

    Args:
        tree: arrays; leaves that are no numbers, as PRNG keys have in the place of a gradient, do not count.

    Returns:
        ln of the norm; -inf where all is zero.

    Example:
        >>> round(float(jnp.exp(log_norm({"w": jnp.asarray([3.0]), "b": jnp.asarray([4.0])}))), 4)
        5.0
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype != jax.dtypes.float0]
    return jax.nn.logsumexp(2 * jnp.stack([unit(leaf)[1] for leaf in leaves])) / 2
