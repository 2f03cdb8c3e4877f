"""Bytes of a store: zarr's format 3, each chunk with its crc32c.

Any zarr reader opens such a store. This module reads and writes the bytes itself, because zarr
reads a missing chunk as fill values and runs whatever codecs a store names. Bytes are read by
`numpy.frombuffer` with one of the listed dtypes; `decode` returns None if their length or checksum
is wrong.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from jaxstab.store.fields import Field, cell_bytes

# the file name of zarr's metadata
DOCUMENT = "zarr.json"
# bytes of the checksum at the end of a chunk
_CRC = 4
# zarr's value for missing chunks, by kind of dtype
_FILL: dict[str, Any] = {"b": False, "i": -1, "f": "NaN", "U": ""}
_LENGTH = struct.Struct("<I")
# most bytes of an array of text in memory
_MOST_TEXT = 2**30


class Array(NamedTuple):
    """Description of an array for zarr.

    Attributes:
        shape: shape of the whole array.
        chunk: shape of a chunk.
        dtype: one of DTYPES.
        dims: names of the axes.
        attributes: attributes such as long_name and units.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    attributes: Mapping[str, Any]


def key(name: str, places: Sequence[int]) -> str:
    """Return the key of a chunk in zarr's layout.

    Args:
        name: name of the array.
        places: index of the chunk along every axis.

    Returns:
        The path of the file, relative to the store.

    Example:
        >>> key("loss", (7, 0)), key("threshold", ())
        ('loss/c.7.0', 'threshold/c')
    """
    return ".".join([f"{name}/c", *map(str, places)])


def empty(field: Field, leading: Sequence[int]) -> np.ndarray:
    """Make an array of blank cells: NaN, -1, False or empty text.

    Args:
        field: description of a cell's value.
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
        values: array of any shape and a listed dtype; text as an array of strings.

    Returns:
        The bytes that zarr's codecs `bytes` or `vlen-utf8`, and `crc32c`, write.
    """
    if values.dtype.kind in "UOT":
        return sealed(_from_texts(values))
    return sealed(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())


def checksum(chunk: bytes) -> int:
    """Read the checksum of a chunk.

    Args:
        chunk: bytes of the chunk.

    Returns:
        The crc32c stored at the end of the chunk, unchecked.

    Example:
        >>> checksum(encode(np.zeros(2, np.int8)))
        4049696722
    """
    return int.from_bytes(chunk[-_CRC:], "little")


def decode(chunk: bytes | None, field: Field, leading: Sequence[int]) -> np.ndarray | None:
    """Decode the values of a chunk.

    Args:
        chunk: bytes; None for a missing file.
        field: description of a cell's value.
        leading: cells along every axis that the fields share.

    Returns:
        The array [*leading, *shape]; None if the chunk is missing, has the wrong length, or fails
        its checksum.
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
    """Remove and verify the checksum that `sealed` appended.

    Args:
        chunk: bytes; None for a missing file.

    Returns:
        The data; None if the checksum is wrong.
    """
    if chunk is None or len(chunk) < _CRC or chunk != sealed(chunk[:-_CRC]):
        return None
    return chunk[:-_CRC]


def dtype_name(values: np.ndarray) -> str:
    """Return the dtype of the field for given values.

    Args:
        values: any array.

    Returns:
        The name of the array's dtype; "str" for text of any length.
    """
    if values.dtype.kind in "UOT":
        return "str"
    return values.dtype.name


def chunk_bytes(field: Field, leading: Sequence[int]) -> int | None:
    """Count the bytes of a chunk.

    Args:
        field: description of a cell's value.
        leading: cells along every axis that the fields share.

    Returns:
        The bytes, checksum included; None for text, whose length varies.
    """
    if field.dtype == "str":
        return None
    return math.prod(leading) * cell_bytes(field) + _CRC


def documents(
    attributes: Mapping[str, Any], arrays: Mapping[str, Array], unlisted: Sequence[str]
) -> dict[str, bytes]:
    """Make the metadata of a store: zarr's JSON for each array and, last, for the group.

    The group's document lists all arrays ("consolidated metadata"), so that a reader opens one
    document.

    Args:
        attributes: attributes of the group, plain values.
        arrays: descriptions of arrays by name.
        unlisted: names of arrays to leave out of that list.

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
    # NumPy stores every text at the length of the longest
    if 4 * len(texts) * max(map(len, texts), default=0) > _MOST_TEXT:
        return None
    return np.array(texts).reshape(shape)
