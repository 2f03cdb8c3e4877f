"""Groups of a sweep survive: kills, torn files, full disks and company; a finished store is always the same bytes."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jaxstab import store
from jaxstab.store import fingerprint, places
from jaxstab.store.groups import Groups
from jaxstab.store.places import Place

FIELDS = {
    "loss": store.Field((5,), "float32", ("step",)),
    "steps": store.Field((), "int32", ()),
    "diverged": store.Field((), "bool", ()),
    "log_grad": store.Field((2, 3), "float64", ("checkpoint", "layer")),
}
SETTINGS = {
    "grid": {"sigma_w": [0.5, 1.0, 2.0, 4.0], "width": 128, "clip": float("inf")},
    "plan": {"memory": 2**20},
    "versions": {"jax": "0.10.2"},
    "data_sha256": "ab" * 32,
}
SERVER = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def server():
    """Processes that start in milliseconds: forked from one that has imported this file and runs nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parent.parent))))
        SERVER.set_forkserver_preload([__name__])
        forkserver.ensure_running()


def compute(group, size=3):
    rng = np.random.default_rng(group)
    loss = rng.normal(size=(size, 5)).astype(np.float32)
    loss[0, -1] = (np.nan, np.inf, -np.inf)[group % 3]
    return {
        "loss": loss,
        "steps": rng.integers(0, 100, size, np.int32),
        "diverged": rng.random(size) < 0.5,
        "log_grad": rng.normal(size=(size, 2, 3)),
    }


def opened(url, groups=8, size=3, **changed):
    return store.open_groups(url, SETTINGS | changed, FIELDS, groups, size)


def run(url, log=None, groups=8, pause=0.0, **claim):
    """A run as the command line makes one: open, claim, commit; the log says when each group began and ended."""
    sweep = opened(url, groups)
    with store.claim(sweep, **claim) as work:
        for group in work:
            _note(log, f"begin {group}")
            time.sleep(pause)
            work.commit(group, compute(group))
            _note(log, f"end {group}")


def _note(log, line):
    if log:
        with Path(log).open("a") as file:
            file.write(f"{line} {os.getpid()}\n")


def notes(log):
    return [line.split() for line in Path(log).read_text().splitlines()]


def started(target, *args, **kwargs):
    process = SERVER.Process(target=target, args=args, kwargs=kwargs)
    process.start()
    return process


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited 30 s"
        time.sleep(0.002)


def files(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}


@pytest.fixture
def whole(tmp_path):
    """Files of a store whose run nothing interrupted."""
    run(tmp_path / "whole.zarr")
    return files(tmp_path / "whole.zarr")


def assert_finished(path, whole):
    found = files(path)
    assert found.keys() == whole.keys()
    assert [name for name in whole if found[name] != whole[name]] == []
    assert sorted(p.name for p in Path(path).parent.glob(f"*{Path(path).name}*")) == [Path(path).name], "no litter"


def assert_holds(dataset, groups, size=3):
    """Exactly these groups' values, and fill values elsewhere."""
    count = dataset.sizes["row"] // size
    for group in range(count):
        part = dataset.isel(row=slice(group * size, (group + 1) * size))
        assert (part.done == (group in groups)).all()
        for name, values in compute(group, size).items():
            empty = {"f": np.nan, "i": -1, "b": False}[values.dtype.kind]
            assert part[name].dtype == values.dtype
            np.testing.assert_array_equal(part[name], values if group in groups else np.full_like(values, empty))


def test_a_run_and_what_any_zarr_reader_sees(tmp_path):
    path = tmp_path / "deep" / "sweep.zarr"
    run(path)
    dataset = store.load_groups(path)
    assert dataset.loss.dims == ("row", "step") and dataset.log_grad.dims == ("row", "checkpoint", "layer")
    assert dataset.attrs["grid"] == SETTINGS["grid"] | {"clip": "inf"}
    assert_holds(dataset, set(range(8)))
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["log_grad"][:], dataset.log_grad)
    assert group["done"][:].all()
    other = xr.open_zarr(path, consolidated=False).drop_vars("done").load()
    xr.testing.assert_identical(other.drop_attrs(), dataset.drop_vars("done").drop_attrs())


