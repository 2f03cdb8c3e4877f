"""Real digits as they should be, and files that are not what they claim."""

import gzip
import io
import os
import struct
import zipfile

import numpy as np
import pytest

from jaxstab import datasets


@pytest.mark.slow
def test_mnist_5k():
    data = datasets.load("mnist-5k")
    assert data.x.shape == (5000, 784) and data.x.dtype == np.float32
    assert data.x.min() == 0.0 and data.x.max() == 1.0
    assert np.bincount(data.y).tolist() == [500] * 10
    # ink is in the middle of the picture, and a 1 has less of it than a 0
    pictures = data.x.reshape(-1, 28, 28)
    assert pictures[:, 10:18, 10:18].mean() > 5 * pictures[:, :3].mean()
    assert data.x[data.y == 1].mean() < 0.6 * data.x[data.y == 0].mean()
    assert len(data.sha256) == 64


def test_digits():
    data = datasets.load("digits")
    assert data.x.shape == (1797, 64) and data.x.max() == 1.0 and set(data.y) == set(range(10))


def test_normalise():
    data = datasets.load("digits")
    scaled = data.normalised(2.5).x
    np.testing.assert_allclose(np.mean(scaled**2, axis=1), 2.5, rtol=1e-5)
    assert scaled.dtype == np.float32
    # squares of these leave float32 at either end
    for factor in (1e-30, 1e30):
        np.testing.assert_allclose(
            data._replace(x=data.x * np.float32(factor)).normalised(2.5).x, scaled, rtol=1e-5
        )
    with pytest.raises(ValueError, match="input 3 is zero"):
        data._replace(x=np.concatenate([data.x[:3], np.zeros((1, 64), np.float32)])).normalised()
    with pytest.raises(ValueError, match="q0 must be > 0"):
        data.normalised(0.0)


def _idx(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("t10k", 5)):
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(_idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(_idx(rng.integers(0, 10, n, np.uint8)))
        )
    return tmp_path


def test_mnist_from_idx_files_plain_and_gzipped(folder):
    train, test = datasets.load("mnist", folder), datasets.load("mnist", folder, train=False)
    assert train.x.shape == (12, 784) and test.x.shape == (5, 784)
    raw = np.frombuffer((folder / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    np.testing.assert_allclose(train.x.ravel(), raw / 255.0, atol=1e-7)
    assert train.name == "mnist-train" and test.name == "mnist-t10k"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda b: b[:-7], r"promises 9408 bytes of data, it holds 9401"),
        (lambda b: b[:10], "not an IDX file"),
        (lambda b: b"PK" + b[2:], "not an IDX file of 3-dimensional bytes, it starts with 504b"),
        (lambda b: b"", "starts with nothing"),
        (lambda b: b + b"x", "it holds 9409"),
    ],
)
def test_truncated_and_foreign_idx_files_are_named(folder, damage, named):
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=named) as error:
        datasets.load("mnist", folder)
    assert str(file) in str(error.value)


def test_damaged_gzip_missing_files_and_mismatched_counts(folder):
    labels = folder / "train-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte\.gz: not a complete gzip file"):
        datasets.load("mnist", folder)
    labels.write_bytes(gzip.compress(_idx(np.zeros(3, np.uint8))))
    with pytest.raises(ValueError, match="12 train images but 3 labels"):
        datasets.load("mnist", folder)
    labels.unlink()
    with pytest.raises(ValueError, match="scripts/fetch_mnist fetches"):
        datasets.load("mnist", folder)
    with pytest.raises(ValueError, match="needs path="):
        datasets.load("mnist")


def test_users_own_npz(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(6, 3)), np.arange(6)
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    data = datasets.load(str(tmp_path / "mine.npz"))
    assert data.x.dtype == np.float32 and data.name == "mine.npz"
    np.testing.assert_allclose(data.x, x, rtol=1e-6)


