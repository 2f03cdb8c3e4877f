"""A small sweep as the command line runs one, for the tests of stores: in this process or another, and its files."""

import functools
import json
import multiprocessing
import os
import time
from multiprocessing import forkserver
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from jaxstab import store
from jaxstab.store import claims, opening

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


@functools.cache
def server():
    """Processes that start in milliseconds: forked from one that has imported this file and runs nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH",
            os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parent.parent))),
        )
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        forkserver.ensure_running()
    return context


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
    return opening.open_groups(url, SETTINGS | changed, FIELDS, groups, size)


def run(url, log=None, groups=8, pause=0.0, **claim):
    """A run as the command line makes one: open, claim, commit; the log says when each group began and ended."""
    sweep = opened(url, groups)
    with claims.claim(sweep, **claim) as work:
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
    process = server().Process(target=target, args=args, kwargs=kwargs)
    process.start()
    return process


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s"
        time.sleep(0.002)


def files(path):
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in Path(path).rglob("*")
        if file.is_file()
    }


def assert_finished(path, whole):
    found = files(path)
    assert found.keys() == whole.keys()
    assert [name for name in whole if found[name] != whole[name]] == []
    assert sorted(p.name for p in Path(path).parent.glob(f"*{Path(path).name}*")) == [
        Path(path).name
    ], "no litter"


def assert_holds(dataset, groups, size=3):
    """Exactly these groups' values, and fill values elsewhere."""
    count = dataset.sizes["row"] // size
    for group in range(count):
        part = dataset.isel(row=slice(group * size, (group + 1) * size))
        assert (part.done == (group in groups)).all()
        for name, values in compute(group, size).items():
            empty = {"f": np.nan, "i": -1, "b": False}[values.dtype.kind]
            assert part[name].dtype == values.dtype
            np.testing.assert_array_equal(
                part[name], values if group in groups else np.full_like(values, empty)
            )


def forge(path, edit):
    """Change the root's attributes as one who means it: in both copies, with the right checksum."""
    root = json.loads((path / "zarr.json").read_text())
    text = json.dumps(root | {"attributes": edit(root["attributes"])}).encode()
    (path / "zarr.json").write_bytes(text)
    (path / "mark/root").write_bytes(text + google_crc32c.value(text).to_bytes(4, "little"))


def flip(file, at=1):
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(bytes(data))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-3])


def append(file):
    file.write_bytes(file.read_bytes() + b"\0")
