"""Creation of a store of groups: the files that exist before the first group, whole or not at all."""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from jaxstab.store import chunks, labels
from jaxstab.store.chunks import Array
from jaxstab.store.fields import Field
from jaxstab.store.files import check_folder
from jaxstab.store.groups import COPY, Groups
from jaxstab.store.places import Place, flush


def create(groups: Groups) -> bool:
    """Create the store, whole or not at all; of several processes exactly one creates it.

    Behind a URL the root's document is written last, and only if none exists, where the
    backend supports that.

    Args:
        groups: the store.

    Returns:
        True if this process created the store.

    Raises:
        OSError: if the store cannot be written.
    """
    files = documents(groups)
    locks = groups.locks
    if locks is None:
        return groups.place.fill(files)
    # check before parent folders are created
    check_folder(locks.path)
    with locks.gate():
        if groups.place.exists():
            return False
        staging = Place(locks.path / "new", named=groups.place.url)
        assert staging.local is not None
        assert groups.place.local is not None
        try:
            shutil.rmtree(staging.local, ignore_errors=True)
            staging.fill(files)
            # the same command can rewrite the other files
            staging.flush([COPY, chunks.DOCUMENT])
            staging.local.rename(groups.place.local)
            flush(groups.place.local.parent)
        except OSError as error:
            shutil.rmtree(locks.path, ignore_errors=True)
            raise groups.place.unwritable(error) from error
    return True


def mend(groups: Groups) -> None:
    """Rewrite metadata and coordinates that a power cut has torn.

    Args:
        groups: the store.
    """
    wanted = documents(groups)

    def torn() -> list[str]:
        files = zip(wanted, groups.place.get(list(wanted)), strict=True)
        return [key for key, document in files if document != wanted[key]]

    if not torn():
        return
    gate: AbstractContextManager = nullcontext()
    if groups.locks is not None:
        gate = groups.locks.gate()
    with gate:
        broken = torn()
        groups.place.restore({key: wanted[key] for key in broken})
        groups.place.flush(broken)


def documents(groups: Groups) -> dict[str, bytes]:
    """Make all files that exist before the first group.

    Args:
        groups: the store.

    Returns:
        Bytes by key: the root's document comes last, its copy before it.
    """
    arrays = {name: _array(groups, name, field) for name, field in groups.arrays.items()}
    files = {}
    for name, (dims, values) in groups.coordinates.items():
        arrays[name] = Array(
            values.shape, values.shape, chunks.dtype_name(values), dims, _described(groups, name)
        )
        files[chunks.key(name, [0] * values.ndim)] = chunks.encode(values)
    width = 2 + len(groups.arrays)
    # the mark is internal to the store and not listed for readers
    columns = {"columns": ["group", "digest of the settings", *groups.arrays]}
    arrays["mark"] = Array(
        (groups.count, width), (1, width), "int64", ("mark_group", "mark_column"), columns
    )
    attributes = dict(groups.identity)
    beside = [name for name, (dims, _) in groups.coordinates.items() if dims != (name,)]
    if beside or groups.beside:
        # the CF conventions, and xarray, read names of coordinates from this attribute
        attributes["coordinates"] = " ".join([*beside, *groups.beside])
    documents = chunks.documents(attributes, arrays, ["mark"])
    root = documents.pop(chunks.DOCUMENT)
    return files | documents | {COPY: chunks.sealed(root), chunks.DOCUMENT: root}


def _array(groups: Groups, name: str, field: Field) -> Array:
    whole = tuple(axis.length for axis in groups.axes.values())
    dims = (*groups.axes, *field.dims)
    return Array(
        (*whole, *field.shape),
        (*groups.chunk, *field.shape),
        field.dtype,
        dims,
        _described(groups, name),
    )


def _described(groups: Groups, name: str) -> Mapping[str, Any]:
    return groups.attributes.get(name) or labels.attributes(name)
