"""Plan of a sweep: how a grid is cut into groups of cells.

A group is computed by one device and committed as a whole. It is a box in the axes of the grid:
one value of every static axis and, in trainings, of depth, and several of every traced axis.

A plan depends on the grid, the size of the data and the memory of a device, but not on the number
of devices or processes. Each cell is always computed in the same group, by the same program, so
that results do not depend on that number either.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxstab import activations, store
from jaxstab.checks import check_count
from jaxstab.networks.family import init
from jaxstab.records import Data
from jaxstab.store.fields import part
from jaxstab.sweeps.examples import classes
from jaxstab.sweeps.grid import Grid, Kind
from jaxstab.sweeps.measures import OURS, Measure, jacobian, sharpness, signal

# default bytes of a group of measurements: enough gains for wide products, and small enough for
# the caches
MEMORY = 128 * 2**20
# least number of groups of a program with enough cells, so that devices have equal work
SHARES = 8
# least number of cells of a measured group, since gains of one draw share one wide product
LEAST = 4
# default number of gains of a user's own network that are measured at once
OWN_GAINS = 16
# layers whose weights are held twice, once as random bits or slices
LAYERS = 8
# largest number of cells of a store, each with coordinates and a place in arrays
MOST_CELLS = 10**7


class Plan(NamedTuple):
    """A grid cut into groups.

    Attributes:
        axes: cells along each axis of the grid, and cells of a group along it.
        programs: largest number of compiles in a process.
        memory: estimated bytes on a device; 0 if unknown.
        lanes: number of cells of a training group that are computed side by side.
    """

    axes: dict[str, store.Axis]
    programs: int
    memory: int
    lanes: int = 1

    @property
    def cells(self) -> int:
        """Number of cells."""
        return math.prod(axis.length for axis in self.axes.values())

    @property
    def groups(self) -> int:
        """Number of groups."""
        return math.prod(axis.groups for axis in self.axes.values())

    @property
    def size(self) -> int:
        """Number of cells of a group."""
        return math.prod(axis.chunk for axis in self.axes.values())

    def at(self, group: int) -> dict[str, slice]:
        """Return the place of a group along the axes.

        Args:
            group: number of the group.

        Returns:
            A slice of every axis by name.
        """
        return dict(zip(self.axes, part(self.axes, group), strict=True))

    def inside(self, group: int) -> tuple[slice, ...]:
        """Return the slices of a group's existing cells; fewer may exist at the end of an axis.

        Args:
            group: number of the group.

        Returns:
            Slices of the group's arrays.
        """
        return tuple(slice(part.stop - part.start) for part in self.at(group).values())

    def place(self, grid: Grid, group: int) -> tuple[int, int]:
        """Return the kind of network and the depth of a group.

        Args:
            grid: the grid of the plan.
            group: number of the group.

        Returns:
            The number of the kind, and the depth, which is the largest where depths are read off
            from one pass.
        """
        slices = self.at(group)
        names = grid.static_axes
        sizes = tuple(self.axes[name].length for name in names)
        if names:
            kind = int(np.ravel_multi_index([slices[name].start for name in names], sizes))
        else:
            kind = 0
        if "depth" in slices:
            return kind, grid.values("depth")[slices["depth"].start]
        return kind, grid.deepest


def cut(grid: Grid, chunks: Mapping[str, int], names: Sequence[str]) -> dict[str, store.Axis]:
    """Cut the axes of a grid.

    Args:
        grid: the grid.
        chunks: cells of a group along axes, by name; 1 along axes not named.
        names: axes of the cells, from `cell_axes`.

    Returns:
        The axes in the order of `names`.

    Raises:
        ValueError: if there are more cells than a store can list.
    """
    lengths = {name: len(grid.values(name)) for name in names}
    cells = math.prod(lengths.values())
    if cells > MOST_CELLS:
        raise ValueError(f"a grid must have at most {MOST_CELLS} networks, got {cells}")
    return {name: store.Axis(length, chunks.get(name, 1)) for name, length in lengths.items()}


def even(total: int, most: int) -> int:
    """Return the size of equal parts of a total, none larger than `most`.

    Args:
        total: number to divide.
        most: largest size of a part.

    Returns:
        The size of a part.

    Example:
        >>> even(12, 5)
        4
    """
    return math.ceil(total / math.ceil(total / max(1, most)))


def cell_axes(grid: Grid, prefixes: bool) -> tuple[str, ...]:
    """Return the axes of the cells: static axes, depth, traced axes; the seed if there are none.

    Args:
        grid: the grid.
        prefixes: True if depths are read off from one pass to the largest, so that depth is no
            axis.

    Returns:
        Names of the axes, in the order of a store.
    """
    names = list(grid.static_axes)
    if "depth" in grid.axes and not prefixes:
        names.append("depth")
    return (*names, *grid.traced_axes) or ("seed",)


def measuring_plan(
    grid: Grid, measure: Measure | None, data: Data, chunk_size: int | None = None
) -> Plan:
    """Cut a grid into groups for measuring.

    Args:
        grid: the grid.
        measure: `signal`, `jacobian` or `sharpness`; None and any other measure count as the larger
            of the first two.
        data: examples.
        chunk_size: cells of a group; None for the number that fits into MEMORY, or an eighth of a
            program's cells if that is less.

    Returns:
        The plan.

    Raises:
        ValueError: if chunk_size < 1, or there are more cells than a store can list.
    """
    if chunk_size is not None:
        check_count("chunk_size", chunk_size, 1)
    gains = len(grid.values("sigma_w"))
    seeds = len(grid.values("seed"))
    programs = len({share.first for share in sharing(grid, measure)})
    if grid.network is not None:
        chunks = {"sigma_w": min(gains, chunk_size or OWN_GAINS)}
        programs *= len(grid.values("depth"))
        return Plan(cut(grid, chunks, cell_axes(grid, prefixes=grid.network is None)), programs, 0)
    needed = max(memory(grid, kind, measure, data) for kind in grid.kinds)
    if chunk_size is None:
        share = max(LEAST, math.ceil(gains * seeds / SHARES))
        chunk_size = min(share, _fitting(needed, gains))
    chunks = {
        "sigma_w": even(gains, chunk_size),
        "seed": even(seeds, chunk_size // gains),
    }
    taken = needed.of(chunks["seed"], chunks["seed"] * chunks["sigma_w"])
    return Plan(cut(grid, chunks, cell_axes(grid, prefixes=grid.network is None)), programs, taken)


class Share(NamedTuple):
    """Program of a kind of network.

    Attributes:
        first: number of the first kind that shares the program.
        place: index of the kind among those that share the program.
    """

    first: int
    place: int


def sharing(grid: Grid, measure: Measure | None) -> list[Share]:
    """Group the kinds of network by program: kinds that differ only in their activation share one.

    A branch in each layer costs less than a second compile. A user's own measure may read the
    activation, and so has a program for each kind.

    Args:
        grid: the grid.
        measure: measure of every cell; None for a measure of jaxstab.

    Returns:
        The share of each kind.
    """
    names = grid.static_axes
    alone = [Share(number, 0) for number in range(len(grid.kinds))]
    if grid.network is not None or "activation" not in names:
        return alone
    if measure is not None and measure not in OURS:
        return alone
    if not all(activations.get(phi).elementwise for phi in grid.values("activation")):
        return alone
    sizes = tuple(len(grid.values(name)) for name in names)
    places = np.array(np.unravel_index(np.arange(len(alone)), sizes))
    along = names.index("activation")
    chosen = places[along].copy()
    places[along] = 0
    first = np.ravel_multi_index(tuple(places), sizes)
    return [Share(int(number), int(place)) for number, place in zip(first, chosen, strict=True)]


class Memory(NamedTuple):
    """Estimated bytes of cells that are measured together on a CPU.

    Within 25 % of XLA's figures for `signal`, `jacobian` and `sharpness`.

    Attributes:
        seed: bytes shared by all cells of one seed: weights, and buffers for drawing and slicing a
            few layers.
        cell: bytes of each network at all its inputs, besides the shared weights.
    """

    seed: int
    cell: int

    def of(self, seeds: int, cells: int) -> int:
        """Return the bytes of some seeds and cells together.

        Args:
            seeds: number of draws of weights.
            cells: number of networks over all seeds.

        Returns:
            The bytes.
        """
        return seeds * self.seed + cells * self.cell


def memory(grid: Grid, kind: Kind, measure: Measure | None, data: Data) -> Memory:
    """Estimate the peak memory of measured cells, to size groups before compiling.

    Let a network have n units of the state, depth L, D depths and i inputs. `signal` takes
    i (L + 1) n for states, times b examples where an input is a batch, and i D gradients of a
    block's weights. `jacobian` of m singular values takes i D m^2 for the triangles and the larger
    of i (3 n m + 5/2 m^2) for the fold and 9 i m^2 for the values of a depth.

    Args:
        grid: the grid.
        kind: one of the grid's kinds.
        measure: `signal`, `jacobian` or `sharpness`; None and any other measure count as the larger
            of the first two.
        data: examples.

    Returns:
        The estimated bytes.
    """
    mlp = grid.mlp(kind, grid.deepest, classes(data))
    depths = tuple(grid.values("depth"))
    inputs = grid.fixed["inputs"]
    dtype = grid.fixed["dtype"]
    d_in = data.x.shape[1]
    shapes = jax.eval_shape(lambda: init(mlp, jax.random.key(0), jnp.ones(d_in, jnp.float32)))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype)), shapes)
    width = kind["width"] * mlp.sources
    examples = kind["batch"] or 1
    item = np.dtype(dtype).itemsize
    states = examples * (depths[-1] + 1) * width * item
    if kind["batch"] is not None:
        states += len(depths) * _bytes(params.blocks) // params.depth
    rows = width * examples
    values = min(rows, d_in * examples)
    decomposing = max((6 * rows + 5 * values) * values // 2, 9 * values**2)
    triangles = max(len(depths) * values**2 + decomposing, 2 * len(depths) * values**2)
    estimates = {signal: inputs * states, jacobian: inputs * triangles * item}
    if measure is sharpness:
        # a gradient and its tangents; networks of separate programs are held side by side
        copies = 16 if mlp.of_one_depth else 8
        passes = 4 * examples * (depths[-1] + 1) * width * item
        cell = inputs * (copies * _bytes(params) + passes)
    else:
        if measure in estimates:
            cell = estimates[measure]
        else:
            cell = max(estimates.values())
    weights = _bytes(params)
    return Memory(weights + LAYERS * weights // (mlp.depth + 2), cell)


def _bytes(tree: PyTree) -> int:
    """Count the bytes of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _fitting(needed: Memory, gains: int) -> int:
    """Return the number of cells that fit into MEMORY, as whole seeds or gains of one seed."""
    seed = needed.of(1, gains)
    return MEMORY // seed * gains or max(1, (MEMORY - needed.of(1, 0)) // needed.cell)
