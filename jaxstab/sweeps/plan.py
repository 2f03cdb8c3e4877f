"""How a grid is cut into groups of cells, each computed by one device and kept as a whole.

A group is a box in the axes of the grid: one value of every static axis and, in trainings, of depth;
some of every traced one. A plan depends on the grid, the data's size and the memory of a device, not
on how many devices or processes share it. So neither do the numbers: a cell is always computed with
the same neighbours, by the same program.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxstab import activations, networks, store
from jaxstab.checks import check_count
from jaxstab.records import Data
from jaxstab.store.fields import part
from jaxstab.sweeps.examples import classes
from jaxstab.sweeps.grid import Grid, Kind
from jaxstab.sweeps.measures import OURS, Measure, jacobian, sharpness, signal

# bytes a group of measurements may take, unless told otherwise: enough gains for wide products,
# little enough for the caches
MEMORY = 128 * 2**20
# groups of a program at least, if it has the cells: devices side by side then have the same to do
SHARES = 8
# cells of a measured group at least: gains share one draw of weights, and their products are one
# wide one
LEAST = 4
# gains of a network of the caller's own that are measured at once, unless told otherwise
OWN_GAINS = 16
# layers' worth of weights that are there a second time, in random bits on their way to weights and
# in slices
LAYERS = 8
# cells of a store, each of which has coordinates and a place in its arrays
MOST_CELLS = 10**7


class Plan(NamedTuple):
    """A grid cut into groups.

    Attributes:
        axes: cells along each axis of the grid, and cells of a group along it.
        programs: compiles that a process makes at most.
        memory: bytes that a device needs, estimated; 0 where nothing is known.
        lanes: cells of a training group that are computed side by side; the others follow.
    """

    axes: dict[str, store.Axis]
    programs: int
    memory: int
    lanes: int = 1

    @property
    def cells(self) -> int:
        """Networks of the grid."""
        return math.prod(axis.length for axis in self.axes.values())

    @property
    def groups(self) -> int:
        """Number of groups."""
        return math.prod(axis.groups for axis in self.axes.values())

    @property
    def size(self) -> int:
        """Cells of a group."""
        return math.prod(axis.chunk for axis in self.axes.values())

    def at(self, group: int) -> dict[str, slice]:
        """Say where a group stands.

        Args:
            group: its number.

        Returns:
            A slice of every axis by name.
        """
        return dict(zip(self.axes, part(self.axes, group), strict=True))

    def inside(self, group: int) -> tuple[slice, ...]:
        """Say which of a group's cells there are: fewer at the end of an axis.

        Args:
            group: its number.

        Returns:
            Slices of its arrays.
        """
        return tuple(slice(part.stop - part.start) for part in self.at(group).values())

    def place(self, grid: Grid, group: int) -> tuple[int, int]:
        """Say which kind of network a group is of, and of which depth.

        Args:
            grid: the grid that is cut.
            group: the group's number.

        Returns:
            The number of the kind, and the depth; the deepest where depths are read off from one
            pass.
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
        chunks: cells of a group along axes, by name; one along the others.
        names: axes of the cells, as `cell_axes` gives them.

    Returns:
        The axes in that order.

    Raises:
        ValueError: if there are more cells than a store can list.
    """
    lengths = {name: len(grid.values(name)) for name in names}
    cells = math.prod(lengths.values())
    if cells > MOST_CELLS:
        raise ValueError(
            f"{cells} networks are too many: at most {MOST_CELLS} are kept in a store; a smaller "
            "grid would do"
        )
    return {name: store.Axis(length, chunks.get(name, 1)) for name, length in lengths.items()}


def even(total: int, most: int) -> int:
    """The size of equal parts of a total, none larger than `most`.

    Args:
        total: to divide.
        most: of a part.

    Returns:
        The size.

    Example:
        >>> even(12, 5)
        4
    """
    return math.ceil(total / math.ceil(total / max(1, most)))


def cell_axes(grid: Grid, prefixes: bool) -> tuple[str, ...]:
    """Axes of the cells: static ones, depth, traced ones; the seed where there is no other.

    Args:
        grid: the grid.
        prefixes: whether depths are read off from one pass to the deepest, and are none.

    Returns:
        Their names, in the order of a store.
    """
    names = list(grid.static_axes)
    if "depth" in grid.axes and not prefixes:
        names.append("depth")
    return (*names, *grid.traced_axes) or ("seed",)


def measuring_plan(
    grid: Grid, measure: Measure | None, data: Data, chunk_size: int | None = None
) -> Plan:
    """Cut a grid that is measured.

    Args:
        grid: the grid.
        measure: `signal`, `jacobian` or `sharpness`; None for the larger of the first two, which
            any other is taken for.
        data: examples.
        chunk_size: cells of a group; None for what fits into MEMORY, or an eighth of those of a
            program if that is less.

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
    """The part of a kind of network in a program.

    Attributes:
        first: number of the first kind that shares the program.
        place: of the kind among those that share it.
    """

    first: int
    place: int


def sharing(grid: Grid, measure: Measure | None) -> list[Share]:
    """Say which kinds of network share a program: those that differ in their activation alone.

    Compiling takes longer than a branch in each layer. A measure of the caller's own may read the
    activation, and has a program for each kind.

    Args:
        grid: the grid.
        measure: what is taken of every cell; None for one of the house's.

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
    """Bytes of measured cells that are computed at once, on a CPU.

    Of `signal`, `jacobian` and `sharpness` within 25 % of what XLA says.

    Attributes:
        seed: of all cells of one seed together: their weights, and what drawing and slicing a few
            layers takes.
        cell: of each network besides, at all its inputs.
    """

    seed: int
    cell: int

    def of(self, seeds: int, cells: int) -> int:
        """Bytes that so many take together.

        Args:
            seeds: draws of weights.
            cells: networks, over all seeds.

        Returns:
            The bytes.
        """
        return seeds * self.seed + cells * self.cell


def memory(grid: Grid, kind: Kind, measure: Measure | None, data: Data) -> Memory:
    """Estimate what measured cells take of memory at their peak, to size groups before compiling.

    With n units of the state, depth L, D depths and i inputs per network: `signal` takes i (L + 1) n
    for states, times b examples where an input is a batch, and i D gradients of a block's weights.
    `jacobian` of m singular values takes i D m^2 for the triangles and the larger of i (3 n m + 5/2
    m^2) for the fold and 9 i m^2 for the values of a depth.

    Args:
        grid: the grid.
        kind: one of its kinds.
        measure: `signal`, `jacobian` or `sharpness`; None for the larger of the first two, which
            any other is taken for.
        data: examples.

    Returns:
        The bytes.
    """
    mlp = grid.mlp(kind, grid.deepest, classes(data))
    depths = tuple(grid.values("depth"))
    inputs = grid.fixed["inputs"]
    dtype = grid.fixed["dtype"]
    d_in = data.x.shape[1]
    shapes = jax.eval_shape(
        lambda: networks.init(mlp, jax.random.key(0), jnp.ones(d_in, jnp.float32))
    )
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
        # a gradient and its tangents; networks that share no program are held side by side
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
    """Bytes of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _fitting(needed: Memory, gains: int) -> int:
    """Cells that fit into MEMORY: whole seeds, or gains of one."""
    seed = needed.of(1, gains)
    return MEMORY // seed * gains or max(1, (MEMORY - needed.of(1, 0)) // needed.cell)
