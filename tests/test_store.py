"""Stores: what goes in comes out, with its provenance; nothing that exists is lost."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from groups_at_work import append, flip, truncate

from jaxstab import store
from jaxstab.store import progress
from jaxstab.store.dataset import check_writable, remove
from jaxstab.store.fields import Field
from jaxstab.store.opening import open_groups
from jaxstab.store.places import Place
from jaxstab.store.reading import load_groups

ROOT = Path(__file__).parent.parent


@pytest.fixture
def dataset():
    values = np.array([[np.nan, -np.inf], [1.5, np.inf]], np.float32)
    return xr.Dataset(
        {
            "log_s": (("activation", "depth"), values),
            "verdict": ("activation", np.array(["vanish", "critical"])),
        },
        {"activation": ["tanh", "selu"], "depth": [1, 2]},
        {"grid": "{}"},
    )


def test_round_trip_with_provenance(dataset, tmp_path):
    path = store.save(dataset, tmp_path / "deep" / "er" / "run.zarr")
    loaded = store.load(path)
    xr.testing.assert_identical(loaded.drop_attrs(), dataset.drop_attrs())
    assert loaded.log_s.dtype == np.float32
    assert loaded.attrs["grid"] == "{}"
    for key in (
        "version_jaxstab",
        "version_jax",
        "version_numpy",
        "python",
        "device",
        "created",
        "command",
        "x64",
    ):
        assert loaded.attrs[key], key


def test_an_existing_store_is_refused_and_kept(dataset, tmp_path):
    path = store.save(dataset, tmp_path / "run.zarr")
    with pytest.raises(FileExistsError, match=r"run\.zarr exists; pass --overwrite"):
        store.save(dataset.drop_vars("log_s"), path)
    xr.testing.assert_equal(store.load(path), dataset)
    changed = dataset.assign(log_s=dataset.log_s + 1)
    store.save(changed, path, overwrite=True)
    xr.testing.assert_equal(store.load(path), changed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.zarr"], (
        "nothing of the writing is left behind"
    )


def test_a_link_stays_and_the_store_behind_it_is_replaced_and_removed(dataset, tmp_path):
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "run.zarr", tmp_path / "disk" / "run.zarr"
    link.symlink_to(target)
    for number in range(3):
        assert store.save(dataset.assign_attrs(number=number), link, overwrite=True) == link
        assert store.load(target).attrs["number"] == number
    remove(link)
    kept = sorted(path.name for path in tmp_path.rglob("*"))
    assert kept == ["disk", "run.zarr"] and link.is_symlink()
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(FileExistsError, match=r"run\.zarr is a broken link"):
        store.save(dataset, link)


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

    monkeypatch.setattr(Place, "put", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(dataset, path, overwrite=True)
    monkeypatch.undo()
    xr.testing.assert_equal(store.load(path), dataset)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.zarr"]


def test_a_full_disk_names_the_place_and_not_where_it_is_staged(dataset, tmp_path):
    path = tmp_path / "run.zarr"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # files of 64 bytes: the system refuses, as it does where a disk is full
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write to") as saved:
            store.save(dataset, path)
        with pytest.raises(OSError, match="cannot write to") as opened:
            open_groups(path, {}, {"loss": Field((), "float32", ())}, groups=2, size=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(saved.value) == str(opened.value) == f"cannot write to {path}: File too large"
    assert list(tmp_path.iterdir()) == []


def test_a_root_claims_no_more_than_a_store_can_hold(tmp_path):
    fields = {"loss": Field((), "float64", ())}
    # 4 GiB, of which nothing is there; 1 GiB is never refused
    claimed = tmp_path / "claimed.zarr"
    open_groups(claimed, {}, fields, groups=2**19, size=2**10)
    with pytest.raises(
        ValueError, match=r"claimed.zarr: damaged, or hardly begun: its root claims 4294967296"
    ):
        load_groups(claimed)
    assert progress(claimed)[:4] == (2**19, 0, 2**29, 0)


def test_an_unwritable_folder_is_named(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to .*file"):
        store.save(dataset, tmp_path / "file" / "run.zarr")
    if os.path.isdir("/proc"):
        with pytest.raises(OSError, match="cannot write to /proc"):
            check_writable("/proc/run.zarr")


def test_missing_foreign_and_damaged_stores(dataset, tmp_path):
    with pytest.raises(ValueError, match="no such store"):
        store.load(tmp_path / "none.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="not a jaxstab store"):
        store.load(tmp_path / "folder")
    path = store.save(dataset, tmp_path / "run.zarr")
    for name in ("zarr.json", "mark/root"):
        (path / name).write_text("{torn")
    with pytest.raises(ValueError, match="damaged store"):
        store.load(path)
    (tmp_path / "old.zarr").mkdir()
    (tmp_path / "old.zarr/.zmetadata").write_text("{}")
    with pytest.raises(
        ValueError, match="a store of an earlier version; measure again with --overwrite"
    ):
        store.load(tmp_path / "old.zarr")


@pytest.mark.parametrize("key", ["log_s/c.0.0", "verdict/c.0", "activation/c.0", "mark/c.0.0"])
@pytest.mark.parametrize("tear", [flip, truncate, append, Path.unlink])
def test_a_torn_store_is_never_read_as_whole(dataset, tmp_path, key, tear):
    path = store.save(dataset, tmp_path / "run.zarr")
    tear(path / key)
    with pytest.raises(ValueError, match=r"run\.zarr: damaged store"):
        store.load(path)


@pytest.mark.parametrize("how", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("fatal", [0, 1])
def test_an_exception_while_a_store_is_replaced_loses_neither(
    dataset, tmp_path, monkeypatch, fatal, how
):
    path = store.save(dataset, tmp_path / "run.zarr")
    rename, count = Path.rename, iter(range(10))

    def failing(source, target):
        if next(count) == fatal:
            raise how("stopped")
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(how, match="stopped"):
            store.save(dataset.drop_vars("log_s"), path, overwrite=True)
    xr.testing.assert_equal(store.load(path), dataset)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.zarr"]


KILLED = """
import os, sys
from pathlib import Path
import xarray as xr
from jaxstab import store
rename, count = Path.rename, iter(range(10))
def killing(source, target):
    if next(count) == int(sys.argv[2]):
        os._exit(9)
    return rename(source, target)
