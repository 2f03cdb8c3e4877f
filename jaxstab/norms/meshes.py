"""Arrays split over the devices of an Explicit mesh, where a split is part of an array's type."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, NamedSharding
from jaxtyping import Array, PyTree


def split(x: Array) -> tuple[str | tuple[str, ...] | None, ...] | None:
    """Return the mesh axes over which the axes of an array are split.

    Args:
        x: an array.

    Returns:
        Names of mesh axes by axis; None for an array that no Explicit mesh splits.
    """
    sharding = jax.typeof(x).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return tuple(sharding.spec)


def resplit(x: Array, like: Array, axes: Sequence[str | tuple[str, ...] | None]) -> Array:
    """Split an array over the mesh of another array.

    Args:
        x: an array.
        like: an array on an Explicit mesh.
        axes: names of mesh axes by axis of x.

    Returns:
        The array with the new sharding.
    """
    return jax.sharding.reshard(x, NamedSharding(jax.typeof(like).sharding.mesh, jax.P(*axes)))


def varying_like(constants: PyTree, like: PyTree) -> PyTree:
    """Mark constants as varying over the devices of a `jax.shard_map`, like other arrays.

    Loops and linear functions need arguments of the same type as their results, and the varying
    axes are part of the type.

    Args:
        constants: arrays.
        like: arrays, or their shapes from `jax.eval_shape`.

    Returns:
        The constants with the varying axes of `like`; unchanged outside of `jax.shard_map`.

    Example:
        >>> import jax.numpy as jnp
        >>> varying_like(jnp.zeros(2), jnp.ones(3)).tolist()
        [0.0, 0.0]
    """
    axes = frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(like)))

    def widened(leaf: Array) -> Array:
        missing = axes - _varying(leaf)
        if not missing:
            return leaf
        return jax.lax.pcast(leaf, tuple(sorted(missing)), to="varying")

    return jax.tree.map(widened, constants)


def _varying(array: Array | jax.ShapeDtypeStruct) -> frozenset[str]:
    """Return the mesh axes along which devices hold different values."""
    if isinstance(array, jax.ShapeDtypeStruct):
        axes = array.manual_axis_type
    else:
        axes = jax.typeof(array).manual_axis_type
    # shapes from outside of a shard_map have no such axes
    if axes is None:
        return frozenset()
    return frozenset(axes.varying)