def test_rows_of_groups_to_come_are_fill_values_for_every_reader(tmp_path):
    sweep = opened(tmp_path / "a.zarr")
    sweep.write(2, compute(2))
    assert_holds(store.load_groups(tmp_path / "a.zarr"), {2})
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert group["steps"][:6].tolist() == [-1] * 6 and np.isnan(group["loss"][:6]).all()
    assert store.progress(tmp_path / "a.zarr")[:4] == (8, 1, 24, 3)
    assert store.progress(tmp_path / "a.zarr").settings["plan"] == {"memory": 2**20}


@hypothesis_settings(max_examples=30)
@given(st.sets(st.integers(0, 6)), st.integers(1, 4), st.sampled_from(["local", "memory"]))
def test_any_subset_of_groups_reads_back_exactly(tmp_path_factory, groups, size, kind):
    place = tmp_path_factory.mktemp("subset") / "a.zarr"
    url = place if kind == "local" else f"memory:/{place}"
    sweep = opened(url, 7, size)
    for group in groups:
        sweep.write(group, compute(group, size))
    assert sweep.finished() == groups == opened(url, 7, size).finished()
    assert store.progress(url).done == len(groups)
    assert_holds(store.load_groups(url), groups, size)
    wanted = [compute(group, size)["steps"] for group in sorted(groups)]
    np.testing.assert_array_equal(store.column(url, "steps"), np.concatenate([np.zeros(0, np.int32), *wanted]))


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
        run(tmp_path / "a.zarr", groups=2)
        assert_finished(tmp_path / "a.zarr", files(tmp_path / "whole.zarr"))
        shutil.rmtree(tmp_path / "a.zarr")


def flip(file, at=1):
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(bytes(data))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-3])


def append(file):
    file.write_bytes(file.read_bytes() + b"\0")


@pytest.mark.parametrize("key", ["loss/c.3.0", "steps/c.3", "log_grad/c.3.0.0", "done/c.3"])
@pytest.mark.parametrize("tear", [flip, truncate, append, Path.unlink, lambda f: flip(f, -1)])
def test_a_torn_group_is_seen_and_computed_again(tmp_path, whole, key, tear):
    path = tmp_path / "whole.zarr"
    tear(path / key)
    assert opened(path).finished() == set(range(8)) - {3}
    assert_holds(store.load_groups(path), set(range(8)) - {3})
    run(path, tmp_path / "log")
    assert [line[:2] for line in notes(tmp_path / "log")] == [["begin", "3"], ["end", "3"]]
    assert_finished(path, whole)


def test_a_torn_group_is_not_marked_while_it_is_computed_again(tmp_path, whole):
    path = tmp_path / "whole.zarr"
    flip(path / "loss/c.3.0")
    with store.claim(opened(path)) as work:
        assert next(iter(work)) == 3
        assert store.progress(path).done == 7
    assert opened(path).finished() == set(range(8)) - {3}


def test_torn_metadata_of_an_array_is_mended(tmp_path, whole):
    truncate(tmp_path / "whole.zarr/loss/zarr.json")
    (tmp_path / "whole.zarr/steps/zarr.json").unlink()
    run(tmp_path / "whole.zarr")
    assert_finished(tmp_path / "whole.zarr", whole)


def test_a_full_disk_stops_a_run_and_space_lets_it_go_on(tmp_path, whole, monkeypatch):
    replace, left = Path.replace, 17

    def filling(partial, target):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(partial, target)

    monkeypatch.setattr(Path, "replace", filling)
    with pytest.raises(OSError, match=r"cannot write to .*a\.zarr: No space left on device$"):
        run(tmp_path / "a.zarr")
    # metadata of four fields, done and the root; then two groups of five files, and one more file
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
    assert_holds(store.load_groups(path / "a.zarr"), set(range(8)))


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "a.zarr", Path("/proc/a.zarr")):
        if place.parent.exists():
            with pytest.raises(OSError, match=f"cannot write to {place.parent}"):
                opened(place)


