"""Read stores into memory: a whole one, one field, or its progress."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from jaxstab.store import chunks
from jaxstab.store.fields import Field, cell_bytes, check_fields, part
from jaxstab.store.groups import Groups
from jaxstab.store.places import Place
from jaxstab.store.roots import Root, check_memory, described, read_root

# bytes of a local store up to which `progress` reads every chunk
_READ = 2**30
# bytes in memory that the root of any store may claim
_BLANK = 2**30
# further bytes for each byte of the store, of which one group in thousands may be finished
_CLAIM = 2**13


class Progress(NamedTuple):
    """Progress of a sweep.

    Attributes:
        groups: number of groups.
        done: number of committed and whole groups.
        rows: number of cells of all groups.
        rows_done: number of cells of committed groups.
        settings: settings of the store.
        torn: number of damaged groups, which will be recomputed.
        read: True if every byte was read; otherwise flipped bits go undetected.
    """

    groups: int
    done: int
    rows: int
    rows_done: int
    settings: dict[str, Any]
    torn: int
    read: bool


def load_groups(url: str | Path) -> xr.Dataset:
    """Read a store, finished or not, into memory.

    Args:
        url: a folder or an fsspec URL.

    Returns:
        Fields, NaN, -1 or False in groups that are not whole; `done`, the mask of computed cells;
        coordinates; and settings as attributes. For a store without shared axes, the saved
        dataset.

    Raises:
        ValueError: if there is no store, or it is damaged or of another kind.

    Example:
        >>> from jaxstab.store.opening import open_groups
        >>> sweep = open_groups("memory://doctest/c.zarr", {}, {"loss": Field((), "float32", ())}, groups=2, size=2)
        >>> sweep.write(1, {"loss": np.float32([0.5, 0.25])})
        >>> found = load_groups("memory://doctest/c.zarr")
        >>> found.loss.values.tolist(), found.done.values.tolist()
        ([nan, nan, 0.5, 0.25], [False, False, True, True])
    """
    place = Place(url)
    root = read_root(place)
    store = described(place, root)
    lengths = tuple(axis.length for axis in store.axes.values())
    needed = math.prod(lengths) * sum(map(cell_bytes, store.fields.values()))
    check_memory(url, needed)
    _check_claim(place, needed)
    arrays = {name: chunks.empty(field, lengths) for name, field in store.fields.items()}
    done = np.zeros(lengths, bool)
    for group, values in store.read(store.marks()):
        if values is None:
            continue
        slices = part(store.axes, group)
        done[slices] = True
        for name, value in values.items():
            # the last group along an axis may extend beyond its end
            inside = tuple(slice(part.stop - part.start) for part in slices)
            arrays[name][slices] = value[inside]
    if not store.axes and not done:
        raise ValueError(f"{url}: damaged store (its data are missing or torn)")
    variables: dict[str, Any] = {
        name: ((*store.axes, *f.dims), arrays[name]) for name, f in store.fields.items()
    }
    if store.axes:
        variables["done"] = (tuple(store.axes), done)
    dataset = xr.Dataset(variables, _coordinates(place, root, store), store.settings)
    for labelled, variable in dataset.variables.items():
        variable.attrs = dict(store.attributes.get(str(labelled), {}))
    return dataset.set_coords([name for name in store.beside if name in dataset])


def _check_claim(place: Place, needed: int) -> None:
    """Check that a store is large enough for the size that its root claims, before allocating."""
    if needed <= _BLANK:
        return
    held = sum(place.listing().values())
    if needed > _BLANK + _CLAIM * held:
        raise ValueError(
            f"{place.url}: damaged, or hardly begun: its root claims {needed} bytes, its files "
            f"hold {held}"
        )


def column(url: str | Path, name: str) -> np.ndarray:
    """Read one field of the committed groups, and no other.

    Args:
        url: a folder or an fsspec URL.
        name: name of the field.

    Returns:
        Cells of the field, group by group, without torn groups.

    Raises:
        ValueError: if there is no store, it is damaged or of another kind, or has no such field.

    Example:
        >>> from jaxstab.store.opening import open_groups
        >>> sweep = open_groups("memory://doctest/d.zarr", {}, {"loss": Field((), "float32", ())}, groups=9, size=2)
        >>> sweep.write(5, {"loss": np.float32([0.5, 0.25])})
        >>> column("memory://doctest/d.zarr", "loss").tolist()
        [0.5, 0.25]
    """
    place = Place(url)
    store = described(place, read_root(place))
    if name not in store.fields:
        raise ValueError(f"{url}: no field {name!r}; there are {', '.join(store.fields)}")
    field = store.fields[name]
    whole = [values.reshape(-1, *field.shape) for values in store.column(name)]
    if whole:
        return np.concatenate(whole)
    return chunks.empty(field, (0,))


def progress(url: str | Path) -> Progress:
    """Read the progress of a sweep, without a lock.

    Marks and lengths of all files are checked, and every byte of a local store of up to a GiB.

    Args:
        url: a folder or an fsspec URL.

    Returns:
        Counts of groups and cells, and the settings.

    Raises:
        ValueError: if there is no store, or it is damaged or of another kind.

    Example:
        >>> from jaxstab.store.opening import open_groups
        >>> sweep = open_groups("memory://doctest/e.zarr", {}, {"loss": Field((), "float32", ())}, groups=9, size=2)
        >>> sweep.write(5, {"loss": np.float32([0.5, 0.25])})
        >>> progress("memory://doctest/e.zarr")[:4]
        (9, 1, 18, 2)
    """
    place = Place(url)
    store = described(place, read_root(place))
    if not store.axes:
        raise ValueError(f"{url}: not a sweep but a finished dataset")
    listing = place.listing()
    read = place.local is not None and sum(listing.values()) <= _READ
    keys = store.present(listing)
    whole: Collection[int] = keys
    if read:
        whole = store.finished(keys)
    # a group that another run commits meanwhile is not torn
    torn = len(set(store.marks_in(listing)) - set(whole))
    done = len(whole)
    return Progress(
        groups=store.count,
        done=done,
        rows=store.count * store.size,
        rows_done=done * store.size,
        settings=store.settings,
        torn=torn,
        read=read,
    )


def _coordinates(place: Place, root: Root, store: Groups) -> dict[str, Any]:
    """Read the coordinates that are whole; opening the store for another run mends torn ones."""
    coordinates = {}
    for name, array in root["consolidated_metadata"]["metadata"].items():
        if name in store.fields or name == "done":
            continue
        try:
            if array["data_type"] == "string":
                kind = "str"
            else:
                kind = str(array["data_type"])
            field = Field(tuple(array["shape"]), kind, tuple(map(str, array["dimension_names"])))
            check_fields({str(name): field})
            check_memory(place.url, cell_bytes(field))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{place.url}: damaged store (coordinate {name}: {error})") from error
        key = chunks.key(name, [0] * len(field.shape))
        (chunk,) = place.get([key], [chunks.chunk_bytes(field, ())])
        values = chunks.decode(chunk, field, ())
        if values is not None:
            coordinates[str(name)] = (field.dims, values)
    return coordinates
