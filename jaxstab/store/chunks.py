"""Bytes of a store: zarr's format 3, each chunk with its crc32c.

Any zarr reader opens such a store. Its bytes are made and read here, and not by zarr, to which a
missing chunk is a chunk of fill values, and which runs the codecs a store names. Here bytes become
numbers by `numpy.frombuffer` of a listed dtype, if their length and checksum are right, or they are
None.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from jaxstab.checks import check_choice, check_count

# the file name of zarr's metadata
DOCUMENT = "zarr.json"
# "str" is text of any length
DTYPES = ("bool", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "str")
# bytes of the checksum at the end of a chunk
_CRC = 4
# what zarr reads where there is no chunk, by kind of dtype
_FILL: dict[str, Any] = {"b": False, "i": -1, "f": "NaN", "U": ""}
_LENGTH = struct.Struct("<I")


class Field(NamedTuple):
    """Description of one array of a store.

    Attributes:
        shape: of one cell's value; () for a scalar.
        dtype: one of DTYPES.
        dims: names of the axes of `shape`, as `records.dimensions` gives them.
    """

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]


class Axis(NamedTuple):
    """Axis that all fields of a store share, cut into groups.

    Attributes:
        length: cells along it.
        chunk: cells of a group along it; the last group may reach beyond the end.
    """

    length: int
    chunk: int

    @property
    def groups(self) -> int:
        """Groups along the axis."""
        return -(-self.length // self.chunk)


def index_of(axes: Mapping[str, Axis], group: int) -> list[int]:
    """Find the index of a group along every shared axis.

    Args:
        axes: the axes that all fields share.
        group: its number.

    Returns:
        The indices; none where there are no shared axes.
    """
    counts = tuple(axis.groups for axis in axes.values())
    if not counts:
        return []
    return [int(i) for i in np.unravel_index(group, counts)]


def part(axes: Mapping[str, Axis], group: int) -> tuple[slice, ...]:
    """Find the place of a group's cells along the shared axes.

    Args:
        axes: by name.
        group: number of the group.

    Returns:
        A slice per axis; that of the last group along an axis ends with the axis.

    Example:
        >>> part({"seed": Axis(3, 2), "sigma_w": Axis(2, 2)}, 1)
        (slice(2, 3, None), slice(0, 2, None))
    """
    index = index_of(axes, group)
    starts = [i * axis.chunk for i, axis in zip(index, axes.values(), strict=True)]
    ends = [min(s + axis.chunk, axis.length) for s, axis in zip(starts, axes.values(), strict=True)]
    return tuple(map(slice, starts, ends))


class Array(NamedTuple):
    """Array as zarr describes it.

    Attributes:
        shape: of the whole.
        chunk: shape of a chunk.
        dtype: one of DTYPES.
        dims: names of its axes.
        attributes: such as long_name and units.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    attributes: Mapping[str, Any]


def check_axes(axes: Mapping[str, Axis]) -> None:
    """Check the axes that all fields share.

    Args:
        axes: by name.

    Raises:
        ValueError: if a name is no identifier, a length no integer >= 1, or there are too many
            cells to count.
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
        fields: arrays by name.
        axes: names of the axes that all of them share.
        reserved: names that are taken.

    Raises:
        ValueError: if there is none, or a name, dtype, shape or dimension will not do.
    """
    if not fields:
        raise ValueError("a store needs at least one field")
    for name, field in fields.items():
        # names become folders: nothing may lead out of the store
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


def key(name: str, places: Sequence[int]) -> str:
    """Return the key of a chunk in zarr's layout.

    Args:
        name: of the array.
        places: number of the chunk along every axis.

    Returns:
        The file, relative to the store.

    Example:
        >>> key("loss", (7, 0)), key("threshold", ())
        ('loss/c.7.0', 'threshold/c')
    """
    return ".".join([f"{name}/c", *map(str, places)])


def empty(field: Field, leading: Sequence[int]) -> np.ndarray:
    """Make cells that nobody has computed: NaN, -1, False or no text.

    Args:
        field: what a cell holds.
        leading: cells along every axis that the fields share.

    Returns:
        The array [*leading, *shape].
    """
    shape = (*leading, *field.shape)
    if field.dtype == "str":
        return np.full(shape, "", dtype=object)
    return np.full(shape, float(_FILL[np.dtype(field.dtype).kind]), field.dtype)


def encode(values: np.ndarray) -> bytes:
    """Encode a chunk: the bytes of the values, little-endian, and their crc32c.

    Args:
        values: of any shape and a listed dtype; text as an array of strings.

    Returns:
        The bytes, as zarr's codecs `bytes` or `vlen-utf8`, and `crc32c`, write them.
    """
    if values.dtype.kind in "UOT":
        return sealed(_from_texts(values))
    return sealed(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())