def test_a_second_run_is_refused_and_told_by_whom(tmp_path, whole):
    path, log = tmp_path / "a.zarr", tmp_path / "log"
    first = started(run, path, log, 8, 0.2)
    wait_for(log.exists)
    with pytest.raises(BlockingIOError, match=rf"a\.zarr is being computed by pid {first.pid} on .*all groups"):
        run(path)
    assert [(r.pid, r.part) for r in store.runs(path)] == [(first.pid, (1, 1))]
    first.kill()
    first.join()
    assert store.runs(path) == [], "the kernel lets go of a killed run's locks"
    run(path)
    assert_finished(path, whole)
    assert store.runs(path) == []


def test_a_joining_run_shares_the_rest(tmp_path, whole):
    path, log = tmp_path / "a.zarr", tmp_path / "log"
    first = started(run, path, log, 8, 0.2)
    wait_for(log.exists)
    second = started(run, path, log, 8, 0.2, join=True)
    first.join(), second.join()
    assert (first.exitcode, second.exitcode) == (0, 0)
    ends = [(int(group), int(pid)) for what, group, pid in notes(log) if what == "end"]
    assert sorted(group for group, _ in ends) == list(range(8)), "each group once"
    assert {pid for _, pid in ends} == {first.pid, second.pid}
    assert_finished(path, whole)


def test_a_group_of_a_lost_worker_is_taken_over(tmp_path, whole):
    path, log = tmp_path / "a.zarr", tmp_path / "log"
    lost = started(run, path, log, 8, 60.0)
    wait_for(log.exists)
    second = started(run, path, log, join=True)
    wait_for(lambda: sum(line[0] == "end" for line in notes(log)) == 7)
    assert second.is_alive(), "it waits for the last one"
    lost.kill()
    second.join()
    assert second.exitcode == 0
    assert_finished(path, whole)


def test_shards_side_by_side(tmp_path, whole):
    path, log = tmp_path / "a.zarr", tmp_path / "log"
    shards = [started(run, path, log, 8, 0.02, shard=(i, 3)) for i in (1, 2, 3)]
    for process in shards:
        process.join()
        assert process.exitcode == 0
    for what, group, pid in notes(log):
        assert what in ("begin", "end") and shards[int(group) % 3].pid == int(pid)
    assert_finished(path, whole)


@pytest.mark.parametrize(
    ("held", "asked", "meets"),
    [
        ((1, 1), (1, 1), True),
        ((1, 2), (1, 1), True),
        ((1, 1), (2, 2), True),
        ((1, 2), (2, 2), False),
        ((1, 2), (3, 4), True),
        ((1, 2), (4, 4), False),
        # group 5 is in both
        ((2, 4), (3, 3), True),
    ],
)
def test_which_shards_meet(tmp_path, held, asked, meets):
    sweep = opened(tmp_path / "a.zarr", 24)
    own = lambda part: set(range(part[0] - 1, 24, part[1]))
    assert bool(own(held) & own(asked)) == meets
    with store.claim(sweep, held):
        if meets:
            with pytest.raises(BlockingIOError, match=rf"pid {os.getpid()} on"), store.claim(sweep, asked):
                pass
        else:
            with store.claim(sweep, asked) as work:
                assert set(work.pending) == own(asked)
        with store.claim(sweep, asked, join=True) as work:
            assert set(work.pending) == own(asked)


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0), (-1, 2)])
def test_a_shard_that_is_none(tmp_path, shard):
    with pytest.raises(ValueError, match=f"shard must be I/N with 1 <= I <= N, got {shard[0]}/{shard[1]}"):
        run(tmp_path / "a.zarr", shard=shard)


def test_only_who_holds_a_group_commits_it_and_once(tmp_path):
    with store.claim(opened(tmp_path / "a.zarr")) as work:
        group = next(iter(work))
        with pytest.raises(ValueError, match="group 5 is not held here"):
            work.commit(5, compute(5))
        work.commit(group, compute(group))
        with pytest.raises(ValueError, match="group 0 is not held here"):
            work.commit(group, compute(group))


