"""Stores: what goes in comes out, with its provenance; nothing that exists is lost."""

import os

import numpy as np
import pytest
import xarray as xr

from jaxstab import store


@pytest.fixture
def dataset():
    values = np.array([[np.nan, -np.inf], [1.5, np.inf]], np.float32)
    return xr.Dataset(
        {"log_s": (("activation", "depth"), values), "verdict": ("activation", np.array(["vanish", "critical"]))},
        {"activation": ["tanh", "selu"], "depth": [1, 2]},
        {"grid": "{}"},
    )


def test_round_trip_with_provenance(dataset, tmp_path):
    path = store.save(dataset, tmp_path / "deep" / "er" / "run.zarr")
    loaded = store.load(path)
    xr.testing.assert_identical(loaded.drop_attrs(), dataset.drop_attrs())
    assert loaded.log_s.dtype == np.float32
    assert loaded.attrs["grid"] == "{}"
    for key in ("version_jaxstab", "version_jax", "version_numpy", "python", "device", "created", "command", "x64"):
        assert loaded.attrs[key], key


def test_an_existing_store_is_refused_and_kept(dataset, tmp_path):
    path = store.save(dataset, tmp_path / "run.zarr")
    with pytest.raises(FileExistsError, match=r"run\.zarr exists; pass --overwrite"):
        store.save(dataset.drop_vars("log_s"), path)
    xr.testing.assert_equal(store.load(path), dataset)
    changed = dataset.assign(log_s=dataset.log_s + 1)
    store.save(changed, path, overwrite=True)
    xr.testing.assert_equal(store.load(path), changed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.zarr"], "nothing of the writing is left behind"


def test_what_is_no_store_is_never_replaced(dataset, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a jaxstab store"):
        store.save(dataset, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_a_failing_write_leaves_the_old_store(dataset, tmp_path, monkeypatch):
    path = store.save(dataset, tmp_path / "run.zarr")

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_zarr", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(dataset, path, overwrite=True)
    monkeypatch.undo()
    xr.testing.assert_equal(store.load(path), dataset)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.zarr"]


def test_an_unwritable_folder_is_named(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to .*file"):
        store.save(dataset, tmp_path / "file" / "run.zarr")
    if os.path.isdir("/proc"):
        with pytest.raises(OSError, match="cannot write to /proc"):
            store.check_writable("/proc/run.zarr")


def test_missing_foreign_and_damaged_stores(dataset, tmp_path):
    with pytest.raises(ValueError, match="no such store"):
        store.load(tmp_path / "none.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="not a jaxstab store"):
        store.load(tmp_path / "folder")
    path = store.save(dataset, tmp_path / "run.zarr")
    (path / ".zmetadata").write_text("{torn")
    with pytest.raises(ValueError, match="damaged store"):
        store.load(path)
