"""A finished dataset in a zarr store, written whole."""

import datetime
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import xarray as xr

_PACKAGES = ("jaxstab", "jax", "jaxlib", "flax", "numpy", "scipy", "xarray", "zarr")


def check_writable(path: str | Path, overwrite: bool = False) -> Path:
    """Refuse a place where a store cannot go, before anything is computed for it.

    Args:
        path: the store to be.
        overwrite: whether an existing store may be replaced.

    Returns:
        The path.

    Raises:
        FileExistsError: if the store exists and overwrite is False, or something that is no store stands there.
        OSError: if the folder cannot be written to.
    """
    path = Path(path)
    if path.exists():
        if not _is_store(path):
            raise FileExistsError(f"{path} exists and is not a jaxstab store; choose another place")
        if not overwrite:
            raise FileExistsError(f"{path} exists; pass --overwrite to replace it, or choose another place")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {path.parent}: {error.strerror or error}") from error
    return path


def provenance() -> dict[str, str]:
    """Versions, platform, device, time and command: what another needs to repeat a result.

    Returns:
        Attributes for a dataset.
    """
    versions = {f"version_{name}": importlib.metadata.version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    return versions | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": f"{device.platform}: {device.device_kind}, {jax.device_count()}",
        "x64": str(jax.config.read("jax_enable_x64")),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def save(dataset: xr.Dataset, path: str | Path, overwrite: bool = False) -> Path:
    """Write a dataset with its provenance; the store appears whole or not at all.

    Args:
        dataset: what to keep.
        path: the store, a folder.
        overwrite: whether an existing store may be replaced.

    Returns:
        The path.

    Raises:
        FileExistsError: if the store exists and overwrite is False, or something that is no store stands there.
        OSError: if the folder cannot be written to.
    """
    path = check_writable(path, overwrite)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as staging:
        whole = Path(staging) / "store"
        # format 2: its strings and consolidated metadata are settled, format 3's are not yet
        dataset.assign_attrs(provenance()).to_zarr(whole, mode="w", zarr_format=2, consolidated=True)
        if path.exists():
            # the old store leaves only when the new one is complete
            path.rename(Path(staging) / "old")
        shutil.move(whole, path)
    return path


def load(path: str | Path) -> xr.Dataset:
    """Read a stored dataset, into memory.

    Args:
        path: the store.

    Returns:
        The dataset.

    Raises:
        ValueError: if there is no store, or it cannot be read.
    """
    path = Path(path)
    if not _is_store(path):
        raise ValueError(f"{path}: no such store" if not path.exists() else f"{path}: not a jaxstab store")
    try:
        return xr.load_dataset(path, engine="zarr", consolidated=True)
    except Exception as error:
        raise ValueError(f"{path}: damaged store ({type(error).__name__}: {error})") from error


def _is_store(path: Path) -> bool:
    return (path / ".zmetadata").is_file()
