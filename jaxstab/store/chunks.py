"""The bytes of a store of groups: zarr's format 3, one chunk per field and group, each with its crc32c.

Any zarr reader opens such a store. Its bytes are made and read here, and not by zarr, to which a missing chunk is a
chunk of fill values, and which runs the codecs a store names. Here bytes become numbers by `numpy.frombuffer` of a
listed dtype, if their length and checksum are right, or they are None.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from jaxstab.checks import check_choice

# the file name of zarr's metadata
DOCUMENT = "zarr.json"
DTYPES = ("bool", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_RESERVED = ("done", "row", "group")
# what zarr reads where there is no chunk, by kind of dtype
_FILL: dict[str, Any] = {"b": False, "i": -1, "f": "NaN"}


class Field(NamedTuple):
    """One array of a store.

    Attributes:
        shape: of one row's value; () for a scalar.
        dtype: bool, int8 to int64 or float16 to float64, by name.
        dims: names of the axes of `shape`, as `records.dimensions` gives them.
    """

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]


# the commit mark of each group is an array as well
MARK = Field((), "bool", ())


def check_fields(fields: Mapping[str, Field]) -> None:
    """Refuse what a store cannot hold.

    Args:
        fields: arrays by name.

    Raises:
        ValueError: if there is none, or a name, dtype, shape or dimension will not do.
    """
    if not fields:
        raise ValueError("a store needs at least one field")
    for name, field in fields.items():
        # names become folders: nothing may lead out of the store
        if not name.isidentifier() or name in _RESERVED:
            raise ValueError(f"a field's name must be an identifier other than {', '.join(_RESERVED)}, got {name!r}")
        check_choice(f"{name}: dtype", field.dtype, DTYPES)
        if not all(isinstance(n, int) and n >= 1 for n in field.shape):
            raise ValueError(f"{name}: shape must be integers >= 1, got {field.shape}")
        if len(field.dims) != len(field.shape) or not all(dim.isidentifier() for dim in field.dims):
            raise ValueError(f"{name}: shape {field.shape} needs a name for each axis, got {field.dims}")
    _check_dimensions(fields)


def _check_dimensions(fields: Mapping[str, Field]) -> None:
    sizes: dict[str, int] = {}
    for name, field in fields.items():
        if len({"row", *field.dims}) <= len(field.dims):
            raise ValueError(f"{name}: dims must differ from one another and from row, got {field.dims}")
        for dim, size in zip(field.dims, field.shape, strict=True):
            if dim in fields or sizes.setdefault(dim, size) != size:
                other = "a field too" if dim in fields else f"{sizes[dim]} long in another field"
                raise ValueError(f"{name}: dimension {dim} of length {size} is {other}")


def key(name: str, field: Field, group: int) -> str:
    """Where zarr looks for the chunk of a group.

    Args:
        name: of the array.
        field: its field.
        group: number of the group.

    Returns:
        The file, relative to the store.

    Example:
        >>> key("loss", Field((100,), "float32", ("step",)), 7)
        'loss/c.7.0'
    """
    return f"{name}/c.{group}" + ".0" * len(field.shape)


def empty(field: Field, rows: int) -> np.ndarray:
    """Rows that nobody has computed: NaN, -1 or False.

    Args:
        field: what a row holds.
        rows: how many.

    Returns:
        The array [rows, *shape].
    """
    return np.full((rows, *field.shape), float(_FILL[np.dtype(field.dtype).kind]), field.dtype)


def encode(values: np.ndarray) -> bytes:
    """A chunk: the values' bytes in order, little-endian, and their crc32c.

    Args:
        values: of any shape and a listed dtype.

    Returns:
        The bytes, as zarr's codecs `bytes` and `crc32c` write them.
    """
    return _checked(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())


def decode(chunk: bytes | None, field: Field, rows: int) -> np.ndarray | None:
    """The values in a chunk.

    Args:
        chunk: bytes; None for a missing file.
        field: what a row holds.
        rows: how many there should be.

    Returns:
        The array [rows, *shape]; None if the chunk is missing, of the wrong length, or not what its checksum says.
    """
    dtype = np.dtype(field.dtype).newbyteorder("<")
    if chunk is None or len(chunk) != rows * row_bytes(field) + 4 or chunk != _checked(chunk[:-4]):
        return None
    return np.frombuffer(chunk[:-4], dtype).reshape(rows, *field.shape)


def row_bytes(field: Field) -> int:
    """Bytes of one row.

    Args:
        field: what it holds.

    Returns:
        The bytes, without checksum.
    """
    return math.prod(field.shape) * np.dtype(field.dtype).itemsize


def documents(attributes: Mapping[str, Any], fields: Mapping[str, Field], groups: int, size: int) -> dict[str, bytes]:
    """The metadata of a store: zarr's JSON for each array and, last, for the group that holds them.

    Args:
        attributes: of the group; plain values.
        fields: arrays by name.
        groups: number of groups.
        size: rows of a group.

    Returns:
        Bytes by file name.
    """
    arrays = {
        f"{name}/{DOCUMENT}": _array((groups * size, *field.shape), (size, *field.shape), field, ("row", *field.dims))
        for name, field in fields.items()
    }
    done = {f"done/{DOCUMENT}": _array((groups,), (1,), MARK, ("group",))}
    root = {DOCUMENT: {"zarr_format": 3, "node_type": "group", "attributes": attributes}}
    return {
        name: json.dumps(document, indent=2, sort_keys=True, allow_nan=False).encode()
        for name, document in (arrays | done | root).items()
    }


def _array(shape: tuple[int, ...], chunk: tuple[int, ...], field: Field, dims: tuple[str, ...]) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": field.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        # all chunks of an array in one folder
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": _FILL[np.dtype(field.dtype).kind],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "dimension_names": dims,
        "attributes": {},
    }


def _checked(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(4, "little")
