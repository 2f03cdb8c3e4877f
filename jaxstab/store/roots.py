"""Root document of a store: read a whole copy, and make the store that it describes."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxstab.store import chunks
from jaxstab.store.fields import Axis, Field, cell_bytes
from jaxstab.store.groups import COPY, FORMAT, OWN, Groups
from jaxstab.store.places import Place

Root = Mapping[str, Any]


def find_root(place: Place) -> Root | None:
    """Read the root document from a copy that is whole.

    Args:
        place: place of a possible store.

    Returns:
        The document; None if neither copy is whole, or the document is not of jaxstab.
    """
    copy, document = place.get([COPY, chunks.DOCUMENT])
    for text in (chunks.unsealed(copy), document):
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            root: Root = json.loads(text or b"")
            if root["attributes"][OWN]["format"] == FORMAT:
                return root
    return None


def read_root(place: Place) -> Root:
    """Read the root document of a store that must exist.

    Args:
        place: place of the store.

    Returns:
        The document.

    Raises:
        ValueError: if there is no store, it is of another kind, or both copies are torn.
    """
    root = find_root(place)
    if root is not None:
        return root
    if not place.exists():
        raise ValueError(f"{place.url}: no such store")
    (document,) = place.get([chunks.DOCUMENT])
    if document is None or is_foreign(document):
        raise ValueError(f"{place.url}: not a sweep, or a sweep of another version")
    raise ValueError(f"{place.url}: damaged store (both copies of its root are torn)")


def is_foreign(document: bytes | None) -> bool:
    """Check whether a document is the root of a zarr group of another program.

    Args:
        document: bytes of the document, or None.

    Returns:
        True for a root of another program; False for a torn document.
    """
    with contextlib.suppress(ValueError, RecursionError):
        root = json.loads(document or b"")
        return isinstance(root, dict) and "zarr_format" in root
    return False


def described(place: Place, root: Root) -> Groups:
    """Make the store that a root describes.

    Args:
        place: place of the store.
        root: root document of the store.

    Returns:
        The store, without the values of its coordinates.

    Raises:
        ValueError: if the document is damaged or forged.
    """
    try:
        attributes = dict(root["attributes"])
        own = attributes.pop(OWN)
        fields = {
            str(name): Field(
                tuple(field["shape"]), str(field["dtype"]), tuple(map(str, field["dims"]))
            )
            for name, field in own["fields"].items()
        }
        axes = {
            str(name): Axis(own["axes"][name]["length"], own["axes"][name]["chunk"])
            for name in own["order"]
        }
        beside = str(attributes.pop("coordinates", "")).split()
        arrays = root["consolidated_metadata"]["metadata"]
        texts = {str(name): dict(array["attributes"]) for name, array in arrays.items()}
        store = Groups(place, attributes, fields, axes, beside=tuple(beside), attributes=texts)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{place.url}: damaged store ({type(error).__name__}: {error})") from error
    check_memory(place.url, store.size * sum(map(cell_bytes, fields.values())))
    return store


def check_memory(url: str | Path, needed: int) -> None:
    """Check that half of this machine's memory can hold a dataset, before it is allocated.

    Args:
        url: the store, for the message.
        needed: bytes of the dataset.

    Raises:
        ValueError: if the dataset does not fit.
    """
    if needed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
        raise ValueError(f"{url}: its {needed} bytes do not fit into memory")
