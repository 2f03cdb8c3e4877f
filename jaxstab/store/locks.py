"""Locks of a local store: kernel locks on files in the folder STORE.lock beside it.

The kernel releases a lock when its process ends in any way, so no lock is stale. The name of a
run's lock file states its part, host and process. On a network file system locks hold between hosts
if `flock` does (NFS 4 and CephFS; Lustre if mounted with flock). Without `flock`, taking a lock
raises OSError.
"""

import contextlib
import math
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import BaseFileLock, FileLock, Timeout

# seconds; operations under the gate take milliseconds
_GATE_TIMEOUT = 60.0
_RUN = re.compile(r"run\.(\d{1,9})of(\d{1,9})\.pid(\d{1,12})\.[0-9a-f]+\.([\w.-]+)")


class Run(NamedTuple):
    """Process that works on a store.

    Attributes:
        part: (I, N): it owns the groups g with g mod N = I - 1.
        pid: number of the process.
        host: name of the machine.
    """

    part: tuple[int, int]
    pid: int
    host: str

    def __str__(self) -> str:
        """Describe the process."""
        if self.part[1] == 1:
            part = "all groups"
        else:
            part = f"shard {self.part[0]}/{self.part[1]}"
        return f"pid {self.pid} on {self.host} ({part})"

    def overlaps(self, part: tuple[int, int]) -> bool:
        """Check whether two parts share a group.

        Args:
            part: (I, N).

        Returns:
            True if I - I' is a multiple of gcd(N, N'), so that a number solves both congruences.
        """
        return (self.part[0] - part[0]) % math.gcd(self.part[1], part[1]) == 0


class LockFolder:
    """Locks of one store.

    Attributes:
        path: the folder, STORE.lock.
    """

    def __init__(self, store: Path) -> None:
        """Set the path of the folder, which is not created.

        Args:
            store: the store's folder.
        """
        self.path = store.with_name(f"{store.name}.lock")

    @contextlib.contextmanager
    def gate(self) -> Iterator[None]:
        """Hold the exclusive lock under which the store is created, entered and left.

        Yields:
            Nothing.

        Raises:
            OSError: if the folder cannot be written to, or the lock is not free in time.
        """
        try:
            lock = self._gate()
        except Timeout as error:
            raise OSError(
                f"{self.path}: another process has held the gate for {_GATE_TIMEOUT:g} s"
            ) from error
        except OSError as error:
            raise OSError(f"cannot write to {self.path}: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()

    def _gate(self) -> BaseFileLock:
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = _lock(self.path / "gate")
            # a sweep that has just finished removes the folder
            with contextlib.suppress(FileNotFoundError):
                lock.acquire(timeout=_GATE_TIMEOUT)
                return lock

    def enter(self, part: tuple[int, int], join: bool) -> BaseFileLock:
        """Register this process as owner of a part of the sweep.

        Args:
            part: (I, N), the groups g with g mod N = I - 1.
            join: whether to share groups that another run owns.

        Returns:
            The held lock.

        Raises:
            BlockingIOError: if another run owns some of those groups and join is False.
            OSError: if the folder cannot be written to.
        """
        with self.gate():
            others = [run for run in self._runs() if run.overlaps(part)]
            if others and not join:
                raise BlockingIOError(
                    f"{self.path.with_suffix('')} is being computed by "
                    f"{', '.join(map(str, others))}; "
                    "wait for it, share the rest with --join, or take another part with --shard"
                )
            host = re.sub(r"[^\w.-]", "_", socket.gethostname())
            name = f"run.{part[0]}of{part[1]}.pid{os.getpid()}.{secrets.token_hex(4)}.{host}"
            return _lock(self.path / name).acquire(blocking=False).lock

    def leave(self, own: BaseFileLock, finished: Callable[[], bool]) -> None:
        """End the registration; the last run of a finished sweep removes the folder.

        Args:
            own: lock from `enter`.
            finished: function that returns True if every group is done; called under the gate.
        """
        try:
            with self.gate():
                Path(own.lock_file).unlink(missing_ok=True)
                own.release()
                if not self._runs() and finished():
                    shutil.rmtree(self.path, ignore_errors=True)
        finally:
            own.release()

    def group(self, group: int) -> BaseFileLock | None:
        """Lock a group to compute it.

        Args:
            group: number of the group.

        Returns:
            The held lock; None if another run holds it.
        """
        lock = _lock(self.path / f"group.{group}")
        with contextlib.suppress(Timeout):
            lock.acquire(blocking=False)
            return lock
        return None

    def runs(self) -> list[Run]:
        """List the processes that work on the sweep now.

        Returns:
            The runs that are alive.
        """
        if not self.path.exists():
            return []
        with self.gate():
            return self._runs()

    def _runs(self) -> list[Run]:
        """List the live runs while the gate is held, and remove files of dead runs."""
        alive = []
        for file in sorted(self.path.glob("run.*")):
            name = _RUN.fullmatch(file.name)
            if name is None:
                continue
            try:
                with _lock(file).acquire(blocking=False):
                    file.unlink(missing_ok=True)
            except Timeout:
                alive.append(Run((int(name[1]), int(name[2])), int(name[3]), name[4]))
        return alive


@contextlib.contextmanager
def owned(store: str | Path) -> Iterator[None]:
    """Own all of a local store for the time of a `with` block.

    Args:
        store: folder of the store, which need not exist.

    Yields:
        Nothing.

    Raises:
        BlockingIOError: if another run owns the store; the message names the run.
        OSError: if the folder of locks cannot be written to.
    """
    folder = LockFolder(Path(os.path.realpath(store)))
    try:
        lock = folder.enter((1, 1), join=False)
    except BlockingIOError as error:
        runs = ", ".join(map(str, folder.runs()))
        raise BlockingIOError(
            f"{store} is being made by {runs or 'another run'}; wait for it"
        ) from error
    try:
        yield
    finally:
        # a leftover folder of locks is harmless
        with contextlib.suppress(OSError):
            folder.leave(lock, lambda: True)


def _lock(path: Path) -> BaseFileLock:
    # a soft lock, by existence of a file, would outlive a killed process
    return FileLock(path, thread_local=False, fallback_to_soft=False)
