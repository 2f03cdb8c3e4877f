"""Locks of a local store: kernel locks on files in the folder STORE.lock beside it.

The kernel lets go of a lock when its process ends, however it ends, so none is ever stale. The name
of a run's lock file says which part it owns and who it is. On a network file system the locks hold
between hosts if its `flock` does (NFS 4 and CephFS do; Lustre when mounted with flock); where there
is none, taking a lock is an OSError.
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

# seconds; what is done behind the gate takes milliseconds
_GATE_TIMEOUT = 60.0
_RUN = re.compile(r"run\.(\d{1,9})of(\d{1,9})\.pid(\d{1,12})\.[0-9a-f]+\.([\w.-]+)")


class Run(NamedTuple):
    """Process that works on a store.

    Attributes:
        part: (I, N): it owns the groups g with g mod N = I - 1.
        pid: of the process.
        host: its machine.
    """

    part: tuple[int, int]
    pid: int
    host: str

    def __str__(self) -> str:
        """Name the process in words."""
        if self.part[1] == 1:
            part = "all groups"
        else:
            part = f"shard {self.part[0]}/{self.part[1]}"
        return f"pid {self.pid} on {self.host} ({part})"

    def overlaps(self, part: tuple[int, int]) -> bool:
        """Tell whether two parts share a group.

        Args:
            part: (I, N).

        Returns:
            Whether I - I' is a multiple of gcd(N, N'), so that a number solves both congruences.
        """
        return (self.part[0] - part[0]) % math.gcd(self.part[1], part[1]) == 0


class LockFolder:
    """Locks of one store.

    Attributes:
        path: the folder, STORE.lock.
    """

    def __init__(self, store: Path) -> None:
        """Name the folder; it is not created.

        Args:
            store: the store's folder.
        """
        self.path = store.with_name(f"{store.name}.lock")

    @contextlib.contextmanager
    def gate(self) -> Iterator[None]:
        """Hold the gate, one process at a time: to create the store, to enter and to leave.

        Yields:
            Nothing.

        Raises:
            OSError: if the folder cannot be written to, or the gate stays shut.
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
            # a sweep that has just finished takes the folder away
            with contextlib.suppress(FileNotFoundError):
                lock.acquire(timeout=_GATE_TIMEOUT)
                return lock

    def enter(self, part: tuple[int, int], join: bool) -> BaseFileLock:
        """Take part in a sweep.

        Args:
            part: (I, N), the groups to own.
            join: whether to share them with who owns some of them already.

        Returns:
            The lock that says so, held.

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
        """Stop taking part; the last one out of a finished sweep removes the folder.

        Args:
            own: what `enter` gave.
            finished: whether every group of the sweep is done, asked behind the gate.
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
            group: its number.

        Returns:
            The lock, held; None if another run has it.
        """
        lock = _lock(self.path / f"group.{group}")
        with contextlib.suppress(Timeout):
            lock.acquire(blocking=False)
            return lock
        return None

    def runs(self) -> list[Run]:
        """List the processes that take part now.

        Returns:
            The runs that are alive.
        """
        if not self.path.exists():
            return []
        with self.gate():
            return self._runs()

    def _runs(self) -> list[Run]:
        """List the live runs, behind the gate, and remove what dead ones left behind."""
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
    """Hold a local store while it is written as a whole.

    Args:
        store: its folder, which need not be there yet.

    Yields:
        Nothing.

    Raises:
        BlockingIOError: if another run has it; says who.
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
        # a folder of locks that cannot be cleaned up harms nobody
        with contextlib.suppress(OSError):
            folder.leave(lock, lambda: True)


def _lock(path: Path) -> BaseFileLock:
    # never a lock that is a mere file: one would outlive a killed process
    return FileLock(path, thread_local=False, fallback_to_soft=False)
