"""Arrays split over the devices of an Explicit mesh, where a split is part of an array's type."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, NamedSharding
from jaxtyping import Array


def split(x: Array) -> tuple[str | tuple[str, ...] | None, ...] | None:
    """The mesh axes over which the axes of an array are split.

    Args:
        x: an array.

    Returns:
        Names of mesh axes by axis; None for an array that no Explicit mesh splits.
    """
    sharding = jax.typeof(x).sharding
    return tuple(sharding.spec) if AxisType.Explicit in sharding.mesh.axis_types else None


def resplit(x: Array, like: Array, axes: Sequence[str | tuple[str, ...] | None]) -> Array:
    """An array split anew over the mesh of another.

    Args:
        x: an array.
        like: an array on an Explicit mesh.
        axes: names of mesh axes by axis of x.

    Returns:
        The same values.
    """
    return jax.sharding.reshard(x, NamedSharding(jax.typeof(like).sharding.mesh, jax.P(*axes)))
