"""Places of stores: folders or fsspec URLs, whose files are read and written whole."""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

# most bytes of a file of unknown length: text or metadata
_LONGEST = 2**28


class Place:
    """Folder of files, local or behind an fsspec URL.

    A file is whole or absent. Locally it is written under a hidden name and renamed; a killed run
    leaves a `.partial`, which the next write of the same file replaces. An object store puts a file
    whole. Writes do not wait for the disk, which would make a commit of five files 16 times slower.
    Files torn by a power cut have a wrong checksum.

    Attributes:
        url: the path or URL in messages.
        local: the folder; None behind a URL.
    """

    def __init__(self, url: str | Path, named: str | Path | None = None) -> None:
        """Open the file system of the URL; nothing is read.

        Args:
            url: a path, or a URL such as s3://bucket/sweep.zarr.
            named: path or URL in messages, for a staging folder; None for `url`.

        Raises:
            ValueError: if no installed package supports such URLs, or the URL is invalid.
        """
        self.url = str(named or url)
        self.local: Path | None = None
        self._files, self._root = _opened(str(url))
        if isinstance(self._files, LocalFileSystem):
            # the locks of a store behind a link lie beside the target
            self._root = os.path.realpath(self._root)
            self.local = Path(self._root)

    def exists(self, key: str = "") -> bool:
        """Check whether a file or folder exists.

        Args:
            key: path relative to the place; empty for the place itself.

        Returns:
            True if the file or folder exists.

        Raises:
            OSError: if the file system cannot tell.
        """
        self._files.invalidate_cache()
        try:
            return bool(self._files.exists(self._path(key)))
        except OSError:
            raise
        # clients of object stores raise their own kinds of errors
        except Exception as error:
            raise OSError(f"cannot read {self.url}: {_reason(error)}") from error

    def get(
        self, keys: Sequence[str], most: Sequence[int | None] | None = None
    ) -> list[bytes | None]:
        """Read files, many at once behind a URL.

        Args:
            keys: paths relative to the place.
            most: most bytes of each file; None for 256 MiB. A longer local file is not read.

        Returns:
            Bytes of the files; None for a file that does not exist, b"" for one that is too long.

        Raises:
            OSError: if a file exists and cannot be read.
        """
        if not keys:
            return []
        if self.local is not None:
            limits = most or [None] * len(keys)
            return [self._read(key, limit) for key, limit in zip(keys, limits, strict=True)]
        contents = self._files.cat_ranges(
            [self._path(key) for key in keys], None, None, on_error="return"
        )
        for answer in contents:
            if isinstance(answer, Exception) and not isinstance(
                answer, (FileNotFoundError, NotADirectoryError)
            ):
                raise OSError(f"cannot read {self.url}: {_reason(answer)}") from answer
        return [answer if isinstance(answer, bytes) else None for answer in contents]

    def _read(self, key: str, most: int | None) -> bytes | None:
        """Read a local file, unless it is too long, or a pipe or device, which may have no end."""
        path = self._path(key)
        if most is None:
            most = _LONGEST
        try:
            status = os.stat(path)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(f"{key} is a directory")
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{key} is not a file")
            if status.st_size > most:
                return b""
            with open(path, "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise OSError(f"cannot read {self.url}: {error.strerror or error}") from error

    def put(self, key: str, data: bytes) -> None:
        """Write a file, whole or not at all.

        Args:
            key: path relative to the place, in an existing folder.
            data: bytes of the file.

        Raises:
            OSError: if the file cannot be written; an earlier file of that name is unchanged.
        """
        try:
            if self.local is None:
                self._files.pipe_file(self._path(key), data)
            else:
                _replace(self.local / key, data)
        except OSError as error:
            raise self.unwritable(error) from error

    def remove(self, key: str) -> None:
        """Remove a file, if it exists.

        Args:
            key: path relative to the place.

        Raises:
            OSError: if the file exists and cannot be removed.
        """
        try:
            self._files.rm_file(self._path(key))
        except FileNotFoundError:
            return
        except OSError as error:
            raise self.unwritable(error) from error

    def sizes(self, folder: str) -> dict[str, int]:
        """List the sizes of the files in a folder, by name.

        Args:
            folder: path relative to the place.

        Returns:
            Bytes by name; empty if there is no such folder.
        """
        self._files.invalidate_cache()
        try:
            listed = self._files.ls(self._path(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {entry["name"].rsplit("/", 1)[-1]: int(entry["size"] or 0) for entry in listed}

    def listing(self) -> dict[str, int]:
        """List the sizes of all files of the place and its folders.

        Returns:
            Bytes by key.

        Raises:
            OSError: if a folder cannot be listed.
        """
        if self.local is not None:
            try:
                return dict(_listed(self.local))
            except OSError as error:
                raise OSError(f"cannot read {self.url}: {_reason(error)}") from error
        self._files.invalidate_cache()
        entries = self._files.find(self._root, maxdepth=2, detail=True)
        start = len(self._path("x")) - 1
        return {name[start:]: int(entry["size"] or 0) for name, entry in entries.items()}

    def fill(self, documents: Mapping[str, bytes]) -> bool:
        """Write files into a new place; the last only if it does not exist yet.

        Args:
            documents: bytes by key; the last document makes the store valid.

        Returns:
            True if the last document was written.

        Raises:
            OSError: if a document cannot be written.
        """
        last = list(documents)[-1]
        try:
            for key, data in documents.items():
                self._files.makedirs(self._path(key).rsplit("/", 1)[0], exist_ok=True)
                if key != last:
                    self.put(key, data)
            if self.local is not None:
                self.put(last, documents[last])
            else:
                self._files.pipe_file(self._path(last), documents[last], mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            raise self.unwritable(error) from error
        return True

    def restore(self, documents: Mapping[str, bytes]) -> None:
        """Write files of a place again, with missing folders.

        Args:
            documents: bytes by key.

        Raises:
            OSError: if a document cannot be written.
        """
        try:
            for key, data in documents.items():
                self._files.makedirs(self._path(key).rsplit("/", 1)[0], exist_ok=True)
                self.put(key, data)
        except OSError as error:
            raise self.unwritable(error) from error

    def flush(self, keys: Sequence[str]) -> None:
        """Flush files of a local place, and their names, to the disk.

        Args:
            keys: paths relative to the place.

        Raises:
            OSError: if the disk reports a failure.
        """
        if self.local is None:
            return
        files = [self.local / key for key in keys]
        for path in (*files, *sorted({file.parent for file in files}), self.local):
            flush(path)

    def unwritable(self, error: OSError) -> OSError:
        """Make the error of a failed write for the user.

        Args:
            error: error of the system.

        Returns:
            The error with a message of one line.
        """
        return OSError(unwritable(self.url, error))

    def _path(self, key: str) -> str:
        if key:
            return f"{self._root}/{key}"
        return str(self._root)


def _opened(url: str) -> tuple[AbstractFileSystem, str]:
    """Open the file system of a URL; a string without `://` is a path, even with colons in it."""
    if "://" not in url:
        return LocalFileSystem(), os.path.expanduser(url)
    try:
        files, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url}: {error}") from error
    # a nested file system, such as zip://, opens the outer one, which may raise any kind of error
    except Exception as error:
        raise ValueError(f"{url}: cannot be opened ({_reason(error)})") from error
    return files, root


def _listed(folder: str | Path, start: str = "") -> Iterator[tuple[str, int]]:
    """List sizes in a folder and its folders, also behind links; fsspec skips unreadable files."""
    with os.scandir(folder) as entries:
        for entry in entries:
            # another run may rename a file meanwhile
            with contextlib.suppress(FileNotFoundError):
                if not entry.is_dir():
                    yield f"{start}{entry.name}", entry.stat().st_size
                elif not start:
                    yield from _listed(entry.path, f"{entry.name}/")


def _reason(error: Exception) -> str:
    """Return the system's message, or the kind of error."""
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"


def unwritable(place: str | Path, error: OSError) -> str:
    """Make the message of a failed write for the user.

    Args:
        place: the place as the user named it.
        error: error of the system, which may name a temporary file.

    Returns:
        The message, of one line.

    Example:
        >>> unwritable("a.zarr", OSError(28, "No space left on device", "/tmp/.a.zarr.x/store"))
        'cannot write to a.zarr: No space left on device'
    """
    if str(error).startswith("cannot write to "):
        return str(error)
    return f"cannot write to {place}: {error.strerror or error}"


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk.

    Args:
        path: the file or folder.

    Raises:
        OSError: if the disk reports a failure.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        # some systems cannot open folders, and some file systems cannot flush folders
        if not path.is_dir():
            raise


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
