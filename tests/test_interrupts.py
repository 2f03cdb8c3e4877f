"""Ctrl-C and SIGTERM at any moment: one line, exit code 130; a cluster that is not there: one line, in time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxstab.cli import cluster
from jaxstab.cli.faults import UserError

ROOT = Path(__file__).parent.parent
# whoever runs the tests in the background has Ctrl-C switched off for all below
BEGIN = "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
COMMAND = BEGIN + "from jaxstab.cli import main; print('here', flush=True); sys.exit(main())"
# work that loses an exception and does not look up from C for an hour
DEAF = (
    BEGIN
    + """
from jaxstab.cli import interrupts
interrupts.watch()
with interrupts.orderly():
    try:
        print('here', flush=True)
        time.sleep(3600)
    except KeyboardInterrupt:
        print('lost', flush=True)
    {then}
"""
)


def start(code, *words):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT, **pipes)
    assert run.stdout.readline() == "here\n"
    return run


@pytest.mark.slow
def test_a_command_stops_at_any_moment_of_its_first_seconds(tmp_path):
    # imports of JAX, of all else, tracing, compiling; a fast machine has a single point in three seconds
    delays = (0.1, 0.8, 1.6, 3.2)
    how = (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGINT)
    runs = [
        start(COMMAND, "phase", "--activation", "softplus", "--out", str(tmp_path / "phase.png"))
        for _ in delays
    ]
    begun = time.monotonic()
    for run, delay, number in zip(runs, delays, how, strict=True):
        time.sleep(max(0.0, begun + delay - time.monotonic()))
        run.send_signal(number)
    for run in runs:
        _, complained = run.communicate(timeout=240)
        assert run.returncode == 130, complained
        assert complained.split() == "jaxstab: interrupted, nothing more was written".split()


WATCH = "from jaxstab.cli import interrupts\ninterrupts.watch()"


def interrupted_at_exit(*lines):
    """Exit code and complaints of a program that a signal meets while it sleeps at exit."""
    run = start("\n".join((f"{BEGIN}import atexit", *lines)))
    run.send_signal(signal.SIGINT)
    _, complained = run.communicate(timeout=240)
    return run.returncode, complained


def test_a_signal_in_what_is_cleaned_up_at_exit_is_one_line():
    clean = "atexit.register(lambda: (print('here', flush=True), time.sleep(3600)))"
    code, complained = interrupted_at_exit(WATCH, clean)
    assert code == 130, complained
    assert complained.split() == "jaxstab: interrupted, nothing more was written".split()


def test_a_signal_after_all_else_changes_nothing():
    """What is registered before is called after: then signals are ignored."""
    last = "atexit.register(lambda: (print('here', flush=True), time.sleep(2)))"
    code, complained = interrupted_at_exit(last, WATCH)
    assert code == 0 and not complained


def test_a_second_signal_stops_what_loses_the_first_exception():
    run = start(DEAF.format(then="time.sleep(3600)"))
    run.send_signal(signal.SIGTERM)
    assert run.stdout.readline() == "lost\n"
    run.send_signal(signal.SIGINT)
    _, complained = run.communicate(timeout=240)
    assert (
        run.returncode == 130
        and complained.strip() == "jaxstab: interrupted, at once, by a second signal"
    )


def test_a_lost_exception_is_raised_again_at_the_end():
    run = start(DEAF.format(then="pass"))
    run.send_signal(signal.SIGINT)
    _, complained = run.communicate(timeout=240)
    assert complained.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.slow
def test_nobody_reads_what_is_printed():
    reading, writing = os.pipe()
    os.close(reading)
    for words in (["--help"], ["--version"], ["train", "--help"]):
        command = [sys.executable, "-m", "jaxstab", *words]
        run = subprocess.run(
            command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=240
        )
        assert run.returncode == 141 and run.stderr == "", run.stderr
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "jaxstab", "--version"]
        run = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=240
        )
    assert (
        run.returncode == 2
        and run.stderr == "jaxstab: cannot write to standard output: No space left on device\n"
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("process", [0, 1])
def test_a_cluster_that_does_not_come_is_waited_for_no_longer_than_told(process, tmp_path):
    # nobody listens at port 9, where the first process is to; the second finds a port that is free
    address = "localhost:9" if process else "localhost:47391"
    words = f"--distributed --coordinator {address} --processes 2 --process {process} --coordinator-timeout 1"
    command = [
        sys.executable,
        "-m",
        "jaxstab",
        "train",
        "--data",
        "digits",
        "--out",
        tmp_path / "o.zarr",
    ]
    run = subprocess.run(
        [*command, *words.split()], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    whom = f"process 0 at {address}" if process else f"2 processes to join at {address}"
    assert run.returncode == 2 and run.stdout == f"waiting for {whom}, at most 1 s\n"
    assert run.stderr == f"jaxstab: waited 1 s for {whom} (--coordinator-timeout)\n"
    assert list(tmp_path.iterdir()) == []


PLACE = {"distributed": True, "coordinator": "localhost:8476", "processes": 2, "process": 1}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"coordinator": "a:1"},
            "--coordinator must be given together with --distributed",
        ),
        (
            {"processes": 2, "process": 0},
            "--processes, --process must be given together with --distributed",
        ),
        ({"shard": "3"}, "--shard must be I/N with 1 <= I <= N, got '3'"),
        ({"shard": "1/" + "9" * 5000}, "--shard must be I/N"),
        ({"shard": "²/3"}, "--shard must be I/N"),
        ({"shard": "0/3"}, "--shard must be I/N"),
        ({"shard": "1/2", "distributed": True}, "--distributed divides the groups itself"),
        (
            PLACE | {"coordinator": "nonsense"},
            "--coordinator must be HOST:PORT with a port in 1..65535",
        ),
        (PLACE | {"coordinator": "host:0"}, "HOST:PORT"),
        (PLACE | {"coordinator": "host:99999"}, "HOST:PORT"),
        (PLACE | {"coordinator": ":80"}, "HOST:PORT"),
        (
            PLACE | {"process": None},
            "--coordinator, --processes must be given together with --process",
        ),
        (PLACE | {"processes": 0}, "--processes must be >= 1, got 0"),
        (PLACE | {"process": 2}, "--process must be in 0..1, got 2"),
        (PLACE | {"process": -1}, "--process must be in 0..1, got -1"),
        (PLACE | {"timeout": 0.0}, "--coordinator-timeout must be in"),
        (PLACE | {"timeout": float("nan")}, "--coordinator-timeout must be in"),
        (PLACE | {"timeout": float("inf")}, "--coordinator-timeout must be in"),
    ],
)
def test_flags_that_do_not_fit_together(flags, said):
    with pytest.raises(UserError, match=said):
        cluster.check(cluster.Sharing(**flags))


def test_flags_that_fit():
    for flags in ({}, {"shard": "2/3"}, {"distributed": True}, PLACE):
        cluster.check(cluster.Sharing(**flags))
