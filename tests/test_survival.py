"""Groups of a sweep survive kills, torn files and full disks; a finished store is always the same bytes."""

import errno
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from groups_at_work import (
    append,
    assert_finished,
    assert_holds,
    compute,
    files,
    flip,
    notes,
    opened,
    run,
    started,
    truncate,
    wait_for,
)

from jaxstab import store
from jaxstab.store import chunks, claims, places, reading
from jaxstab.store.fields import Field
from jaxstab.store.reading import load_groups


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_count_nothing_twice(tmp_path):
    path, log, groups = tmp_path / "sweep.zarr", tmp_path / "log", 150
    rng = np.random.default_rng(5)
    done = set()
    for _ in range(20):
        process = started(run, path, log, groups, 0.003)
        # sometimes before anything is written, sometimes a few groups later
        lines = (len(notes(log)) if log.exists() else 0) + rng.integers(0, 10)
        wait_for(lambda lines=lines: lines == 0 or (log.exists() and len(notes(log)) >= lines))
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.join()
        assert process.exitcode == -9, "killed before it was finished"
        if path.exists():
            now = opened(path, groups).finished()
            assert done <= now, "nothing that was finished is lost"
            done = now
    assert 20 < len(done) < groups
    run(path, log, groups)
    run(tmp_path / "other.zarr", groups=groups)
    assert_finished(path, files(tmp_path / "other.zarr"))
    ended = set()
    for what, group, _ in notes(log):
        assert group not in ended, "a finished group is never computed again"
        ended |= {group} if what == "end" else set()


class Crash(BaseException):
    """A kill: nothing catches it, nothing is cleaned up."""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["within a write", "before a rename", "after a rename"])
