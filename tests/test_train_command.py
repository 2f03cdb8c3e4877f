"""`jaxstab train` and `status`: any way of stopping, sharing and going on leaves the same store, byte by byte."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxstab import cli, store
from jaxstab.store import fingerprint

ROOT = Path(__file__).parent.parent
# eight groups of one network, one program; each takes long enough to be caught at
FLAGS = (
    "--data digits --depths 2 4 --sigma-w 1.0 1.2 1.4 1.6 --width 64 --steps 250 --batch 64 --group 1 --cpu-devices 1"
).split()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The command in a process of its own; all of them share what they compile."""
    # whoever runs the tests in the background has Ctrl-C switched off for all below
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from jaxstab.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "train", *FLAGS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}
    kept |= {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    environment = os.environ | kept
    return lambda out, *more: subprocess.Popen(
        [*command, "--out", str(out), *more], cwd=ROOT, env=environment, **pipes
    )


def end(run, code=0):
    said, complained = run.communicate(timeout=240)
    assert run.returncode == code, complained
    return said, complained.strip().splitlines()


def content(place):
    return {
        path.relative_to(place): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def until_marked(out, groups, run):
    """Wait for marks of groups, by their names: reading the store again and again takes a processor."""
    while run.poll() is None and len(list(out.glob("done/c.*"))) < groups:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A store made in one go."""
    out = tmp_path_factory.mktemp("whole") / "trained.zarr"
    said, _ = end(start(out))
    assert "8 networks in 8 groups of 1, 1 programs" in said and "8 networks trained in" in said
    assert (
        "0 not finite from the start, 0 later" in said and "GFLOP/s" in said and "compiling" in said
    )
    return out


@pytest.mark.slow
@pytest.mark.long
def test_runs_beside_each_other_told_to_stop_go_on_to_the_same_bytes(
    start, whole, tmp_path, capsys
):
    out = tmp_path / "trained.zarr"
    first = start(out)
    until_marked(out, 1, first)
    # it holds a group, or will: for as long as the others take
    first.send_signal(signal.SIGSTOP)
    code, _, complained = run(capsys, "train", *FLAGS, "--out", out)
    assert code == 2 and len(complained.splitlines()) == 1 and "--join" in complained
    assert f"running: pid {first.pid} on " in run(capsys, "status", out)[1]
    joined = start(out, "--join")
    until_marked(out, 3, joined)
    joined.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGCONT)
    for stopped in (joined, first):
        said, complained = stopped.communicate(timeout=240)
        assert stopped.returncode == 130, (said, complained)
        assert (
            "of 8 groups are in" in complained and "the same command resumes the run" in complained
        )
    assert store.progress(out).done < 8
    end(start(out))
    assert content(out) == content(whole)


@pytest.mark.slow
@pytest.mark.long
def test_shards_and_processes_of_a_cluster_fill_one_store(start, whole, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared, clustered = tmp_path / "shared.zarr", tmp_path / "clustered.zarr"
    cluster = [
        "--distributed",
        "--coordinator",
        f"localhost:{port}",
        "--processes",
        "2",
        "--process",
    ]
    runs = [start(shared, "--shard", f"{i}/2") for i in (1, 2)] + [
        start(clustered, *cluster, str(i)) for i in (0, 1)
    ]
    for run in runs:
        assert "4 networks trained in" in end(run)[0]
    assert content(shared) == content(whole) == content(clustered)


@pytest.mark.slow
@pytest.mark.long
def test_a_lost_process_of_a_cluster_ends_nobody_else(start, whole, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    out = tmp_path / "trained.zarr"
    cluster = [
        "--distributed",
        "--coordinator",
        f"localhost:{port}",
        "--processes",
        "2",
        "--process",
    ]
    # the one to whom JAX has the others report
    lost, left = (start(out, *cluster, str(i)) for i in (0, 1))
    until_marked(out, 1, lost)
    lost.kill()
    assert lost.communicate(timeout=60) and lost.returncode == -9
    assert "4 networks trained in" in end(left)[0]
    end(start(out))
    assert content(out) == content(whole)


def run(capsys, *words):
    code = cli.main(list(map(str, words)))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_line_and_events_per_network(whole, tmp_path, capsys):
    table, events = tmp_path / "cells.csv", tmp_path / "events"
    code, said, _ = run(
        capsys, "train", *FLAGS, "--out", whole, "--csv", table, "--tensorboard", events
    )
    assert code == 0 and f"table: {table}" in said and f"events: {events}" in said
    lines = pd.read_csv(table)
    assert len(lines) == 8 and set(lines.columns) >= {
        "depth",
        "sigma_w",
        "test_accuracy",
        "loss",
        "first_nonfinite",
    }
    assert lines.loss.between(0, 5).all() and (lines.first_nonfinite == -1).all()
    runs = sorted(path.name for path in events.iterdir())
    assert (
        len(runs) == 8
        and runs[0] == "depth=2,sigma_w=1.0"
        and all(any(path.iterdir()) for path in events.iterdir())
    )


def test_status_of_what_is_not_finished(whole, tmp_path, capsys):
    out = tmp_path / "trained.zarr"
    shutil.copytree(whole, out)
    sorted((out / "done").glob("c.*"))[5].unlink()
    code, said, _ = run(capsys, "status", out)
    assert code == 0 and "7 of 8 groups done, 87 %" in said and "no process is running" in said
    # a folder of locks that this user cannot use, and a place without locks
    (tmp_path / "trained.zarr.lock" / "gate").mkdir(parents=True)
    code, said, _ = run(capsys, "status", out)
    assert code == 0 and "7 of 8" in said and "running processes: unknown (cannot write to" in said
    assert "unknown for a store behind a URL" in run(capsys, "status", f"file://{out}")[1]


def test_finished_and_other_sweeps(whole, capsys, tmp_path, monkeypatch):
    code, said, _ = run(capsys, "status", whole)
    assert code == 0 and "8 of 8 groups done, 100 %" in said and "finished" in said
    assert "0 networks were not finite from the start, 0 later" in said
    code, said, _ = run(capsys, "train", *FLAGS, "--out", whole)
    assert code == 0 and "nothing was left to do" in said
    before = content(whole)
    code, _, complained = run(capsys, "train", *FLAGS, "--steps", 251, "--out", whole)
    assert code == 2 and "steps: 250 -> 251" in complained and len(complained.splitlines()) == 1
    x = np.random.default_rng(0).normal(size=(99, 64)).astype(np.float32)
    np.savez(tmp_path / "other.npz", x=x, y=np.arange(99) % 10)
    code, _, complained = run(
        capsys, "train", *FLAGS, "--data", tmp_path / "other.npz", "--out", whole
    )
    assert (
        code == 2
        and "sha256: " in complained
        and "test_sha256: " in complained
        and len(complained.splitlines()) == 1
    )
    monkeypatch.setattr(fingerprint, "code_version", lambda: {"jax": "0.0.1"})
    code, _, complained = run(capsys, "train", *FLAGS, "--out", whole)
    assert code == 2 and "-> 0.0.1" in complained
    assert content(whole) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--learning-rates 0", "learning_rate must be finite and > 0"),
        ("--optimiser sdg", "optimiser must be one of"),
        ("--depths 0", "depth must be an integer >= 1"),
        ("--memory 0.00001", "training one of the largest networks takes"),
        ("--lanes 0", "--lanes must be in 1..8, the number of networks, got 0"),
        ("--shard 3", "--shard must be I/N with 1 <= I <= N, got '3'"),
        ("--shard 3/2", "--shard must be I/N with 1 <= I <= N, got '3/2'"),
        ("--data nonsense", "unknown data set 'nonsense'"),
        ("--batch 99999", "batch must be at most the number of examples"),
        ("--batch 1 --norm batch", "BatchNorm needs a batch of at least 2 examples, got 1"),
        ("--activations tnah", "unknown activation 'tnah'"),
    ],
)
def test_what_a_user_got_wrong_is_one_line(words, message, tmp_path, capsys):
    code, _, complained = run(
        capsys, "train", *FLAGS, *words.split(), "--out", tmp_path / "trained.zarr"
    )
    assert code == 2 and message in complained and len(complained.splitlines()) == 1
    assert not (tmp_path / "trained.zarr").exists()


def test_one_example_cannot_be_split(tmp_path, capsys):
    np.savez(tmp_path / "one.npz", x=np.ones((1, 4), np.float32), y=np.zeros(1, int))
    code, _, complained = run(
        capsys, "train", *FLAGS, "--data", tmp_path / "one.npz", "--out", tmp_path / "trained.zarr"
    )
    assert (
        code == 2
        and "at least two examples are needed, to train and to test on, got 1" in complained
    )
