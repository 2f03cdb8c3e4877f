"""`jaxstab status`: what a store holds, and how far it is."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxstab import store
from jaxstab.cli.faults import reading


@dataclasses.dataclass(frozen=True)
class Status:
    """Say how far a store of trainings is, who works on it, and what failed."""

    store: Annotated[str, tyro.conf.Positional]
    """The store, such as runs/trained.zarr, runs/main/store.zarr or the folder that holds it."""


def print_status(settings: Status) -> None:
    """Run `jaxstab status`.

    Args:
        settings: the flags.

    Raises:
        UserError: if there is no such store, or it is damaged.
    """
    url = settings.store
    if "://" not in url and (Path(url) / "store.zarr").exists():
        url = str(Path(url) / "store.zarr")
    with reading(url):
        # a sweep is there whole or not at all, and has no progress
        lines = _of_sweep(url) or _of_trainings(url, store.progress(url))
    print("\n".join(lines))


def _of_sweep(url: str) -> list[str]:
    """What a sweep's store holds; nothing if it is none."""
    # its variables are folders; what a store of trainings holds is not read
    if "://" in url or not (Path(url) / "verdict").is_dir():
        return []
    kept = store.load(url)
    of = kept.attrs
    grid = json.loads(of["grid"])
    return [
        f"a sweep over {kept.sizes['activation']} activations, {kept.sizes['sigma_w']} gains, {grid['seeds']} seeds",
        f"depths {grid['depths']}, width {grid['width']}, data {of.get('data')}, of {of.get('created')}",
        "finished",
    ]


def _of_trainings(url: str, progress: store.Progress) -> list[str]:
    """How far a store of trainings is."""
    grid = progress.settings["grid"]
    first = store.column(url, "first_nonfinite")
    torn = [f"{progress.torn} groups are torn; the command that made the store computes them again"]
    unread = ["judged by the lengths of files, not by every byte"]
    return [
        f"{progress.done} of {progress.groups} groups done, {100 * progress.done // progress.groups} %",
        *(torn if progress.torn else []),
        *([] if progress.read else unread),
        f"depths {grid['depths']}, {len(grid['sigma_w'])} gains, {grid['seeds']} seeds, {grid['steps']} steps",
        f"{np.sum(first == 0)} networks were not finite from the start, {np.sum(first > 0)} later",
        "finished" if progress.done == progress.groups else _at_work(url),
    ]


def _at_work(url: str) -> str:
    """Who computes groups, a line each."""
    if "://" in url:
        return "who is at work cannot be told behind a URL"
    try:
        runs = store.runs(url)
    except OSError as error:
        # whoever may read a store need not be allowed to lock it
        return f"who is at work cannot be told: {error}"
    return "\n".join(f"at work: {run}" for run in runs) or "nobody is at work"
