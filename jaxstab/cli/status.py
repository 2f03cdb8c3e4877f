"""`jaxstab status`: how far a store of trainings is."""

import dataclasses
from typing import Annotated

import numpy as np
import tyro

from jaxstab import store
from jaxstab.cli.faults import users_fault


@dataclasses.dataclass(frozen=True)
class Status:
    """Say how far a store of trainings is, who works on it, and what failed."""

    store: Annotated[str, tyro.conf.Positional]
    """The store, such as runs/trained.zarr."""


def print_status(settings: Status) -> None:
    """Run `jaxstab status`.

    Args:
        settings: the flags.

    Raises:
        UserError: if there is no such store.
    """
    with users_fault():
        progress = store.progress(settings.store)
        first = store.column(settings.store, "first_nonfinite")
    grid = progress.settings["grid"]
    print(f"{progress.done} of {progress.groups} groups done, {100 * progress.done // progress.groups} %")
    print(f"depths {grid['depths']}, {len(grid['sigma_w'])} gains, {grid['seeds']} seeds, {grid['steps']} steps")
    print(f"{np.sum(first == 0)} networks were not finite from the start, {np.sum(first > 0)} later")
    done = progress.done == progress.groups
    print("finished" if done else _at_work(settings.store))


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
