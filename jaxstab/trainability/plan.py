"""How a grid of trainings is cut into groups: each computed by one device, and kept, as a whole.

A plan depends on the grid, the data's size and the memory of a device; not on how many devices or
processes share it. So neither do the numbers: a cell is always computed with the same neighbours,
by the same program.
"""

import itertools
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from jaxstab import networks
from jaxstab.checks import check_batch, check_count
from jaxstab.trainability.grid import Grid, Split

# layers that a cell does not have cost its updates memory traffic: FLOPs that could be done
# meanwhile, per parameter and step, as measured on a CPU at batch 128
TAIL = 40
# FLOPs that could be done while a program compiles
COMPILE = 5e11
# depths within this factor always share a program, so that programs grow as the logarithm of the
# range of depths
BUCKET = 1.25
# FLOPs of a group: long enough that committing it costs nothing, short enough that losing one does
# not hurt
WORK = 5e11
# rows of a store, each of which has some 50 bytes of coordinates and groups
MOST_ROWS = 10**7
# groups of a kind and depth at least, if it has the cells: devices side by side then have the same
# to do
SHARES = 8


class Group(NamedTuple):
    """Cells computed and kept together; all of one kind and one depth.

    Attributes:
        variant: index of the kind of network.
        bound: depth of the program.
        depth: depth of the cells.
        cells: their numbers in `Grid.cells`; -1 fills up.
    """

    variant: int
    bound: int
    depth: int
    cells: Int[np.ndarray, " size"]


class Plan(NamedTuple):
    """A grid cut into groups.

    Attributes:
        size: cells of a group, those that fill up included.
        lanes: cells of a group computed side by side; the others follow.
        groups: of one kind of network after another, the deepest first.
        programs: compiles that a process makes at most.
        memory: bytes that a device needs.
    """

    size: int
    lanes: int
    groups: tuple[Group, ...]
    programs: int
    memory: int

    def program(self, group: int) -> tuple[int, int]:
        """What decides the program of a group: kind of network, and depth that it is made for.

        Args:
            group: its number.

        Returns:
            The two.
        """
        return self.groups[group].variant, self.groups[group].bound

    def batches(self, devices: int) -> Iterator[list[int]]:
        """Groups to compute side by side, one per device.

        Args:
            devices: how many.

        Yields:
            Numbers of groups of one program.
        """
        for _, same in itertools.groupby(range(len(self.groups)), self.program):
            numbers = list(same)
            yield from (numbers[i : i + devices] for i in range(0, len(numbers), devices))


def flops(grid: Grid, variant: int, depth: int, data: Split) -> float:
    """FLOPs of the matrix products of one cell's updates.

    Three of 2 batch fan_in fan_out per kernel and step, except that the input needs no gradient. A
    highway's gate is a kernel too; fan_in of a "dense" network counts layers still to come, whose
    zeros are multiplied.

    Args:
        grid: the grid.
        variant: index of the kind of network.
        depth: of the cell.
        data: to train on.

    Returns:
        The number.

    Example:
        >>> from jaxstab import datasets
        >>> digits = datasets.load("digits")
        >>> round(flops(Grid(steps=100), 0, 64, Split(digits, digits)) / 1e9)
        81
    """
    width = grid.width
    batch = grid.batch or len(data.train.x)
    mlp = grid.network(variant, depth, data.classes)
    gates = depth if mlp.skip == "highway" else 0
    hidden = ((depth + gates) * width + data.classes) * mlp.sources * width
    return float(grid.steps * batch * 2 * (2 * data.features * width + 3 * hidden))


def memory(grid: Grid, variant: int, bound: int, data: Split) -> int:
    """Bytes that one cell takes at its peak, on a CPU.

    Parameters and their gradient, the optimiser's state, the states of all layers, three states or
    outputs of all the examples that are looked at in one pass, and what is seen. Within 25 % of
    what XLA says.

    Args:
        grid: the grid.
        variant: index of the kind of network.
        bound: depth of the program.
        data: to train and test on.

    Returns:
        The bytes.
    """
    mlp = grid.network(variant, bound, data.classes)
    examples = max(len(part.x) for part in data)
    item = np.dtype(grid.dtype).itemsize
    batch = grid.batch or len(data.train.x)
    x = jax.ShapeDtypeStruct((2, data.features), grid.dtype)
    shapes = jax.eval_shape(lambda x: networks.init(mlp, jax.random.key(0), x), x)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree)) * item
    slots = size(jax.eval_shape(grid.optimise(1.0, 1.0).init, shapes))
    state = mlp.width * mlp.sources * item
    seen = (4 * grid.steps + (len(grid.looks) + 1) * (bound + 4)) * item
    wide = max(state, data.classes * item)
    return (
        2 * size(shapes)
        + slots
        + (bound + 1) * batch * state
        + 3 * max(batch, examples) * wide
        + seen
    )


