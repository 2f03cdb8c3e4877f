"""Part of a grid that this process computes, by --shard or by its place in a cluster."""

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

import jax

from jaxstab.cli.faults import UserError

# JAX waits this many seconds longer than jaxstab, since its timeout prints a page of C++
_GRACE = 600
# most seconds of waiting: a week
_LONGEST = 604_800


class Sharing(NamedTuple):
    """Flags that divide a grid among processes.

    Attributes:
        shard: I/N.
        distributed: True if `jax.distributed` numbers the processes.
        coordinator: HOST:PORT of process 0.
        processes: number of processes.
        process: number of this process, from 0.
        timeout: seconds to wait for the other processes.
    """

    shard: str = "1/1"
    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    timeout: float = 60.0


def check(sharing: Sharing) -> None:
    """Check that the flags fit together.

    Args:
        sharing: the flags.

    Raises:
        UserError: if a flag is invalid, missing or excluded by another.
    """
    _shard(sharing.shard)
    named = {
        "--coordinator": sharing.coordinator,
        "--processes": sharing.processes,
        "--process": sharing.process,
    }
    given = [flag for flag, value in named.items() if value is not None]
    if given and not sharing.distributed:
        raise UserError(f"{', '.join(given)} must be given together with --distributed")
    if sharing.distributed and sharing.shard != "1/1":
        raise UserError("--distributed divides the groups itself; leave out --shard")
    if given and len(given) < len(named):
        missing = [flag for flag in named if flag not in given]
        raise UserError(
            f"{', '.join(given)} must be given together with {', '.join(missing)}, or none of them"
        )
    if given:
        _check_place(sharing)
    if not 0 < sharing.timeout <= _LONGEST:
        raise UserError(
            f"--coordinator-timeout must be in (0, {_LONGEST}] s, got {sharing.timeout:g}"
        )


def part(sharing: Sharing) -> tuple[int, int]:
    """Return this process's part of the groups, once all processes of a cluster have joined.

    Args:
        sharing: the checked flags.

    Returns:
        (I, N): the I-th of N equal parts, from 1.

    Raises:
        UserError: if the cluster cannot be reached.
    """
    if sharing.distributed:
        return _joined(sharing)
    return _shard(sharing.shard)


def _shard(text: str) -> tuple[int, int]:
    """Parse I/N."""
    words = text.split("/")
    # at most nine digits: a store has fewer groups, and int() of a million digits takes too long
    plain = len(words) == 2 and all(
        word.isascii() and word.isdigit() and len(word) <= 9 for word in words
    )
    if plain:
        own, parts = map(int, words)
        if 1 <= own <= parts:
            return own, parts
    raise UserError(f"--shard must be I/N with 1 <= I <= N, got {text!r}")


def _check_place(sharing: Sharing) -> None:
    """Check the address of process 0, and the numbers of processes."""
    host, _, port = (sharing.coordinator or "").rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 1 <= int(port[:9]) <= 65535):
        raise UserError(
            f"--coordinator must be HOST:PORT with a port in 1..65535, got {sharing.coordinator!r}"
        )
    processes = sharing.processes or 0
    if processes < 1:
        raise UserError(f"--processes must be >= 1, got {processes}")
    if not 0 <= (sharing.process or 0) < processes:
        raise UserError(f"--process must be in 0..{processes - 1}, got {sharing.process}")


def _joined(sharing: Sharing) -> tuple[int, int]:
    """Wait for all processes of the cluster, and return the place of this process."""
    whom = "the cluster's coordinator"
    if sharing.coordinator is not None:
        whom = f"process 0 at {sharing.coordinator}"
        if sharing.process == 0:
            whom = f"{sharing.processes} processes to join at {sharing.coordinator}"
    patience = sharing.timeout
    print(f"waiting for {whom}, at most {patience:g} s", flush=True)
    try:
        with _ended_after(patience, f"waited {patience:g} s for {whom} (--coordinator-timeout)"):
            jax.distributed.initialize(
                sharing.coordinator,
                sharing.processes,
                sharing.process,
                initialization_timeout=math.ceil(patience) + _GRACE,
            )
    # jax.distributed raises errors of any kind
    except Exception as error:
        if sharing.coordinator:
            hint = ""
        else:
            hint = "; if JAX recognises no cluster, give --coordinator, --processes and --process"
        raise UserError(
            f"--distributed: {str(error).rstrip('.') or type(error).__name__}{hint}"
        ) from error
    own = jax.process_index() + 1, jax.process_count()
    # processes need no contact from here on, and JAX would end all of them when one is lost or done
    jax.distributed.shutdown()
    return own


@contextlib.contextmanager
def _ended_after(seconds: float, line: str) -> Iterator[None]:
    """End the process with one line after a timeout, since a wait in C++ cannot be interrupted."""

    def end() -> None:
        sys.stdout.flush()
        os.write(2, f"jaxstab: {line}\n".encode())
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
