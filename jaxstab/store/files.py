"""Single files, such as pages and tables, that are whole or absent."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            return path
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


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
    target = path.resolve()
    aside = target.with_name(f".{target.name[:100]}.{os.getpid()}.partial")
    try:
        yield aside
        aside.replace(target)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        # there only if it was not completed
        aside.unlink(missing_ok=True)
