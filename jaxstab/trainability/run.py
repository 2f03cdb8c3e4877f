"""The programs that train groups of cells, a group per device at a time.

Depth, gains, learning rate, clip threshold, dropout and seed are traced: a program serves every
group of its kind whose depth it is made for. Groups of different depths may run side by side, each
device loops as far as its own.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jaxstab import networks, training
from jaxstab.checks import check_dtype
from jaxstab.devices import one_blas_thread, spread
from jaxstab.records import Training, dimensions
from jaxstab.sweeps.programs import AHEAD, Programs
from jaxstab.trainability.grid import AXES, Cells, Grid, Split
from jaxstab.trainability.plan import Group, Plan, cut
from jaxstab.training import Examples


class Result(NamedTuple):
    """A finished group.

    Attributes:
        group: its number in the plan.
        seen: what was seen, [cell, ...] in the order of the group.
        lanes: how many cells were computed side by side; fewer than planned after memory ran out.
        seconds: its share of the time that it and those beside it took, compiling not included.
        compiling: its share of the seconds spent waiting for their program, next to none for most
            groups.
    """

    group: int
    seen: Training
    lanes: int
    seconds: float
    compiling: float

    @property
    def values(self) -> dict[str, np.ndarray]:
        """The arrays of `seen` by name."""
        return self.seen._asdict()


def run(
    grid: Grid,
    plan: Plan,
    data: Split,
    batches: Iterable[Sequence[int]] | None = None,
    *,
    pending: Iterable[int] | None = None,
    devices: Sequence[jax.Device] | None = None,
    precision: str = "highest",
) -> Iterator[Result]:
    """Train groups, one after another, each device one at a time.

    What a cell gives depends on nothing but the grid, the plan and the data. A cell that diverges
    stops and is told by its `first_nonfinite`; where memory runs out, groups are computed in fewer
    lanes.

    Args:
        grid: what to train.
        plan: how it is cut.
        data: to train and test on.
        batches: numbers of groups to compute side by side, no more than there are devices, of one
            program each (see `Plan.program`); None for all groups.
        pending: groups that may come: programs that only others need are not compiled ahead; None
            for all.
        devices: to use; None for all.
        precision: of matrix products, as in `jax.default_matmul_precision`.

    Yields:
        Each group as it is finished.

    Raises:
        ValueError: if float64 is asked for while JAX has it switched off.
        MemoryError: if one cell at a time is too much.

    Example:
        >>> from jaxstab import datasets
        >>> from jaxstab.trainability import plan
        >>> digits = datasets.load("digits")
        >>> data = Split(digits, digits)
        >>> grid = Grid(depths=(1, 2), sigma_w=(1.0, 1.5), learning_rates=(0.1,), width=16, steps=60, batch=32)
        >>> cuts = plan(grid, data)
        >>> results = list(run(grid, cuts, data))
        >>> rows = {name: np.concatenate([getattr(one.seen, name) for one in results]) for name in fields(grid)}
        >>> found = labelled(grid, cuts, rows, np.ones(len(results), bool)).squeeze()
        >>> found.train_accuracy.dims, bool(found.train_accuracy.isel(evaluation=-1).min() > 0.6)
        (('depth', 'sigma_w', 'evaluation'), True)
    """
    check_dtype(grid.dtype)
    devices = jax.local_devices() if devices is None else devices
    coming = range(len(plan.groups)) if pending is None else pending
    programs = _Programs(grid, plan, data, devices, precision, coming)
    lanes = plan.lanes
    with one_blas_thread():
        for numbers in plan.batches(len(devices)) if batches is None else batches:
            seen, lanes, seconds, compiling = programs.train(
                [plan.groups[number] for number in numbers], lanes
            )
            for number, one in zip(numbers, seen, strict=True):
                yield Result(number, one, lanes, seconds / len(numbers), compiling / len(numbers))


class _Programs:
    """Compiled programs, kept: one for every kind of network, bound of depths, and number of lanes."""

    def __init__(
        self,
        grid: Grid,
        plan: Plan,
        data: Split,
        devices: Sequence[jax.Device],
        precision: str,
        coming: Iterable[int],
    ) -> None:
        self.grid, self.size, self.precision, self.classes = (
            grid,
            plan.size,
            precision,
            data.classes,
        )
        self.order = list(dict.fromkeys(map(plan.program, coming)))
        self.mesh = Mesh(np.array(devices), ("cell",))
        self.examples = tuple(
            Examples(jnp.asarray(part.normalised().x.astype(grid.dtype)), jnp.asarray(part.y))
            for part in data
        )
        self.columns = Cells(*(np.append(column, column[:1]) for column in grid.cells))
        self.programs: Programs[tuple[int, int, int]] = Programs(self._lowered)

    def train(
        self, groups: Sequence[Group], lanes: int
    ) -> tuple[list[Training], int, float, float]:
        """What the groups' cells gave, the lanes they took, and the seconds of working and of compiling."""
        compiling = 0.0
        arguments = self._arguments(groups)
        while True:
            try:
                begun = time.perf_counter()
                program = self._ready(groups[0].variant, groups[0].bound, lanes)
                compiling += time.perf_counter() - begun
                begun = time.perf_counter()
                # fetched, hence finished, before the next is sent
                seen = jax.device_get(program(*arguments))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                if lanes == 1:
                    raise MemoryError(
                        f"training one network at a time ran out of memory: {error}"
                    ) from error
                lanes //= 2
                continue
            seconds = time.perf_counter() - begun
            parts = [
                Training(*(leaf[i * self.size : (i + 1) * self.size] for leaf in seen))
                for i in range(len(groups))
            ]
            return (
                [_padded(part, max(self.grid.depths)) for part in parts],
                lanes,
                seconds,
                compiling,
            )

    def _arguments(
        self, groups: Sequence[Group]
    ) -> tuple[np.ndarray, np.ndarray, Cells, tuple[Examples, ...]]:
        """Depths [device], numbers of cells [device], cells [device * size] and examples, for a group per device."""
        idle = self.mesh.size - len(groups)
        # devices without a group loop over no cell
        depths = np.array([group.depth for group in groups] + [0] * idle, np.int32)
        counts = np.array([np.sum(group.cells >= 0) for group in groups] + [0] * idle, np.int32)
        at = np.concatenate([group.cells for group in groups] + [np.full(self.size, -1)] * idle)
        return depths, counts, Cells(*(column[at] for column in self.columns)), self.examples

    def _ready(self, variant: int, bound: int, lanes: int) -> Any:
        """The compiled program; those that come next are compiled beside it, and beside what runs."""
        wanted = variant, bound
        at = self.order.index(wanted) if wanted in self.order else len(self.order)
        coming = [(*key, lanes) for key in self.order[at + 1 : at + AHEAD]]
        return self.programs.ready((variant, bound, lanes), coming)

    def _lowered(self, key: tuple[int, int, int]) -> jax.stages.Lowered:
        """The traced program of a kind, bound and number of lanes."""
        return self._program(*key).lower(*self._arguments([]))

    def _program(self, variant: int, bound: int, lanes: int) -> Any:
        """(depths [device], counts [device], cells [device * size], examples) -> what is seen [device * size, ...]."""
        grid = self.grid
        mlp = self.grid.network(variant, bound, self.classes)

        def keys(cell: Cells) -> Array:
            return jax.random.split(jax.random.key(cell.seed))

        def draw(cell: Cells, x: Array) -> networks.Params:
            return networks.init(mlp, keys(cell)[0], x, cell.sigma_w, cell.sigma_b)

        def one(
            cell: Cells, params: networks.Params, depth: Array, examples: tuple[Examples, Examples]
        ) -> Training:
            return training.train(
                mlp,
                params,
                grid.optimise(cell.learning_rate, cell.clip),
                examples[0],
                key=keys(cell)[1],
                steps=grid.steps,
                batch=grid.batch,
                test=examples[1],
                rate=cell.dropout,
                depth=None if mlp.of_one_depth else depth,
                evaluate=grid.evaluate,
            )[0]

        def together(cells: Cells, depth: Array, examples: tuple[Examples, Examples]) -> Training:
            x = examples[0].x[:2]
            if lanes == 1:
                cell = Cells(*(column[0] for column in cells))
                return jax.tree.map(
                    lambda leaf: leaf[None], one(cell, draw(cell, x), depth, examples)
                )
            params = jax.vmap(lambda cell: draw(cell, x))(cells)
            return jax.vmap(lambda cell, params: one(cell, params, depth, examples))(cells, params)

        def device(
            depths: Array, counts: Array, cells: Cells, examples: tuple[Examples, Examples]
        ) -> Training:
            shapes = jax.eval_shape(
                together, Cells(*(column[:lanes] for column in cells)), depths[0], examples
            )
            start = jax.tree.map(
                lambda leaf: jnp.full((self.size, *leaf.shape[1:]), _blank(leaf), leaf.dtype),
                shapes,
            )

            def some(index: Array, seen: Training) -> Training:
                here = jax.tree.map(
                    lambda c: jax.lax.dynamic_slice_in_dim(c, index * lanes, lanes), cells
                )
                put = lambda all_, new: jax.lax.dynamic_update_slice_in_dim(
                    all_, new, index * lanes, 0
                )
                return jax.tree.map(put, seen, together(here, depths[0], examples))

            with jax.default_matmul_precision(self.precision):
                return jax.lax.fori_loop(0, (counts[0] + lanes - 1) // lanes, some, start)

        own = PartitionSpec("cell")
        return spread(device, self.mesh, (own, own, own, PartitionSpec()), own)


def _padded(seen: Training, deepest: int) -> Training:
    """NaN for the layers that only deeper networks have."""
    beyond = deepest + 1 - seen.log_grad_theta.shape[-1]
    wide: Any = np.pad(seen.log_grad_theta, ((0, 0), (0, 0), (0, beyond)), constant_values=np.nan)
    return seen._replace(log_grad_theta=wide)


def _blank(one: jax.ShapeDtypeStruct) -> float:
    """What stands in rows that no cell fills: NaN, of integers -1."""
    return np.nan if np.issubdtype(one.dtype, np.floating) else -1


def fields(grid: Grid) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of what is kept of a cell.

    Args:
        grid: the grid.

    Returns:
        By field of `Training`; those of clipping only where there is some.

    Example:
        >>> fields(Grid(steps=5, evaluate=(0,)))["train_accuracy"].shape
        (2,)
    """
    looks = len(grid.looks)
    shapes = {
        "loss": (grid.steps,),
        "accuracy": (grid.steps,),
        "norm_before": (grid.steps,),
        "coefficient": (grid.steps,),
        "train_accuracy": (looks,),
        "test_accuracy": (looks,),
        "log_grad_theta": (looks, max(grid.depths) + 1),
        "log_grad_readout": (looks,),
        "first_nonfinite": (),
    }
    if grid.clips == (math.inf,):
        del shapes["norm_before"], shapes["coefficient"]
    dtype = lambda name: np.int32 if name == "first_nonfinite" else grid.dtype
    return {name: jax.ShapeDtypeStruct(shape, dtype(name)) for name, shape in shapes.items()}


def coordinates(grid: Grid, plan: Plan) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Where the rows of a plan stand on the axes of their grid, and what their own axes count.

    Args:
        grid: the grid.
        plan: how it is cut.

    Returns:
        (dims, values) by name: over "row" the number of the cell, -1 where a row only fills up, and
        its place on every axis of `AXES`, NaN, -1 or "" there; over axes of their own "step",
        "evaluation" and "layer".

    Example:
        >>> grid = Grid(depths=(1, 2), sigma_w=(0.5, 1.5, 2.5), steps=5)
        >>> known = coordinates(grid, cut(grid, size=2))
        >>> known["depth"][1].tolist(), known["sigma_w"][1][:4].tolist()
        ([2, 2, 2, -1, 1, 1, 1, -1], [0.5, 1.5, 2.5, nan])
    """
    at = np.concatenate([group.cells for group in plan.groups])
    filled = at >= 0
    found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {"cell": (("row",), at.astype(np.int64))}
    for name, column in grid.cells._asdict().items():
        values = column[at]
        blank = np.nan if values.dtype.kind == "f" else -1
        found[name] = (("row",), np.where(filled, values, np.array(blank, values.dtype)))
    names = np.array([*(variant.name for variant in grid.variants), ""])
    found["variant"] = (("row",), names[found["variant"][1]])
    found["step"] = (("step",), np.arange(grid.steps))
    found["evaluation"] = (("evaluation",), np.array(grid.looks))
    found["layer"] = (("layer",), np.arange(max(grid.depths) + 1))
    return found


def labelled(
    grid: Grid, plan: Plan, rows: Mapping[str, np.ndarray], done: np.ndarray
) -> xr.Dataset:
    """What is known of a grid, over its axes.

    Args:
        grid: the grid.
        plan: how it was cut.
        rows: by field of `Training`, [group * size, ...] in the order of the plan.
        done: whether each group is finished.

    Returns:
        The fields over (*AXES, ...), NaN where a cell is not finished, and `done`.

    Example:
        >>> from jaxstab.trainability.plan import cut
        >>> grid = Grid(depths=(1, 2), sigma_w=(0.5, 1.5), steps=5)
        >>> rows = {name: np.zeros((4, *one.shape), one.dtype) for name, one in fields(grid).items()}
        >>> labelled(grid, cut(grid, size=2), rows, np.array([True, False])).loss.squeeze()[:, :, 0].values.tolist()
        [[nan, nan], [0.0, 0.0]]
    """
    at = np.concatenate([group.cells for group in plan.groups])
    known = np.repeat(done, plan.size) & (at >= 0)
    shape = tuple(len(values) for values in grid.axes.values())
    finished = np.zeros(grid.count, bool)
    finished[at[known]] = True
    found: dict[str, Any] = {"done": (AXES, finished.reshape(shape))}
    for name, field in fields(grid).items():
        values = np.full((grid.count, *field.shape), _blank(field), field.dtype)
        values[at[known]] = rows[name][known]
        found[name] = (
            (*AXES, *dimensions(Training, name, len(field.shape))),
            values.reshape(*shape, *field.shape),
        )
    inside = {
        "evaluation": list(grid.looks),
        "step": np.arange(grid.steps),
        "layer": np.arange(max(grid.depths) + 1),
    }
    coordinates = {axis: list(values) for axis, values in grid.axes.items()}
    return xr.Dataset(found).assign_coords(coordinates | inside).assign_attrs(grid=grid.to_json())


def restored(rows: xr.Dataset) -> xr.Dataset:
    """What a store of groups knows, over the axes of its grid, from the store alone.

    The plan is the one by which the store was written, on whatever machine that was.

    Args:
        rows: fields and `done` over row, and as attributes the settings: `grid`, `plan`, and
            `data`, as `store.load_groups` gives them.

    Returns:
        `labelled`, the settings among its attributes.

    Raises:
        ValueError: if these are not the rows of a grid of trainings.

    Example:
        >>> from jaxstab import store
        >>> from jaxstab.store.opening import open_groups
        >>> grid = Grid(depths=(1, 2), sigma_w=(1.5,), steps=5)
        >>> settings = {"grid": json.loads(grid.to_json()), "plan": {"size": 1, "lanes": 1}}
        >>> place, kept = "memory://doctest/f.zarr", fields(grid)
        >>> named = {n: store.Field(s.shape, s.dtype.name, dimensions(Training, n, s.ndim)) for n, s in kept.items()}
        >>> sweep = open_groups(place, settings, named, groups=2, size=1)
        >>> sweep.write(0, {name: np.zeros((1, *shape.shape), shape.dtype) for name, shape in kept.items()})
        >>> restored(store.load_groups(place)).loss.squeeze()[:, 0].values.tolist()  # the deepest first
        [nan, 0.0]
    """
    try:
        grid = Grid.from_json(json.dumps(rows.attrs["grid"]))
        plan = cut(grid, rows.attrs["plan"]["size"], rows.attrs["plan"]["lanes"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no store of trainings: its settings lack {error}") from error
    wanted = {
        name: (len(plan.groups) * plan.size, *field.shape) for name, field in fields(grid).items()
    }
    wrong = [
        name for name, shape in wanted.items() if name not in rows or rows[name].shape != shape
    ]
    if wrong or "done" not in rows:
        raise ValueError(
            f"no store of trainings: {', '.join(wrong) or 'done'} not as its grid would have it"
        )
    arrays = {name: rows[name].values for name in wanted}
    whole = labelled(grid, plan, arrays, rows.done.values[:: plan.size])
    return whole.assign_attrs({name: json.dumps(value) for name, value in rows.attrs.items()})
