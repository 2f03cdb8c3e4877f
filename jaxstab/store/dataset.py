"""A finished dataset in a zarr store, written whole."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from jaxstab.store import chunks, creation
from jaxstab.store.fields import DTYPES, Field
from jaxstab.store.files import check_folder
from jaxstab.store.fingerprint import plain
from jaxstab.store.groups import OWN, Groups
from jaxstab.store.places import Place, flush, unwritable
from jaxstab.store.reading import load_groups
from jaxstab.store.roots import find_root, read_root

_PACKAGES = ("jaxstab", "jax", "jaxlib", "flax", "numpy", "scipy", "xarray", "zarr")


def check_writable(path: str | Path, overwrite: bool = False) -> Path:
    """Check that a store can be written at a place, before anything is computed.

    Args:
        path: the store to be.
        overwrite: whether an existing store may be replaced.

    Returns:
        The path.

    Raises:
        FileExistsError: if the store exists and overwrite is False, or the path exists and is no
            store.
        OSError: if the folder cannot be written to.
    """
    path = Path(path)
    target = _target(path)
    if target.is_symlink():
        raise FileExistsError(f"{path} is a broken link")
    with contextlib.suppress(OSError):
        _settle(target)
    if target.exists():
        if not _is_store(target):
            raise FileExistsError(f"{path} exists and is not a jaxstab store; choose another place")
        if not overwrite:
            raise FileExistsError(
                f"{path} exists; pass --overwrite to replace it, or choose another place"
            )
    check_folder(target.parent)
    return path


def versions() -> dict[str, str]:
    """Return the versions of the packages that make a result.

    Returns:
        Attributes for a dataset.
    """
    return {f"version_{name}": importlib.metadata.version(name) for name in _PACKAGES}


def provenance() -> dict[str, str]:
    """Collect what is needed to repeat a result: versions, platform, device, time and command.

    Returns:
        Attributes for a dataset.
    """
    device = jax.devices()[0]
    return versions() | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": f"{device.platform}: {device.device_kind}, {jax.device_count()}",
        "x64": str(jax.config.read("jax_enable_x64")),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def save(
    dataset: xr.Dataset,
    path: str | Path,
    overwrite: bool = False,
    made: Mapping[str, str] | None = None,
) -> Path:
    """Write a dataset with its provenance; the store is whole or absent.

    The new store is flushed to the disk before an existing one is moved aside. If the new one
    cannot be moved into place, the old one is moved back.

    Args:
        dataset: numbers, bools and text, with attributes that JSON can hold.
        path: the store, a folder; the target of a link is replaced, not the link.
        overwrite: whether an existing store may be replaced.
        made: attributes of provenance; None for `provenance()`.

    Returns:
        The path.

    Raises:
        FileExistsError: if the store exists and overwrite is False, or the path exists and is no
            store.
        OSError: if the folder cannot be written to.
        ValueError: if the dataset holds values that a store cannot.
    """
    path = check_writable(path, overwrite)
    target = _target(path)
    if made is None:
        made = provenance()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as staging:
            whole = Path(staging) / "store"
            _write(dataset.assign_attrs(made), whole, path)
            _swap(whole, target)
    except OSError as error:
        raise OSError(unwritable(path, error)) from error
    return path


def _write(dataset: xr.Dataset, path: Path, named: Path) -> None:
    """Write a dataset as a store of one group, with `named` as its place in messages."""
    values = {
        str(name): _stored(str(name), variable.values)
        for name, variable in dataset.variables.items()
    }
    fields = {
        str(name): Field(
            variable.shape, chunks.dtype_name(values[str(name)]), tuple(map(str, variable.dims))
        )
        for name, variable in dataset.variables.items()
    }
    beside = tuple(str(name) for name in dataset.coords if name not in dataset.dims)
    texts = {
        str(name): plain(variable.attrs)
        for name, variable in dataset.variables.items()
        if variable.attrs
    }
    settings = plain(dataset.attrs, "attributes")
    store = Groups(Place(path, named), settings, fields, {}, beside=beside, attributes=texts)
    documents = creation.documents(store)
    store.place.fill(documents)
    store.write(0, values)
    store.place.flush(list(store.place.listing()))
    flush(path.parent)


def _stored(name: str, values: np.ndarray) -> np.ndarray:
    """Convert values to strings, or to numbers of a dtype that a store holds."""
    if values.dtype.kind in "UT" or all(isinstance(value, str) for value in values.ravel()):
        return values.astype(str)
    if values.dtype.name not in DTYPES:
        raise ValueError(
            f"{name} must be text or of dtype {', '.join(DTYPES[:-1])}, got {values.dtype}"
        )
    return values


def _target(path: Path) -> Path:
    """Return the target of a link to a store, as for the locks; a circular link is returned."""
    return Path(os.path.realpath(path))


def _swap(new: Path, path: Path) -> None:
    """Move a finished store into place, then remove the old one."""
    aside = _aside(path)
    if not path.exists():
        new.rename(path)
        return
    path.rename(aside)
    try:
        new.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    flush(path.parent)
    shutil.rmtree(aside)


def _aside(path: Path) -> Path:
    """Return the path of a store that is being replaced."""
    return path.with_name(f".{path.name}.replaced")


def _settle(path: Path) -> None:
    """Finish the replacement of a store that a killed run began."""
    aside = _aside(path)
    if aside.exists():
        if path.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(path)


def load(path: str | Path) -> xr.Dataset:
    """Read a store into memory: a saved dataset, or groups of cells, finished or not.

    Args:
        path: the store, a folder or an fsspec URL.

    Returns:
        The dataset. Cells that are not computed hold NaN, -1 or False, and False in `done`.

    Raises:
        ValueError: if there is no store, or it cannot be read.
    """
    if "://" in str(path):
        return load_groups(path)
    place = _target(Path(path))
    if not place.exists() and _aside(place).exists():
        place = _aside(place)
    if not place.exists():
        raise ValueError(f"{path}: no such store")
    if (place / ".zmetadata").is_file():
        raise ValueError(f"{path}: a store of an earlier version; measure again with --overwrite")
    if not _is_store(place):
        raise ValueError(f"{path}: not a jaxstab store")
    return load_groups(place)


def attributes(path: str | Path) -> dict[str, Any]:
    """Read the attributes of a stored dataset without its arrays.

    Args:
        path: the store, or an fsspec URL.

    Returns:
        The attributes.

    Raises:
        ValueError: if there is no store, or its root is damaged.
    """
    settings = dict(read_root(Place(path))["attributes"])
    return {name: value for name, value in settings.items() if name not in (OWN, "coordinates")}


def remove(path: str | Path) -> None:
    """Remove a local store, if it exists.

    A killed call leaves the store whole, or a hidden folder that the next call removes.

    Args:
        path: the store; the target of a link is removed, not the link.

    Raises:
        OSError: if the store cannot be removed.
    """
    target = _target(Path(path))
    aside = target.with_name(f".{target.name}.removed")
    if aside.exists():
        shutil.rmtree(aside)
    if target.exists():
        target.rename(aside)
        shutil.rmtree(aside)


def _is_store(path: Path) -> bool:
    """Check whether a folder is a store of any version, damaged or not."""
    ours = (path / chunks.DOCUMENT).is_file() and (path / "mark").is_dir()
    return ours or (path / ".zmetadata").is_file() or find_root(Place(path)) is not None
