"""How a sweep is cut into groups that fit into memory, each computed by one device.

A plan depends on the grid, the data's size and the measure, not on the number of devices. So
neither do the numbers: a cell is always computed with the same neighbours, by the same program.
"""

import math
from typing import NamedTuple

from jaxstab import store
from jaxstab.sweeps.grid import Grid
from jaxstab.sweeps.measures import Measure, Memory, memory

# bytes a group may take, unless told otherwise: enough gains for wide products, little enough for
# the caches
MEMORY = 128 * 2**20
# groups of an activation at least, if it has the cells: devices side by side then have the same to
# do
SHARES = 8
# cells of a group at least: gains share one draw of weights, and their products are one wide one
LEAST = 4


class Plan(NamedTuple):
    """A sweep cut into groups.

    Attributes:
        cells: networks measured.
        programs: compiles, one per activation.
        group: (seeds, gains) computed at once by a device, and kept as a whole.
        groups: how many.
        memory: bytes that a device needs, by `memory`.
    """

    cells: int
    programs: int
    group: tuple[int, int]
    groups: int
    memory: int


def plan(
    grid: Grid, d_in: int, measure: Measure | None = None, chunk_size: int | None = None
) -> Plan:
    """Cut a sweep into groups.

    Args:
        grid: the grid.
        d_in: input features.
        measure: `signal`, `jacobian`, or None for the larger of the two, which any other is taken
            for.
        chunk_size: cells of a group; None for what fits into MEMORY, or an eighth of an
            activation's if that is less.

    Returns:
        The plan.

    Raises:
        ValueError: if chunk_size < 1.

    Example:
        >>> plan(Grid(depths=(2,), activations=("tanh",), seeds=2), d_in=784)[:4]
        (48, 1, (1, 6), 8)
    """
    needed = memory(grid, d_in, measure)
    if chunk_size is None:
        share = max(LEAST, math.ceil(len(grid.sigma_w) * grid.seeds / SHARES))
        chunk_size = min(share, _fitting(needed, len(grid.sigma_w)))
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be >= 1, got {chunk_size}")
    gains = _even(len(grid.sigma_w), chunk_size)
    seeds = _even(grid.seeds, max(1, chunk_size // len(grid.sigma_w)))
    programs = len(grid.activations)
    groups = programs * math.ceil(grid.seeds / seeds) * math.ceil(len(grid.sigma_w) / gains)
    cells = programs * len(grid.sigma_w) * grid.seeds
    return Plan(cells, programs, (seeds, gains), groups, needed.of(seeds, seeds * gains))


def axes(grid: Grid, plan: Plan) -> dict[str, store.Axis]:
    """The axes that are cut into groups.

    Args:
        grid: the grid.
        plan: how it is cut.

    Returns:
        Length and length of a group, by name.
    """
    seeds, gains = plan.group
    return {
        "activation": store.Axis(len(grid.activations), 1),
        "seed": store.Axis(grid.seeds, seeds),
        "sigma_w": store.Axis(len(grid.sigma_w), gains),
    }


def _fitting(needed: Memory, gains: int) -> int:
    """Cells that fit into MEMORY: whole seeds, or gains of one."""
    seed = needed.of(1, gains)
    return MEMORY // seed * gains or max(1, (MEMORY - needed.of(1, 0)) // needed.cell)


def _even(total: int, most: int) -> int:
    """The size of equal parts of `total`, none larger than `most`."""
    return math.ceil(total / math.ceil(total / most))