def checksum(chunk: bytes) -> int:
    """Read the checksum of a chunk.

    Args:
        chunk: its bytes.

    Returns:
        The crc32c at its end, which may be wrong.

    Example:
        >>> checksum(encode(np.zeros(2, np.int8)))
        4049696722
    """
    return int.from_bytes(chunk[-_CRC:], "little")


def decode(chunk: bytes | None, field: Field, leading: Sequence[int]) -> np.ndarray | None:
    """Decode the values of a chunk.

    Args:
        chunk: bytes; None for a missing file.
        field: what a cell holds.
        leading: cells along every axis that the fields share.

    Returns:
        The array [*leading, *shape]; None if the chunk is missing, of the wrong length, or not what
        its checksum says.
    """
    shape = (*leading, *field.shape)
    wanted = chunk_bytes(field, leading)
    data = unsealed(chunk)
    if chunk is None or data is None or wanted not in (None, len(chunk)):
        return None
    if field.dtype == "str":
        return _to_texts(data, shape)
    return np.frombuffer(data, np.dtype(field.dtype).newbyteorder("<")).reshape(shape)


def sealed(data: bytes) -> bytes:
    """Append a checksum to data.

    Args:
        data: any bytes.

    Returns:
        The bytes and their crc32c.
    """
    return data + google_crc32c.value(data).to_bytes(_CRC, "little")


def unsealed(chunk: bytes | None) -> bytes | None:
    """Return the data that `sealed` was given.

    Args:
        chunk: bytes; None for a missing file.

    Returns:
        The bytes; None if the checksum does not fit.
    """
    if chunk is None or len(chunk) < _CRC or chunk != sealed(chunk[:-_CRC]):
        return None
    return chunk[:-_CRC]


def dtype_name(values: np.ndarray) -> str:
    """Return the dtype of a field that holds such values.

    Args:
        values: any array.

    Returns:
        The name of its dtype; "str" for text of any length.
    """
    if values.dtype.kind in "UOT":
        return "str"
    return values.dtype.name


def cell_bytes(field: Field) -> int:
    """Count the bytes of one cell.

    Args:
        field: what it holds.

    Returns:
        The bytes, without checksum; of text what a pointer takes.
    """
    if field.dtype == "str":
        return 8 * math.prod(field.shape)
    return math.prod(field.shape) * np.dtype(field.dtype).itemsize


def chunk_bytes(field: Field, leading: Sequence[int]) -> int | None:
    """Count the bytes of a chunk.

    Args:
        field: what a cell holds.
        leading: cells along every axis that the fields share.

    Returns:
        The bytes, checksum included; None for text, of which only its checksum tells.
    """
    if field.dtype == "str":
        return None
    return math.prod(leading) * cell_bytes(field) + _CRC


def documents(
    attributes: Mapping[str, Any], arrays: Mapping[str, Array], unlisted: Sequence[str]
) -> dict[str, bytes]:
    """Make the metadata of a store: zarr's JSON for each array and, last, for their group.

    The group's lists all arrays ("consolidated metadata"), so that a reader opens one document.

    Args:
        attributes: of the group; plain values.
        arrays: by name.
        unlisted: names of arrays that a reader need not see.

    Returns:
        Bytes by file name.
    """
    described = {name: _described(array) for name, array in arrays.items()}
    listed = {name: document for name, document in described.items() if name not in unlisted}
    root = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": attributes,
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": listed},
    }
    named = {f"{name}/{DOCUMENT}": document for name, document in described.items()}
    return {
        name: json.dumps(document, indent=1, allow_nan=False).encode()
        for name, document in (named | {DOCUMENT: root}).items()
    }


def _described(array: Array) -> dict[str, Any]:
    if array.dtype == "str":
        data_type = "string"
        kind = "U"
        order: dict[str, Any] = {"name": "vlen-utf8"}
    else:
        data_type = array.dtype
        kind = np.dtype(array.dtype).kind
        order = {"name": "bytes", "configuration": {"endian": "little"}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": array.shape,
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": array.chunk}},
        # all chunks of an array in one folder
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": _FILL[kind],
        "codecs": [order, {"name": "crc32c"}],
        "dimension_names": array.dims,
        "attributes": dict(array.attributes),
    }


def _from_texts(values: np.ndarray) -> bytes:
    """Encode text as zarr's `vlen-utf8`: the count, then each text after its length."""
    texts = [str(text).encode() for text in values.ravel()]
    return _LENGTH.pack(len(texts)) + b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _to_texts(data: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """Decode what `_from_texts` encoded; None if the bytes do not hold as many texts."""
    texts = []
    try:
        (count,) = _LENGTH.unpack_from(data)
        if count != math.prod(shape):
            return None
        start = _LENGTH.size
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(data, start)
            start += _LENGTH.size
            texts.append(data[start : start + length].decode())
            start += length
    except (struct.error, UnicodeDecodeError):
        return None
    if start != len(data):
        return None
    return np.array(texts).reshape(shape)
