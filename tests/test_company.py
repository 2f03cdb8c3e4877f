"""Several runs on one store: refused, joined or sharded, each group computed once."""

import os
from pathlib import Path

import pytest
from groups_at_work import (
    FIELDS,
    SETTINGS,
    assert_finished,
    compute,
    notes,
    opened,
    run,
    server,
    started,
    wait_for,
)

from jaxstab import store
from jaxstab.store import claims, creation, fingerprint
from jaxstab.store.groups import Groups
from jaxstab.store.places import Place


@pytest.mark.slow
def test_a_second_run_is_refused_and_told_by_whom(tmp_path, whole):
    path, log = tmp_path / "a.zarr", tmp_path / "log"
    first = started(run, path, log, 8, 0.2)
    wait_for(log.exists)
    with pytest.raises(
        BlockingIOError, match=rf"a\.zarr is being computed by pid {first.pid} on .*all groups"
    ):
        run(path)
    assert [(r.pid, r.part) for r in claims.runs(path)] == [(first.pid, (1, 1))]
    first.kill()
    first.join()
    assert claims.runs(path) == [], "the kernel lets go of a killed run's locks"
    run(path)
    assert_finished(path, whole)
    assert claims.runs(path) == []


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
    with claims.claim(sweep, held):
        if meets:
            with (
                pytest.raises(BlockingIOError, match=rf"pid {os.getpid()} on"),
                claims.claim(sweep, asked),
            ):
                pass
        else:
            with claims.claim(sweep, asked) as work:
                assert set(work.pending) == own(asked)
        with claims.claim(sweep, asked, join=True) as work:
            assert set(work.pending) == own(asked)


def test_a_link_leads_to_the_same_locks(tmp_path):
    sweep = opened(tmp_path / "a.zarr")
    (tmp_path / "link.zarr").symlink_to("a.zarr")
    with (
        claims.claim(sweep),
        pytest.raises(BlockingIOError),
        claims.claim(opened(tmp_path / "link.zarr")),
    ):
        pass


def test_a_mark_that_another_run_makes_meanwhile_stays(monkeypatch, tmp_path):
    # behind a URL nothing keeps a run of the same part out
    sweep = opened(f"memory:/{tmp_path}/a.zarr")
    looked = type(sweep).finished

    def slow(self, groups=None):
        found = looked(self, groups)
        if groups == [0]:
            sweep.write(0, compute(0))
        return found

    with claims.claim(sweep) as work, monkeypatch.context() as patch:
        patch.setattr(type(sweep), "finished", slow)
        assert next(iter(work)) == 0
    assert sweep.finished() == {0}


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0), (-1, 2)])
def test_a_shard_that_is_none(tmp_path, shard):
    with pytest.raises(
        ValueError, match=f"shard must be I/N with 1 <= I <= N, got {shard[0]}/{shard[1]}"
    ):
        run(tmp_path / "a.zarr", shard=shard)


def test_only_who_holds_a_group_commits_it_and_once(tmp_path):
    with claims.claim(opened(tmp_path / "a.zarr")) as work:
        group = next(iter(work))
        with pytest.raises(ValueError, match="group 5 is not held;"):
            work.commit(5, compute(5))
        work.commit(group, compute(group))
        with pytest.raises(ValueError, match="group 0 is not held;"):
            work.commit(group, compute(group))


def _open_often(url):
    for _ in range(20):
        torn = Path(url) / f"loss/torn{os.getpid()}"
        torn.write_bytes(b"{")
        torn.replace(Path(url) / "loss/zarr.json")
        opened(url)


def test_torn_metadata_are_mended_by_one_at_a_time(tmp_path):
    opened(tmp_path / "a.zarr")
    racing = [started(_open_often, tmp_path / "a.zarr") for _ in range(4)]
    for process in racing:
        process.join()
        assert process.exitcode == 0


def _race(url, barrier, results, seed):
    try:
        sweep = Groups(
            Place(url),
            fingerprint.plain(SETTINGS | {"seed": seed}),
            FIELDS,
            {"row": store.Axis(24, 3)},
        )
        barrier.wait()
        made = creation.create(sweep)
        opened(url, seed=seed)
        results.put((seed, made, "opened"))
    except Exception as error:
        results.put((seed, made, str(error)))


@pytest.mark.parametrize("seeds", [(1, 1, 1, 1), (1, 2, 3, 4)])
def test_four_processes_make_one_store(tmp_path, seeds):
    barrier, results = server().Barrier(4), server().Queue()
    racing = [started(_race, tmp_path / "a.zarr", barrier, results, seed) for seed in seeds]
    answers = [results.get(timeout=60) for _ in racing]
    for process in racing:
        process.join()
    (winner,) = [seed for seed, made, _ in answers if made]
    for seed, _, said in answers:
        assert said == "opened" if seed == winner else f"(seed: {winner} -> {seed})" in said
    assert opened(tmp_path / "a.zarr", seed=winner).finished() == set()
