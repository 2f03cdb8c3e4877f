"""How a sweep is cut into chunks that fit into memory."""

import math
from typing import NamedTuple

from jaxstab.sweeps.grid import Grid
from jaxstab.sweeps.measures import Measure, Memory, memory

# bytes a chunk of cells may take, unless told otherwise: enough gains for wide products, little enough for the caches
MEMORY = 128 * 2**20


class Estimate(NamedTuple):
    """What one measure over a grid will take.

    Attributes:
        cells: networks measured.
        compiles: programs compiled, one per activation.
        chunk: (seeds, gains) computed at once.
        chunks: how often.
        memory: bytes that a chunk takes, by `memory`.
    """

    cells: int
    compiles: int
    chunk: tuple[int, int]
    chunks: int
    memory: int


def estimate(
    grid: Grid, d_in: int, chunk_size: int | None = None, devices: int = 1, measure: Measure | None = None
) -> Estimate:
    """Size up a sweep before it runs.

    Args:
        grid: the grid.
        d_in: input features.
        chunk_size: cells computed at once; None to fit them into MEMORY.
        devices: number of devices that share a chunk's gains.
        measure: `signal`, `jacobian`, or None for the larger of the two, which any other is taken for.

    Returns:
        Cells, compiles, chunks and bytes of one measure.

    Raises:
        ValueError: if chunk_size < 1.
    """
    needed = memory(grid, d_in, measure)
    if chunk_size is None:
        chunk_size = _fitting(needed, len(grid.sigma_w), devices)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be >= 1, got {chunk_size}")
    # as many for each device; what is over repeats cells
    gains = devices * math.ceil(_even(len(grid.sigma_w), chunk_size) / devices)
    seeds = _even(grid.seeds, max(1, chunk_size // len(grid.sigma_w)))
    programs = len(grid.activations)
    chunks = programs * math.ceil(grid.seeds / seeds) * math.ceil(len(grid.sigma_w) / gains)
    cells = programs * len(grid.sigma_w) * grid.seeds
    # each device draws the weights for itself
    return Estimate(cells, programs, (seeds, gains), chunks, needed.of(devices * seeds, seeds * gains))


def _fitting(needed: Memory, gains: int, devices: int) -> int:
    """Cells that fit into MEMORY: whole seeds, or gains of one."""
    seed = needed.of(devices, gains)
    return MEMORY // seed * gains or max(1, (MEMORY - needed.of(devices, 0)) // needed.cell)


def _even(total: int, most: int) -> int:
    """The size of equal parts of `total`, none larger than `most`."""
    return math.ceil(total / math.ceil(total / most))
