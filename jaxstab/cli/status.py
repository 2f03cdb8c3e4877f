"""`jaxstab status`: print the contents and the progress of a store."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxstab import store
from jaxstab.analysis.survey import parts
from jaxstab.cli.faults import printable, reading
from jaxstab.cli.settings import Status
from jaxstab.store import claims
from jaxstab.store.dataset import attributes
from jaxstab.store.reading import column


def print_status(settings: Status) -> None:
    """Run `jaxstab status`.

    Args:
        settings: the flags.

    Raises:
        UserError: if there is no such store, or it is damaged.
    """
    url = settings.store
    whole = Path(url) / "store.zarr"
    unfinished = [part for part in parts(url).values() if "://" not in url and part.exists()]
    if "://" not in url and whole.exists():
        url = str(whole)
    with reading(url):
        if _is_sweep(url):
            lines = _of_sweep(url)
        elif unfinished:
            lines = _of_parts(whole, unfinished)
        else:
            lines = _of_groups(url, store.progress(url))
    for line in lines:
        print(printable(line))


def _is_sweep(url: str) -> bool:
    """Check whether a store holds a finished sweep, whose variables are folders."""
    return "://" not in url and (Path(url) / "verdict").is_dir()


def _of_sweep(url: str) -> list[str]:
    """Describe the store of a finished sweep."""
    of = attributes(url)
    grid = json.loads(of["grid"])
    many = {name: _many(grid, name) for name in ("activation", "sigma_w", "seed")}
    return [
        f"a sweep over {many['activation']} activations, {many['sigma_w']} gains, {many['seed']} "
        "seeds",
        f"depths {grid['depth']}, width {grid['width']}, data {of.get('data')}",
        "finished",
    ]


def _many(grid: Mapping[str, Any], name: str) -> int:
    """Count the values of a setting; a list is an axis."""
    if isinstance(grid[name], list):
        return len(grid[name])
    return 1


def _of_parts(whole: Path, unfinished: Sequence[Path]) -> list[str]:
    """Describe the progress of an unfinished sweep."""
    lines = [
        f"{part.stem}: {line}" for part in unfinished for line in _groups_done(store.progress(part))
    ]
    return [*lines, *_at_work(str(whole))]


def _of_groups(url: str, progress: store.Progress) -> list[str]:
    """Describe the progress of a store of groups."""
    grid = progress.settings["grid"]
    lines = _groups_done(progress)
    measure = progress.settings["measure"]
    about = f"depths {grid['depth']}, {_many(grid, 'sigma_w')} gains, {_many(grid, 'seed')} seeds"
    if measure["name"] != "train":
        lines.append(f"{about}, measured {measure['name']}")
    else:
        first = column(url, "first_nonfinite")
        lines.append(f"{about}, {measure['steps']} steps")
        lines.append(
            f"{np.sum(first == 0)} networks were not finite from the start, {np.sum(first > 0)} "
            "later"
        )
    if progress.done == progress.groups:
        return [*lines, "finished"]
    return [*lines, *_at_work(url)]


def _groups_done(progress: store.Progress) -> list[str]:
    """Describe the number of finished and torn groups of a store."""
    lines = [
        f"{progress.done} of {progress.groups} groups done, "
        f"{100 * progress.done // progress.groups} %"
    ]
    if progress.torn:
        lines.append(
            f"{progress.torn} groups are torn; the command that made the store recomputes them"
        )
    if not progress.read:
        lines.append("only the lengths of files were checked, not every byte")
    return lines


def _at_work(url: str) -> list[str]:
    """Describe the runs that compute groups, a line per run."""
    if "://" in url:
        return ["running processes: unknown for a store behind a URL"]
    try:
        runs = claims.runs(url)
    except OSError as error:
        # a user may have permission to read a store and not to lock it
        return [f"running processes: unknown ({error})"]
    return [f"running: {run}" for run in runs] or ["no process is running"]
