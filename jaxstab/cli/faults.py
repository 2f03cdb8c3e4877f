"""Errors of the user's, and checks of memory and devices for every command."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping

# planning more networks takes seconds and gigabytes
MOST_NETWORKS = 10_000_000


class UserError(Exception):
    """Error that the user can correct; its message is the only line printed."""


def divide_cpu(parts: int | None) -> None:
    """Divide the CPU into several devices by `jaxstab.devices.divide_cpu`.

    Args:
        parts: number of devices; None for one per core.

    Raises:
        UserError: if parts is < 1, or too large for the number of cores.
    """
    from jaxstab import devices  # JAX is slow to import, and `jaxstab --help` needs none

    try:
        devices.divide_cpu(parts)
    except ValueError as error:
        raise UserError(str(error).replace("parts", "--cpu-devices", 1)) from error


def check_networks(axes: Mapping[str, int]) -> int:
    """Check that a grid is not too large to be planned.

    Args:
        axes: number of values by name of the axis.

    Returns:
        The number of networks.

    Raises:
        UserError: if there are more than MOST_NETWORKS.
    """
    count = math.prod(axes.values())
    if count > MOST_NETWORKS:
        sizes = " x ".join(f"{size} {name}" for name, size in axes.items() if size != 1)
        raise UserError(f"a grid must have at most {MOST_NETWORKS} networks, got {count} ({sizes})")
    return count


def check_memory(purpose: str, needed: float) -> None:
    """Check that half of this machine's memory is enough, before any is allocated.

    Args:
        purpose: purpose of the memory, for the message.
        needed: bytes.

    Raises:
        UserError: if more than half of the machine's memory is needed.
    """
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if needed > available:
        raise UserError(
            f"{purpose} must fit into {available / 2**30:.3g} GiB, half of this machine's memory, got "
            f"{needed / 2**30:.3g} GiB"
        )


@contextlib.contextmanager
def users_fault() -> Iterator[None]:
    """Convert errors of the `with` block to a `UserError`.

    Yields:
        Nothing.

    Raises:
        UserError: in place of the error, with a message of one line.

    Example:
        >>> with users_fault():
        ...     open("/no/such/file")
        Traceback (most recent call last):
        jaxstab.cli.faults.UserError: /no/such/file: No such file or directory
    """
    try:
        yield
    except (ValueError, TypeError, OverflowError, OSError, MemoryError) as error:
        raise UserError(_message(error)) from error


def _message(error: Exception) -> str:
    """Return the message of an error; a message of the system's begins with the file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Convert errors of reading a store to a `UserError` that names the store.

    Args:
        place: the store.

    Yields:
        Nothing.

    Raises:
        UserError: in place of any error.
    """
    try:
        with users_fault():
            yield
    except UserError as error:
        message = str(error)
        if place not in message:
            message = f"{place}: {message}"
        raise UserError(message) from error
    # settings of a damaged store may have any type, and raise any kind of error
    except Exception as error:
        raise UserError(f"{place}: damaged store ({type(error).__name__}: {error})") from error


def printable(text: str) -> str:
    r"""Replace unprintable characters, such as escape sequences from a file of somebody else's.

    Args:
        text: any text.

    Returns:
        The text with a space for every character that is not printable.

    Example:
        >>> printable("digits\x1b[31m")
        'digits [31m'
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)


def duration(seconds: float) -> str:
    """Describe a duration to the precision of an estimate.

    Args:
        seconds: the duration.

    Returns:
        The duration in seconds, minutes, hours or days.

    Example:
        >>> duration(7.0), duration(400.0), duration(4e5)
        ('7 s', '7 min', '4.63 days')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.3g} days"
