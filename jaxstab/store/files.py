"""Single files, such as pages and tables, that are whole or absent."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# bytes of a file's name, on the file systems of Linux, macOS and Windows
_LONGEST_NAME = 255
# characters of it that stand in the name of the file aside, of up to four bytes each
_KEPT = 40


def check_file(path: str | Path) -> Path:
    """Check that a file can be written at a place, before anything is computed.

    Args:
        path: the file to be.

    Returns:
        The path.

    Raises:
        FileNotFoundError: if its folder is missing.
        IsADirectoryError: if a folder stands in its place.
        OSError: if the folder cannot be written to.

    Example:
        >>> check_file("no-such-folder/table.csv")
        Traceback (most recent call last):
        FileNotFoundError: cannot write no-such-folder/table.csv: there is no folder no-such-folder
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        return path
    try:
        _check_name(path)
        with tempfile.TemporaryFile(dir=_target(path).parent):
            return path
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def check_folder(path: str | Path) -> Path:
    """Check that a folder can be written to, or made with those above it; nothing is made.

    Args:
        path: the folder, there or to be.

    Returns:
        The path.

    Raises:
        FileExistsError: if a link stands in its way that leads nowhere.
        NotADirectoryError: if a file does.
        OSError: if a name is too long, or the folder cannot be written to.

    Example:
        >>> check_folder("/dev/null/events")
        Traceback (most recent call last):
        NotADirectoryError: cannot write to /dev/null/events: /dev/null is not a folder
    """
    path = Path(path)
    nearest = path.absolute()
    try:
        while not nearest.exists():
            if nearest.is_symlink():
                raise FileExistsError(f"{nearest} is a link that leads nowhere")
            _check_name(nearest)
            nearest = nearest.parent
        if not nearest.is_dir():
            raise NotADirectoryError(f"{nearest} is not a folder")
        with tempfile.TemporaryFile(dir=nearest):
            return path
    except OSError as error:
        raise type(error)(f"cannot write to {path}: {error.strerror or error}") from error


def _check_name(path: Path) -> None:
    """Refuse a name that is too long for the file system, which says so only when it is made."""
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise OSError(f"{path.name[:20]}... is longer than {_LONGEST_NAME} bytes")


def _target(path: Path) -> Path:
    """Return the file that a link leads to; of links in a circle, the link itself."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Write a file aside and move it into its place when it is complete.

    Args:
        path: the file; where a link leads to one, that one is replaced.

    Yields:
        The file to write.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_file(Path(folder) / "table.csv") as aside:
        ...         characters = aside.write_text("depth")
        ...     os.listdir(folder)
        ['table.csv']
    """
    path = Path(path)
    # a device or a pipe is written to, never replaced
    if path.exists() and not path.is_file():
        yield path
        return
    target = _target(path)
    aside = target.with_name(f".{target.name[:_KEPT]}.{os.getpid()}.partial")
    try:
        yield aside
        aside.replace(target)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        # there only if it was not completed
        aside.unlink(missing_ok=True)
