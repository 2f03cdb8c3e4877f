"""A sweep's results as they come: equal groups of rows in a zarr store, each committed whole or not at all.

An array per field has one chunk per group (`chunks`); `done` has one chunk per group as well, written last: the commit
mark. The root's attributes hold the settings. Nothing in a store depends on time, host, process or order, so two
finished stores of one sweep are equal file by file. Nothing read from a store can run code.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from jaxstab.checks import check_count
from jaxstab.store import chunks
from jaxstab.store.chunks import Field
from jaxstab.store.fingerprint import differences, plain
from jaxstab.store.locks import LockFolder
from jaxstab.store.places import Place

_FORMAT = "jaxstab groups 1"
_MARK = chunks.encode(np.array([True]))
# bytes of chunks held at once while checking
_BATCH = 64 * 2**20


class Progress(NamedTuple):
    """How far a sweep is.

    Attributes:
        groups: how many there are.
        done: how many are committed.
        rows: rows of all groups.
        rows_done: rows of committed groups.
        settings: as the store holds them.
    """

    groups: int
    done: int
    rows: int
    rows_done: int
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Groups:
    """A store of groups; `open_groups` makes or opens one, `claim` says who computes which group.

    Attributes:
        place: where it is.
        settings: plain values: all that decides a number, or how rows are cut into groups.
        fields: the arrays by name.
        count: number of groups.
        size: rows of a group.
    """

    place: Place
    settings: dict[str, Any]
    fields: dict[str, Field]
    count: int
    size: int

    def __post_init__(self) -> None:
        """Check what Python can know.

        Raises:
            ValueError: if a number, name, dtype or shape is not what a store can hold.
        """
        for name, value in (("groups", self.count), ("size", self.size)):
            check_count(name, value, 1)
        chunks.check_fields(self.fields)

    @property
    def attributes(self) -> dict[str, Any]:
        """The root's attributes: all that two runs must have in common."""
        fields = {name: plain(field._asdict()) for name, field in self.fields.items()}
        own = {"format": _FORMAT, "settings": plain(self.settings), "fields": fields}
        return own | {"groups": self.count, "size": self.size}

    @property
    def locks(self) -> LockFolder | None:
        """The locks beside a local store."""
        return None if self.place.local is None else LockFolder(self.place.local)

    def finished(self, groups: Iterable[int] | None = None) -> set[int]:
        """Which groups are whole: marked, and every field's chunk there with the right checksum.

        Reads every byte of those groups; `marks` only lists marks.

        Args:
            groups: which to look at; None for all.

        Returns:
            Those that are whole. All others are to be computed, torn ones too.
        """
        wanted = range(self.count) if groups is None else groups
        return {group for group, values in self.read(wanted) if values is not None}

    def read(self, groups: Iterable[int]) -> Iterator[tuple[int, dict[str, np.ndarray] | None]]:
        """Values of groups, one after the other.

        Args:
            groups: which.

        Yields:
            A group and its fields' arrays [size, *shape], or None in their place if it is not whole.
        """
        todo = list(groups)
        step = max(1, _BATCH // (self.size * sum(map(chunks.row_bytes, self.fields.values()))))
        for start in range(0, len(todo), step):
            batch = todo[start : start + step]
            marks = self.place.get([self._mark(group) for group in batch])
            marked = {group: None for group, mark in zip(batch, marks, strict=True) if mark == _MARK}
            keys = [chunks.key(name, field, group) for group in marked for name, field in self.fields.items()]
            found = iter(self.place.get(keys))
            for group in batch:
                yield group, self._values(found) if group in marked else None

    def write(self, group: int, values: Mapping[str, Any]) -> None:
        """Commit a group: every field's chunk, then the mark. For whoever holds the group, see `claim`.

        Args:
            group: its number from 0.
            values: arrays [size, *shape] of exactly the fields' dtypes, by name.

        Raises:
            ValueError: if there is no such group, or the arrays are not those of the fields.
            OSError: if the store cannot be written to; the group then does not count as finished.
        """
        if not 0 <= group < self.count:
            raise ValueError(f"group must be in 0..{self.count - 1}, got {group}")
        if set(values) != set(self.fields):
            raise ValueError(f"values must be those of {', '.join(self.fields)}, got {', '.join(values)}")
        arrays = {name: np.asarray(values[name]) for name in self.fields}
        for name, field in self.fields.items():
            wanted, got = (self.size, *field.shape), arrays[name]
            if got.shape != wanted or got.dtype != np.dtype(field.dtype):
                raise ValueError(f"{name} must be {field.dtype}{list(wanted)}, got {got.dtype}{list(got.shape)}")
        for name, field in self.fields.items():
            self.place.put(chunks.key(name, field, group), chunks.encode(arrays[name]))
        self.place.put(self._mark(group), _MARK)

    def marked(self, group: int) -> bool:
        """Whether a group has a mark, right or torn.

        Args:
            group: its number.

        Returns:
            Whether it has.
        """
        return self.place.get([self._mark(group)]) != [None]

    def unmark(self, group: int) -> None:
        """Take a group's mark away, so that a torn one does not count while it is computed again.

        Args:
            group: its number.
        """
        self.place.remove(self._mark(group))

    def marks(self) -> list[int]:
        """Which groups are marked as done: one listing, no chunk is looked at.

        Returns:
            Those with a mark of the right length, ascending.
        """
        marks = (name.removeprefix("c.") for name, size in self.place.sizes("done").items() if size == len(_MARK))
        return sorted({int(mark) for mark in marks if mark.isdecimal() and int(mark) < self.count})

    def create(self) -> bool:
        """Make the store, whole or not at all. Of several processes exactly one makes it.

        Behind a URL the root's document comes last, and only if there is none, where the backend can tell.

        Returns:
            Whether this process made it.

        Raises:
            OSError: if it cannot be written.
        """
        documents, locks = self._documents(), self.locks
        if locks is None:
            return self.place.fill(documents)
        with locks.gate():
            if self.place.exists():
                return False
            staging = locks.path / "new"
            try:
                shutil.rmtree(staging, ignore_errors=True)
                Place(staging).fill(documents)
                staging.rename(str(self.place.local))
            except OSError as error:
                shutil.rmtree(locks.path, ignore_errors=True)
                raise self.place.unwritable(error) from error
        return True

    def mend(self) -> None:
        """Write metadata of arrays anew where it is not this store's: a power cut may tear it."""
        # the root's was read and compared
        wanted = {key: document for key, document in self._documents().items() if key != chunks.DOCUMENT}

        def torn() -> list[str]:
            found = zip(wanted, self.place.get(list(wanted)), strict=True)
            return [key for key, document in found if document != wanted[key]]

        if not torn():
            return
        with contextlib.nullcontext() if self.locks is None else self.locks.gate():
            for key in torn():
                self.place.put(key, wanted[key])

    def _documents(self) -> dict[str, bytes]:
        return chunks.documents(self.attributes, self.fields, self.count, self.size)

    def _mark(self, group: int) -> str:
        return chunks.key("done", chunks.MARK, group)

    def _values(self, found: Iterator[bytes | None]) -> dict[str, np.ndarray] | None:
        """The next chunk of every field; None if any is missing or torn."""
        values = {name: chunks.decode(next(found), field, self.size) for name, field in self.fields.items()}
        whole = {name: value for name, value in values.items() if value is not None}
        return whole if len(whole) == len(values) else None


def open_groups(
    url: str | Path, settings: Mapping[str, Any], fields: Mapping[str, Field], groups: int, size: int
) -> Groups:
    """Make a store of groups, or open the one that is there if it is of the same sweep.

    Args:
        url: a folder to be, or an fsspec URL such as s3://bucket/sweep.zarr.
        settings: plain values, nested as they like: grid, plan, checksum of the data, `code_version()`.
        fields: the arrays by name.
        groups: number of groups.
        size: rows of a group; the last one is filled up by its writer.

    Returns:
        The store.

    Raises:
        ValueError: if an argument will not do, or the store is of another sweep (says what changed) or damaged.
        FileExistsError: if something that is no such store stands there; it is left alone.
        OSError: if the place cannot be written to.

    Example:
        >>> fields = {"loss": Field((), "float32", ())}
        >>> sweep = open_groups("memory://doctest/a.zarr", {"width": 8}, fields, groups=2, size=3)
        >>> sweep.write(0, {"loss": np.array([0.5, 0.25, 0.125], np.float32)})
        >>> sweep.finished()
        {0}
        >>> open_groups("memory://doctest/a.zarr", {"width": 9}, fields, groups=2, size=3)
        Traceback (most recent call last):
        ValueError: memory://doctest/a.zarr holds another sweep (width: 8 -> 9); choose another place
    """
    wanted = Groups(Place(url), plain(settings), dict(fields), groups, size)
    place = wanted.place
    if not place.exists():
        wanted.create()
    if not place.exists(chunks.DOCUMENT):
        # behind a URL a killed run may have left a store without its root
        if place.local is not None or not set(place.sizes("")) <= {"done", *fields}:
            raise FileExistsError(f"{url} exists and is not a sweep; choose another place")
        wanted.create()
    found = _read(place)
    changed = differences(found.attributes, wanted.attributes)
    if changed:
        raise ValueError(f"{url} holds another sweep ({changed}); choose another place")
    wanted.mend()
    return wanted


def load_groups(url: str | Path) -> xr.Dataset:
    """Read a store of groups, finished or not, into memory.

    Args:
        url: a folder or an fsspec URL.

    Returns:
        The fields over (row, ...), NaN, -1 or False in rows of groups that are not whole, and `done` over row, which
        says which are; the settings as attributes.

    Raises:
        ValueError: if there is no store, or it is damaged or another kind.

    Example:
        >>> sweep = open_groups("memory://doctest/c.zarr", {}, {"loss": Field((), "float32", ())}, groups=2, size=2)
        >>> sweep.write(1, {"loss": np.float32([0.5, 0.25])})
        >>> found = load_groups("memory://doctest/c.zarr")
        >>> found.loss.values.tolist(), found.done.values.tolist()
        ([nan, nan, 0.5, 0.25], [False, False, True, True])
    """
    store = _read(Place(url))
    rows = store.count * store.size
    try:
        arrays = {name: chunks.empty(field, rows) for name, field in store.fields.items()}
    except (MemoryError, ValueError) as error:
        needed = rows * sum(map(chunks.row_bytes, store.fields.values()))
        raise ValueError(f"{url}: its {needed} bytes do not fit into memory") from error
    done = np.zeros(rows, bool)
    for group, values in store.read(range(store.count)):
        part = slice(group * store.size, (group + 1) * store.size)
        done[part] = values is not None
        for name, value in (values or {}).items():
            arrays[name][part] = value
    variables = {name: (("row", *field.dims), arrays[name]) for name, field in store.fields.items()}
    return xr.Dataset(variables | {"done": ("row", done)}, attrs=store.settings)


def column(url: str | Path, name: str) -> np.ndarray:
    """One field of the groups that are marked as done, nothing else being read.

    Args:
        url: a folder or an fsspec URL.
        name: of the field.

    Returns:
        Its rows, group by group; those whose chunk is torn are left out.

    Raises:
        ValueError: if there is no store, it is damaged or another kind, or has no such field.

    Example:
        >>> sweep = open_groups("memory://doctest/d.zarr", {}, {"loss": Field((), "float32", ())}, groups=9, size=2)
        >>> sweep.write(5, {"loss": np.float32([0.5, 0.25])})
        >>> column("memory://doctest/d.zarr", "loss").tolist()
        [0.5, 0.25]
    """
    store = _read(Place(url))
    if name not in store.fields:
        raise ValueError(f"{url}: no field {name!r}; there are {', '.join(store.fields)}")
    field, place = store.fields[name], store.place
    keys = [chunks.key(name, field, group) for group in store.marks()]
    found = (chunks.decode(chunk, field, store.size) for chunk in place.get(keys))
    whole = [values for values in found if values is not None]
    return np.concatenate(whole) if whole else chunks.empty(field, 0)


def progress(url: str | Path) -> Progress:
    """How far a sweep is, by its marks alone; takes no lock.

    Args:
        url: a folder or an fsspec URL.

    Returns:
        Groups and rows, all and done, with the settings.

    Raises:
        ValueError: if there is no store, or it is damaged or another kind.

    Example:
        >>> sweep = open_groups("memory://doctest/e.zarr", {}, {"loss": Field((), "float32", ())}, groups=9, size=2)
        >>> sweep.write(5, {"loss": np.float32([0.5, 0.25])})
        >>> progress("memory://doctest/e.zarr")[:4]
        (9, 1, 18, 2)
    """
    store = _read(Place(url))
    done = len(store.marks())
    return Progress(store.count, done, store.count * store.size, done * store.size, store.settings)


def _read(place: Place) -> Groups:
    """The store that is there, from its root's document alone."""
    (document,) = place.get([chunks.DOCUMENT])
    if document is None:
        raise ValueError(f"{place.url}: {'not a sweep' if place.exists() else 'no such store'}")
    try:
        attributes = json.loads(document).get("attributes", {})
        if attributes.get("format") != _FORMAT:
            raise ValueError(f"{place.url}: not a sweep, or one of another version")
        fields = {
            str(name): Field(tuple(field["shape"]), str(field["dtype"]), tuple(map(str, field["dims"])))
            for name, field in attributes["fields"].items()
        }
        return Groups(place, dict(attributes["settings"]), fields, attributes["groups"], attributes["size"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if str(error).startswith(f"{place.url}: "):
            raise
        raise ValueError(f"{place.url}: damaged store ({type(error).__name__}: {error})") from error
