"""Claims: divide the groups of a sweep among processes, so that each is computed once."""

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from jaxstab.store.groups import Groups
from jaxstab.store.locks import LockFolder, Run
from jaxstab.store.places import Place

# seconds between checks of groups that another run holds
_POLL = 0.2


class Claim:
    """Groups of a sweep that this process computes; made by `claim`.

    Iterating yields one group after the other; each is held until it is committed. Groups that
    another run holds come last: the iterator waits for them, and takes one over if that run dies.

    Attributes:
        groups: the store.
        pending: groups of this part that were unfinished at the start, ascending.
    """

    def __init__(self, groups: Groups, pending: tuple[int, ...], locks: LockFolder | None) -> None:
        """Make the claim of some pending groups.

        Args:
            groups: the store.
            pending: groups to compute.
            locks: folder of the groups' locks; None for no locks.
        """
        self.groups = groups
        self.pending = pending
        self._locks = locks
        self._held: dict[int, BaseFileLock | None] = {}

    def __iter__(self) -> Iterator[int]:
        """Yield groups to compute, until all of `pending` are committed by this process or another.

        Yields:
            A group that no other run holds.
        """
        for batch in self.batches(1, lambda group: group):
            yield batch[0]

    def batches(
        self,
        most: int,
        alike: Callable[[int], Hashable],
        rank: Callable[[int], Any] | None = None,
    ) -> Iterator[list[int]]:
        """Yield groups to compute side by side; none is held while waiting for others.

        Args:
            most: largest number of groups at once.
            alike: key of a group; groups with equal keys go together.
            rank: sort key, the lowest first; None for the order of their numbers.

        Yields:
            Groups that no other run holds, at least one.
        """
        waiting = sorted(self.pending, key=rank)
        while waiting:
            batch: list[int] = []
            left = []
            for index, group in enumerate(waiting):
                if len(batch) == most:
                    left += waiting[index:]
                    break
                if (batch and alike(group) != alike(batch[0])) or not self._take(group):
                    left.append(group)
                    continue
                # read before `finished`: without locks, another run may mark the group meanwhile
                torn = self.groups.marked(group)
                # another run may have finished the group since
                if self.groups.finished([group]):
                    self._release(group)
                    continue
                if torn:
                    self.groups.unmark(group)
                batch.append(group)
            if batch:
                yield batch
            elif len(left) == len(waiting):
                time.sleep(_POLL)
            waiting = left

    def commit(self, group: int, values: Mapping[str, Any]) -> None:
        """Write the values of a group and release it.

        Args:
            group: a group that the iteration yielded.
            values: arrays [size, *shape] by field.

        Raises:
            ValueError: if the group is not held, or the arrays do not fit the fields.
        """
        if group not in self._held:
            raise ValueError(
                f"group {group} is not held; commit each group that the iteration yields, once"
            )
        self.groups.write(group, values)
        self._release(group)

    def close(self) -> None:
        """Release all groups that were not committed."""
        for group in list(self._held):
            self._release(group)

    def _take(self, group: int) -> bool:
        lock = None
        if self._locks is not None:
            lock = self._locks.group(group)
            if lock is None:
                return False
        self._held[group] = lock
        return True

    def _release(self, group: int) -> None:
        lock = self._held.pop(group)
        if lock is not None:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


@contextlib.contextmanager
def claim(groups: Groups, shard: tuple[int, int] = (1, 1), join: bool = False) -> Iterator[Claim]:
    """Claim a part of a sweep for the time of a `with` block.

    Locks of a local store are files in the folder STORE.lock beside it, which is removed when the
    sweep is finished. A store behind a URL has no locks: two runs of one part compute it twice,
    with the same result, so each run should have its own shard.

    Args:
        groups: the store.
        shard: (I, N), 1 <= I <= N: the groups g with g mod N = I - 1. Shards of one N are disjoint.
        join: whether to share the part with runs that hold it; each group goes to the first.

    Yields:
        The groups to compute.

    Raises:
        ValueError: if the shard is invalid, or join is True for a store without locks.
        BlockingIOError: if another run has some of these groups and join is False; the message
            names the run.
        OSError: if the store cannot be written to.

    Example:
        >>> import numpy as np
        >>> from jaxstab import store
        >>> from jaxstab.store.opening import open_groups
        >>> fields = {"loss": store.Field((), "float32", ())}
        >>> sweep = open_groups("memory://doctest/b.zarr", {}, fields, groups=5, size=1)
        >>> with claim(sweep, shard=(2, 2)) as work:
        ...     for group in work:
        ...         work.commit(group, {"loss": np.float32([group])})
        >>> sorted(sweep.finished())
        [1, 3]
    """
    part, parts = shard
    if not (isinstance(part, int) and isinstance(parts, int) and 1 <= part <= parts):
        raise ValueError(f"shard must be I/N with 1 <= I <= N, got {part}/{parts}")
    locks = groups.locks
    if join and locks is None:
        raise ValueError(
            f"--join needs locks, and {groups.place.url}, behind a URL, has none; use --shard I/N"
        )
    own = range(part - 1, groups.count, parts)
    if locks is None or _nothing_left(groups, locks, own):
        yield Claim(groups, _missing(groups, own), None)
        return
    lock = locks.enter(shard, join)
    try:
        with contextlib.closing(Claim(groups, _missing(groups, own), locks)) as work:
            yield work
    finally:
        # a leftover folder of locks is harmless
        with contextlib.suppress(OSError):
            locks.leave(lock, lambda: len(groups.marks()) == groups.count)


def _missing(groups: Groups, own: range) -> tuple[int, ...]:
    done = groups.finished(own)
    return tuple(group for group in own if group not in done)


def _nothing_left(groups: Groups, locks: LockFolder, own: range) -> bool:
    """Check without a lock that no group is left, since a finished store may be read-only."""
    return (
        not locks.path.exists()
        and len(groups.marks()) == groups.count
        and not _missing(groups, own)
    )


def runs(url: str | Path) -> list[Run]:
    """List the processes that compute groups of a local store now.

    Args:
        url: the store.

    Returns:
        The runs that are alive; none for a URL, which has no locks.
    """
    place = Place(url)
    if place.local is None:
        return []
    return LockFolder(place.local).runs()
