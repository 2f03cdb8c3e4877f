"""What a user got wrong, and what every command needs of the machine."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping

# a plan of more takes seconds and gigabytes
MOST_NETWORKS = 10_000_000


class UserError(Exception):
    """Something the user can put right; its message is the one line they see."""


def divide_cpu(parts: int | None) -> None:
    """Make the CPU several devices, as `jaxstab.devices.divide_cpu` does.

    Args:
        parts: how many; None for one per core.

    Raises:
        UserError: if there are none, or more than the cores can serve.
    """
    from jaxstab import devices  # JAX is slow to import, and no part of `jaxstab --help`

    try:
        devices.divide_cpu(parts)
    except ValueError as error:
        raise UserError(str(error).replace("parts", "--cpu-devices", 1)) from error


def check_networks(axes: Mapping[str, int]) -> int:
    """Refuse a grid of more networks than can be listed, before anything is made of it.

    Args:
        axes: number of values by name of the axis.

    Returns:
        The number of networks.

    Raises:
        UserError: if there are too many.
    """
    count = math.prod(axes.values())
    if count > MOST_NETWORKS:
        told = " x ".join(f"{size} {name}" for name, size in axes.items() if size != 1)
        raise UserError(f"{told} are {count} networks, at most {MOST_NETWORKS} make a grid")
    return count


def check_memory(what: str, needed: float) -> None:
    """Refuse what this machine cannot hold, before it is asked to.

    Args:
        what: needs the memory, in words.
        needed: bytes.

    Raises:
        UserError: if that is more than half of what the machine has.
    """
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if needed > available:
        raise UserError(
            f"{needed / 2**30:.3g} GiB needed for {what}, {available / 2**30:.3g} GiB may be used"
        )


@contextlib.contextmanager
def users_fault() -> Iterator[None]:
    """What the floors below refuse while they look at the user's input is the user's to mend.

    Yields:
        Nothing.

    Raises:
        UserError: in place of what they raise, in one line.

    Example:
        >>> with users_fault():
        ...     open("/no/such/file")
        Traceback (most recent call last):
        jaxstab.cli.faults.UserError: /no/such/file: No such file or directory
    """
    try:
        yield
    except (ValueError, TypeError, OverflowError, OSError, MemoryError) as error:
        raise UserError(_told(error)) from error


def _told(error: Exception) -> str:
    """An error in words; one of the system's begins with the file, not with a number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Take what a store from elsewhere does to the code that reads it for the store's fault.

    Args:
        place: the store.

    Yields:
        Nothing.

    Raises:
        UserError: in place of whatever is raised.
    """
    try:
        with users_fault():
            yield
    except UserError as error:
        message = str(error)
        if place not in message:
            message = f"{place}: {message}"
        raise UserError(message) from error
    # settings of any kind may stand where a grid is expected
    except Exception as error:
        raise UserError(f"{place}: damaged store ({type(error).__name__}: {error})") from error


def printable(text: str) -> str:
    r"""A line without what breaks or colours it, or commands the terminal: it may come from a file of others.

    Args:
        text: any.

    Returns:
        The same, with a space for every character that is not printable.

    Example:
        >>> printable("digits\x1b[31m")
        'digits [31m'
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)


def told_time(seconds: float) -> str:
    """A duration in words, to the precision of an estimate.

    Args:
        seconds: how long.

    Returns:
        In seconds, minutes, hours or days.

    Example:
        >>> told_time(7.0), told_time(400.0), told_time(4e5)
        ('7 s', '7 min', '4.63 days')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.3g} days"
