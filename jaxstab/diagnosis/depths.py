"""Which values of a model are its depth."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxstab.networks import Probe
from jaxstab.networks.interception import BLOCK

# of an entry in a list of submodules
_NUMBER = re.compile(r"\d+")


def blocks(probe: Probe) -> tuple[int, ...]:
    """Find the rows that are a model's depth.

    They are the largest group of calls of one class side by side, or of steps of one scan. What is
    within the calls of another group is part of a block, and no depth. Where there is no such
    group, they are the last calls of one class in the entries of a list: "stages/0/dense",
    "stages/1/dense", ...

    Args:
        probe: the model.

    Returns:
        Numbers of the rows, in order of execution; none where no group has three.
    """
    sites = {site.name: site for site in probe.sites}
    attention = {site.path for site in probe.sites if "Attention" in site.kind}
    groups: dict[Any, list[int]] = {}
    ends: dict[Any, dict[str, int]] = {}
    for i, row in enumerate(probe.rows):
        site = sites[row.site]
        parent = site.path.rpartition("/")[0]
        # query, key and value are side by side, and not one after the other
        if not site.floating or site.softmax or not site.path or parent in attention:
            continue
        # segments of a chain are one depth
        stepwise = site.name if site.loops and site.kind != BLOCK else ""
        # methods besides `__call__`, and parts of a tuple, are depths of their own
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
            # of equally many, the outermost: the blocks themselves, not what is within each
            return len(rows), -sites[probe.rows[rows[0]].site].path.count("/")

        largest = max(outermost, key=size)
        return tuple(largest)
    last = [(len(rows), list(rows.values())) for rows in ends.values() if len(rows) >= 3]
    # of equally many, the latest
    return tuple(max(last, key=lambda group: (group[0], group[1][-1]), default=(0, []))[1])


def with_readers(
    probe: Probe, rows: tuple[int, ...], log_grad_h: Float[np.ndarray, " row"]
) -> tuple[int, ...]:
    """Leave out the last steps of a scan that nothing reads, such as the last state of a cell.

    Args:
        probe: the model.
        rows: numbers of the rows that are its depth.
        log_grad_h: ln |dL/dh| at each row.

    Returns:
        The rows, at least three of them.
    """
    read = [i for i in rows if log_grad_h[i] != -np.inf]
    if not read or not probe.rows[rows[-1]].steps:
        return rows
    return rows[: max(rows.index(read[-1]) + 1, 3)]


def _all_within(paths: Sequence[str], blocks: Sequence[str]) -> bool:
    """Whether each path is within a block."""
    return all(any(path.startswith(f"{block}/") for block in blocks) for path in paths)