ONES = np.ones((2, 2))


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"x": np.ones((3, 2))}, "needs arrays x and y, holds x"),
        ({"x": np.ones((3, 2)), "y": np.arange(4)}, r"got \(3, 2\) and \(4,\)"),
        ({"x": np.array([[1.0], [np.nan]]), "y": np.arange(2)}, "input 1 holds NaN or inf"),
        (
            {"x": np.array([[1.0], [1e300]]), "y": np.arange(2)},
            "input 1 holds numbers beyond float32",
        ),
        ({"x": np.array([[1.0, 0.0], [0.0, 0.0]]), "y": np.arange(2)}, "input 1 is zero"),
        ({"x": np.array([[1.0], [1e-40]]), "y": np.arange(2)}, "input 1 is zero in float32"),
        ({"x": ONES + 1j, "y": np.arange(2)}, "x must be real numbers, got dtype complex128"),
        (
            {"x": ONES.astype("timedelta64[s]"), "y": np.arange(2)},
            "array x must be numbers, got dtype timedelta64",
        ),
        ({"x": np.array([["a"], ["b"]]), "y": np.arange(2)}, "array x must be numbers"),
        (
            {"x": np.array([[None], [1]]), "y": np.arange(2)},
            "array x must be numbers, got dtype object",
        ),
        ({"x": np.ones((2, 2, 2)), "y": np.arange(2)}, r"got \(2, 2, 2\) and \(2,\)"),
        ({"x": np.float64(1), "y": np.arange(2)}, r"got \(\) and \(2,\)"),
        ({"x": ONES, "y": np.array([0.0, 1.0])}, "labels must be integers >= 0, got dtype float64"),
        ({"x": ONES, "y": np.array([True, False])}, "labels must be integers >= 0, got dtype bool"),
        ({"x": ONES, "y": np.array([-1, 1])}, "labels must be integers >= 0, got -1"),
        (
            {"x": ONES, "y": np.array([0, 2**31])},
            "labels must be below 1000 for 2 examples, got 2147483648",
        ),
        ({"x": ONES, "y": np.array([0, 2**32])}, "got 4294967296"),
        ({"x": ONES, "y": np.array([0, 2**64 - 1], np.uint64)}, "got 18446744073709551615"),
        ({"x": ONES, "y": np.array([0, 10**7])}, "numbers the classes from 0"),
        ({"x": np.ones((0, 2)), "y": np.arange(0)}, "not empty"),
    ],
)
def test_bad_npz_contents(tmp_path, arrays, named):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=named) as error:
        datasets.load(str(tmp_path / "bad.npz"))
    assert "bad.npz" in str(error.value)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_real_inputs_of_any_dtype_become_float32(tmp_path, dtype):
    x = np.arange(1, 7).reshape(3, 2).astype(dtype)
    np.savez_compressed(tmp_path / "good.npz", x=x, y=np.array([0, 1, 999], np.uint64))
    data = datasets.load(str(tmp_path / "good.npz"))
    assert (
        data.x.dtype == np.float32 and data.y.dtype == np.int32 and data.y.tolist() == [0, 1, 999]
    )
    np.testing.assert_array_equal(data.x, x.astype(np.float32))


def _header(shape, dtype="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"junk", "not a readable .npz"),
        (b"", "not a readable .npz"),
        (_header((10**5, 10**5)), "array x must hold 40000000000 bytes, got 0"),
        (_header((2**70,)), "array x must hold"),
        (_header((2, 2)) + bytes(15), "array x must hold 16 bytes, got 15"),
        (b"\x93NUMPY\x03\x00" + _header((2, 2))[8:], "npy header of version"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "not a readable .npz"),
    ],
)
def test_an_npz_whose_x_is_junk(tmp_path, content, named):
    file = tmp_path / "junk.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", _header((2,), "<i8") + bytes(16))
    with pytest.raises(ValueError, match=named) as error:
        datasets.load(file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_files_that_unpack_to_gigabytes_are_refused_unread(tmp_path):
    # 100 MB of zeros in 100 kB; LARGEST is not reached
    zeros = np.zeros((25_000, 1000), np.float32)
    np.savez_compressed(tmp_path / "bomb.npz", x=zeros, y=np.zeros(25_000, int))
    with pytest.raises(ValueError, match="bomb.npz: .*array x unpacks from .* more than data can"):
        datasets.load(tmp_path / "bomb.npz")
    for shape in ((60_000, 28, 28), (2**32 - 1,) * 3):
        bomb = gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", *shape))
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(bomb)
        with pytest.raises(
            ValueError, match="holds 0" if shape[0] == 60_000 else "at most 2147483648 are read"
        ):
            datasets.load("mnist", tmp_path)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    for name in ("pipe.npz", "folder.npz"):
        with pytest.raises(ValueError, match=f"{name}: not a file"):
            datasets.load(tmp_path / name)


def test_files_that_are_no_npz(tmp_path):
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    for name, named in (("torn.npz", "not a readable .npz"), ("none.npz", "no such file")):
        with pytest.raises(ValueError, match=named):
            datasets.load(str(tmp_path / name))
    with pytest.raises(
        ValueError, match="unknown data set 'cifar'; known are mnist-5k, digits, mnist"
    ):
        datasets.load("cifar")
