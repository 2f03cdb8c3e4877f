"""Create a store, or open an existing store of the same sweep."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxstab.checks import check_count
from jaxstab.store import chunks
from jaxstab.store.creation import create, mend
from jaxstab.store.fields import Axis, Field
from jaxstab.store.fingerprint import differences, plain
from jaxstab.store.groups import Groups
from jaxstab.store.places import Place
from jaxstab.store.roots import described, find_root, is_foreign


class OtherSweepError(ValueError):
    """Error of opening a store of another sweep; the message names the differences."""


Coordinates = Mapping[str, tuple[tuple[str, ...], Any]]


def open_groups(
    url: str | Path,
    settings: Mapping[str, Any],
    fields: Mapping[str, Field],
    groups: int,
    size: int,
    coordinates: Coordinates | None = None,
) -> Groups:
    """Create a store of equal groups of rows, or open the one of the same sweep.

    Args:
        url: a future folder, or an fsspec URL such as s3://bucket/sweep.zarr.
        settings: plain values, nested to any depth: grid, plan, checksum of the data,
            `code_version()`.
        fields: descriptions of arrays by name.
        groups: number of groups.
        size: rows of a group; the writer pads the last group.
        coordinates: (dims, values) by name, along "row" or the fields' own dims.

    Returns:
        The store.

    Raises:
        OtherSweepError: if the store is of another sweep; a ValueError that names the changes.
        ValueError: if an argument is invalid, or the store is damaged.
        FileExistsError: if the place exists and is no such store; it is left unchanged.
        OSError: if the place cannot be written to.

    Example:
        >>> fields = {"loss": Field((), "float32", ())}
        >>> sweep = open_groups("memory://doctest/a.zarr", {"width": 8}, fields, groups=2, size=3)
        >>> sweep.write(0, {"loss": np.array([0.5, 0.25, 0.125], np.float32)})
        >>> sweep.finished()
        {0}
        >>> open_groups("memory://doctest/a.zarr", {"width": 9}, fields, groups=2, size=3)
        Traceback (most recent call last):
            ...
        jaxstab.store.opening.OtherSweepError: ... holds another sweep (width: 8 -> 9); choose
        another place
    """
    for name, value in (("groups", groups), ("size", size)):
        check_count(name, value, 1)
    return open_grid(url, settings, fields, {"row": Axis(groups * size, size)}, coordinates)


def open_grid(
    url: str | Path,
    settings: Mapping[str, Any],
    fields: Mapping[str, Field],
    axes: Mapping[str, Axis],
    coordinates: Coordinates | None = None,
) -> Groups:
    """Create a store over the axes of a grid, or open the one of the same sweep.

    Args:
        url: a future folder, or an fsspec URL.
        settings: plain values, as in `open_groups`.
        fields: descriptions of one cell's arrays by name.
        axes: axes that all fields share, by name.
        coordinates: (dims, values) by name.

    Returns:
        The store.

    Raises:
        OtherSweepError: if the store is of another sweep; a ValueError that names the changes.
        ValueError: if an argument is invalid, or the store is damaged.
        FileExistsError: if the place exists and is no such store; it is left unchanged.
        OSError: if the place cannot be written to.

    Example:
        >>> axes = {"seed": Axis(3, 2), "sigma_w": Axis(2, 2)}
        >>> known = {"sigma_w": (("sigma_w",), [0.5, 1.5])}
        >>> sweep = open_grid("memory://doctest/g.zarr", {}, {"c": Field((), "float32", ())}, axes, known)
        >>> sweep.write(1, {"c": np.ones((2, 2), np.float32)})
        >>> from jaxstab.store import load
        >>> load("memory://doctest/g.zarr").c.sel(sigma_w=1.5).values.tolist()
        [nan, nan, 1.0]
    """
    known = {
        name: (tuple(dims), np.asarray(values))
        for name, (dims, values) in (coordinates or {}).items()
    }
    wanted = Groups(Place(url), plain(settings), dict(fields), dict(axes), known)
    if not wanted.place.exists():
        create(wanted)
    root = find_root(wanted.place)
    if root is not None:
        held = described(wanted.place, root)
        if wanted.axes and not held.axes:
            raise FileExistsError(
                f"{url} exists and is a finished dataset, not a sweep; choose another place"
            )
        changed = differences(held.identity, wanted.identity)
        if changed:
            raise OtherSweepError(f"{url} holds another sweep ({changed}); choose another place")
        # 4 and 4.0 are equal but have different digests
        wanted = dataclasses.replace(wanted, settings=held.settings)
    elif not _lost_its_root(wanted):
        raise FileExistsError(f"{url} exists and is not a sweep; choose another place")
    mend(wanted)
    return wanted


def _lost_its_root(wanted: Groups) -> bool:
    """Check by names and marks whether a place without a whole root is this store."""
    place = wanted.place
    if is_foreign(place.get([chunks.DOCUMENT])[0]):
        return False
    entries = set(place.sizes("")) - {chunks.DOCUMENT, f".{chunks.DOCUMENT}.partial"}
    if not entries or not entries <= {*wanted.fields, *wanted.coordinates, "done", "mark"}:
        return False
    # behind a URL a killed run may have written only fields, which come first
    if place.local is not None and "mark" not in entries:
        return False
    marks = wanted.marks()
    return set(wanted.checksums(marks)) == set(marks)