def plan(
    grid: Grid,
    data: Split,
    budget: int | None = None,
    lanes: int | None = None,
    size: int | None = None,
) -> Plan:
    """Cut a grid into groups.

    Args:
        grid: the grid.
        data: to train and test on.
        budget: bytes of a device that may be used; None for `available()`.
        lanes: cells computed side by side; None for one on a CPU, whose cores are busy with that
            and whose caches hold no more, and for what fits elsewhere.
        size: cells of a group, rounded up to whole lanes; None for what a core computes in about
            five seconds, or an eighth of those of one kind and depth if that is fewer.

    Returns:
        The plan.

    Raises:
        ValueError: if not even one cell fits, there are fewer examples than a batch takes, or lanes
            or size < 1.

    Example:
        >>> from jaxstab import datasets
        >>> digits = datasets.load("digits")
        >>> found = plan(Grid(depths=(2, 4), sigma_w=(1.0, 1.5, 2.0), steps=10), Split(digits, digits), size=2)
        >>> [(group.depth, group.cells.tolist()) for group in found.groups]
        [(4, [3, 4]), (4, [5, -1]), (2, [0, 1]), (2, [2, -1])]
    """
    for name, value in (("lanes", lanes), ("size", size)):
        if value is not None:
            check_count(name, value, 1)
    check_batch(grid.batch, len(data.train.x))
    budget = available() if budget is None else budget
    most = max(memory(grid, v, bounds[-1][0], data) for v, bounds in enumerate(_bounds(grid)))
    if most > budget:
        raise ValueError(
            f"one network of the largest kind takes {most} bytes to train, {budget} may be used; "
            "a smaller width, depth or batch, or more memory, would do"
        )
    if lanes is None:
        lanes = 1 if jax.default_backend() == "cpu" else max(1, budget // most)
    if size is None:
        # as even as it goes
        alike = _alike(grid)
        most_work = max(flops(grid, v, max(grid.depths), data) for v in range(len(grid.variants)))
        wanted = max(lanes, min(round(WORK / most_work), math.ceil(alike / SHARES)))
        size = math.ceil(alike / math.ceil(alike / wanted))
    lanes = min(lanes, size)
    return cut(grid, lanes * math.ceil(size / lanes), lanes, lanes * most)


def cut(grid: Grid, size: int, lanes: int = 1, memory: int = 0) -> Plan:
    """Cut a grid into groups of a given size, as a store has them.

    Which cell stands where depends on the grid and the size alone, so that what another machine
    computed, or another version of the rule that shares out programs, is read back right.

    Args:
        grid: the grid.
        size: cells of a group, those that fill up included.
        lanes: cells computed side by side, at most size.
        memory: bytes that a device needs.

    Returns:
        The plan.

    Raises:
        ValueError: if size or lanes is no integer >= 1, or there would be more rows than can be
            listed.

    Example:
        >>> [group.cells.tolist() for group in cut(Grid(depths=(2, 4), sigma_w=(1.0, 1.5)), size=2).groups]
        [[2, 3], [0, 1]]
    """
    for name, value in (("size", size), ("lanes", lanes)):
        check_count(name, value, 1)
    kinds = len(grid.variants) * len(grid.depths)
    rows = kinds * size * math.ceil(_alike(grid) / size)
    if rows > MOST_ROWS:
        raise ValueError(
            f"{grid.count} networks in groups of {size} fill {rows} rows, at most {MOST_ROWS} are kept in a store; "
            "smaller groups or a smaller grid would do"
        )
    cells = grid.cells
    groups = []
    programs = 0
    for variant, bounds in enumerate(_bounds(grid)):
        for bound, depths in reversed(bounds):
            programs += 1
            for depth in reversed(depths):
                found = np.flatnonzero((cells.variant == variant) & (cells.depth == depth))
                filled = np.pad(found, (0, -len(found) % size), constant_values=-1)
                groups += [Group(variant, bound, depth, part) for part in filled.reshape(-1, size)]
    return Plan(size, min(lanes, size), tuple(groups), programs, memory)


def available() -> int:
    """Bytes of one local device that may be used: three quarters of what an accelerator has, of a CPU its share.

    Returns:
        The bytes.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats:
        return int(0.75 * stats["bytes_limit"])
    return (
        int(0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        // jax.local_device_count()
    )


def _bounds(grid: Grid) -> list[list[tuple[int, list[int]]]]:
    """For every kind of network its programs: the depth they are made for, and the depths they serve."""
    idle = float(TAIL * grid.width**2 * grid.steps * _alike(grid))

    def programs(apart: bool) -> list[tuple[int, list[int]]]:
        found: list[tuple[int, list[int]]] = []
        for index, depth in reversed(list(enumerate(grid.depths))):
            bound = found[0][0] if found else 0
            # a program of their own spares this depth and all below it so many layers
            spared = idle * (bound - depth) * (index + 1)
            worthwhile = spared > COMPILE and BUCKET * depth < bound
            if not found or worthwhile or apart:
                found.insert(0, (depth, []))
            found[0][1].insert(0, depth)
        return found

    return [programs(grid.network(index, 1, 1).of_one_depth) for index in range(len(grid.variants))]


def _alike(grid: Grid) -> int:
    """Cells of one kind and depth."""
    return grid.count // (len(grid.variants) * len(grid.depths))