def test_an_interrupted_run_lets_go(tmp_path, whole, monkeypatch):
    def compute_or_stop(group, compute=compute):
        if group == 2:
            raise KeyboardInterrupt
        return compute(group)

    monkeypatch.setattr(sys.modules[__name__], "compute", compute_or_stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.zarr")
    monkeypatch.undo()
    assert opened(tmp_path / "a.zarr").finished() == {0, 1}
    run(tmp_path / "a.zarr")
    assert_finished(tmp_path / "a.zarr", whole)


def _race(url, barrier, results, seed):
    try:
        sweep = Groups(Place(url), fingerprint.plain(SETTINGS | {"seed": seed}), FIELDS, 8, 3)
        barrier.wait()
        made = sweep.create()
        opened(url, seed=seed)
        results.put((seed, made, "opened"))
    except Exception as error:
        results.put((seed, made, str(error)))


@pytest.mark.parametrize("seeds", [(1, 1, 1, 1), (1, 2, 3, 4)])
def test_four_processes_make_one_store(tmp_path, seeds):
    barrier, results = SERVER.Barrier(4), SERVER.Queue()
    racing = [started(_race, tmp_path / "a.zarr", barrier, results, seed) for seed in seeds]
    answers = [results.get(timeout=60) for _ in racing]
    for process in racing:
        process.join()
    (winner,) = [seed for seed, made, _ in answers if made]
    for seed, _, said in answers:
        assert said == "opened" if seed == winner else f"(seed: {winner} -> {seed})" in said
    assert opened(tmp_path / "a.zarr", seed=winner).finished() == set()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"grid": SETTINGS["grid"] | {"sigma_w": [0.5, 2.0]}}, r"sigma_w: 4 values 0.5..4 -> 0.5, 2"),
        ({"grid": SETTINGS["grid"] | {"sigma_w": [0.5, 1.0, 3.0, 4.0]}}, r"0.5..4, value 2: 2.0 -> 3.0"),
        ({"grid": SETTINGS["grid"] | {"clip": 1.0}}, "clip: inf -> 1"),
        ({"versions": {"jax": "0.11.0"}}, r"jax: 0.10.2 -> 0.11.0"),
        ({"data_sha256": "cd" * 32}, r"data_sha256: abababababab... -> cdcdcdcdcdcd..."),
        ({"seed": 1}, "seed: absent -> 1"),
        ({"grid": {}}, r"sigma_w: 4 values 0.5..4 -> absent; width: 128 -> absent"),
        ({"many": {f"x{i}": i for i in range(9)}}, "x5: absent -> 5; and 3 more"),
    ],
)
def test_another_sweep_is_refused_with_what_changed(tmp_path, changed, said):
    before = opened(tmp_path / "a.zarr")
    before.write(1, compute(1))
    kept = files(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match=r"a\.zarr holds another sweep \(.*\); choose another place") as refused:
        opened(tmp_path / "a.zarr", **changed)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert files(tmp_path / "a.zarr") == kept


def test_other_fields_or_groups_are_another_sweep(tmp_path):
    opened(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="size: 3 -> 6; groups: 8 -> 4|groups: 8 -> 4; size: 3 -> 6"):
        opened(tmp_path / "a.zarr", groups=4, size=6)
    fields = FIELDS | {"steps": store.Field((), "int64", ())}
    with pytest.raises(ValueError, match=r"steps.dtype: int32 -> int64"):
        store.open_groups(tmp_path / "a.zarr", SETTINGS, fields, 8, 3)


def test_settings_that_are_equal_are_the_same_sweep(tmp_path):
    opened(tmp_path / "a.zarr", lr=(0.1, 1.0), n=4)
    opened(tmp_path / "a.zarr", lr=np.array([0.1, 1.0]), n=np.int64(4))
    opened(tmp_path / "a.zarr", n=4.0, lr=[0.1, 1])
    with pytest.raises(ValueError, match=r"settings.lr\[1\] must be plain values .*, got function"):
        opened(tmp_path / "a.zarr", lr=[0.1, compute])