def test_a_crash_at_every_single_write(tmp_path, monkeypatch, moment):
    run(tmp_path / "whole.zarr", groups=2)
    writes = len(files(tmp_path / "whole.zarr"))
    replace = Path.replace
    for fatal in range(writes):
        count = iter(range(10**6))

        def crashing(partial, target, count=count, fatal=fatal):
            hit = next(count) == fatal
            if hit and moment == "within a write":
                os.truncate(partial, partial.stat().st_size // 2)
            if not hit or moment == "after a rename":
                replace(partial, target)
            if hit:
                raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", crashing)
            with pytest.raises(Crash):
                run(tmp_path / "a.zarr", groups=2)
        left = opened(tmp_path / "a.zarr", groups=2)
        assert set(left.marks()) == left.finished(), "a mark comes last"
        run(tmp_path / "a.zarr", groups=2)
        assert_finished(tmp_path / "a.zarr", files(tmp_path / "whole.zarr"))
        shutil.rmtree(tmp_path / "a.zarr")


# a mark of the wrong length is none
UNMARKED = [(tear, "mark/c.3.0") for tear in (truncate, append, Path.unlink)]


@pytest.mark.parametrize(
    "key", ["loss/c.3.0", "steps/c.3", "log_grad/c.3.0.0", "done/c.3", "mark/c.3.0"]
)
@pytest.mark.parametrize("tear", [flip, truncate, append, Path.unlink, lambda f: flip(f, -1)])
def test_a_torn_group_is_seen_and_computed_again(tmp_path, whole, key, tear):
    path = tmp_path / "whole.zarr"
    tear(path / key)
    told = store.progress(path)
    assert (told.done, told.torn) == (7, 0 if (tear, key) in UNMARKED else 1)
    assert opened(path).finished() == set(range(8)) - {3}
    assert_holds(load_groups(path), set(range(8)) - {3})
    run(path, tmp_path / "log")
    assert [line[:2] for line in notes(tmp_path / "log")] == [["begin", "3"], ["end", "3"]]
    assert_finished(path, whole)


def _swap(path, *keys):
    first, second = (path / key for key in keys)
    moved = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(moved)


@pytest.mark.parametrize(
    "keys", [("loss/c.3.0", "loss/c.5.0"), ("steps/c.3", "steps/c.5"), ("mark/c.3.0", "mark/c.5.0")]
)
def test_a_valid_chunk_in_the_place_of_another_is_torn(tmp_path, whole, keys):
    path = tmp_path / "whole.zarr"
    _swap(path, *keys)
    assert store.progress(path)[:2] == (8, 6) and store.progress(path).torn == 2
    assert_holds(load_groups(path), set(range(8)) - {3, 5})
    assert len(reading.column(path, "steps")) == 3 * (8 if keys[0].startswith("loss") else 6)
    run(path)
    assert_finished(path, whole)


def test_groups_of_another_place_or_sweep_do_not_count(tmp_path, whole):
    path = tmp_path / "whole.zarr"
    every = [name for name in whole if name.endswith(("/c.3", "/c.3.0", "/c.3.0.0"))]
    for name in every:
        (path / name.replace("c.3", "c.5")).write_bytes(whole[name])
    assert opened(path).finished() == set(range(8)) - {5} and store.progress(path).torn == 1
    other = opened(tmp_path / "other.zarr", seed=1)
    other.write(2, compute(4))
    for name, data in files(tmp_path / "other.zarr").items():
        if "/c." in name:
            (path / name).write_bytes(data)
    assert store.progress(path).done == 6
    run(path)
    assert_finished(path, whole)


def test_a_store_too_large_to_read_is_judged_by_lengths_and_marks(tmp_path, whole, monkeypatch):
    path = tmp_path / "whole.zarr"
    monkeypatch.setattr("jaxstab.store.reading._READ", 100)
    assert store.progress(path)[:2] == (8, 8) and not store.progress(path).read
    truncate(path / "loss/c.3.0")
    flip(path / "mark/c.5.0")
    (path / "steps/c.6").unlink()
    assert store.progress(path)[:2] == (8, 5) and store.progress(path).torn == 3


ROOTS = ("zarr.json", "mark/root")


@pytest.mark.parametrize(
    "tear",
    [flip, truncate, append, Path.unlink, lambda f: f.write_bytes(b""), lambda f: flip(f, -9)],
)
@pytest.mark.parametrize("names", [ROOTS[:1], ROOTS[1:], ROOTS])
def test_a_lost_root_is_mended(tmp_path, whole, names, tear):
    path = tmp_path / "whole.zarr"
    for name in names:
        tear(path / name)
    if names != ROOTS:
        assert store.progress(path)[:2] == (8, 8)
        assert_holds(load_groups(path), set(range(8)))
        with pytest.raises(ValueError, match="holds another sweep"):
            opened(path, width=9)
    run(path, tmp_path / "log")
    assert not (tmp_path / "log").exists(), "nothing was computed again"
    assert_finished(path, whole)


def test_a_root_torn_at_any_byte_is_mended(tmp_path, whole):
    path, data = tmp_path / "whole.zarr", whole["zarr.json"]
    for length in range(0, len(data), 173):
        (path / "zarr.json").write_bytes(data[:length])
        assert opened(path).count == 8 and (path / "zarr.json").read_bytes() == data


@pytest.mark.parametrize("groups", [0, 3])
def test_roots_that_are_both_lost_are_not_mended_for_another_sweep(tmp_path, groups):
    path = tmp_path / "a.zarr"
    sweep = opened(path)
    for group in range(groups):
        sweep.write(group, compute(group))
    before = files(path)
    for name in ROOTS:
        (path / name).unlink()
    left = files(path)
    if groups:
        with pytest.raises(FileExistsError, match="is not a sweep"):
            opened(path, width=9)
        assert files(path) == left
    assert opened(path).finished() == set(range(groups)) and files(path) == before


def test_a_new_store_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed, fsync, rename = [], os.fsync, Path.rename
    monkeypatch.setattr(
        os, "fsync", lambda f: flushed.append(os.readlink(f"/proc/self/fd/{f}")) or fsync(f)
    )
    monkeypatch.setattr(Path, "rename", lambda *names: flushed.append("renamed") or rename(*names))
    opened(tmp_path / "a.zarr")
    before = flushed[: flushed.index("renamed")]
    assert {Path(name).name for name in before} >= {"zarr.json", "root"} and flushed[-1] == str(
        tmp_path
    )
    flushed.clear()
    opened(tmp_path / "a.zarr").write(0, compute(0))
    assert flushed == [], "a commit waits for no disk"


def test_a_torn_group_is_not_marked_while_it_is_computed_again(tmp_path, whole):
    path = tmp_path / "whole.zarr"
    flip(path / "loss/c.3.0")
    with claims.claim(opened(path)) as work:
        assert next(iter(work)) == 3
        assert store.progress(path).done == 7
    assert opened(path).finished() == set(range(8)) - {3}


def test_torn_metadata_of_an_array_is_mended(tmp_path, whole):
    truncate(tmp_path / "whole.zarr/loss/zarr.json")
    (tmp_path / "whole.zarr/steps/zarr.json").unlink()
    run(tmp_path / "whole.zarr")
    assert_finished(tmp_path / "whole.zarr", whole)


def test_a_full_disk_stops_a_run_and_space_lets_it_go_on(tmp_path, whole, monkeypatch):
    replace, left = Path.replace, 21

    def filling(partial, target):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(partial, target)

    monkeypatch.setattr(Path, "replace", filling)
    with pytest.raises(OSError, match=r"cannot write to .*a\.zarr: No space left on device$"):
        run(tmp_path / "a.zarr")
    # metadata of four fields, done and mark, the root and its copy; then two groups of six files, and one more file
    assert opened(tmp_path / "a.zarr").finished() == {0, 1}
    assert not list(tmp_path.rglob("*.partial")), "what was written in vain gives its space back"
    monkeypatch.undo()
    run(tmp_path / "a.zarr")
    assert_finished(tmp_path / "a.zarr", whole)


def test_no_space_for_the_first_file_leaves_nothing(tmp_path, monkeypatch):
    def full(partial, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"cannot write to .*: No space left on device$"):
        run(tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def disk(tmp_path):
    """A file system of 256 KiB, and how to change its options."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = lambda options: subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False
    )
    if not shutil.which("mount") or mount("size=256k").returncode:
        pytest.skip("cannot mount a small tmpfs")
    yield path, mount
    subprocess.run(["umount", path], check=True)


def test_a_real_disk_full_and_then_read_only(disk, tmp_path, whole):
    path, mount = disk
    (path / "ballast").write_bytes(bytes(160 * 1024))
    with pytest.raises(OSError, match="cannot write to .*: No space left on device"):
        run(path / "a.zarr")
    (path / "ballast").unlink()
    mount("remount,ro")
    with pytest.raises(OSError, match="cannot write to .*: Read-only file system"):
        run(path / "a.zarr")
    with pytest.raises(OSError, match="cannot write to .*: Read-only file system"):
        run(path / "b.zarr")
    mount("remount,rw,size=256k")
    run(path / "a.zarr")
    assert_finished(path / "a.zarr", whole)
    mount("remount,ro")
    run(path / "a.zarr")
    assert_holds(load_groups(path / "a.zarr"), set(range(8)))


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "a.zarr", Path("/proc/a.zarr")):
        if place.parent.exists():
            with pytest.raises(OSError, match=f"cannot write to {place.parent}"):
                opened(place)


def test_an_interrupted_run_lets_go(tmp_path, whole, monkeypatch):
    def compute_or_stop(group, compute=compute):
        if group == 2:
            raise KeyboardInterrupt
        return compute(group)

    monkeypatch.setattr("groups_at_work.compute", compute_or_stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.zarr")
    monkeypatch.undo()
    assert opened(tmp_path / "a.zarr").finished() == {0, 1}
    run(tmp_path / "a.zarr")
    assert_finished(tmp_path / "a.zarr", whole)


def test_an_unreadable_file_is_no_missing_file(tmp_path, whole):
    (tmp_path / "whole.zarr/loss/c.3.0").unlink()
    (tmp_path / "whole.zarr/loss/c.3.0").mkdir()
    with pytest.raises(OSError, match=r"cannot read .*whole\.zarr: loss/c.3.0 is a directory"):
        opened(tmp_path / "whole.zarr").finished()


def test_files_without_end_are_not_read(tmp_path, whole):
    place = tmp_path / "whole.zarr"
    # of a tebibyte, on no disk
    for key in ("loss/c.3.0", "mark/c.5.0", "zarr.json"):
        os.truncate(place / key, 2**40)
    assert opened(place).finished() == set(range(8)) - {3, 5}
    assert load_groups(place).done.sum() == 6 * 3
    # opening it for another run has mended one
    for key in ("mark/root", "zarr.json"):
        os.truncate(place / key, 2**40)
    with pytest.raises(ValueError, match="damaged store .both copies of its root are torn"):
        load_groups(place)
    for key in ("mark/root", "zarr.json"):
        (place / key).unlink()
    os.mkfifo(place / "zarr.json")
    with pytest.raises(OSError, match=r"cannot read .*whole\.zarr: zarr\.json is not a file"):
        load_groups(place)


def test_text_that_fills_memory_is_damaged():
    texts = [b"x" * 2**20, *[b""] * 2**10]
    data = struct.pack("<I", len(texts)) + b"".join(struct.pack("<I", len(t)) + t for t in texts)
    field = Field((len(texts),), "str", ("name",))
    assert chunks.decode(chunks.sealed(data), field, ()) is None


def test_a_folder_behind_a_link_is_not_torn_and_an_unreadable_one_is_told(
    tmp_path, whole, monkeypatch
):
    store_of_all, scandir = tmp_path / "whole.zarr", os.scandir
    (store_of_all / "loss").rename(tmp_path / "other disk")
    (store_of_all / "loss").symlink_to(tmp_path / "other disk")
    assert (store.progress(store_of_all).done, store.progress(store_of_all).torn) == (8, 0)

    def closed(folder):
        if Path(folder).name == "loss":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(OSError, match=r"cannot read .*whole\.zarr: Permission denied"):
        store.progress(store_of_all)


def test_values_are_checked_and_split_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxstab.store.groups._BATCH", 500)
    run(tmp_path / "a.zarr")
    flip(tmp_path / "a.zarr/loss/c.6.0")
    assert opened(tmp_path / "a.zarr").finished() == set(range(8)) - {6}
    assert places.Place(tmp_path / "a.zarr").get([]) == []
