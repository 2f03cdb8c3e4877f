"""Search for the blocks of a model: the rows that make up its depth."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxstab.networks import Probe
from jaxstab.networks.interception import BLOCK

# number of an entry in a list of submodules
_NUMBER = re.compile(r"\d+")


def blocks(probe: Probe) -> tuple[int, ...]:
    """Find the rows that are the blocks of a model.

    The blocks are the largest group of calls of one class under one parent, or of steps of one
    scan. A group within the calls of another group is part of its blocks, and is left out. Without
    such a group, the blocks are the last calls of one class in the entries of a list:
    "stages/0/dense", "stages/1/dense", ...

    Args:
        probe: the model.

    Returns:
        Numbers of the rows, in order of execution; empty where no group has three rows.
    """
    sites = {site.name: site for site in probe.sites}
    attention = {site.path for site in probe.sites if "Attention" in site.kind}
    groups: dict[Any, list[int]] = {}
    ends: dict[Any, dict[str, int]] = {}
    for i, row in enumerate(probe.rows):
        site = sites[row.site]
        parent = site.path.rpartition("/")[0]
        # query, key and value have one parent but do not follow one another
        if not site.floating or site.softmax or not site.path or parent in attention:
            continue
        # all segments of a chain belong to one depth
        stepwise = site.name if site.loops and site.kind != BLOCK else ""
        # outputs of other methods than `__call__`, and parts of a tuple, are groups of their own
        value = site.name.removeprefix(site.path).partition(":")[0]
        groups.setdefault((parent, site.kind, value, stepwise), []).append(i)
        entries = _NUMBER.sub("*", parent)
        if not stepwise:
            ends.setdefault((entries, site.kind, value), {})[parent] = i
    series = [rows for rows in groups.values() if len(rows) >= 3]
    paths = [[sites[probe.rows[i].site].path for i in rows] for rows in series]
    outermost = [
        rows
        for rows, own in zip(series, paths, strict=True)
        if probe.rows[rows[0]].steps or not any(_all_within(own, other) for other in paths)
    ]
    if outermost:

        def size(rows: list[int]) -> tuple[int, int]:
            # among groups of one size the outermost has the blocks, not their submodules
            return len(rows), -sites[probe.rows[rows[0]].site].path.count("/")

        largest = max(outermost, key=size)
        return tuple(largest)
    last = [(len(rows), list(rows.values())) for rows in ends.values() if len(rows) >= 3]
    # among groups of one size, take the latest
    return tuple(max(last, key=lambda group: (group[0], group[1][-1]), default=(0, []))[1])


def with_readers(
    probe: Probe, rows: tuple[int, ...], log_grad_h: Float[np.ndarray, " row"]
) -> tuple[int, ...]:
    """Leave out the last steps of a scan that nothing reads, such as the last state of a cell.

    Args:
        probe: the model.
        rows: numbers of the rows that are its blocks.
        log_grad_h: ln |dL/dh| at each row.

    Returns:
        Numbers of the remaining rows, at least three.
    """
    read = [i for i in rows if log_grad_h[i] != -np.inf]
    if not read or not probe.rows[rows[-1]].steps:
        return rows
    return rows[: max(rows.index(read[-1]) + 1, 3)]


def _all_within(paths: Sequence[str], blocks: Sequence[str]) -> bool:
    """Return True if each path is within a block."""
    return all(any(path.startswith(f"{block}/") for block in blocks) for path in paths)
