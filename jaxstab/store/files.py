"""Files such as pages and tables, written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# most bytes of a file's name, on the file systems of Linux, macOS and Windows
_LONGEST_NAME = 255
# characters of a name, of up to four bytes each, that the temporary file's name repeats
_KEPT = 40


def check_file(path: str | Path) -> Path:
    """Check that a file can be written at a place, before anything is computed.

    Args:
        path: the future file.

    Returns:
        The path.

    Raises:
        FileNotFoundError: if the folder of the file is missing.
        IsADirectoryError: if the path is a folder.
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
    """Check that a folder can be written to, or created with its parents; nothing is created.

    Args:
        path: the folder, which need not exist.

    Returns:
        The path.

    Raises:
        FileExistsError: if the path leads through a broken link.
        NotADirectoryError: if the path leads through a file.
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
                raise FileExistsError(f"{nearest} is a broken link")
            _check_name(nearest)
            nearest = nearest.parent
        if not nearest.is_dir():
            raise NotADirectoryError(f"{nearest} is not a folder")
        with tempfile.TemporaryFile(dir=nearest):
            return path
    except OSError as error:
        raise type(error)(f"cannot write to {path}: {error.strerror or error}") from error


def _check_name(path: Path) -> None:
    """Check that a name is not too long for the file system, before anything is computed."""
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise OSError(f"{path.name[:20]}... is longer than {_LONGEST_NAME} bytes")


def _target(path: Path) -> Path:
    """Return the target of a link; for circular links, the link itself."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name and move it into place when it is complete.

    Args:
        path: the file; the target of a link is replaced, not the link.

    Yields:
        The temporary file to write.

    Raises:
        OSError: if the file cannot be written.

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
        # exists only if writing was not completed
        aside.unlink(missing_ok=True)