Path.rename = killing
store.save(xr.Dataset({"x": ("row", [2.0])}), sys.argv[1], overwrite=True)
"""


@pytest.mark.parametrize("fatal", [0, 1])
def test_a_kill_while_a_store_is_replaced_loses_neither(tmp_path, fatal):
    old, new = xr.Dataset({"x": ("row", [1.0])}), xr.Dataset({"x": ("row", [3.0])})
    path = store.save(old, tmp_path / "run.zarr")
    # processes cost a start of some seconds
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, path, str(fatal)], cwd=ROOT, timeout=100, check=False
    )
    assert killed.returncode == 9
    xr.testing.assert_equal(store.load(path), old)
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        store.save(new, path)
    store.save(new, path, overwrite=True)
    xr.testing.assert_equal(store.load(path), new)


def test_any_reader_gets_labels_and_coordinates_without_a_warning(dataset, tmp_path):
    dataset = dataset.assign_coords(critical=("activation", [True, False]))
    path = store.save(dataset.rename(log_s="log_mean_square"), tmp_path / "run.zarr")
    # a warning would be an error here
    found = xr.open_zarr(path).load()
    assert (
        set(found.coords) == {"activation", "depth", "critical"}
        and found.verdict.values[0] == "vanish"
    )
    assert found.depth.attrs == {"long_name": "depth L, blocks", "units": "layers"}
    assert found.log_mean_square.sel(activation="selu", depth=2) == np.inf
    assert found.log_mean_square.attrs["units"] == "nats"
    xr.testing.assert_equal(found, store.load(path))


@pytest.mark.parametrize(
    "values", [np.array([1 + 2j]), np.array([np.datetime64("2026-01-01")]), np.array([None])]
)
def test_what_a_store_cannot_hold_is_named_and_nothing_is_written(tmp_path, values):
    with pytest.raises(ValueError, match="x must be text or of dtype bool, int8"):
        store.save(xr.Dataset({"x": ("row", values)}), tmp_path / "run.zarr")
    assert list(tmp_path.iterdir()) == []
