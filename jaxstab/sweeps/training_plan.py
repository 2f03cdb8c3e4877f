"""Plan of a grid of trainings: depths that share a program, cells of a group, FLOPs and memory."""

import math
import os

import jax
import numpy as np
import optax

from jaxstab import networks, store
from jaxstab.checks import check_batch, check_count
from jaxstab.curvature.monitors import PRODUCTS
from jaxstab.curvature.products import BYTES
from jaxstab.networks.family import init
from jaxstab.records import Training, dimensions
from jaxstab.sweeps.examples import Split
from jaxstab.sweeps.grid import Grid, Kind
from jaxstab.sweeps.measures import Train
from jaxstab.sweeps.plan import SHARES, Plan, cell_axes, cut, even
from jaxstab.sweeps.settings import traced

# cost of an idle layer, beyond the depth of the cell, in FLOPs per parameter and step: memory
# traffic, measured on a CPU at batch 128
TAIL = 40
# cost of compiling a program, in FLOPs that take the same time
COMPILE = 5e11
# depths within this factor always share a program, so that the number of programs grows as the
# logarithm of the range of depths
BUCKET = 1.25
# FLOPs of a group: large enough that a commit costs little, small enough that little is lost with
# an interrupted group
WORK = 5e11


def training_plan(
    grid: Grid,
    measure: Train,
    data: Split,
    chunk_size: int | None = None,
    budget: int | None = None,
    lanes: int | None = None,
) -> Plan:
    """Cut a grid into groups for training.

    Args:
        grid: the grid.
        measure: settings of the trainings.
        data: examples to train and test on.
        chunk_size: approximate number of cells of a group; None for the number that a core computes
            in about five seconds, or an eighth of the cells of one kind and depth if that is fewer.
        budget: bytes of a device that may be used; None for `available()`.
        lanes: number of cells computed side by side; None for 1 on a CPU, where one cell occupies
            cores and caches, and for as many as fit on other devices.

    Returns:
        The plan.

    Raises:
        ValueError: if one cell does not fit, there are fewer examples than a batch takes, or lanes
            or chunk_size < 1.
    """
    for name, value in (("lanes", lanes), ("chunk_size", chunk_size)):
        if value is not None:
            check_count(name, value, 1)
    for kind in grid.kinds:
        check_batch(kind["batch"], len(data.train.x))
    if budget is None:
        budget = available()
    most = max(memory(grid, kind, measure, grid.deepest, data) for kind in grid.kinds)
    if most > budget:
        raise ValueError(
            f"training one of the largest networks takes {most} bytes, at most {budget} may be "
            "used; use a smaller width, depth or batch, or more memory"
        )
    if lanes is None:
        if jax.default_backend() == "cpu":
            lanes = 1
        else:
            lanes = max(1, budget // most)
    lengths = {name: len(grid.values(name)) for name in grid.traced_axes}
    alike = math.prod(lengths.values())
    if chunk_size is None:
        work = max(flops(grid, kind, measure, grid.deepest, data) for kind in grid.kinds)
        chunk_size = max(lanes, min(round(WORK / work), math.ceil(alike / SHARES)))
    chunks = box(lengths, chunk_size)
    lanes = min(lanes, math.prod(chunks.values()))
    programs = sum(len(set(bounds(grid, kind, measure).values())) for kind in grid.kinds)
    return Plan(cut(grid, chunks, cell_axes(grid, prefixes=False)), programs, lanes * most, lanes)


def box(lengths: dict[str, int], size: int) -> dict[str, int]:
    """Distribute a number of cells over axes, the last axis first, in parts as even as possible.

    Args:
        lengths: lengths of the axes by name.
        size: approximate number of cells of the box.

    Returns:
        Number of cells along each axis.

    Example:
        >>> box({"sigma_w": 12, "seed": 2}, 8)
        {'sigma_w': 4, 'seed': 2}
    """
    chunks = {}
    for name, length in reversed(lengths.items()):
        chunks[name] = even(length, size)
        size //= chunks[name]
    return {name: chunks[name] for name in lengths}


def bounds(grid: Grid, kind: Kind, measure: Train) -> dict[int, int]:
    """Choose for every depth the depth of its program; depths share a program where that is faster.

    Args:
        grid: the grid.
        kind: one of the grid's kinds.
        measure: settings of the trainings.

    Returns:
        The depth of the program by depth.
    """
    depths = tuple(grid.values("depth"))
    if grid.network is not None or grid.mlp(kind, 1, 1).of_one_depth:
        return {depth: depth for depth in depths}
    alike = math.prod(len(grid.values(name)) for name in grid.traced_axes)
    idle = float(TAIL * kind["width"] ** 2 * measure.steps * alike)
    bound_of: dict[int, int] = {}
    bound = 0
    for index, depth in reversed(list(enumerate(depths))):
        # FLOPs of idle layers that a separate program saves this depth and all smaller depths
        spared = idle * (bound - depth) * (index + 1)
        if not bound_of or (spared > COMPILE and BUCKET * depth < bound):
            bound = depth
        bound_of[depth] = bound
    return bound_of


def flops(grid: Grid, kind: Kind, measure: Train, depth: int, data: Split) -> float:
    """Count the FLOPs of the matrix products of one cell's updates and records of the sharpness.

    A kernel takes three products of 2 batch fan_in fan_out per step; the first layer takes two, as
    the input needs no gradient. A highway's gate is a kernel too. fan_in of a "dense" network
    includes later layers, whose zeros are multiplied. For a user's own network, each matrix counts
    as one product per example.

    Args:
        grid: the grid.
        kind: one of the grid's kinds.
        measure: settings of the trainings.
        depth: depth of the cell.
        data: examples to train on.

    Returns:
        Number of FLOPs.

    Example:
        >>> from jaxstab import datasets
        >>> digits = datasets.load("digits")
        >>> grid = Grid({"depth": (64,)}, batch=128)
        >>> round(flops(grid, grid.kinds[0], Train(100), 64, Split(digits, digits)) / 1e9)
        81
    """
    batch = kind["batch"] or len(data.train.x)
    shapes = _parameters(grid, kind, depth, data)
    kernels = sum(
        leaf.size
        for path, leaf in jax.tree.leaves_with_path(shapes)
        if "kernel" in jax.tree_util.keystr(path)
    )
    # no gradient of the input is computed
    first = 0
    if grid.network is None:
        first = data.features * kind["width"]
    updates = measure.steps * batch * 2 * (3 * kernels - first)
    # a product with the Hessian, the derivative of a gradient, takes nine matrix products
    products = len(measure.records) * PRODUCTS * len(data.train.x)
    return float(updates + products * 2 * 9 * kernels)


def total_flops(grid: Grid, measure: Train, data: Split) -> float:
    """Count the FLOPs of all cells.

    Args:
        grid: the grid.
        measure: settings of the trainings.
        data: examples to train on.

    Returns:
        Number of FLOPs.
    """
    each = [
        flops(grid, kind, measure, depth, data)
        for kind in grid.kinds
        for depth in grid.values("depth")
    ]
    return grid.count // len(each) * sum(each)


def memory(grid: Grid, kind: Kind, measure: Train, bound: int, data: Split) -> int:
    """Estimate the peak memory of one cell on a CPU.

    Counts parameters and their gradient, the optimiser's state, the states of all layers, three
    states or outputs of all examples of one evaluation, and the record. Within 25 % of XLA's
    figures for `networks.MLP`; states of a user's own network are assumed as wide as its input.

    Args:
        grid: the grid.
        kind: one of the grid's kinds.
        measure: settings of the trainings.
        bound: depth of the program.
        data: examples to train and test on.

    Returns:
        The estimated bytes.
    """
    shapes = _parameters(grid, kind, bound, data)
    item = np.dtype(grid.fixed["dtype"]).itemsize
    examples = max(len(part.x) for part in data)
    batch = kind["batch"] or len(data.train.x)
    if grid.network is None:
        state = kind["width"] * grid.mlp(kind, bound, data.classes).sources * item
    else:
        state = math.prod(data.train.x.shape[1:]) * item
    kept = (4 * measure.steps + (len(measure.evaluations) + 1) * (bound + 4)) * item
    slots = _size(jax.eval_shape(_optimiser(grid, kind).init, shapes)) * item
    sharpness = 0
    if measure.records:
        # vectors of the Krylov space, and the states at which a chunk's gradient is linearised
        vectors = (PRODUCTS + 3) * _size(shapes) * item
        sharpness = vectors + min(BYTES, 4 * (bound + 1) * len(data.train.x) * state)
    return (
        2 * _size(shapes) * item
        + slots
        + (bound + 1) * batch * state
        + 3 * max(batch, examples) * max(state, data.classes * item)
        + kept
        + sharpness
    )


def fields(grid: Grid, measure: Train) -> dict[str, store.Field]:
    """List the fields stored for a trained cell.

    Args:
        grid: the grid.
        measure: settings of the trainings.

    Returns:
        Descriptions by field of `records.Training`; fields of clipping only if some cell clips, of
        sharpness only if it is recorded.

    Example:
        >>> fields(Grid({"depth": (2, 4)}), Train(5, evaluate=(0,)))["train_accuracy"].shape
        (2,)
    """
    evaluations = len(measure.evaluations)
    shapes: dict[str, tuple[int, ...]] = {
        "loss": (measure.steps,),
        "accuracy": (measure.steps,),
        "norm_before": (measure.steps,),
        "coefficient": (measure.steps,),
        "train_accuracy": (evaluations,),
        "test_accuracy": (evaluations,),
        "log_grad_theta": (evaluations, grid.deepest + 1),
        "log_grad_readout": (evaluations,),
        "sharpness": (len(measure.records),),
        "sharpness_error": (len(measure.records),),
        "first_nonfinite": (),
    }
    if not grid.clips:
        del shapes["norm_before"], shapes["coefficient"]
    if not measure.records:
        del shapes["sharpness"], shapes["sharpness_error"]
    kept = {}
    for name, shape in shapes.items():
        dtype = "int32" if name == "first_nonfinite" else grid.fixed["dtype"]
        kept[name] = store.Field(shape, dtype, dimensions(Training, name, len(shape)))
    return kept


def available() -> int:
    """Return the usable bytes of one local device.

    Three quarters of an accelerator's memory; for a CPU device, its share of half the memory.

    Returns:
        The usable bytes.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats:
        return int(0.75 * stats["bytes_limit"])
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(0.5 * whole) // jax.local_device_count()


def _parameters(grid: Grid, kind: Kind, depth: int, data: Split) -> networks.Params:
    """Return the shapes of a network's parameters."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    if grid.network is not None:
        chain = grid.chain(kind, depth)
        assert chain.init is not None
        x = jax.ShapeDtypeStruct((2, *data.train.x.shape[1:]), data.train.x.dtype)
        return jax.eval_shape(chain.init, key, x)
    mlp = grid.mlp(kind, depth, data.classes)
    x = jax.ShapeDtypeStruct((2, data.features), grid.fixed["dtype"])
    return jax.eval_shape(lambda key, x: init(mlp, key, x), key, x)


def _optimiser(grid: Grid, kind: Kind) -> optax.GradientTransformation:
    """Make the optimiser at the first value of every setting."""
    return grid.optimise(kind, {name: grid.values(name)[0] for name in traced()})


def _size(tree: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
