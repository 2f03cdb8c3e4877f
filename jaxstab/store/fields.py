"""Fields of a store, and the axes that they share, which are cut into groups."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxstab.checks import check_choice, check_count

# "str" is text of any length
DTYPES = ("bool", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "str")


class Field(NamedTuple):
    """Description of one array of a store.

    Attributes:
        shape: shape of one cell's value; () for a scalar.
        dtype: one of DTYPES.
        dims: names of the axes of `shape`, as `records.dimensions` returns them.
    """

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]


class Axis(NamedTuple):
    """Axis that all fields of a store share, cut into groups.

    Attributes:
        length: number of cells along the axis.
        chunk: cells of a group along the axis; the last group may reach beyond the end.
    """

    length: int
    chunk: int

    @property
    def groups(self) -> int:
        """Number of groups along the axis."""
        return -(-self.length // self.chunk)


def index_of(axes: Mapping[str, Axis], group: int) -> list[int]:
    """Find the index of a group along every shared axis.

    Args:
        axes: the axes that all fields share.
        group: number of the group.

    Returns:
        The indices; empty without shared axes.
    """
    counts = tuple(axis.groups for axis in axes.values())
    if not counts:
        return []
    return [int(i) for i in np.unravel_index(group, counts)]


def part(axes: Mapping[str, Axis], group: int) -> tuple[slice, ...]:
    """Find the place of a group's cells along the shared axes.

    Args:
        axes: shared axes by name.
        group: number of the group.

    Returns:
        A slice per axis; the last group's slice ends with the axis.

    Example:
        >>> part({"seed": Axis(3, 2), "sigma_w": Axis(2, 2)}, 1)
        (slice(2, 3, None), slice(0, 2, None))
    """
    index = index_of(axes, group)
    starts = [i * axis.chunk for i, axis in zip(index, axes.values(), strict=True)]
    ends = [min(s + axis.chunk, axis.length) for s, axis in zip(starts, axes.values(), strict=True)]
    return tuple(map(slice, starts, ends))


def check_axes(axes: Mapping[str, Axis]) -> None:
    """Check the axes that all fields share.

    Args:
        axes: shared axes by name.

    Raises:
        ValueError: if a name is no identifier, a length is no integer >= 1, or there are 2^62
            cells or more.
    """
    for name, axis in axes.items():
        if not name.isidentifier():
            raise ValueError(f"an axis's name must be an identifier, got {name!r}")
        check_count(f"{name}: length", axis.length, 1)
        check_count(f"{name}: chunk", axis.chunk, 1)
    if math.prod(axis.length + axis.chunk for axis in axes.values()) >= 2**62:
        raise ValueError(
            f"axes must be of fewer than 2^62 cells, got {[axis.length for axis in axes.values()]}"
        )


def check_fields(
    fields: Mapping[str, Field], axes: Sequence[str] = (), reserved: Sequence[str] = ()
) -> None:
    """Check that a store can hold these fields.

    Args:
        fields: descriptions of arrays by name.
        axes: names of the axes that all fields share.
        reserved: names that a field must not have.

    Raises:
        ValueError: if fields is empty, or a name, dtype, shape or dimension is invalid.
    """
    if not fields:
        raise ValueError("a store needs at least one field")
    for name, field in fields.items():
        # names become folders, none of which may lie outside the store
        if not name.isidentifier() or name in reserved:
            raise ValueError(
                f"a field's name must be an identifier other than {', '.join(reserved)}, got "
                f"{name!r}"
            )
        check_choice(f"{name}: dtype", field.dtype, DTYPES)
        if not all(isinstance(n, int) and n >= 1 for n in field.shape):
            raise ValueError(f"{name}: shape must be integers >= 1, got {field.shape}")
        if len(field.dims) != len(field.shape) or not all(dim.isidentifier() for dim in field.dims):
            raise ValueError(
                f"{name}: shape {field.shape} needs a name for each axis, got {field.dims}"
            )
    _check_dimensions(fields, axes)


def _check_dimensions(fields: Mapping[str, Field], axes: Sequence[str]) -> None:
    sizes: dict[str, int] = {}
    for name, field in fields.items():
        if len({*axes, *field.dims}) < len(axes) + len(field.dims):
            raise ValueError(
                f"{name}: dims must differ from one another and from {', '.join(axes) or 'none'}, "
                f"got {field.dims}"
            )
        for dim, size in zip(field.dims, field.shape, strict=True):
            # a field that labels its own only axis is a coordinate
            labels = dim in fields and not axes and fields[dim].dims == (dim,)
            if (dim in fields and not labels) or sizes.setdefault(dim, size) != size:
                wrong = dim in fields and not labels
                if wrong:
                    other = "a field too"
                else:
                    other = f"{sizes[dim]} long in another field"
                raise ValueError(f"{name}: dimension {dim} of length {size} is {other}")


def cell_bytes(field: Field) -> int:
    """Count the bytes of one cell.

    Args:
        field: description of the cell's value.

    Returns:
        The bytes without checksum; for text, 8 bytes a string.
    """
    if field.dtype == "str":
        return 8 * math.prod(field.shape)
    return math.prod(field.shape) * np.dtype(field.dtype).itemsize
