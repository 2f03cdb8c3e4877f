"""Trained parameters as one vector, in the order of `jax.flatten_util.ravel_pytree`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxstab.arguments import explained
from jaxstab.networks.layers import Layer, is_layer, trained

Unravel = Callable[[Float[Array, " n"]], PyTree]


@explained
def ravel(params: PyTree) -> tuple[Float[Array, " n"], Unravel]:
    """Ravel trained parameters into a vector.

    Trained parameters are the floating leaves, without what `Chain.bind` adds. Integers and keys
    are left out, too.

    Args:
        params: any pytree.

    Returns:
        The vector, and the function from such a vector to parameters. The vector has the widest of
        the floating dtypes.

    Raises:
        ValueError: if no leaf is floating, or a leaf is complex.

    Example:
        >>> vector, unravel = ravel({"w": jnp.ones((2, 2)), "step": jnp.asarray(3)})
        >>> vector.shape, unravel(2 * vector)["w"].tolist(), int(unravel(vector)["step"])
        ((4,), [[2.0, 2.0], [2.0, 2.0]], 3)
    """
    leaves, structure = jax.tree.flatten(trained(params))
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
        raise ValueError(
            "params must be real, got a complex leaf; real and imaginary parts can be two leaves"
        )
    floating = [i for i, dtype in enumerate(dtypes) if jnp.issubdtype(dtype, jnp.floating)]
    if not floating:
        raise ValueError(
            f"params must have a floating leaf, got dtypes {[str(dtype) for dtype in dtypes]}"
        )
    widest = max((dtypes[i] for i in floating), key=lambda dtype: jnp.finfo(dtype).bits)
    vector, parts = ravel_pytree([jnp.asarray(leaves[i], widest) for i in floating])

    def unravel(vector: Float[Array, " n"]) -> PyTree:
        whole = list(leaves)
        for i, part in zip(floating, parts(vector), strict=True):
            whole[i] = part.astype(dtypes[i])
        return _bound(params, jax.tree.unflatten(structure, whole))

    return vector, unravel


def _bound(params: PyTree, own: PyTree) -> PyTree:
    """Put trained parameters back into bound parameters."""

    def rebound(node: PyTree, own: PyTree) -> PyTree:
        if isinstance(node, Layer):
            return node._replace(params=own)
        return own

    return jax.tree.map(rebound, params, own, is_leaf=is_layer)
