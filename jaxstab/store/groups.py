"""Labelled arrays in a zarr store, committed group by group; each group is whole or absent.

All fields share some axes (the cells of a sweep), which are cut into groups. The array of a field
has one chunk per group (`chunks`). The mark of a group is written last. It holds the group's
number, a digest of the store's settings, and the checksum of each chunk of the group. A store
without shared axes is one group, a finished dataset. Nothing in a store of groups depends on time,
host, process or order, so two finished stores of one sweep are equal file by file. Nothing read
from a store can run code. The root's document is stored twice; a whole copy repairs a torn one.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxstab.store import chunks
from jaxstab.store.fields import Axis, Field, cell_bytes, check_axes, check_fields, index_of
from jaxstab.store.fingerprint import plain
from jaxstab.store.locks import LockFolder
from jaxstab.store.places import Place

FORMAT = "jaxstab store 3"
# attribute of the root that describes the arrays
OWN = "jaxstab"
# copy of the root's document, with a checksum
COPY = "mark/root"
_MARK = re.compile(r"mark/c\.(\d{1,18})\.0")
_DONE = Field((), "bool", ())
_RESERVED = ("done", "mark", "row", "group")
# bytes of chunks held at once while checking
_BATCH = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Groups:
    """Store of groups; `open_groups` or `open_grid` makes or opens one.

    Attributes:
        place: place of the store.
        settings: plain values of everything that results, or the cut into groups, depend on.
        fields: descriptions of arrays by name.
        axes: axes that all fields share, by name; empty for a store of one group.
        coordinates: (dims, values) by name, known before anything is computed.
        beside: names of fields that are coordinates.
        attributes: attributes of arrays by name, in place of those in `labels`.
    """

    place: Place
    settings: dict[str, Any]
    fields: dict[str, Field]
    axes: dict[str, Axis]
    coordinates: dict[str, tuple[tuple[str, ...], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    beside: tuple[str, ...] = ()
    attributes: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names, dtypes and shapes.

        Raises:
            ValueError: if a store cannot hold a number, name, dtype or shape.
        """
        check_axes(self.axes)
        reserved: tuple[str, ...] = ("mark",)
        if self.axes:
            reserved = _RESERVED
        check_fields(self.fields, tuple(self.axes), reserved)
        if self.coordinates:
            given = {
                name: Field(values.shape, "str", dims)
                for name, (dims, values) in self.coordinates.items()
            }
            check_fields(given, (), (*_RESERVED, *self.fields))
        taken = {OWN, "coordinates"} & set(self.settings)
        if taken:
            raise ValueError(f"settings must have other names than {', '.join(sorted(taken))}")

    @property
    def count(self) -> int:
        """Number of groups."""
        return math.prod(axis.groups for axis in self.axes.values())

    @property
    def chunk(self) -> tuple[int, ...]:
        """Number of cells of a group along every axis."""
        return tuple(axis.chunk for axis in self.axes.values())

    @property
    def size(self) -> int:
        """Number of cells of a group."""
        return math.prod(self.chunk)

    @property
    def identity(self) -> dict[str, Any]:
        """Settings, fields and axes, which must be equal in all runs of one store."""
        fields = {name: plain(field._asdict()) for name, field in self.fields.items()}
        axes = {name: plain(axis._asdict()) for name, axis in self.axes.items()}
        # the order of the axes gives a group's place, and JSON's objects have no order
        own = {"format": FORMAT, "fields": fields, "axes": axes, "order": list(axes)}
        return plain(self.settings) | {OWN: own}

    @functools.cached_property
    def digest(self) -> int:
        """Digest of the identity, for the marks."""
        text = json.dumps(self.identity, sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")

    @property
    def locks(self) -> LockFolder | None:
        """Locks beside a local store."""
        if self.place.local is None:
            return None
        return LockFolder(self.place.local)

    def finished(self, groups: Iterable[int] | None = None) -> set[int]:
        """Find the groups that are whole: marked, with the right checksum of every chunk.

        Reads every byte of those groups; `marks` only lists marks.

        Args:
            groups: groups to check; None for all.

        Returns:
            Groups that are whole. All others, including torn ones, are to be computed.
        """
        if groups is None:
            groups = self.marks()
        return {group for group, values in self.read(groups) if values is not None}

    def read(self, groups: Iterable[int]) -> Iterator[tuple[int, dict[str, np.ndarray] | None]]:
        """Yield the values of groups, one after the other.

        Args:
            groups: numbers of the groups.

        Yields:
            A group, and its arrays [*chunk, *shape] by field; None for a group that is not whole.
        """
        todo = list(groups)
        step = max(1, _BATCH // (self.size * sum(map(cell_bytes, self.arrays.values()))))
        for start in range(0, len(todo), step):
            batch = todo[start : start + step]
            sums = self.checksums(batch)
            keys = [self._key(name, group) for group in sums for name in self.arrays]
            lengths = [chunks.chunk_bytes(field, self.chunk) for field in self.arrays.values()]
            files = iter(self.place.get(keys, lengths * len(sums)))
            for group in batch:
                values = None
                if group in sums:
                    values = self._values(files, sums[group])
                yield group, values

    def write(self, group: int, values: Mapping[str, Any]) -> None:
        """Commit a group that the caller holds: every field's chunk, then the mark.

        Args:
            group: number of the group, from 0.
            values: arrays [*chunk, *shape] of exactly the fields' dtypes, by name.

        Raises:
            ValueError: if there is no such group, or the arrays do not fit the fields.
            OSError: if the store cannot be written to; the group then does not count as finished.
        """
        if not 0 <= group < self.count:
            raise ValueError(f"group must be in 0..{self.count - 1}, got {group}")
        if set(values) != set(self.fields):
            raise ValueError(
                f"values must be those of {', '.join(self.fields)}, got {', '.join(values)}"
            )
        arrays = {name: np.asarray(values[name]) for name in self.fields}
        for name, field in self.fields.items():
            _check_array(name, field, self.chunk, arrays[name])
        if self.axes:
            arrays["done"] = np.ones(self.chunk, bool)
        sums = []
        for name in self.arrays:
            chunk = chunks.encode(arrays[name])
            sums.append(chunks.checksum(chunk))
            self.place.put(self._key(name, group), chunk)
        mark = np.array([group, self.digest, *sums], np.int64)
        self.place.put(self._mark(group), chunks.encode(mark))

    def marked(self, group: int) -> bool:
        """Check whether a group has a mark, right or torn.

        Args:
            group: number of the group.

        Returns:
            True if the group has a mark.
        """
        return self.place.get([self._mark(group)]) != [None]

    def unmark(self, group: int) -> None:
        """Remove the mark of a torn group, so that it does not count while it is recomputed.

        Args:
            group: number of the group.
        """
        self.place.remove(self._mark(group))
        if self.axes:
            self.place.remove(self._key("done", group))

    def marks(self) -> list[int]:
        """List the groups marked as done, by one listing and without reading chunks.

        Returns:
            Groups with a mark of the right length, ascending.
        """
        return self.marks_in(
            {f"mark/{name}": size for name, size in self.place.sizes("mark").items()}
        )

    def present(self, listing: Mapping[str, int]) -> list[int]:
        """List the groups that are complete by their marks and the lengths of their files.

        Args:
            listing: bytes of files by key.

        Returns:
            Groups with a mark of this store and chunks of the right length, ascending.
        """
        lengths = {
            name: chunks.chunk_bytes(field, self.chunk) for name, field in self.arrays.items()
        }

        def complete(group: int) -> bool:
            sizes = {name: listing.get(self._key(name, group)) for name in lengths}
            return all(
                size is not None and lengths[name] in (None, size) for name, size in sizes.items()
            )

        return sorted(
            self.checksums([group for group in self.marks_in(listing) if complete(group)])
        )

    def column(self, name: str) -> Iterator[np.ndarray]:
        """Read one field of the committed groups, and no other.

        Args:
            name: name of the field.

        Yields:
            Values of the field in each group whose chunk has the committed checksum.
        """
        sums = self.checksums(self.marks())
        position = list(self.arrays).index(name)
        length = chunks.chunk_bytes(self.fields[name], self.chunk)
        contents = self.place.get([self._key(name, group) for group in sums], [length] * len(sums))
        for chunk, wanted in zip(contents, sums.values(), strict=True):
            values = chunks.decode(chunk, self.fields[name], self.chunk)
            if (
                chunk is not None
                and values is not None
                and chunks.checksum(chunk) == wanted[position]
            ):
                yield values

    @property
    def arrays(self) -> dict[str, Field]:
        """Fields of a group in the order of its mark, and `done`, the mask of computed cells."""
        whole = dict(self.fields)
        if self.axes:
            whole["done"] = _DONE
        return dict(sorted(whole.items()))

    def _key(self, name: str, group: int) -> str:
        """Return the file of a field's chunk."""
        index = index_of(self.axes, group)
        return chunks.key(name, [*index, *[0] * len(self.arrays[name].shape)])

    def _mark(self, group: int) -> str:
        return chunks.key("mark", [group, 0])

    def marks_in(self, listing: Mapping[str, int]) -> list[int]:
        """List the groups marked as done, from a listing of files.

        Args:
            listing: bytes of files by key.

        Returns:
            Groups whose mark has the right length, ascending.
        """
        length = 8 * (2 + len(self.arrays)) + 4
        names = (_MARK.fullmatch(key) for key, size in listing.items() if size == length)
        return sorted(int(name[1]) for name in names if name and int(name[1]) < self.count)

    def checksums(self, groups: Sequence[int]) -> dict[int, list[int]]:
        """Read the checksums of chunks from the marks of groups.

        Args:
            groups: numbers of the groups.

        Returns:
            A checksum per array by group; groups without a mark of this store are left out.
        """
        shape = Field((2 + len(self.arrays),), "int64", ("mark_column",))
        files = self.place.get(
            [self._mark(group) for group in groups], [chunks.chunk_bytes(shape, ())] * len(groups)
        )
        marks = {
            group: chunks.decode(mark, shape, ()) for group, mark in zip(groups, files, strict=True)
        }
        own = {group: mark.tolist() for group, mark in marks.items() if mark is not None}
        return {group: mark[2:] for group, mark in own.items() if mark[:2] == [group, self.digest]}

    def _values(
        self, files: Iterator[bytes | None], sums: list[int]
    ) -> dict[str, np.ndarray] | None:
        """Decode the next chunk of every field; None if one is missing or not as committed."""
        values = {}
        taken = list(itertools.islice(files, len(sums)))
        for (name, field), chunk, wanted in zip(self.arrays.items(), taken, sums, strict=True):
            value = chunks.decode(chunk, field, self.chunk)
            if chunk is None or value is None or chunks.checksum(chunk) != wanted:
                return None
            values[name] = value
        return {name: values[name] for name in self.fields}


def _check_array(name: str, field: Field, chunk: tuple[int, ...], array: np.ndarray) -> None:
    """Check that values have the shape and dtype of a field."""
    shape = (*chunk, *field.shape)
    dtype = array.dtype
    if field.dtype == "str":
        fits = dtype.kind in "UOT"
    else:
        fits = dtype == np.dtype(field.dtype)
    if array.shape != shape or not fits:
        raise ValueError(
            f"{name} must be {field.dtype}{list(shape)}, got {dtype}{list(array.shape)}"
        )