@pytest.mark.parametrize("entry", ["folder", "full folder", "file", "dataset"])
def test_what_is_no_sweep_is_refused_and_left_alone(tmp_path, entry):
    place = tmp_path / "thesis"
    if entry == "file":
        place.write_text("years of work")
    elif entry == "dataset":
        store.save(xr.Dataset({"x": ("row", [1.0])}), place)
    else:
        place.mkdir()
        if entry == "full folder":
            (place / "chapter.tex").write_text("years of work")
    kept = files(tmp_path)
    with pytest.raises(FileExistsError, match="thesis exists and is not a sweep; choose another place"):
        opened(place)
    for reader in (store.load_groups, store.progress):
        with pytest.raises(ValueError, match="thesis: not a sweep"):
            reader(place)
    assert files(tmp_path) == kept


@pytest.mark.parametrize(
    "edit",
    [
        lambda a: a | {"groups": -1},
        lambda a: a | {"settings": 3},
        lambda a: {k: v for k, v in a.items() if k != "size"},
        lambda a: a | {"fields": {"../../etc/passwd": {"shape": [], "dtype": "bool", "dims": []}}},
        lambda a: a | {"fields": {"loss": {"shape": [], "dtype": "object", "dims": []}}},
        lambda a: a | {"fields": {"loss": {"shape": [], "dtype": "O", "dims": []}}},
        lambda a: a | {"fields": {"loss": {"shape": [2**50], "dtype": "float64", "dims": ["x"]}}},
        lambda a: a | {"fields": []},
        lambda a: [],
    ],
)
def test_a_damaged_or_forged_root_is_one_clear_line(tmp_path, edit):
    path = tmp_path / "a.zarr"
    opened(path)
    root = json.loads((path / "zarr.json").read_text())
    (path / "zarr.json").write_text(json.dumps(root | {"attributes": edit(root["attributes"])}))
    with pytest.raises(ValueError, match=r"a\.zarr: (damaged store|its \d+ bytes do not fit)") as refused:
        store.load_groups(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{torn", "[]", "3", '{"attributes": 3}', "[" * 100000, "\xff"])
def test_a_root_that_is_no_json_object(tmp_path, text):
    opened(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/zarr.json").write_bytes(text.encode("latin1"))
    for reader in (store.load_groups, store.progress, opened):
        with pytest.raises(ValueError, match=r"a\.zarr: (damaged store|not a sweep)"):
            reader(tmp_path / "a.zarr")


def test_a_missing_store_and_an_unknown_url():
    for reader in (store.load_groups, store.progress):
        with pytest.raises(ValueError, match=r"none\.zarr: no such store"):
            reader("none.zarr")
    with pytest.raises(ValueError, match="ftpz://a: Protocol not known"):
        opened("ftpz://a")


def test_reading_imports_and_runs_nothing(tmp_path, whole):
    path = tmp_path / "whole.zarr"
    # what zarr itself would look up and run
    document = json.loads((path / "loss/zarr.json").read_text())
    document["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    (path / "loss/zarr.json").write_text(json.dumps(document))
    code = (
        "import sys; from jaxstab import store; path = sys.argv[1]; store.load_groups(path); seen, on = [], [True]\n"
        "bad = ('import', 'exec', 'compile', 'pickle.find_class', 'marshal.loads', 'os.system', 'subprocess.Popen')\n"
        "sys.addaudithook(lambda event, args: on and event in bad and seen.append((event, args)))\n"
        "done = bool(store.load_groups(path).done.all()); store.progress(path); on.clear(); print(done, seen)"
    )
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout.strip() == "True []"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "at least one field"),
        ({"done": store.Field((), "bool", ())}, "identifier other than done"),
        ({"a/b": store.Field((), "bool", ())}, "identifier other than"),
        ({"a": store.Field((), "object", ())}, "dtype must be one of bool, int8"),
        ({"a": store.Field((), "uint8", ())}, "dtype must be one of bool, int8"),
        ({"a": store.Field((0,), "bool", ("x",))}, "shape must be integers >= 1"),
        ({"a": store.Field((2,), "bool", ())}, "needs a name for each axis"),
        ({"a": store.Field((2, 2), "bool", ("x", "x"))}, "must differ from one another"),
        ({"a": store.Field((2,), "bool", ("row",))}, "and from row"),
        ({"a": store.Field((2,), "bool", ("a",))}, "dimension a of length 2 is a field too"),
        (
            {"a": store.Field((2,), "bool", ("x",)), "b": store.Field((3,), "bool", ("x",))},
            "dimension x of length 3 is 2 long in another field",
        ),
    ],
)
def test_fields_a_store_cannot_hold(tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        store.open_groups(tmp_path / "a.zarr", {}, fields, 1, 1)
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_the_fields(tmp_path):
    sweep = opened(tmp_path / "a.zarr")
    values = compute(0)
    for wrong, said in (
        (values | {"loss": values["loss"].astype(np.float64)}, r"loss must be float32\[3, 5\], got float64\[3, 5\]"),
        (values | {"loss": values["loss"][:2]}, r"loss must be float32\[3, 5\], got float32\[2, 5\]"),
        (values | {"extra": values["loss"]}, "values must be those of loss, steps"),
        ({"loss": values["loss"]}, "values must be those of loss, steps"),
    ):
        with pytest.raises(ValueError, match=said):
            sweep.write(0, wrong)
    for group in (-1, 8):
        with pytest.raises(ValueError, match=r"group must be in 0\.\.7"):
            sweep.write(group, values)
    for groups, size in ((0, 3), (8, 0), (True, 3)):
        with pytest.raises(ValueError, match="must be an integer >= 1"):
            opened(tmp_path / "b.zarr", groups, size)
    assert sweep.finished() == set()


def test_behind_a_url(tmp_path):
    url = f"memory:/{tmp_path}/a.zarr"
    run(url, shard=(1, 2))
    assert opened(url).finished() == {0, 2, 4, 6}
    with pytest.raises(ValueError, match="where there are no locks to join by; use --shard"):
        run(url, join=True)
    with pytest.raises(ValueError, match=r"width: absent -> 9"):
        opened(url, width=9)
    place = Place(url)
    place.put("loss/c.2.0", (place.get(["loss/c.2.0"])[0] or b"")[:-1])
    place.put("done/c.4", b"\x01")
    assert opened(url).finished() == {0, 6}
    run(url)
    assert store.runs(url) == []
    assert_holds(store.load_groups(url), set(range(8)))
    np.testing.assert_array_equal(zarr.open_group(url, mode="r")["steps"][:], store.load_groups(url).steps)
    # a run that was killed while it made the store
    half = Place(f"memory:/{tmp_path}/half.zarr")
    half.fill({"loss/zarr.json": b"{"})
    run(half.url)
    assert_holds(store.load_groups(half.url), set(range(8)))
    other = Place(f"memory:/{tmp_path}/thesis")
    other.fill({"chapter.tex": b"years of work"})
    with pytest.raises(FileExistsError, match="thesis exists and is not a sweep"):
        opened(other.url)


def test_a_url_of_this_machine_is_a_local_store(tmp_path, whole):
    run(f"file://{tmp_path}/a.zarr")
    assert_finished(tmp_path / "a.zarr", whole)


def test_an_unreadable_file_is_no_missing_file(tmp_path, whole):
    (tmp_path / "whole.zarr/loss/c.3.0").unlink()
    (tmp_path / "whole.zarr/loss/c.3.0").mkdir()
    with pytest.raises(OSError, match=r"cannot read .*whole\.zarr: Is a directory"):
        opened(tmp_path / "whole.zarr").finished()


def test_code_version_names_what_decides_numbers():
    versions = store.code_version()
    assert {"clipping/by_norm.py", "networks/chains.py", "initializers.py"} <= versions["sources"].keys()
    assert not {"cli.py", "store/groups.py", "report/page.py"} & versions["sources"].keys()
    changed = versions | {"sources": versions["sources"] | {"initializers.py": "0" * 12}}
    assert store.differences(versions, changed).startswith("initializers.py: ")
    assert store.differences(versions, versions) == ""


def test_values_are_checked_and_split_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxstab.store.groups._BATCH", 500)
    run(tmp_path / "a.zarr")
    flip(tmp_path / "a.zarr/loss/c.6.0")
    assert opened(tmp_path / "a.zarr").finished() == set(range(8)) - {6}
    assert places.Place(tmp_path / "a.zarr").get([]) == []
